r"""The journal: the files in which one process records its spans, and how to read them.

This page is enough to write a reader in another language. All numbers are little-endian.

A process that is traced writes three files into the directory of its run, named after its rank
and its attempt (the first process of rank 0 is ``rank0.1``)::

    rank0.1.rows         fixed-size rows, one a span
    rank0.1.meta.jsonl   one JSON object a line: everything of variable length
    rank0.1.lock         empty; locked (POSIX ``lockf``, exclusive) for as long as the writer lives

**Rows file.** The first 4096 bytes are the header:

    offset  type    field
    0       8 bytes magic, ``b"FIRETRC\n"``
    8       u32     version of this format, 1. Any other is refused
    12      u32     bytes a row, 32
    16      u32     byte order mark, 0x01020304
    20      u32     bytes a window (see below)
    24      i64     wall clock at the start, Unix ns        \  the anchor: Unix time of a row =
    32      i64     monotonic clock at the same moment, ns  /   wall + (monotonic - anchor's)
    40      16 B    random seed, from which span and trace ids are derived
    56      u32     process id
    64      ...     UTF-8 JSON, padded with NUL: ``host``, ``boot_id``

A row's number is its byte offset divided by 32, so the first row is number 128 and 0 means "none":

    offset  type    field
    0       u32     parent: the number of the row it is a child of, 0 for a root. Less than its own
    4       u16     name: the id of a ``name`` line of the meta file
    6       u8      lane: the id of a ``lane`` line: one engine in one thread
    7       u8      flags (the ``Flag`` bits)
    8       u32     epoch      as ignite counts: from 1, 0 before the first
    12      u32     iteration  as ignite counts, over all epochs; on ``step`` and ``get_batch`` the
                               one being fetched. On ``run`` and ``epoch`` as they began, or, where
                               steps are thinned out, the last one reached
    16      i64     end, Unix ns; 0 while open. With ``Flag.SCALAR``: an f64, the scalar's value
    24      i64     start, Unix ns; 0: there is no row here (yet)

The file grows by windows of equal size, each filled from its start by one thread, so rows of
several threads do not mix within a window and a window may have unused slots, all zero. Row
numbers of one thread rise with time. *Publication*: a row becomes visible with its ``start``,
written last; it is closed in place, flags first and ``end`` last. A reader therefore skips rows
whose start is 0, looks again at rows whose end was 0, and need not trust any count. A read of many
rows is not one moment: an empty slot before a used one, or the flags of a row that was closed during
the read, have to be read once more. A row flagged
``VOID`` was opened on a guess that proved wrong: it is no span, its children belong to its parent.

**Meta file.** Each line is an object with a ``type``; a reader ignores types and keys that it does
not know, and a last line without its newline (the writer died). A line is written before the
first row that needs it.

    process    ``resource``: OpenTelemetry resource attributes
    name       ``id``, ``kind`` (see ``KINDS``), ``name``; of a handler ``code``: where it is from
    lane       ``id``, ``engine``, ``thread``, ``thread_id``
    run        ``row``, ``max_epochs``, ``epoch_length``, ``max_iters``: how far a run means to go
    exception  ``row``, ``time``, ``exception.type``, ``exception.message``, ``.stacktrace``
    end_reason ``row``, ``reason``: why a row flagged CUT ended: terminate, interrupt, ...
    thin       ``every``, ``time``: from here on only every Nth step is recorded (disk budget)
    clock      ``wall``, ``monotonic``: a later anchor; a stepped wall clock shows here
    stopped    ``reason``: firetrace had to stop recording; the training went on
    end        ``time``: the writer closed the journal properly

**Alive or dead**: try for a shared ``lockf`` on the lock file; refused means that the writer lives.
A process must not open and close the lock file of its own journal: that would release the lock.
"""

from __future__ import annotations

import enum
import json
import os
import platform
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.tracer.errors import JournalError

MAGIC = b"FIRETRC\n"
VERSION = 1
ROW_BYTES = 32
HEADER_BYTES = 4096
FIRST_ROW = HEADER_BYTES // ROW_BYTES
MAX_ROW = 2**32 - 1
MAX_NAMES = 2**16
MAX_LANES = 2**8
BYTE_ORDER_MARK = 0x01020304
WEAKLY_ORDERED = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")

HEADER = struct.Struct("<8sIIIIqq16sI")
ROW = struct.Struct("<IHBBIIqq")
HOST_OFFSET = 64

