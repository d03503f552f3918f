"""A scalar over the whole run, in constant memory: the means of equally many values each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Points that are kept at most; when there are as many, neighbours become one.
MOST_POINTS = 2_048


class Series:
    """The values of a loss, a learning rate or a metric, in the order in which they came."""

    def __init__(self) -> None:
        self.count = 0
        self.last = float("nan")  #: the newest value
        self.last_ns = 0  #: when that was noted, Unix ns
        self._points = np.empty(0)
        self._each = 1  # values a point
        self._rest = np.empty(0)  # the values of the point that is not complete

    def add(self, times: npt.NDArray[np.int64], values: Floats) -> None:
        """Take in values and when they were noted, Unix ns."""
        self.count += len(values)
        self.last, self.last_ns = float(values[-1]), int(times[-1])
        values = np.concatenate([self._rest, values])
        whole = len(values) // self._each * self._each
        means = means_of(values[:whole], self._each)
        self._points, self._rest = np.concatenate([self._points, means]), values[whole:]
        while len(self._points) > MOST_POINTS:
            even = len(self._points) // 2 * 2
            self._rest = np.concatenate([np.repeat(self._points[even:], self._each), self._rest])
            self._points = means_of(self._points[:even], 2)
            self._each *= 2

    def points(self) -> Floats:
        """The series; the last point may stand for fewer values than the others."""
        if not len(self._rest):
            return self._points
        return np.append(self._points, means_of(self._rest, len(self._rest)))


def means_of(values: Floats, each: int) -> Floats:
    """The means of so many values each; of what diverges no number, and no warning either."""
    with np.errstate(invalid="ignore", over="ignore"):
        means: Floats = values.reshape(-1, each).mean(axis=1)
    return means
