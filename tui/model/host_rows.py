"""The rows of a rank's journal that a block of device rows is of, and what lies around them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import FIRST_ROW, ROW_DTYPE, Rows
from firetrace.tracer.pages import Pages, are_spans
from firetrace.tracer.reader import JournalReader, Numbers
from firetrace.tui.model.digest import FETCHING
from firetrace.tui.model.distribution import Ints

#: Rows that are read at once, and so many around those that are wanted: the wait for a step's data
#: lies before its first phase.
AT_ONCE, AROUND = 8192, 256
#: What a row around may be.
WAIT, PHASE, RUN, STEP = 1, 2, 3, 4


class Intervals:
    """Spans, none of which lies in another one, by which times are divided."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows[np.argsort(rows["start"], kind="stable")]
        self._start = self.rows["start"].copy()
        self._took = self.rows["end"] - self._start
        self._took[:-1] = np.minimum(self._took[:-1], np.diff(self._start))
        self._before = np.concatenate([[0], np.cumsum(self._took)])

    def within(self, begin: Ints, end: Ints) -> Ints:
        """How much of each time they cover, in ns; no time ends before it begins."""
        return self._until(end) - self._until(begin)

    def _until(self, times: Ints) -> Ints:
        at = self.begun(times)
        if not len(self.rows):
            return np.zeros(len(times), np.int64)
        inside = np.minimum(times - self._start[at], self._took[at])
        return np.where(at < 0, 0, self._before[at] + inside)

    def begun(self, times: Ints) -> Ints:
        """Which of ``rows`` began last before each time; -1: none."""
        return np.searchsorted(self._start, times, side="right") - 1

    def of(self, times: Ints, iterations: Ints) -> tuple[Ints, Ints]:
        """Start and end of what began last before each time, where it is of this iteration.

        Elsewhere the time itself, twice.
        """
        at = self.begun(times)
        if not len(self.rows):
            return times, times
        found = (at >= 0) & (self.rows["iteration"][at] == iterations)
        start, end = (np.where(found, self.rows[name][at], times) for name in ("start", "end"))
        return start, end


class Around:
    """What lies around rows that were asked for: waits for data, other phases, steps, runs."""

    def __init__(self, rows: Rows, codes: npt.NDArray[np.uint8]) -> None:
        self._rows, self._codes = rows, codes

    def of(self, lane: int, code: int) -> Intervals:
        """Of one engine. Of ``RUN`` those of the others, which run in this one's handlers."""
        own = self._rows["lane"] == lane
        return Intervals(self._rows[(own != (code == RUN)) & (self._codes == code)])


class HostRows:
    """Rows of the rank's journal by their numbers.

    Args:
        rank: the journal's reader, open; its meta may grow.
    """

    def __init__(self, rank: JournalReader) -> None:
        self._pages, self._meta = Pages(rank), rank.meta

    def at(self, numbers: Numbers) -> tuple[Rows, Around]:
        """The rows, zeros for what is no span that has ended; and what lies around them."""
        if not len(numbers):
            none = np.empty(0, ROW_DTYPE)
            return none, Around(none, np.empty(0, np.uint8))
        wanted, which = np.unique(numbers, return_inverse=True)
        found = np.zeros(len(wanted), ROW_DTYPE)
        codes = self._codes()
        rows: list[Rows] = []
        numbers_of: list[Numbers] = []
        edges = np.flatnonzero(np.diff(wanted // AT_ONCE)) + 1
        for first, last in pairwise([0, *edges.tolist(), len(wanted)]):
            begin = max(FIRST_ROW, int(wanted[first]) - AROUND)
            page = self._pages.rows(begin, max(0, int(wanted[last - 1]) + AROUND + 1 - begin))
            places = wanted[first:last].astype(np.int64) - begin
            there = (places >= 0) & (places < len(page))
            found[first:last][there] = page[places[there]]
            kinds = codes[page["name"]]
            kinds[places[there]] = 0
            around = np.flatnonzero(kinds)
            rows.append(page[around])
            numbers_of.append((around + begin).astype(np.uint32))
        known, once = np.unique(np.concatenate(numbers_of), return_index=True)
        others = np.concatenate(rows)[once]
        found[~_ended(found, wanted)] = 0
        kinds = codes[others["name"]]
        use = _ended(others, known) & ((kinds != RUN) | (others["parent"] != 0))
        return found[which], Around(others[use], kinds[use])

    def _codes(self) -> npt.NDArray[np.uint8]:
        """By name id what rows of that name are; 0: nothing that is looked for."""
        codes = np.zeros(2**16, np.uint8)
        for id, name in list(self._meta.names.items()):
            if name.text in FETCHING and name.kind in ("phase", "loader"):
                codes[id] = WAIT
            else:
                codes[id] = {"phase": PHASE, "run": RUN, "step": STEP}.get(name.kind, 0)
        return codes


def _ended(rows: Rows, numbers: Numbers) -> npt.NDArray[np.bool_]:
    return are_spans(rows, numbers) & (rows["end"] > 0)