#: What a name stands for. ``phase`` is a part of an iteration, ``pair`` a custom
#: ``*_STARTED``/``*_COMPLETED`` pair, ``span`` one that the user made.
KINDS = (
    "run", "epoch", "loader", "step", "iteration", "phase", "pair", "event", "handler", "span",
    "scalar",
)  # fmt: skip

ROW_DTYPE = np.dtype(
    [
        ("parent", "<u4"),
        ("name", "<u2"),
        ("lane", "u1"),
        ("flags", "u1"),
        ("epoch", "<u4"),
        ("iteration", "<u4"),
        ("end", "<i8"),
        ("start", "<i8"),
    ]
)
assert ROW_DTYPE.itemsize == ROW.size == ROW_BYTES

Rows = npt.NDArray[np.void]

#: Seeds of the journals that this process is writing (see ``JournalReader.alive``).
written_here: set[bytes] = set()


class Flag(enum.IntFlag):
    """The bits of a row's ``flags``."""

    ERROR = 1  #: an exception passed through it
    CUT = 2  #: it was ended by something other than its own end: terminate, interrupt, exception
    SCALAR = 4  #: no span: ``end`` holds an f64
    GUESS = 8  #: opened under the name that followed last time; while open, the name is a guess
    VOID = 16  #: a guess that proved wrong; not a span
    LATE = 32  #: recording began in the middle of it; the start is when it was first seen
    RESUMED = 64  #: goes on with a run that was interrupted before


@dataclass(frozen=True)
class Name:
    """What the rows with this name id are."""

    kind: str
    text: str
    code: dict[str, Any] = field(default_factory=dict)  #: ``code.*`` attributes of a handler


@dataclass(frozen=True)
class Lane:
    """One engine in one thread."""

    engine: str
    thread: str
    thread_id: int = 0


@dataclass(frozen=True)
class Header:
    """The fixed part of a rows file. Times in ns."""

    window_bytes: int
    wall_ns: int
    monotonic_ns: int
    seed: bytes
    pid: int
    host: str
    boot_id: str

    def pack(self) -> bytes:
        """The ``HEADER_BYTES`` bytes with which a rows file begins."""
        fixed = HEADER.pack(
            MAGIC, VERSION, ROW_BYTES, BYTE_ORDER_MARK, self.window_bytes,
            self.wall_ns, self.monotonic_ns, self.seed, self.pid,
        )  # fmt: skip
        text = json.dumps({"host": self.host[:255], "boot_id": self.boot_id}).encode()
        return (fixed.ljust(HOST_OFFSET, b"\0") + text).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes, path: Path) -> Header:
        """Parse a header.

        Raises:
            JournalError: it is no journal, or one of a version that this firetrace cannot read.
        """
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise JournalError(f"{path}: not a firetrace journal")
        _, version, row_bytes, mark, window, wall, mono, seed, pid = HEADER.unpack_from(data)
        if version != VERSION:
            raise JournalError(
                f"{path}: journal version {version}; this firetrace reads version {VERSION}"
            )
        if row_bytes != ROW_BYTES or mark != BYTE_ORDER_MARK:
            raise JournalError(f"{path}: damaged header (row size or byte order)")
        if window < HEADER_BYTES or window % ROW_BYTES:
            raise JournalError(f"{path}: damaged header (window size {window})")
        try:
            text = data[HOST_OFFSET:HEADER_BYTES].rstrip(b"\0").decode(errors="replace")
            more = json.loads(text)
            host, boot_id = str(more["host"]), str(more["boot_id"])
        except (ValueError, KeyError, TypeError):
            host = boot_id = ""  # only needed for aliveness and open durations
        return cls(window, wall, mono, seed, pid, host, boot_id)


