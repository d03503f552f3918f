"""Reads a journal: finished, growing, or left by a writer that was killed.

The format is documented in ``firetrace.tracer.journal``. Readers use ``pread`` and never map the
file: a mapped reader dies of SIGBUS when someone truncates it.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firetrace.tracer.errors import JournalError
from firetrace.tracer.files import open_regular
from firetrace.tracer.journal import (
    FIRST_ROW,
    HEADER_BYTES,
    MAX_ROW,
    ROW_BYTES,
    ROW_DTYPE,
    WEAKLY_ORDERED,
    Flag,
    Header,
    Rows,
    boot_id,
    written_here,
)
from firetrace.tracer.meta import Meta

Numbers = npt.NDArray[np.uint32]
Hold = Callable[[Rows, Numbers], npt.NDArray[np.bool_]]
#: Windows that were handed out and not yet written to: a thread has one.
LONGEST_HOLE = 1024
#: Open rows that are so close together are looked at in one read.
AT_ONCE = 4096
#: Of a journal whose writer is gone: windows at its end that are looked at again.
LAST_WINDOWS = 16


class Position(NamedTuple):
    """How far a reader is that forgets what it has handed out."""

    windows: int  #: how many were begun
    filled: dict[int, int]  #: of those that are not full, how many slots were read
    kept: list[int]  #: numbers of the rows that were read and not handed out


class JournalReader:
    """Reads one process's journal, finished, growing or left by a writer that was killed.

    ``poll`` brings ``rows`` and ``numbers`` up to date; both are arrays in file order.

    Raises:
        JournalError: the file is no journal, or of another version, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._fd = open_regular(self.path)
        except OSError as error:
            raise JournalError(f"{self.path}: {error.strerror or error}") from error
        try:
            self.header = Header.unpack(os.pread(self._fd, HEADER_BYTES, 0), self.path)
        except OSError as error:
            os.close(self._fd)
            raise JournalError(f"{self.path}: {error.strerror or error}") from error
        except JournalError:
            os.close(self._fd)
            raise
        self._close = weakref.finalize(self, os.close, self._fd)
        self.meta = Meta(self.path.with_suffix(".meta.jsonl"))
        self._rows = np.empty(0, ROW_DTYPE)
        self._numbers = np.empty(0, np.uint32)
        self._count = 0
        self._open = np.empty(0, np.int64)  # positions (not numbers) of rows to look at again
        self._per_window = self.header.window_bytes // ROW_BYTES
        self._filled: dict[int, int] = {0: FIRST_ROW}  # unsealed windows: slots read so far
        self._windows = 1
        self._growing = True  # a writer may be at work
        self.behind = False  #: whether the last ``poll`` left windows for the next one

    @property
    def rows(self) -> Rows:
        """The rows read so far, in file order, dtype ``ROW_DTYPE``."""
        return self._rows[: self._count]

    @property
    def numbers(self) -> Numbers:
        """The row numbers that belong to ``rows``; strictly rising within a window."""
        return self._numbers[: self._count]

    def close(self) -> None:
        """Close the file; what was read stays."""
        self._close()

    def fileno(self) -> int:
        """The descriptor of the rows file."""
        return self._fd

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def poll(self, most: int | None = None) -> bool:
        """Read what was written since the last call. Return whether anything changed.

        ``most``: begin no more than so many new windows; see ``behind``.
        """
        recent_ns = self.now_ns() - 10**6
        self._growing = self.alive() is not False
        changed = self._look_again()
        size = os.fstat(self._fd).st_size
        self._begin_windows(size, most)
        for window in sorted(self._filled):
            changed |= self._read_window(window, size, recent_ns)
        if not self._growing:  # a copy may still be made of it; that goes on at its end
            for window in sorted(self._filled)[:-LAST_WINDOWS]:
                del self._filled[window]
        self.meta.poll()  # after the rows: every name that they use is there by now
        return changed

    def _begin_windows(self, size: int, most: int | None) -> None:
        """Begin the windows that are new, but no more than ``most``."""
        whole = self.header.window_bytes
        there = min(max(1, -(-size // whole)), MAX_ROW // self._per_window + 1)
        window, begun = self._windows, 0
        while window < there and (most is None or begun < most):
            next_one = next_data(self._fd, window * whole, size) // whole
            if next_one > window + (LONGEST_HOLE if self._growing else 0):
                window = next_one
                continue
            self._filled[window] = 0
            window, begun = window + 1, begun + 1
        self.behind = window < there
        self._windows = max(self._windows, window if self.behind else there)

    def take(
        self, before_ns: int | None = None, everything: bool = False, hold: Hold | None = None
    ) -> tuple[Rows, Numbers]:
        """Hand out the rows that will not change any more and forget them; the others stay.

        A scalar stays with its span, and what is in a phase whose name is a guess stays with that:
        if it proves wrong, it is no span.

        Args:
            before_ns: only what ended before this, Unix ns.
            everything: the open ones too, which are not looked at again.
            hold: says which rows are to stay although they have ended.
        """
        rows, numbers = self.rows, self.numbers
        stay = np.zeros(len(rows), bool)
        if not everything:
            stay[self._open] = True
            if before_ns is not None:
                stay |= (rows["end"] >= before_ns) & (rows["flags"] & Flag.SCALAR == 0)
            if hold is not None:
                stay |= hold(rows, numbers)
            guesses = numbers[(rows["end"] == 0) & (rows["flags"] & Flag.GUESS != 0)]
            if len(guesses):
                stay |= np.isin(rows["parent"], guesses)
            scalars = np.flatnonzero(rows["flags"] & Flag.SCALAR)
            stay[scalars] = np.isin(rows["parent"][scalars], numbers[stay])
        taken = _without(rows, stay), _without(numbers, stay)
        self._open = (np.cumsum(stay) - 1)[self._open] if not everything else self._open[:0]
        self._count = int(np.count_nonzero(stay))
        self._rows[: self._count], self._numbers[: self._count] = rows[stay], numbers[stay]
        return taken

    def row(self, number: int) -> np.void | None:
        """One row as it stands in the file, whether it has been read before or not."""
        return self._one_row(number * ROW_BYTES) if number >= FIRST_ROW else None

    @property
    def position(self) -> Position:
        """How far this reader is."""
        return Position(self._windows, dict(self._filled), self.numbers.tolist())

    def go_to(self, position: Position) -> None:
        """Go on where another reader of this journal was. Call it before the first ``poll``."""
        self._windows, self._filled = position.windows, dict(position.filled)
        self._make_room(len(position.kept))
        for number in position.kept:
            row = self.row(number)
            if row is not None:
                self._rows[self._count], self._numbers[self._count] = row, number
                self._count += 1
        self._open = np.flatnonzero(self.rows["flags"] & Flag.SCALAR == 0)

    def _look_again(self) -> bool:
        """Read the rows that were open once more; they may have been closed in place."""
        at = self._open
        if not len(at):
            return False
        at = at[np.argsort(self._numbers[at])]
        # Twice: the flags of a row were written before the end that the first look saw.
        rows, there = self.rows_at(self._numbers[at])
        ended = there & (rows["end"] != 0)
        rows[ended], still_there = self.rows_at(self._numbers[at[ended]])
        there[ended] &= still_there
        new = there & (rows != self._rows[at])
        self._rows[at[new]] = rows[new]
        self._open = at[there & (rows["end"] == 0)]
        return bool(new.any())

    def rows_at(self, numbers: Numbers) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Rows, whose numbers rise, as they stand in the file, and which of them it still has."""
        rows, there = np.zeros(len(numbers), ROW_DTYPE), np.zeros(len(numbers), bool)
        places, first = numbers.astype(np.int64), 0
        while first < len(places):  # what lies close together is read at once
            begin = int(places[first])
            last = first + int(np.searchsorted(places[first:], begin + AT_ONCE))
            length = (int(places[last - 1]) - begin + 1) * ROW_BYTES
            data = os.pread(self._fd, length, begin * ROW_BYTES)
            found = np.frombuffer(data[: len(data) // ROW_BYTES * ROW_BYTES], ROW_DTYPE)
            offsets = places[first:last] - begin
            known = offsets < len(found)
            rows[first:last][known], there[first:last] = found[offsets[known]], known
            first = last
        return rows, there

    def _one_row(self, offset: int) -> np.void | None:
        data = os.pread(self._fd, ROW_BYTES, offset)
        return np.frombuffer(data, ROW_DTYPE)[0] if len(data) == ROW_BYTES else None

    def _read_window(self, window: int, size: int, recent_ns: int) -> bool:
        done = self._filled[window]
        first = window * self._per_window + done
        count = min((window + 1) * self._per_window, size // ROW_BYTES, MAX_ROW + 1) - first
        if count <= 0:
            return False
        self._make_room(count)
        slots = self._pread(first, count)
        starts = slots["start"]
        used = np.flatnonzero(starts)
        if WEAKLY_ORDERED:  # a start may be seen before its row: let the last ms wait
            used = used[starts[used] < recent_ns]
        if not len(used):
            return False
        count = int(used[-1]) + 1
        if len(used) != count or self._growing:
            # A read is not one moment: it may have copied the beginning of a row before it was
            # written and the end after it. Read again, each row that was seen is whole. A slot
            # before a used one that is still empty was damaged.
            slots = self._pread(first, count)
            used = np.flatnonzero(slots["start"])
        self._filled[window] = done + count
        if done + count == self._per_window:
            del self._filled[window]
        begin, end = self._count, self._count + len(used)
        if len(used) != count:
            self._rows[begin:end] = slots[used]
        self._numbers[begin:end] = first + used
        self._count = end
        # Rows closed while they were being read are looked at once more, for their flags.
        found = self._rows[begin:end]
        again = found["end"] == 0
        if self._growing:
            again |= found["end"] >= recent_ns
        again &= found["flags"] & Flag.SCALAR == 0
        if again.any():
            self._open = np.concatenate([self._open, np.flatnonzero(again) + begin])
        return True

    def _pread(self, first: int, count: int) -> Rows:
        """Read slots to where the next rows go. Return those that the file has."""
        room = self._rows[self._count : self._count + count]
        buffer: Any = room.view(np.uint8)
        length = os.preadv(self._fd, [buffer], first * ROW_BYTES)
        return room[: length // ROW_BYTES]

    def _make_room(self, count: int) -> None:
        """Let ``count`` more rows fit: as many as the file has, or half as many again."""
        need = self._count + count
        if need > len(self._rows):
            in_file = os.fstat(self._fd).st_size // ROW_BYTES
            soon = min(self._per_window, 2**13)  # another window, unless its size is absurd
            room = max(need, min(in_file + soon, 2**22), self._count * 3 // 2)
            for attribute in ("_rows", "_numbers"):
                old = getattr(self, attribute)
                new = np.empty(room, old.dtype)
                new[: self._count] = old[: self._count]
                setattr(self, attribute, new)

    def alive(self) -> bool | None:
        """Whether the writer lives; None where that cannot be told (another host, no locks)."""
        if self.header.seed in written_here:  # our own: its lock file must not be touched
            return self.meta.ended is None
        return lock_is_held(self.path.with_suffix(".lock"))

    def now_ns(self) -> int:
        """The present in the journal's time, Unix ns, unmoved by a stepped wall clock."""
        if self.header.boot_id and self.header.boot_id == boot_id():
            return self.header.wall_ns + time.monotonic_ns() - self.header.monotonic_ns
        return time.time_ns()


def next_data(fd: int, offset: int, size: int) -> int:
    """Where a file of this size has data, from an offset on: it may be one large hole."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset


def _without(array: npt.NDArray[Any], stay: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """A copy without some entries; where these are few it is 10 times faster than a mask."""
    at = np.flatnonzero(stay)
    if len(at) > 64:
        return array[~stay]
    edges = [-1, *at.tolist(), len(array)]
    return np.concatenate([array[i + 1 : j] for i, j in pairwise(edges)])


def lock_is_held(path: Path) -> bool | None:
    """Whether some process holds the lock on this file; None where that cannot be told."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
    except OSError:
        return None
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except PermissionError:
        return True  # EACCES: POSIX allows this answer too
    except OSError:
        return None
    finally:
        os.close(fd)
