"""Arrows from the batches of a data journal to the fetches, or the steps, that used them.

What Perfetto (v52) makes of an arrow: each of its ends belongs to the slice that began last in its
thread, also if that is over; it leads from the slice that began first to the other one, and is
drawn from where the first one ends. So it begins with the batch itself, and ends with the fetch
itself only where that began when the batch had been made. A fetch that had to wait for it gets a
mark at its end, to which the arrow leads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firetrace.exporters.chrome.columns import as_json
from firetrace.exporters.chrome.tracks import MARK, Process, label
from firetrace.exporters.clocks import Clock
from firetrace.exporters.steps import FETCH, Steps, Used
from firetrace.tracer.journal import ROW_DTYPE, Rows
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.table import Table, places

NOTHING = np.zeros(1, ROW_DTYPE)[0]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rank:
    """The journal of the rank that used the batches."""

    reader: JournalReader
    steps: Steps
    tids: npt.NDArray[np.bytes_]  #: of each lane, as text
    clock: Clock


class Arrows:
    """Makes the arrows of one data journal.

    Args:
        process: where it is shown, and its rank, too.
        used: which steps used the batches.
        rank: who used them.
        tids: of each lane of the data journal, as text.
    """

    def __init__(
        self, process: Process, used: Used, rank: Rank, tids: npt.NDArray[np.bytes_]
    ) -> None:
        self._process, self._used, self._rank, self._tids = process, used, rank, tids

    def of(self, block: Table, base: int) -> str:
        """The arrows of a block, as it stands in the journal; ``base``: Unix ns, of the trace."""
        positions = block.of_kind("batch")
        positions = positions[block.rows["end"][positions] != 0]
        rows, numbers = block.rows[positions], block.numbers[positions]
        to = self._targets(rows)
        clock, rank = self._process.clock, self._rank.clock
        start, end = clock.times(rows["start"]), clock.times(rows["end"])
        starts, ends = rank.times(to["start"]), rank.times(to["end"])
        waited = starts < end
        # Its end may be not yet known, and the clocks of two processes differ by some ns.
        at = np.where(waited, np.maximum(np.where(ends == 0, end, ends - 1), starts), starts)
        begins = np.where(_begin_alone(block, rows, numbers), start, np.maximum(end - 1, start))
        shown = (starts != 0) & (begins >= base) & (at > begins)
        lines = []
        for each in np.flatnonzero(shown).tolist():
            row, own = rows[each], self._tids[rows["lane"][each]]
            used_by = self._rank.tids[to["lane"][each]]
            id = int(numbers[each]) + self._process.flow
            rest = f'"cat":"batch","name":"used","id":{id}}}'
            lines.append(self._event("s", int(begins[each]) - base, own, rest))
            if waited[each]:
                name = f"batch {row['iteration']} of {label(block.lane_of(int(row['lane'])))}"
                more = f'"s":"t","cat":"{MARK}","name":{as_json(name)}}}'
                lines.append(self._event("i", int(at[each]) - base, used_by, more))
            lines.append(self._event("f", int(at[each]) - base, used_by, f'"bp":"e",{rest}'))
        return "".join(lines)

    def _event(self, phase: str, at_ns: int, tid: bytes, rest: str) -> str:
        micro, nano = divmod(at_ns, 1000)
        return (
            f',\n{{"ph":"{phase}","ts":{micro}.{nano:03},"pid":{self._process.pid},'
            f'"tid":{tid.decode()},{rest}'
        )

    def _targets(self, batches: Rows) -> Rows:
        """The rows to which arrows lead: fetches, or steps where these have none; or nothing."""
        steps, fetches = self._used.by(batches), self._used.by(batches, FETCH)
        found = [self._row(number) for number in np.where(fetches, fetches, steps).tolist()]
        return np.array(found, ROW_DTYPE)

    def _row(self, number: int) -> np.void:
        row = self._rank.reader.row(number) if number else None
        return NOTHING if row is None else row


def _begin_alone(
    block: Table, rows: Rows, numbers: npt.NDArray[np.uint32]
) -> npt.NDArray[np.bool_]:
    """Whether nothing inside of a batch begins in the same ns as the batch."""
    above = places(numbers, block.rows["parent"])
    inside = np.flatnonzero(above >= 0)
    at_once = block.rows["start"][inside] == rows["start"][above[inside]]
    alone = np.ones(len(rows), bool)
    alone[above[inside[at_once]]] = False
    return alone
