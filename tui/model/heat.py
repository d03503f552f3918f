"""The steps of a whole run in a few cells, equally many in each: how slow they were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firetrace.tui.model.columns import Column, Spans
from firetrace.tui.model.distribution import Ints

#: Steps whose median stands for a cell; of more, so many equally spaced ones.
LOOKED_AT = 64
CHUNK = 256


@dataclass(frozen=True)
class Cell:
    """Some steps that follow one another."""

    first: int  #: index of the first one among the lane's steps
    count: int
    number: int  #: row number of the slowest
    median_ns: float
    slowest_ns: int


class Heat:
    """Looks at each step once; cells then cost what the screen has of them."""

    def __init__(self, steps: Spans) -> None:
        self.steps = steps
        self._peaks = Column(np.int64)  # index of the slowest step of each whole chunk
        self._peaks_ns = Column(np.int64)

    def _lasted(self, first: int, last: int) -> Ints:
        lasted: Ints = self.steps.end.values[first:last] - self.steps.start.values[first:last]
        return lasted

    def _look(self, total: int) -> None:
        begin, end = len(self._peaks_ns) * CHUNK, total // CHUNK * CHUNK
        if end > begin:
            lasted = self._lasted(begin, end).reshape(-1, CHUNK)
            at = lasted.argmax(axis=1)
            self._peaks.append(at + begin + CHUNK * np.arange(len(at)))
            self._peaks_ns.append(lasted[np.arange(len(at)), at])

    def cells(self, most: int) -> list[Cell]:
        """At most so many cells."""
        total = len(self.steps)
        count = min(most, total)
        if count < 1:
            return []
        self._look(total)
        edges = np.arange(count + 1) * total // count
        firsts, counts = edges[:-1], np.diff(edges)
        looks = min(LOOKED_AT, int(counts.max()))
        where = firsts[:, None] + counts[:, None] * np.arange(looks) // looks
        start, end = self.steps.start.values, self.steps.end.values
        medians = np.median(end[where] - start[where], axis=1).tolist()
        numbers = self.steps.number.values
        found = []
        for first, size, median in zip(firsts.tolist(), counts.tolist(), medians, strict=True):
            slowest = self._slowest(first, first + size)
            ns = int(end[slowest] - start[slowest])
            found.append(Cell(first, size, int(numbers[slowest]), median, ns))
        return found

    def _slowest(self, first: int, last: int) -> int:
        """Index of the slowest step: of whole chunks it is known, the edges are looked at."""
        head, tail = -(-first // CHUNK), last // CHUNK
        if head >= tail:
            return first + int(self._lasted(first, last).argmax())
        inside = head + int(self._peaks_ns.values[head:tail].argmax())
        found = [int(self._peaks.values[inside])]
        for begin, end in ((first, head * CHUNK), (tail * CHUNK, last)):
            if end > begin:
                found.append(begin + int(self._lasted(begin, end).argmax()))
        start, ends = self.steps.start.values, self.steps.end.values
        return max(found, key=lambda index: int(ends[index] - start[index]))


def shade(ns: float, usual_ns: float, shades: int) -> int:
    """Which of so many shades, the fastest first: the middle one is usual, the last twice that."""
    if usual_ns <= 0:
        return 0
    middle = (shades - 1) / 2
    times = ns / usual_ns
    at = middle + (times - 1) * middle if times > 1 else middle * (2 * times - 1)
    return min(shades - 1, max(0, round(at)))
