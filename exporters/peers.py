"""What the other journals of a run tell of a journal's spans: links to steps, and device time.

A step of another rank than the lowest is linked to that one's step of the same iteration; a batch
to the step that used it; how long the device took for a phase says ``firetrace.exporters.devices``.
The ids follow from the other journal's seed and row numbers, and which
step it is from what stands in both journals. So a relay and every later export make the same links;
only what is not there yet when a span is sent has no link.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firetrace.exporters.devices import DeviceTimes
from firetrace.exporters.journals import rank_journal
from firetrace.exporters.steps import STEP, Runs, Steps, Used
from firetrace.exporters.told import Peers, Told
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.ids import Row, span_id
from firetrace.tracer.journal import Header
from firetrace.tracer.meta import Meta
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import attempt_of, is_data, is_device, is_rank, rank_of
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table
from firetrace.tracer.traces import Lineage, TraceIds, trace_of

MOST_REMEMBERED = 20_000
LookUp = Callable[[int], np.void | None]


def place_of(look_up: LookUp, meta: Meta) -> Callable[[int], Row | None]:
    """What of a journal's row says where it stands, for ``Lineage``."""

    def found(number: int) -> Row | None:
        row = look_up(number)
        if row is None:
            return None
        name = meta.names.get(int(row["name"]))
        return Row(int(row["parent"]), name.kind if name else "", int(row["epoch"]))

    return found


class Other:
    """Another journal: its steps, and the ids under which it is exported.

    Args:
        path: of its rows file.
        split: as which it is exported; by default as it says itself.

    Raises:
        JournalError: it cannot be read.
    """

    def __init__(self, path: Path, split: str | None) -> None:
        self._stream, self._split = Stream(path), split
        self.reader: JournalReader = self._stream.reader
        self.steps = Steps(self.reader.row, (STEP,))
        self._lineage = Lineage(place_of(self.reader.row, self.reader.meta))
        self._ids: TraceIds | None = None

    def look(self) -> None:
        """Read what has been written since the last time."""
        for block in self._stream.ended():
            self.steps.add(block)
        reader = self.reader
        self.steps.look_at_open(reader.rows, reader.numbers, reader.meta)

    def ids(self, number: int) -> tuple[int, int]:
        """Trace and span id of a row."""
        header, meta = self.reader.header, self.reader.meta
        if self._ids is None:  # the meta file says how it is split before there is a first row
            self._ids = TraceIds(header.seed, self._split or meta.split, meta.traceparent)
        place = self._lineage.place(number)
        trace_id = self._ids.of(trace_of(self._ids.split, number, place), place.root)
        return trace_id, span_id(header.seed, number)


class SameSteps:
    """Links the steps of a rank to those of the lowest rank's journal of the same attempt.

    Args:
        path: of the journal.
        meta: of it; may grow.
        look_up: the row with a number; None: there is none.
        split: as which journals are exported; by default as each says itself.
    """

    def __init__(self, path: Path, meta: Meta, look_up: LookUp, split: str | None) -> None:
        self._path, self._meta, self._look_up, self._split = path, meta, look_up, split
        self._runs = Runs(look_up)
        self._placed: set[int] = set()  # rows above steps, whose runs are known
        self._other: Other | None = None
        self._rank = rank_of(path) or 0  # the lowest that has been found

    def told(self, table: Table) -> dict[int, Told]:
        """A link for each step of the block that the other rank has, too."""
        positions = table.of_kind("step")
        if not len(positions):
            return {}
        self._find_other()
        if self._other is None:
            return {}
        self._other.look()
        self._find_runs(table, positions)
        rows, numbers = table.rows[positions], table.numbers[positions]
        found: dict[int, Told] = {}
        kind = f"rank {self._rank}"
        for lane in np.unique(rows["lane"]).tolist():
            theirs = self._lane(table, lane)
            here = np.flatnonzero(rows["lane"] == lane)
            which = np.array([self._runs.around(lane, n) for n in numbers[here].tolist()])
            for each in np.unique(which).tolist() if theirs is not None else ():
                own = here[which == each]
                iterations = rows["iteration"][own].astype(np.int64)
                others = self._other.steps.find(theirs or 0, each, iterations)
                for number, other in zip(numbers[own].tolist(), others.tolist(), strict=True):
                    if other:
                        found[number] = Told(*self._other.ids(other), kind)
        return found

    def _find_other(self) -> None:
        """Look for a lower rank than the one found so far, until that is rank 0."""
        if not self._rank:
            return
        attempt = attempt_of(self._path)
        for path in self._path.parent.glob(f"rank*.{attempt}.rows"):
            rank = rank_of(path)
            if rank is not None and rank < self._rank and is_rank(path):
                try:
                    self._other = Other(path, self._split)
                except FiretraceError:  # something else under a journal's name
                    continue
                self._rank = rank

    def _find_runs(self, table: Table, positions: npt.NDArray[np.int64]) -> None:
        """Note the runs in which these steps are: what is read may begin in the middle of one."""
        self._runs.read(self._meta)
        if len(self._placed) > MOST_REMEMBERED:
            self._placed.clear()
        for parent in np.unique(table.rows["parent"][positions]).tolist():
            number = parent if parent not in self._placed else 0
            self._placed.add(parent)
            while number and (row := self._look_up(number)) is not None:
                name = self._meta.names.get(int(row["name"]))
                if name is not None and name.kind == "run":
                    self._runs.add(number, int(row["lane"]), int(row["start"]))
                    break
                number = int(row["parent"]) if row["parent"] < number else 0

    def _lane(self, table: Table, lane: int) -> int | None:
        """The other journal's lane of this engine, in a thread of the same name if there is one."""
        assert self._other is not None
        own = table.lane_of(lane)
        lanes = sorted(self._other.reader.meta.lanes.items())
        alike = [id for id, each in lanes if each.engine == own.engine]
        same = [id for id in alike if self._other.reader.meta.lane(id).thread == own.thread]
        return next(iter([*same, *alike]), None)


