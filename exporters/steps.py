"""Which row of a journal is the step of an iteration, as spans of another journal ask.

An engine's run counts its iterations. So a step is told by its lane, by the run in that lane that
it is in, and by its iteration; runs are told by their order. Row numbers of a lane rise with time,
so 8 bytes a step are enough to find it: its number and its iteration.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from firetrace.tracer.aligned import aligned
from firetrace.tracer.journal import Header, Rows
from firetrace.tracer.meta import Loading, Meta
from firetrace.tracer.passes import consumers
from firetrace.tracer.reader import Numbers
from firetrace.tracer.table import Table

#: What of a journal's rows can be asked for, and which names these have.
STEP, FETCH = 0, 1
FETCHES = ("phase", "get_batch")
LookUp = Callable[[int], np.void | None]


class Column:
    """Row numbers, rising, and their iterations; grows."""

    def __init__(self) -> None:
        self._numbers, self._iterations = np.empty(256, np.uint32), np.empty(256, np.uint32)
        self._count = 0

    def add(self, numbers: Numbers, iterations: Numbers) -> None:
        """Add rows, whose numbers rise; they may lie before those that are there."""
        count, end = self._count, self._count + len(numbers)
        if end > len(self._numbers):
            more = np.empty(max(end, 2 * count) - count, np.uint32)
            self._numbers = np.concatenate([self._numbers[:count], more])
            self._iterations = np.concatenate([self._iterations[:count], more])
        self._numbers[count:end], self._iterations[count:end] = numbers, iterations
        self._count = end
        if count and len(numbers) and numbers[0] < self._numbers[count - 1]:
            order = np.argsort(self._numbers[:end], kind="stable")
            self._numbers[:end] = self._numbers[:end][order]
            self._iterations[:end] = self._iterations[:end][order]

    def between(self, first: int, last: int) -> tuple[Numbers, Numbers]:
        """Those with numbers from ``first`` up to, not with, ``last``."""
        low, high = np.searchsorted(self._numbers[: self._count], np.array([first, last]))
        return self._numbers[low:high], self._iterations[low:high]


class Runs:
    """The runs in each lane of a journal, in order.

    Args:
        look_up: the row with a number; None: there is none.
    """

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._numbers: dict[int, list[int]] = {}  # by lane
        self._starts: dict[int, list[int]] = {}
        self._known: set[int] = set()
        self._noted = 0

    def add(self, number: int, lane: int, start_ns: int) -> None:
        """There is this run."""
        if number not in self._known:
            self._known.add(number)
            insort(self._numbers.setdefault(lane, []), number)
            insort(self._starts.setdefault(lane, []), start_ns)

    def read(self, meta: Meta) -> None:
        """Add what the meta file says of runs, also of those whose rows nobody shows us."""
        rows = meta.runs.rows()
        if len(rows) != self._noted:
            self._noted = len(rows)
            for number in np.unique(rows).tolist():
                if number not in self._known and (row := self._look_up(number)) is not None:
                    self.add(number, int(row["lane"]), int(row["start"]))

    def around(self, lane: int, number: int) -> int:
        """Which run of its lane a row is in, from 0; -1: in none."""
        return bisect_right(self._numbers.get(lane, []), number) - 1

    def at(self, lane: int, time_ns: int) -> int:
        """Which run of a lane was the last to begin by then, from 0; -1: none."""
        return bisect_right(self._starts.get(lane, []), time_ns) - 1

    def rows(self, lane: int, which: int) -> tuple[int, int]:
        """Number of a run's row, and of the next one's in its lane: its own lie in between."""
        numbers = [*self._numbers.get(lane, [])[which : which + 2], 2**32, 2**32]
        return numbers[0], numbers[1]


class Steps:
    """The steps of a journal and their fetches, as far as they have been added.

    Args:
        look_up: the row with a number; None: there is none.
        what: which of the two are wanted.
    """

    def __init__(self, look_up: LookUp, what: tuple[int, ...] = (STEP, FETCH)) -> None:
        self.runs, self._what = Runs(look_up), what
        self._columns: dict[tuple[int, int], Column] = {}  # by what they are, and lane
        self._open: dict[int, tuple[int, int]] = {}  # by lane: number and iteration

    def add(self, table: Table) -> None:
        """Take note of a block of the journal."""
        self._add_runs(table.rows, table.numbers, table.meta)
        fetches = [id for id, name in table.names.items() if (name.kind, name.text) == FETCHES]
        for what in self._what:
            ids = table.ids_of("step") if what == STEP else fetches
            at = np.flatnonzero(np.isin(table.rows["name"], ids))
            found, numbers = table.rows[at], table.numbers[at]
            for lane in np.unique(found["lane"]).tolist():
                here = found["lane"] == lane
                column = self._columns.setdefault((what, lane), Column())
                column.add(numbers[here], found["iteration"][here])

    def look_at_open(self, rows: Rows, numbers: Numbers, meta: Meta) -> None:
        """Take note of what is open now: it may be no step at all, so it is only lent.

        A step that is opened for a fetch that never begins becomes void; one that has an iteration
        does not.
        """
        self._add_runs(rows, numbers, meta)
        kinds = {id: name.kind for id, name in meta.names.items()}
        of_kind = {
            kind: [id for id in kinds if kinds[id] == kind] for kind in ("step", "iteration")
        }
        is_open = rows["end"] == 0
        inner = is_open & np.isin(rows["name"], of_kind["iteration"])
        steps = is_open & np.isin(rows["name"], of_kind["step"])
        steps &= np.isin(numbers, rows["parent"][inner])
        self._open = {
            int(row["lane"]): (int(number), int(row["iteration"]))
            for number, row in zip(numbers[steps].tolist(), rows[steps], strict=True)
        }

    def _add_runs(self, rows: Rows, numbers: Numbers, meta: Meta) -> None:
        self.runs.read(meta)
        ids = [id for id, name in meta.names.items() if name.kind == "run"]
        for at in np.flatnonzero(np.isin(rows["name"], ids)).tolist():
            self.runs.add(int(numbers[at]), int(rows["lane"][at]), int(rows["start"][at]))

    def find(
        self, lane: int, which: int, iterations: npt.NDArray[np.int64], what: int = STEP
    ) -> npt.NDArray[np.int64]:
        """Numbers of a run's steps, or fetches, with these iterations; 0: it is not there.

        Args:
            lane: of the run.
            which: of the runs in that lane, from 0.
            iterations: any, in any order.
            what: ``STEP`` or ``FETCH``.
        """
        first, last = self.runs.rows(lane, which)
        found = np.zeros(len(iterations), np.int64)
        column = self._columns.get((what, lane))
        if which < 0 or (column is None and lane not in self._open):
            return found
        if column is not None:
            numbers, known = column.between(first, last)
            if len(numbers):
                # Of several the last: a step in which the loader begins anew fetches twice.
                at = np.maximum(np.searchsorted(known, iterations, side="right") - 1, 0)
                found = np.where(known[at] == iterations, numbers[at], 0).astype(np.int64)
        number, iteration = self._open.get(lane, (0, 0))
        if what == STEP and first <= number < last:
            found[(found == 0) & (iterations == iteration)] = number
        return found


class Used:
    """Which steps used the batches of a data journal.

    Args:
        steps: those of the rank's journal.
        header: of the rank's journal.
        meta: of the rank's journal.
        data_header: of the data journal.
        data_meta: of the data journal.
    """

    def __init__(
        self, steps: Steps, header: Header, meta: Meta, data_header: Header, data_meta: Meta
    ) -> None:
        self._steps, self._meta, self._data_meta = steps, meta, data_meta
        self._shift_ns = aligned(data_header, data_meta, header).offset_ns
        self._consumers: dict[int, Loading] = {}
        self._known: tuple[object, ...] = ()

    def by(self, rows: Rows, what: int = STEP) -> npt.NDArray[np.int64]:
        """Row numbers of the steps, or fetches, that used what these rows belong to; 0: unknown."""
        self._read()
        found = np.zeros(len(rows), np.int64)
        for each in np.unique(rows["epoch"]).tolist():
            loading = self._consumers.get(each)
            if loading is None:
                continue
            here = np.flatnonzero((rows["epoch"] == each) & (rows["iteration"] > 0))
            iterations = rows["iteration"][here].astype(np.int64) + loading.iteration
            which = self._steps.runs.at(loading.lane, loading.time_ns)
            numbers = self._steps.find(loading.lane, which, iterations, what)
            found[here] = np.where(iterations <= self._last(loading, which), numbers, 0)
        return found

    def _read(self) -> None:
        """Look again who used each pass, where something has been said since."""
        loadings, passes = self._meta.loadings, self._data_meta.passes
        known = len(passes), next(reversed(passes), None), len(loadings), loadings[-1:]
        if known != self._known:
            self._known = known
            self._consumers = consumers(self._meta, self._data_meta, self._shift_ns)

    def _last(self, loading: Loading, which: int) -> int:
        """The last iteration that can have used it: the engine may have begun anew before its end.

        What had been made ahead then was never used.
        """
        later = (
            each.iteration for each in self._meta.loadings
            if each.lane == loading.lane and each.time_ns > loading.time_ns
            and self._steps.runs.at(each.lane, each.time_ns) == which
        )  # fmt: skip
        return next(later, 2**62)
