"""A part of a run: some epochs, the slow steps, the steps in which something failed.

What is kept is kept with everything that encloses it, so no span loses its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firetrace.exporters.journals import rank_journal
from firetrace.exporters.steps import STEP, Steps, Used
from firetrace.tracer.ids import Row
from firetrace.tracer.journal import Flag, Rows
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import is_data
from firetrace.tracer.stream import blocks, latest
from firetrace.tracer.table import Table
from firetrace.tracer.traces import Lineage, Places

FOREVER = 2**63 - 1
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """Which spans to hand on.

    Args:
        from_epoch: from this epoch on, as ignite counts; runs themselves are always kept.
        to_epoch: up to and with this epoch.
        slower_than_ns: whole steps that took at least so long; of what lies outside of steps, the
            runs and epochs and whatever itself took as long.
        errors: whole steps in which something failed, and what failed outside of steps.
        from_ns: what ended at this time, Unix ns, or later; steps are kept whole.
        to_ns: what began at this time, Unix ns, or before; steps are kept whole.
    """

    from_epoch: int | None = None
    to_epoch: int | None = None
    slower_than_ns: int | None = None
    errors: bool = False
    from_ns: int | None = None
    to_ns: int | None = None

    def __bool__(self) -> bool:
        return self != Selection()

    @property
    def needs_the_end(self) -> bool:
        """Whether it cannot be told of a step before it has ended."""
        return self.errors or self.slower_than_ns is not None


class Selector:
    """Keeps what a selection asks for, block by block.

    Args:
        path: of the journal.
        selection: what to keep.

    Raises:
        JournalError: the journal cannot be read.
    """

    def __init__(self, path: Path, selection: Selection) -> None:
        self._selection = selection
        self._reader = JournalReader(path)
        self._lineage = Lineage(self._look_up)
        self._failed_steps: set[int] = set()
        self._failed: set[int] = set()
        self._last_ns = 0  # where what is open ends
        if selection:
            self._reader.poll(0)  # the names
        if selection.needs_the_end:
            for block in blocks(path):
                self._last_ns = max(self._last_ns, latest(block.rows))
                self._find_failures(block)

    def _look_up(self, number: int) -> Row | None:
        row = self._reader.row(number)
        if row is None:
            return None
        name = self._reader.meta.names.get(int(row["name"]))
        return Row(int(row["parent"]), name.kind if name else "", int(row["epoch"]))

    def _find_failures(self, block: Table) -> None:
        failed = np.flatnonzero(block.rows["flags"] & Flag.ERROR)
        for number in block.numbers[failed].tolist():
            self._failed_steps.add(self._lineage.place(number).first_step)
            while number and number not in self._failed:
                self._failed.add(number)
                row = self._reader.row(number)
                number = int(row["parent"]) if row is not None else 0
        self._failed_steps.discard(0)

    def select(self, found: Iterable[Table]) -> Iterator[Table]:
        """The blocks, each with what is kept of it."""
        if not self._selection:
            yield from found
            return
        for block in found:
            if self._reader.meta.names.keys() != block.meta.names.keys():
                self._reader.meta.poll()
            places = self._lineage.places(block)
            kept = np.flatnonzero(self._mask(block, places))
            yield replace(
                block, rows=block.rows[kept], numbers=block.numbers[kept],
                scalars=block.scalars[self._scalars(block, kept)],
            )  # fmt: skip

    def _mask(self, block: Table, at: Places) -> Mask:
        selection = self._selection
        mask: Mask = np.ones(len(block), bool)
        first, last = selection.from_epoch, selection.to_epoch
        if first is not None or last is not None:
            inside = (at.epoch_number >= (first or 0)) & (
                at.epoch_number <= (2**32 if last is None else last)
            )
            mask &= (inside & (at.epoch != 0)) | (at.root == block.numbers)
        if selection.from_ns is not None or selection.to_ns is not None:
            mask &= self._between(block, at, selection.from_ns or 0, selection.to_ns or FOREVER)
        if selection.slower_than_ns is not None:
            mask &= self._slow(block, at, selection.slower_than_ns)
        if selection.errors:
            mask &= np.isin(at.first_step, [*self._failed_steps]) | np.isin(
                block.numbers, [*self._failed]
            )
        return mask

    def _slow(self, block: Table, at: Places, limit: int) -> Mask:
        steps = np.unique(at.first_step[at.first_step != 0])
        slow = [step for step in steps.tolist() if self._duration(step) >= limit]
        ends = np.where(block.rows["end"], block.rows["end"], self._last_ns)
        own = ends - block.rows["start"] >= limit
        outermost = (at.root == block.numbers) | (at.epoch == block.numbers)
        mask: Mask = np.where(at.first_step, np.isin(at.first_step, slow), own | outermost)
        return mask

    def _between(self, block: Table, at: Places, from_ns: int, to_ns: int) -> Mask:
        steps, which = np.unique(at.first_step, return_inverse=True)
        rows = [self._reader.row(step) for step in steps.tolist()]
        near = [
            row is not None and row["start"] <= to_ns and (not row["end"] or row["end"] >= from_ns)
            for row in rows
        ]
        start, end = block.rows["start"], block.rows["end"]
        own = (start <= to_ns) & ((end == 0) | (end >= from_ns))
        mask: Mask = np.where(at.first_step, np.array(near, bool)[which], own)
        return mask

    def _duration(self, number: int) -> int:
        row = self._reader.row(number)
        if row is None:
            return 0
        return (int(row["end"]) or self._last_ns) - int(row["start"])

    def _scalars(self, block: Table, kept: npt.NDArray[np.int64]) -> Mask:
        """The scalars of what is kept."""
        parents = block.scalars["parent"]
        mask: Mask = np.isin(parents, block.numbers[kept])
        elsewhere = np.setdiff1d(parents, block.numbers)
        rows = [(number, self._reader.row(number)) for number in elsewhere.tolist()]
        found = [(number, row) for number, row in rows if row is not None]
        if found:
            numbers = np.array([number for number, _ in found], np.uint32)
            around = replace(block, numbers=numbers, rows=np.array([row for _, row in found]))
            mask |= np.isin(parents, numbers[self._mask(around, self._lineage.places(around))])
        return mask

    def close(self) -> None:
        """Close the journal."""
        self._reader.close()

    def __enter__(self) -> Selector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class BatchSelector(Selector):
    """Of a data journal keeps the batches that were used by steps which a selection keeps.

    Args:
        path: of the data journal.
        selection: what to keep of its rank's journal.

    Raises:
        JournalError: one of them cannot be read.
    """

    def __init__(self, path: Path, selection: Selection) -> None:
        super().__init__(path, Selection())
        self._selection = selection
        self._rank = JournalReader(rank_journal(path))
        steps = Steps(self._rank.row, (STEP,))
        with Selector(self._rank.path, selection) as selector:
            for block in selector.select(blocks(self._rank.path)):
                steps.add(block)
        self._rank.meta.poll()
        data = self._reader
        self._used = Used(steps, self._rank.header, self._rank.meta, data.header, data.meta)

    def select(self, found: Iterable[Table]) -> Iterator[Table]:
        """The blocks, each with what is kept of it."""
        for block in found:
            self._reader.meta.poll()
            yield of_batches(block, self._used)

    def close(self) -> None:
        """Close the journals."""
        super().close()
        self._rank.close()


class Kept:
    """What a selection has kept of a rank's journal, as its device journal asks.

    4 bytes a phase and 16 bytes a step.
    """

    def __init__(self) -> None:
        self._phases = [np.empty(0, np.uint32)]
        self._steps = [np.empty((2, 0), np.int64)]  # start and end, Unix ns

    def add(self, block: Table) -> None:
        """Take note of what is kept of a block."""
        self._phases.append(block.numbers[block.of_kind("phase")])
        steps = block.rows[block.of_kind("step")]
        ends = np.where(steps["end"] == 0, FOREVER, steps["end"])
        self._steps.append(np.stack([steps["start"], ends]))

    def settle(self) -> None:
        """All that is kept has been told."""
        self._phases = [np.sort(np.concatenate(self._phases))]
        starts, ends = np.concatenate(self._steps, axis=1)
        order = np.argsort(starts)
        self._steps = [np.stack([starts[order], np.maximum.accumulate(ends[order])])]

    def rows(self, rows: Rows, shift_ns: int) -> Mask:
        """Which of the device journal's rows belong to that: by their phase, else by their time.

        Args:
            rows: of the device journal.
            shift_ns: what is to be added to its times.
        """
        (phases,), ((starts, ends),) = self._phases, self._steps
        at = np.searchsorted(starts, rows["start"] + shift_ns, side="right") - 1
        inside = (at >= 0) & (np.append(ends, 0)[at] >= rows["start"] + shift_ns)
        mask: Mask = np.where(rows["epoch"] == 0, inside, np.isin(rows["epoch"], phases))
        return mask


def selector_of(path: Path, selection: Selection) -> Selector:
    """What keeps of a journal, of either kind, what a selection of the run asks for.

    Raises:
        JournalError: it cannot be read.
    """
    chosen = selection and is_data(path)
    return BatchSelector(path, selection) if chosen else Selector(path, selection)


def of_batches(block: Table, used: Used) -> Table:
    """What of a data journal's block belongs to batches that are known to have been used."""
    kept, scalars = used.by(block.rows) != 0, used.by(block.scalars) != 0
    return replace(
        block, rows=block.rows[kept], numbers=block.numbers[kept], scalars=block.scalars[scalars]
    )
