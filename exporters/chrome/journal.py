"""The events of one journal's blocks: spans, what lies beside them, counters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from firetrace.exporters.chrome.columns import (
    CHUNK,
    NUMBERED,
    Columns,
    encoded,
)
from firetrace.exporters.chrome.counters import Counters
from firetrace.exporters.chrome.tracks import Kinds, Process, Tracks
from firetrace.tracer.table import Table

NEAR, BEFORE = 2**50, 10**12  # ns: 13 days, 1,000 seconds


class JournalEvents:
    """Makes the events of one journal, block by block. Each begins with a comma.

    Args:
        process: where it is shown.
        numbered: arguments that the rows' epoch and iteration are.
    """

    def __init__(self, process: Process, numbered: tuple[str, str] = NUMBERED) -> None:
        kinds = Kinds()
        self.tracks = Tracks(process, kinds)
        self.count = 0  #: spans so far
        self._process = process
        self._counters = Counters(process.pid, kinds)
        self._columns = Columns(process.pid, self.tracks.tids, numbered)

    def of(self, block: Table, base: int) -> Iterator[bytes]:
        """The events of a block; what lies before ``base``, Unix ns, is left out."""
        table = self._process.clock.table(block)
        if len(table) and int(table.rows["start"].min()) < base:  # see base_of
            keep = table.rows["start"] >= base
            table = replace(table, rows=table.rows[keep], numbers=table.numbers[keep])
        yield encoded(self.tracks.names(table))
        for first in range(0, len(table), CHUNK):
            yield self._columns.text(table, first, base)
        self._counters.add(table)
        yield encoded(self.tracks.beside(table, base) + self._counters.scalars(table, base))
        self.count += len(table)

    def rest(self, last: Table, base: int) -> Iterator[bytes]:
        """What is known at the end, when the last block was this one."""
        yield encoded(self.tracks.names(last) + self.tracks.tail(last, base))
        yield encoded(self._counters.rates(last, base))


def base_of(block: Table) -> int | None:
    """Unix ns that are to be time 0; None: the block has nothing that has a time.

    That is the journal's anchor, which the recorder takes before it writes its first row, so no
    row of any thread lies before it. (Perfetto drops what does.) Only where the anchor is no help,
    in rows that were not recorded or not for months after it, it is some time before the first
    block. What would then lie before it is left out.
    """
    starts = np.concatenate([block.rows["start"], block.scalars["start"]])
    if not len(starts):
        return None
    first = int(starts.min())
    anchor = block.header.wall_ns
    return anchor if 0 <= first - anchor < NEAR else max(first - BEFORE, 0)