class UsedBatches:
    """Links the batches of a data journal to the steps that used them.

    Args:
        path: of the data journal.
        header: of it.
        meta: of it; may grow.
        split: as which the rank's journal is exported; by default as it says itself.
    """

    def __init__(self, path: Path, header: Header, meta: Meta, split: str | None) -> None:
        self._path, self._header, self._meta, self._split = path, header, meta, split
        self._rank: Other | None = None
        self._used: Used | None = None

    def told(self, table: Table) -> dict[int, Told]:
        """A link for each batch that was used, and when that was."""
        positions = table.of_kind("batch")
        if not len(positions):
            return {}
        if self._rank is None or self._used is None:
            self._rank = Other(rank_journal(self._path), self._split)
            reader = self._rank.reader
            self._used = Used(
                self._rank.steps, reader.header, reader.meta, self._header, self._meta
            )
        self._rank.look()
        found: dict[int, Told] = {}
        steps = self._used.by(table.rows[positions]).tolist()
        for number, step in zip(table.numbers[positions].tolist(), steps, strict=True):
            row = self._rank.reader.row(step) if step else None
            if row is not None:
                when = {
                    "ignite.epoch": int(row["epoch"]), "ignite.iteration": int(row["iteration"]),
                }  # fmt: skip
                found[number] = Told(*self._rank.ids(step), "step", when)
        return found


class Several:
    """What several tell of a journal's spans. One that cannot be read keeps none of the others."""

    def __init__(self, *peers: Peers) -> None:
        self._peers = peers

    def told(self, table: Table) -> dict[int, Told]:
        """What is known of the spans of a block. There is one link a span: the first."""
        found: dict[int, Told] = {}
        for peers in self._peers:
            try:
                told = peers.told(table)
            except (FiretraceError, OSError):  # the other journal is not there
                continue
            for number in found.keys() & told.keys():
                first, second = found[number], told[number]
                both = {**(first.attributes or {}), **(second.attributes or {})}
                told[number] = (first if first.kind else second)._replace(attributes=both or None)
            found.update(told)
        return found


def peers_of(
    reader: JournalReader, split: str | None, devices: DeviceTimes | None = None
) -> Peers | None:
    """Who tells more of a journal's spans; None: nobody.

    Args:
        reader: of the journal.
        split: as which journals are exported; by default as each says itself.
        devices: of a rank's journal, where somebody has them already.
    """
    path, meta = reader.path, reader.meta
    if is_data(path):
        return Several(UsedBatches(path, reader.header, meta, split))
    if is_device(path):
        return None
    devices = devices or DeviceTimes(reader)
    if rank_of(path):
        return Several(SameSteps(path, meta, reader.row, split), devices)
    return Several(devices)
