"""A journal's rows by their numbers, read from the file when somebody looks at them.

For views of runs that are too long to be held in memory. Never maps the file, so that a file cut
short under it is no more than rows that are missing.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import FIRST_ROW, ROW_BYTES, ROW_DTYPE, Flag, Rows
from firetrace.tracer.reader import JournalReader, Numbers, next_data
from firetrace.tracer.table import hoist

#: Rows read at first; a step of a usual training has 15 to 40.
FEW = 64
FOREVER = 2**63 - 1
NO_SPAN = int(Flag.SCALAR | Flag.VOID)


def is_span(number: Any, parent: Any, flags: Any, start: Any, end: Any) -> Any:
    """Whether a row is a span: no scalar, not void and not damaged. Of columns: which rows are."""
    makes_sense = (parent < number) & (start > 0) & ((end >= start) | (end == 0))
    return makes_sense & (flags & NO_SPAN == 0)


def are_spans(rows: Rows, numbers: Numbers) -> npt.NDArray[np.bool_]:
    """Which rows are spans."""
    found: npt.NDArray[np.bool_] = is_span(
        numbers, rows["parent"], rows["flags"], rows["start"], rows["end"]
    )
    return found


def nearest_span(look_up: Callable[[int], np.void | None], number: int) -> int:
    """The nearest of a row and its ancestors that is a span; 0: none."""
    while number >= FIRST_ROW:
        row = look_up(number)
        if row is None:
            return 0
        parent, _, _, flags, _, _, end, start = row.tolist()
        if is_span(number, parent, flags, start, end):
            return number
        if parent >= number:
            return 0
        number = parent
    return 0


class Pages:
    """Any rows of the journal that a reader has open; it may be closed, this stays readable."""

    def __init__(self, reader: JournalReader) -> None:
        self._fd = os.dup(reader.fileno())
        self.per_window = reader.header.window_bytes // ROW_BYTES
        self._close = weakref.finalize(self, os.close, self._fd)

    def rows(self, first: int, count: int) -> Rows:
        """The slots from a number on, as they stand; fewer where the file ends, none beyond."""
        try:
            data = os.pread(self._fd, count * ROW_BYTES, first * ROW_BYTES)
        except OSError:  # stale, or the disk fails: shown as missing
            data = b""
        return np.frombuffer(data[: len(data) // ROW_BYTES * ROW_BYTES], ROW_DTYPE)

    def row(self, number: int) -> np.void | None:
        """One row; None if there is none."""
        found = self.rows(number, 1 if number >= FIRST_ROW else 0)
        return found[0] if len(found) and found[0]["start"] else None

    def window(self, window: int) -> tuple[Rows, Numbers]:
        """All rows of a window of the file."""
        first = max(window * self.per_window, FIRST_ROW)
        rows = self.rows(first, (window + 1) * self.per_window - first)
        used = np.flatnonzero(rows["start"])
        return rows[used], (used + first).astype(np.uint32)

    def after(self, number: int, end_ns: int) -> tuple[Rows, Numbers]:
        """The spans that began after a row was written and until a time (Unix ns).

        All descendants of that row are among them. Void rows are left out, and their children are
        their parents'.
        """
        parts: list[tuple[Rows, Numbers]] = []
        first, count = number + 1, FEW
        while True:
            stop = (first // self.per_window + 1) * self.per_window
            rows = self.rows(first, min(count, stop - first))
            if not len(rows):
                break
            starts = rows["start"]
            late = np.flatnonzero(starts > end_ns)
            last = int(late[0]) if len(late) else len(rows)
            used = np.flatnonzero(starts[:last])
            parts.append((rows[used], (used + first).astype(np.uint32)))
            first, count = first + len(rows), 4 * count
            if len(late) or not starts[-1]:  # the rest of this window is later, or not written
                first = stop
            if first == stop:
                # Windows are handed out in the order of time: those after a later one are later.
                begin = self._next_data(first * ROW_BYTES) // ROW_BYTES
                first = max(first, begin // self.per_window * self.per_window)
                head = self.rows(first, 1)
                if not len(head) or head[0]["start"] > end_ns:
                    break
        if not parts:
            return np.empty(0, ROW_DTYPE), np.empty(0, np.uint32)
        rows, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
        keep = are_spans(rows, numbers)
        return (rows, numbers) if keep.all() else hoist(rows, numbers, keep)

    def _next_data(self, offset: int) -> int:
        try:
            return next_data(self._fd, offset, os.fstat(self._fd).st_size)
        except OSError:
            return offset

    def real(self, number: int) -> int:
        """The nearest of a row and its ancestors that is a span; 0: none."""
        return nearest_span(self.row, number)
