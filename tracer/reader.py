"""Reads a journal: finished, growing, or left by a writer that was killed.

The format is documented in ``firetrace.tracer.journal``. Readers use ``pread`` and never map the
file: a mapped reader dies of SIGBUS when someone truncates it.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import (
    FIRST_ROW,
    HEADER_BYTES,
    KINDS,
    ROW_BYTES,
    ROW_DTYPE,
    WEAKLY_ORDERED,
    Flag,
    Header,
    Lane,
    Name,
    Rows,
    boot_id,
    written_here,
)


def printable(text: str) -> str:
    """``text`` without lone surrogates, which no encoder takes."""
    return text.encode("utf-8", "replace").decode()


def _encodable(value: Any) -> Any:
    """A JSON value with every text made ``printable``."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return value


class Meta:
    """What the meta file says so far; ``poll`` reads what has been added since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resource: dict[str, Any] = {}
        self.split = "run"  #: what is a trace
        self.traceparent: str | None = None  #: of the program's caller
        self.names: dict[int, Name] = {}
        self.lanes: dict[int, Lane] = {}
        self.runs: dict[int, dict[str, Any]] = {}  #: by row
        self.exceptions: dict[int, dict[str, Any]] = {}  #: by row
        self.reasons: dict[int, str] = {}  #: by row
        self.links: dict[int, int] = {}  #: by row: the row of the run that it goes on with
        self.attributes: dict[int, dict[str, Any]] = {}  #: by row: what the user noted
        self.thinned: list[dict[str, Any]] = []
        self.clocks: list[dict[str, Any]] = []
        self.stopped: str | None = None
        self.ended: int | None = None  #: Unix ns at which the writer closed the journal
        self.damaged = 0  #: lines that could not be read
        self._offset = 0
        self._takers = {
            "process": self._process,
            "traces": self._traces,
            "name": self._name,
            "lane": self._lane,
            "run": lambda line: self.runs.__setitem__(int(line["row"]), line),
            "exception": lambda line: self.exceptions.__setitem__(int(line["row"]), line),
            "end_reason": lambda line: self.reasons.__setitem__(
                int(line["row"]), str(line["reason"])
            ),
            "link": lambda line: self.links.__setitem__(int(line["row"]), int(line["to"])),
            "attributes": lambda line: self.attributes.setdefault(int(line["row"]), {}).update(
                line["attributes"]
            ),
            "thin": self.thinned.append,
            "clock": self.clocks.append,
            "stopped": self._stopped,
            "end": self._ended,
        }

    def poll(self) -> None:
        """Read the lines that were completed since the last call."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data.rfind(b"\n") + 1
        self._offset += complete
        for text in data[:complete].splitlines():
            try:
                line = json.loads(text)
                if b"\\ud" in text:  # perhaps a lone surrogate, from a file name for example
                    line = _encodable(line)
                taker = self._takers.get(line["type"])
                if taker is not None:
                    taker(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                self.damaged += 1

    def lane(self, id: int) -> Lane:
        """The engine and thread with this lane id."""
        return self.lanes.get(id) or Lane(f"engine {id}", "")

    def _process(self, line: dict[str, Any]) -> None:
        self.resource = dict(line["resource"])

    def _traces(self, line: dict[str, Any]) -> None:
        self.split = line["split"] if line["split"] in ("epoch", "step") else "run"
        self.traceparent = line.get("parent")

    def _name(self, line: dict[str, Any]) -> None:
        kind = line["kind"] if line["kind"] in KINDS else "span"
        self.names[int(line["id"])] = Name(
            kind, printable(str(line["name"])), dict(line.get("code", {}))
        )

    def _lane(self, line: dict[str, Any]) -> None:
        self.lanes[int(line["id"])] = Lane(
            str(line["engine"]), str(line["thread"]), int(line.get("thread_id", 0))
        )

    def _stopped(self, line: dict[str, Any]) -> None:
        self.stopped = str(line["reason"])

    def _ended(self, line: dict[str, Any]) -> None:
        self.ended = int(line["time"])


Numbers = npt.NDArray[np.uint32]


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
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
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
        windows = max(1, -(-size // self.header.window_bytes))
        if most is not None:
            windows, all_windows = min(windows, self._windows + most), windows
            self.behind = windows < all_windows
        for window in range(self._windows, windows):
            self._filled[window] = 0
        self._windows = max(self._windows, windows)
        for window in sorted(self._filled):
            changed |= self._read_window(window, recent_ns)
        self.meta.poll()  # after the rows: every name that they use is there by now
        return changed

    def take(self, before_ns: int | None = None, everything: bool = False) -> tuple[Rows, Numbers]:
        """Hand out the rows that will not change any more and forget them; the others stay.

        A scalar stays with its span, and what is in a phase whose name is a guess stays with that:
        if it proves wrong, it is no span.

        Args:
            before_ns: only what ended before this, Unix ns.
            everything: the open ones too, which are not looked at again.
        """
        rows, numbers = self.rows, self.numbers
        stay = np.zeros(len(rows), bool)
        if not everything:
            stay[self._open] = True
            if before_ns is not None:
                stay |= (rows["end"] >= before_ns) & (rows["flags"] & Flag.SCALAR == 0)
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
        changed, still_open = False, []
        for position in self._open.tolist():
            offset = int(self._numbers[position]) * ROW_BYTES
            row = self._one_row(offset)
            if row is not None and row["end"]:
                row = self._one_row(offset)  # its flags were written before the end just seen
            if row is None:
                continue
            if row["end"] == 0:
                still_open.append(position)
            if self._rows[position] != row:
                self._rows[position] = row
                changed = True
        self._open = np.array(still_open, np.int64)
        return changed

    def _one_row(self, offset: int) -> np.void | None:
        data = os.pread(self._fd, ROW_BYTES, offset)
        return np.frombuffer(data, ROW_DTYPE)[0] if len(data) == ROW_BYTES else None

    def _read_window(self, window: int, recent_ns: int) -> bool:
        done = self._filled[window]
        first = window * self._per_window + done
        self._make_room(self._per_window - done)
        slots = self._pread(first, self._per_window - done)
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
        again = (found["end"] == 0) | (found["end"] >= recent_ns)
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
            room = max(need, min(in_file + self._per_window, 2**22), self._count * 3 // 2)
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
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
