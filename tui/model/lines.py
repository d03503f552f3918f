"""The visible lines of the tree, without a list of them: runs of siblings, each with a depth."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from firetrace.tracer.reader import Numbers


@dataclass(eq=False)
class Lines:
    """Siblings below siblings; a part is as long as nothing in it is unfolded.

    Memory and time are that of what is unfolded, however many lines there are.
    """

    _parts: list[Numbers] = field(default_factory=list)
    _depths: list[int] = field(default_factory=list)
    _tops: list[int] = field(default_factory=list)  # the line on which each part begins
    _count: int = 0

    def append(self, numbers: Numbers, depth: int) -> None:
        """Put siblings below what is there."""
        if len(numbers):
            self._parts.append(numbers)
            self._depths.append(depth)
            self._tops.append(self._count)
            self._count += len(numbers)

    def __len__(self) -> int:
        return self._count

    def at(self, line: int) -> tuple[int, int]:
        """The row number and the depth on a line."""
        part = bisect_right(self._tops, line) - 1
        return int(self._parts[part][line - self._tops[part]]), self._depths[part]

    def index(self, number: int) -> int | None:
        """On which line a span stands; None if it is not visible."""
        for top, numbers in self._near(number):
            at = int(np.searchsorted(numbers, number))
            if at < len(numbers) and numbers[at] == number:
                return top + at
        return None

    def _near(self, number: int) -> Iterator[tuple[int, Numbers]]:
        for top, numbers in zip(self._tops, self._parts, strict=True):
            if numbers[0] <= number <= numbers[-1]:
                yield top, numbers

    def nearest(self, number: int) -> int:
        """The line whose row number is nearest. There must be a line."""
        best, line = -1, 0
        for top, numbers in zip(self._tops, self._parts, strict=True):
            at = int(np.searchsorted(numbers, number))
            for each in (max(at - 1, 0), min(at, len(numbers) - 1)):
                off = abs(int(numbers[each]) - number)
                if best < 0 or off < best:
                    best, line = off, top + each
        return line
