"""Could noise have done it? The statistics of ``firetrace diff``; pure, and without randomness.

Consecutive durations of a training are alike, so a test on single spans claims far too much. The
durations of a name are reduced to up to 16 batches, contiguous in time. Welch's t-test is made on
these, with an error that grows with the correlation that is left between neighbouring batches. The
intervals come from the same error, so that they never contradict the test.

Simulated (``tests/test_diff.py`` has the essence): where neighbouring durations correlate by 0.9
(AR(1)), with stalls, drift or heavy tails, 0% to 3% of the pairs of runs with 20 equal names of 60
to 3,000 spans got a claim (of 30 spans up to 8%, of 12 up to a quarter). A walk as slow as the run
is long cannot be told from a change: 20 names that wander by 10%, each on its own, got one in half
of the pairs. The interval held the true ratio in 97%, that of a bootstrap of the same batches,
which does not see what correlation is left, in 62% to 87%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firetrace.tracer.table import Ints

#: Compilation, caches and workers that start: the first tenth of a name's spans, at most this many.
WARM_UP = 10
#: Fewer spans than this, after the warm-up, say nothing.
FEWEST = 5
#: More batches find smaller changes; fewer leave less correlation between neighbours.
MOST_BATCHES, FEW_BATCHES, BATCH_SPANS = 16, 8, 8
CERTAIN = 0.95
#: Correlation that neighbouring batches are taken to have, whatever is found: 4 / (their length),
#: and no more than this. Few batches cannot show it, and heavy tails hide it. Without it, names of
#: 60 spans that correlate by 0.9 made a claim in 17% of the pairs, with it in 1%.
ASSUMED_CORRELATION, ASSUMED_SPANS = 0.3, 4
#: Steps of the integral under Student's distribution: five right digits.
GRID = 1000


class Batches:
    """The durations of one name, reduced as they come, in the order of time.

    Args:
        count: how many will come, the warm-up included. What comes after them is left out.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        first = min(WARM_UP, count // 10)
        self.kept = count - first  #: without the warm-up
        number = min(self.kept, MOST_BATCHES, max(FEW_BATCHES, self.kept // BATCH_SPANS))
        edges = first + self.kept * np.arange(number + 1) // number
        self._lengths: list[int] = np.diff(edges, prepend=0).tolist()  # of the warm-up first
        self._pending = np.empty(0, np.int64)
        self._number = number
        self._total = 0
        self.means: list[float] = []
        self.medians: list[float] = []

    def add(self, durations: Ints) -> None:
        """Take the next durations, ns."""
        self._pending = np.concatenate([self._pending, durations])
        while self._lengths and len(self._pending) >= self._lengths[0]:
            length = self._lengths.pop(0)
            batch, self._pending = self._pending[:length], self._pending[length:]
            if len(self._lengths) < self._number:  # else it is the warm-up
                self._total += int(batch.sum())
                self.means.append(float(batch.mean()))
                self.medians.append(float(np.median(batch)))

    @property
    def mean(self) -> float:
        """Of all durations after the warm-up, ns."""
        return self._total / self.kept

    @property
    def typical(self) -> float:
        """The mean of the batches' medians, ns: what a few stalls do not move."""
        return float(np.mean(self.medians))


@dataclass(frozen=True)
class Change:
    """How one figure changed: ``ratio`` is after / before.

    ``low`` and ``high`` are the 95% interval of the difference, as a ratio to the value before.
    """

    ratio: float
    low: float
    high: float
    p: float  #: the chance of such a difference, or a larger one, where nothing changed


def mean_change(before: Batches, after: Batches) -> Change:
    """How the mean changed, of ``FEWEST`` spans or more. Means add up, so this is what it costs."""
    return _change(
        _figure(before, before.mean, before.means), _figure(after, after.mean, after.means)
    )


def typical_change(before: Batches, after: Batches) -> Change:
    """How the typical duration changed: seen also where a few stalls drown a change of the mean."""
    return _change(
        _figure(before, before.typical, before.medians),
        _figure(after, after.typical, after.medians),
    )


@dataclass(frozen=True)
class _Figure:
    value: float
    error: float  # the standard error
    dof: float  # its degrees of freedom


def _figure(batches: Batches, value: float, values: Sequence[float]) -> _Figure:
    """What the batches' values say of their mean.

    Batches whose neighbours correlate by r count as ``(1 - r) / (1 + r)`` of as many independent
    ones. In few batches the correlation is found too small by some ``(1 + 3 r) / n`` (Kendall).
    """
    number = len(values)
    off = np.array(values) - np.mean(values)
    squares = float(off @ off)
    if squares == 0:
        return _Figure(value, 0.0, number - 1)
    found = float(off[1:] @ off[:-1]) / squares
    assumed = min(ASSUMED_CORRELATION, ASSUMED_SPANS * number / batches.kept)
    correlation = min(max(found + (1 + 3 * found) / number, assumed), 0.95)
    independent = max(number * (1 - correlation) / (1 + correlation), 2.0)
    return _Figure(value, math.sqrt(squares / number / (independent - 1)), independent - 1)


def _change(before: _Figure, after: _Figure) -> Change:
    """Welch's test of the difference."""
    unit = max(before.value, 1.0)  # what is shorter than the clock's tick lasts 0 ns
    grown, spread = after.value - before.value, math.hypot(before.error, after.error)
    ratio = 1 + grown / unit
    if spread == 0:
        return Change(ratio, ratio, ratio, 1.0 if grown == 0 else 0.0)
    dof = spread**4 / (before.error**4 / before.dof + after.error**4 / after.dof)
    half = spread * student_quantile(1 - CERTAIN, dof) / unit
    p = student_tail(grown / spread, dof)
    return Change(ratio, max(0.0, ratio - half), ratio + half, p)


def student_tail(t: float, dof: float) -> float:
    """The chance that Student's t is farther from 0 than ``t``; ``dof`` at least 1.

    With ``t = tan(angle) * sqrt(dof)`` it is an integral of a power of the cosine.
    """
    angle = math.atan2(abs(t), math.sqrt(dof))
    step = (math.pi / 2 - angle) / GRID
    angles = angle + step * (np.arange(GRID) + 0.5)
    scale = math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * scale * step * float((np.cos(angles) ** (dof - 1)).sum()))


def student_quantile(p: float, dof: float) -> float:
    """The t that is exceeded, to either side, with a chance of ``p``."""
    low, high = 0.0, math.pi / 2  # angles: see ``student_tail``
    for _ in range(40):
        middle = (low + high) / 2
        if student_tail(math.tan(middle) * math.sqrt(dof), dof) > p:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(dof)


def corrected(chances: Sequence[float]) -> list[float]:
    """Holm's correction: the chance of any false claim is what is claimed below, for all."""
    result = [1.0] * len(chances)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[index]))
        result[index] = largest
    return result
