"""How long spans took, in constant memory: counts by size, and the last values themselves.

A bucket is 1/128 of an octave wide, so a percentile is at most 0.4% off; up to ``RECENT`` values,
and for the smallest durations, it is numpy's to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

RECENT = 256  #: the newest values, kept as they are
MANTISSA_BITS = 7
_SHIFT = 52 - MANTISSA_BITS
_ONE = (1023 << MANTISSA_BITS) - 1  # so that a duration of 1 ns is in bucket 1, and 0 in bucket 0


@dataclass(frozen=True)
class Stats:
    """How long spans of one name took. Times in ns, shares 0 to 1."""

    count: int
    total_ns: int
    p50_ns: int
    p95_ns: int
    p99_ns: int
    max_ns: int
    share: float  #: phases: of their engine's steps; handlers: of the whole run
    drift: float | None = None  #: p50 of the last ``RECENT`` against the run's, 0.1: 10% slower


class Distribution:
    """The durations, in ns, of spans that are alike."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.largest = 0
        self.recent = np.empty(0, np.int64)  #: the last values, oldest first
        self._lowest = 0  # number of the first bucket
        self._buckets = np.zeros(0, np.int64)

    def add(self, values: Ints) -> None:
        """Take in durations, none of them negative, in the order in which they ended."""
        if not len(values):
            return
        self.count += len(values)
        self.total += int(values.sum())
        self.largest = max(self.largest, int(values.max()))
        self.recent = np.concatenate([self.recent, values[-RECENT:]])[-RECENT:]
        at = np.maximum((values.astype(np.float64).view(np.int64) >> _SHIFT) - _ONE, 0)
        low, high = int(at.min()), int(at.max()) + 1
        if not len(self._buckets):
            self._lowest = low
        self._make_room(low, high)
        low = self._lowest
        self._buckets += np.bincount(at - low, minlength=len(self._buckets))

    def _make_room(self, low: int, high: int) -> None:
        before = max(0, self._lowest - low)
        after = max(0, high - self._lowest - len(self._buckets))
        if before or after:
            self._buckets = np.pad(self._buckets, (before, after))
            self._lowest -= before

    @classmethod
    def merged(cls, parts: list[Distribution]) -> Distribution:
        """All of them as one; the last values are those of each in turn."""
        if len(parts) == 1:
            return parts[0]
        found = cls()
        for part in parts:
            if not part.count:
                continue
            found.count += part.count
            found.total += part.total
            found.largest = max(found.largest, part.largest)
            low = part._lowest
            if not len(found._buckets):
                found._lowest = low
            found._make_room(low, low + len(part._buckets))
            first = low - found._lowest
            found._buckets[first : first + len(part._buckets)] += part._buckets
        whole = sum(len(part.recent) for part in parts)
        each = RECENT // max(1, sum(bool(part.count) for part in parts))
        kept = [part.recent if whole <= RECENT else part.recent[-each:] for part in parts]
        found.recent = np.concatenate(kept) if kept else found.recent
        return found

    def percentiles(self, *percents: float) -> list[int]:
        """Percentiles in ns, linear between neighbours as numpy's."""
        if self.count <= len(self.recent):
            return [round(x) for x in np.percentile(self.recent, percents)]
        ranks = np.array(percents) / 100 * (self.count - 1)
        below = np.floor(ranks)
        cumulated = np.cumsum(self._buckets)
        values = [
            self._value(np.searchsorted(cumulated, order, side="right"))
            for order in (below, np.minimum(below + 1, self.count - 1))
        ]
        found = values[0] + (values[1] - values[0]) * (ranks - below)
        return [min(round(x), self.largest) for x in found]

    def _value(self, at: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """The middle of buckets; of those that hold a single number, this."""
        low = ((at + self._lowest + _ONE) << _SHIFT).view(np.float64)
        high = ((at + self._lowest + _ONE + 1) << _SHIFT).view(np.float64)
        middle = np.where(low < 2 << MANTISSA_BITS, low, (low + high) / 2)
        return np.where(at + self._lowest == 0, 0.0, middle)

    def drift(self) -> float | None:
        """How much slower the last values are than all, by their medians; None: too few to say."""
        if self.count < 2 * RECENT:
            return None
        (whole,) = self.percentiles(50)
        return float(np.median(self.recent)) / whole - 1 if whole else None

    def stats(self, whole_ns: int) -> Stats:
        """What is shown of it; ``whole_ns``: what its share is of."""
        p50, p95, p99 = self.percentiles(50, 95, 99)
        share = min(1.0, self.total / whole_ns) if whole_ns else 0.0
        return Stats(self.count, self.total, p50, p95, p99, self.largest, share, self.drift())
