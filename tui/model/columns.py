"""Arrays that grow at their end, so that what has been read need never be copied again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Column:
    """A growing array of numbers; ``values`` is what is in it now, and never changes.

    One thread appends. Another may read ``values`` at any time.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._room: npt.NDArray[Any] = np.empty(0, dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> npt.NDArray[Any]:
        """All numbers so far."""
        count = self._count  # before the array: a newer array holds at least as many
        return self._room[:count]

    def append(self, values: npt.NDArray[Any]) -> None:
        """Put numbers at the end."""
        need = self._count + len(values)
        if need > len(self._room):
            room = np.empty(max(need, 16, self._count * 3 // 2), self._room.dtype)
            room[: self._count] = self._room[: self._count]
            self._room = room
        self._room[self._count : need] = values
        self._count = need


class Spans:
    """Spans of one kind in one lane, as they ended: which rows they are, when, and where."""

    def __init__(self) -> None:
        self.number = Column(np.uint32)
        self.epoch = Column(np.uint32)
        self.iteration = Column(np.uint32)
        self.flags = Column(np.uint8)
        self.parent = Column(np.uint32)
        self.start = Column(np.int64)
        self.end = Column(np.int64)

    def __len__(self) -> int:
        return len(self.flags)  # appended last

    def append(self, rows: npt.NDArray[np.void], numbers: npt.NDArray[np.uint32]) -> None:
        """Take in rows of dtype ``ROW_DTYPE`` that have ended, and their numbers."""
        self.number.append(numbers)
        for name in ("parent", "epoch", "iteration", "start", "end", "flags"):
            column: Column = getattr(self, name)
            column.append(rows[name])

    def nested_ns(self, start_ns: int = 0, end_ns: int = 2**63 - 1) -> int:
        """What those took that have a parent and ended between two times, in ns."""
        count = len(self)
        end = self.end.values[:count]
        which = slice(*np.searchsorted(end, (start_ns, end_ns), side="right").tolist())
        lasted = end[which] - self.start.values[which]
        return int(lasted[self.parent.values[which] != 0].sum())
