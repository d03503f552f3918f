"""Reads a journal block by block, in the same memory however long it is.

``blocks`` gives every row once, in the order of the file: for whoever draws. ``Stream.ended`` gives
a span when it has ended and everything noted on it is known: for whoever sends, once or while the
training goes on. A block is a ``Table`` of some of the rows; a parent may be in another block.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from firetrace.tracer.journal import ROW_BYTES, WEAKLY_ORDERED, Flag, Rows
from firetrace.tracer.pages import nearest_span
from firetrace.tracer.reader import Hold, JournalReader, Numbers, Position
from firetrace.tracer.table import Table, block, places

#: Windows a block: 131,072 rows, 4 MiB.
BLOCK_WINDOWS = 16
#: What happened so long ago is in the file.
SETTLED_NS = 1_000_000


class Stream:
    """A journal's spans as they end, each once, in blocks; parents stand before their children.

    Args:
        path: of the rows file.
        position: where an earlier stream of this journal was (see ``position_after``).

    Raises:
        JournalError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], position: Position | None = None) -> None:
        self.reader = JournalReader(path)
        if position is not None:
            self.reader.go_to(position)
        self._per_window = self.reader.header.window_bytes // ROW_BYTES
        self._before = self._after = self.reader.position
        self._sent = np.empty(0, np.uint32)
        self._resumed = position is not None
        self._latest = 0  # Unix ns
        self.hold: Hold | None = None  #: says which spans that have ended are to come later

    def ended(self) -> Iterator[Table]:
        """The spans that have ended since the last call.

        A span that began in one block and ended in a later one comes with the later one, when all
        that was noted on it has been read.
        """
        reader = self.reader
        while True:
            reader.poll(BLOCK_WINDOWS)
            if not reader.behind:
                if WEAKLY_ORDERED:
                    time.sleep(SETTLED_NS / 1e9)
                reader.poll(BLOCK_WINDOWS)  # what was being closed while it was read
            self._before = self._after
            before_ns = self._horizon() if reader.behind else None
            rows, numbers = reader.take(before_ns, hold=self.hold)
            self._after = reader.position
            found = self._block(rows, numbers)
            if len(found) or len(found.scalars):
                yield found
            if not reader.behind:
                return

    def rest(self) -> Table:
        """What is open and will not end any more. The last thing to ask for."""
        self._before = self._after
        rows, numbers = self.reader.take(everything=True)
        self._after = self.reader.position
        return self._block(rows, numbers)

    def last_ns(self) -> int:
        """Where what is open ends: the present of a live journal, else the last time in it."""
        if self.reader.alive():
            return self.reader.now_ns()
        if self._resumed:
            self._resumed = False
            for found in blocks(self.reader.path):
                self._latest = max(self._latest, latest(found.rows))
        return self._latest

    def _block(self, rows: Rows, numbers: Numbers) -> Table:
        found = hoisted(block(self.reader, rows, numbers), self.reader)
        self._sent = found.numbers
        self._latest = max(self._latest, latest(found.rows))
        return found

    def _horizon(self) -> int:
        """A time, Unix ns, up to which everything has been read.

        Windows are handed out in the order of time. What was written before the last one that was
        read began lies in those before it.
        """
        numbers = self.reader.numbers
        last = int(numbers.max(initial=0)) // self._per_window
        first = np.flatnonzero(numbers >= last * self._per_window)
        return int(self.reader.rows["start"][first].min(initial=2**62))

    def position_after(self, number: int) -> Position:
        """Where to go on when the last block has been dealt with up to this row."""
        before, after = self._before, self._after
        window, slots = number // self._per_window, number % self._per_window + 1
        filled: dict[int, int] = {}
        for each in {*before.filled, *range(before.windows, min(window + 1, after.windows))}:
            if each < window:
                count = after.filled.get(each, self._per_window)
            else:
                count = before.filled.get(each, 0)
                count = max(count, slots) if each == window else count
            if count < self._per_window:
                filled[each] = count
        kept = {*before.kept, *(row for row in after.kept if row <= number)}
        kept.difference_update(self._sent[self._sent <= number].tolist())
        return Position(max(before.windows, min(window + 1, after.windows)), filled, sorted(kept))

    @property
    def position(self) -> Position:
        """Where to go on when every block so far has been dealt with."""
        return self._after

    def close(self) -> None:
        """Close the file."""
        self.reader.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def blocks(path: Path) -> Iterator[Table]:
    """Every span that a journal holds now, as it stands, in the order of the file.

    Parents stand before their children. There is at least one block, perhaps an empty one. Of a
    journal that grows meanwhile this is the state of one moment, when the first block is read.

    Raises:
        JournalError: it cannot be read.
    """
    with JournalReader(path) as reader:
        until = reader.now_ns() - SETTLED_NS if reader.alive() else None
        while True:
            reader.poll(BLOCK_WINDOWS)
            rows, numbers = reader.take(everything=True)
            if until is not None:
                known = rows["start"] <= until
                rows, numbers = rows[known], numbers[known]
                later = (rows["end"] > until) & (rows["flags"] & Flag.SCALAR == 0)
                rows["end"][later] = 0
            yield hoisted(block(reader, rows, numbers), reader)
            if not reader.behind:
                return


def latest(rows: Rows) -> int:
    """The last time in these rows, Unix ns."""
    return int(max(rows["start"].max(initial=0), rows["end"].max(initial=0)))


def hoisted(found: Table, reader: JournalReader) -> Table:
    """A block in which the parent of every span is a span, also where it lies in another block."""
    parents, numbers = found.rows["parent"], found.numbers
    if not len(numbers):
        return found
    elsewhere = np.flatnonzero((places(numbers, parents) < 0) & (parents != 0))
    for parent in np.unique(parents[elsewhere]).tolist():
        real = nearest_span(reader.row, parent)
        if real != parent:
            parents[elsewhere[parents[elsewhere] == parent]] = real
    return found
