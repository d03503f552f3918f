"""The clocks of a run's processes: whose journal's time all others are turned into.

That of the newest journal of the lowest rank. Where a journal was not compared with that one, but
with one of an earlier attempt of the lowest rank, it goes that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firetrace.tracer.aligned import Alignment, aligned
from firetrace.tracer.journal import Header
from firetrace.tracer.meta import Meta
from firetrace.tracer.table import Table


@dataclass(frozen=True)
class Clock:
    """Turns a journal's times into those of the reference. Without ways it changes nothing."""

    ways: tuple[Alignment, ...] = ()  #: one after the other

    @property
    def error_ns(self) -> int | None:
        """0 where it is exact; None where clocks were not compared."""
        errors = [way.error_ns for way in self.ways]
        return None if None in errors else sum(error or 0 for error in errors)

    def __str__(self) -> str:
        error = self.error_ns
        if error is None:
            return "clock not compared"
        return f"clock ±{max(1, round(error / 1000)):,} µs" if error else ""

    @property
    def _is_own(self) -> bool:
        return all(len(way.offsets_ns) == 1 and not way.offset_ns for way in self.ways)

    def times(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Times, Unix ns, in the reference's; 0, which is no time, stays."""
        for way in self.ways:
            times = way.shift(times)
        return times

    def time(self, time_ns: int) -> int:
        """One time."""
        return int(self.times(np.array([time_ns]))[0]) if self.ways else time_ns

    def table(self, table: Table) -> Table:
        """A block of the journal, its spans and scalars in the reference's time."""
        if self._is_own:
            return table
        rows, scalars = table.rows.copy(), table.scalars.copy()
        rows["start"], ends = self.times(rows["start"]), self.times(rows["end"])
        rows["end"] = np.where(ends == 0, 0, np.maximum(ends, rows["start"]))  # offsets may be mad
        scalars["start"] = self.times(scalars["start"])
        return replace(table, rows=rows, scalars=scalars)


def clock_of(
    header: Header, meta: Meta, reference: Header, others: Sequence[tuple[Header, Meta]] = ()
) -> Clock:
    """The clock of a journal.

    Args:
        header: of the journal.
        meta: of the journal.
        reference: whose time is wanted.
        others: journals with which it may have been compared instead.
    """
    direct = aligned(header, meta, reference)
    if direct.error_ns is None:
        for other, of_other in others:
            found = Clock((aligned(header, meta, other), aligned(other, of_other, reference)))
            if found.error_ns is not None:
                return found
    return Clock((direct,))
