"""Lines of a meta file: read one by one, and what they say of rows found again by row number."""

from __future__ import annotations

import json
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from firetrace.tracer.files import open_regular
from firetrace.tracer.journal import MAX_ROW

T = TypeVar("T")

#: A longer line is damage: an exception's takes at most some 400 kB.
LONGEST_LINE = 2**24
FOREVER = 2**63 - 1
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def printable(text: str) -> str:
    """``text`` without lone surrogates, which no encoder takes."""
    return text.encode("utf-8", "replace").decode()


def encodable(value: Any) -> Any:
    """A JSON value with every text made ``printable``."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [encodable(item) for item in value]
    return value


def parsed(text: bytes) -> dict[str, Any]:
    """A line of the meta file.

    Raises:
        ValueError, RecursionError: it is damaged.
    """
    line: Any = json.loads(text.decode())  # of bytes it would look for their encoding
    if not isinstance(line, dict):
        raise ValueError("a line is an object")
    lone = b"\\ud" in text.lower()  # perhaps a lone surrogate, from a file name for example
    found: dict[str, Any] = encodable(line) if lone else line
    return found


def whole(value: Any, most: int = FOREVER) -> int:
    """A whole number from 0 to ``most``.

    Raises:
        ValueError, TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is no whole number")
    if not 0 <= value <= most:
        raise ValueError(f"{value} is not from 0 to {most}")
    return value


class Lines:
    """A meta file, opened when it is there. It stays readable for as long as somebody has this."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file; fewer where it ends."""
        try:
            if self._fd < 0:
                self._fd = open_regular(self._path)
                weakref.finalize(self, os.close, self._fd)
            return os.pread(self._fd, length, offset)
        except OSError:  # not there, stale, or the disk fails: shown as missing
            return b""

    def at(self, offset: int) -> dict[str, Any] | None:
        """The line that begins there; None: it is not there any more."""
        length = 4096
        while True:
            data = self.read(offset, length)
            end = data.find(b"\n")
            if end >= 0 or len(data) < length or length >= LONGEST_LINE:
                break
            length *= 8
        try:
            return parsed(data[: max(end, 0)])
        except DAMAGE:
            return None


class Notes(Mapping[int, T]):
    """What the meta file says of rows, by row number. In memory is only where it says so.

    Args:
        lines: the file.
        value: what a line says, given what the lines before it said of the same row.
    """

    def __init__(self, lines: Lines, value: Callable[[dict[str, Any], T | None], T]) -> None:
        self._lines = lines
        self._value = value
        self._rows = np.empty(0, np.uint32)  # sorted; of equals the earlier line first
        self._offsets = np.empty(0, np.int64)
        self._new_rows, self._new_offsets = array("I"), array("q")
        self._guard = threading.Lock()  # the app looks things up while it reads on

    def add(self, line: dict[str, Any], offset: int) -> None:
        """There is this line at this offset.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        row = whole(line["row"], MAX_ROW)
        self._value(line, None)
        with self._guard:
            self._new_rows.append(row)
            self._new_offsets.append(offset)

    def _places(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        with self._guard:
            if self._new_rows:
                rows = np.concatenate([self._rows, np.array(self._new_rows, np.uint32)])
                offsets = np.concatenate([self._offsets, np.array(self._new_offsets, np.int64)])
                order = np.argsort(rows, kind="stable")
                self._rows, self._offsets = rows[order], offsets[order]
                del self._new_rows[:], self._new_offsets[:]
            return self._rows, self._offsets

    def rows(self) -> npt.NDArray[np.uint32]:
        """The rows of which something is said, rising; some perhaps twice."""
        return self._places()[0]

    def of(self, numbers: npt.NDArray[np.uint32]) -> dict[int, T]:
        """What is said of these rows, whose numbers rise."""
        found = self.among(numbers).tolist() if self else []
        return {row: value for row in found if (value := self.get(row)) is not None}

    def among(self, numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Those of these rows, whose numbers rise, of which something is said."""
        rows = self.rows()
        if not len(numbers):
            return rows[:0]
        first = np.searchsorted(rows, numbers[0], "left")
        last = np.searchsorted(rows, numbers[-1], "right")
        return np.intersect1d(rows[first:last], numbers)

    def since(self, offset: int) -> list[int]:
        """The rows of which something is said from this offset on."""
        rows, offsets = self._places()
        late = np.flatnonzero(offsets >= offset)
        in_order = rows[late[np.argsort(offsets[late])]].tolist()
        return list(dict.fromkeys(in_order))

    def lines(self, row: int) -> list[dict[str, Any]]:
        """The lines about a row, as they stand."""
        rows, offsets = self._places()
        first, last = np.searchsorted(rows, row, "left"), np.searchsorted(rows, row, "right")
        found = [self._lines.at(offset) for offset in offsets[first:last].tolist()]
        return [line for line in found if line is not None and line.get("row") == row]

    def get(self, row: int, default: Any = None) -> Any:
        """What is said of a row."""
        value: T | None = None
        for line in self.lines(row):
            try:
                value = self._value(line, value)
            except DAMAGE:  # another line than the one that was read
                continue
        return default if value is None else value

    def __len__(self) -> int:
        return len(np.unique(self.rows()))

    def __bool__(self) -> bool:
        return bool(len(self._rows) or self._new_rows)

    def __iter__(self) -> Iterator[int]:
        return iter(np.unique(self.rows()).tolist())

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and bool(np.isin(row, self.rows()))

    def __getitem__(self, row: int) -> T:
        found: T | None = self.get(row)
        if found is None:
            raise KeyError(row)
        return found