def boot_id() -> str:
    """An id of this boot of this machine ("" where the system has none).

    Monotonic times of two processes compare only where their boot ids are equal.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def printable(text: str) -> str:
    """``text`` without lone surrogates, which no encoder takes."""
    return text.encode("utf-8", "replace").decode()


class Meta:
    """What the meta file says so far; ``poll`` reads what has been added since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resource: dict[str, Any] = {}
        self.names: dict[int, Name] = {}
        self.lanes: dict[int, Lane] = {}
        self.runs: dict[int, dict[str, Any]] = {}  #: by row
        self.exceptions: dict[int, dict[str, Any]] = {}  #: by row
        self.reasons: dict[int, str] = {}  #: by row
        self.thinned: list[dict[str, Any]] = []
        self.clocks: list[dict[str, Any]] = []
        self.stopped: str | None = None
        self.ended: int | None = None  #: Unix ns at which the writer closed the journal
        self.damaged = 0  #: lines that could not be read
        self._offset = 0
        self._takers = {
            "process": self._process,
            "name": self._name,
            "lane": self._lane,
            "run": lambda line: self.runs.__setitem__(int(line["row"]), line),
            "exception": lambda line: self.exceptions.__setitem__(int(line["row"]), line),
            "end_reason": lambda line: self.reasons.__setitem__(
                int(line["row"]), str(line["reason"])
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
                taker = self._takers.get(line["type"])
                if taker is not None:
                    taker(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                self.damaged += 1

    def _process(self, line: dict[str, Any]) -> None:
        self.resource = dict(line["resource"])

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


class JournalReader:
    """Reads one process's journal, finished, growing or left by a writer that was killed.

    ``poll`` brings ``rows`` and ``numbers`` up to date; both are arrays in file order. The file is
    read with ``pread``, never mapped: a mapped reader dies of SIGBUS when someone truncates it.

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
        self.meta = Meta(self.path.with_suffix(".meta.jsonl"))
        self._rows = np.empty(0, ROW_DTYPE)
        self._numbers = np.empty(0, np.uint32)
        self._count = 0
        self._open = np.empty(0, np.int64)  # positions (not numbers) of rows to look at again
        self._per_window = self.header.window_bytes // ROW_BYTES
        self._filled: dict[int, int] = {0: FIRST_ROW}  # unsealed windows: slots read so far
        self._windows = 1

    @property
    def rows(self) -> Rows:
        """The rows read so far, in file order, dtype ``ROW_DTYPE``."""
        return self._rows[: self._count]

    @property
    def numbers(self) -> npt.NDArray[np.uint32]:
        """The row numbers that belong to ``rows``; strictly rising within a window."""
        return self._numbers[: self._count]

    def close(self) -> None:
        """Close the file; what was read stays."""
        os.close(self._fd)

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def poll(self) -> bool:
        """Read what was written since the last call. Return whether anything changed."""
        recent_ns = self.now_ns() - 10**6
        changed = self._look_again()
        size = os.fstat(self._fd).st_size
        windows = max(1, -(-size // self.header.window_bytes))
        for window in range(self._windows, windows):
            self._filled[window] = 0
        self._windows = max(self._windows, windows)
        for window in sorted(self._filled):
            changed |= self._read_window(window, recent_ns)
        self.meta.poll()  # after the rows: every name that they use is there by now
        return changed

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

    def _slots(self, first: int, count: int) -> Rows:
        data = os.pread(self._fd, count * ROW_BYTES, first * ROW_BYTES)
        return np.frombuffer(data[: len(data) // ROW_BYTES * ROW_BYTES], ROW_DTYPE)

    def _read_window(self, window: int, recent_ns: int) -> bool:
        done = self._filled[window]
        first = window * self._per_window + done
        slots = self._slots(first, self._per_window - done)
        used = np.flatnonzero(slots["start"])
        if WEAKLY_ORDERED:  # a start may be seen before its row: let the last ms wait
            used = used[slots["start"][used] < recent_ns]
        if not len(used):
            return False
        count = int(used[-1]) + 1
        if len(used) != count:
            # The writer was quicker than the read: what came before the last row is there now.
            # A slot that is still empty was damaged.
            slots = self._slots(first, count)
            used = np.flatnonzero(slots["start"])
        self._filled[window] = done + count
        if done + count == self._per_window:
            del self._filled[window]
        found = slots[used]
        begin = self._append(found, (first + used).astype(np.uint32))
        # Rows closed while they were being read are looked at once more, for their flags.
        again = (found["end"] == 0) | (found["end"] >= recent_ns)
        again &= found["flags"] & Flag.SCALAR == 0
        self._open = np.concatenate([self._open, np.flatnonzero(again) + begin])
        return True

    def _append(self, rows: Rows, numbers: npt.NDArray[np.uint32]) -> int:
        """Add to the arrays, doubling them as needed. Return where the new rows begin."""
        begin, need = self._count, self._count + len(rows)
        if begin == 0:
            self._rows, self._numbers = rows.copy(), numbers
        else:
            if need > len(self._rows):
                room = max(need, min(2 * len(self._rows), len(self._rows) + 2**20))
                for attribute in ("_rows", "_numbers"):
                    old = getattr(self, attribute)
                    new = np.empty(room, old.dtype)
                    new[:begin] = old[:begin]
                    setattr(self, attribute, new)
            self._rows[begin:need] = rows
            self._numbers[begin:need] = numbers
        self._count = need
        return begin

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
