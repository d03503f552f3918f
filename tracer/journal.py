r"""The journal: the files in which one process records its spans, and how to read them.

This page is enough to write a reader in another language. All numbers are little-endian.

A process that is traced writes three files into the directory of its run, named after its rank
and its attempt (the first process of rank 0 is ``rank0.1``)::

    rank0.1.rows         fixed-size rows, one a span
    rank0.1.meta.jsonl   one JSON object a line: everything of variable length
    rank0.1.lock         empty; locked (POSIX ``lockf``, exclusive) for as long as the writer lives

Where the data pipeline is recorded, each process in which batches are made (a worker of a
``DataLoader``, or the training itself) has a *data journal* beside that: ``rank0.1.data0.rows`` and
so on, of the same format. A worker that begins when another has ended goes on in its files.

Where device time is recorded, there is a *device journal*, ``rank0.1.device.rows``, of the same
format as well. Its rows have no parents. A ``device`` row is a phase of the rank's journal on the
device's timeline: from when the device had done all that was queued before the phase began, to
when it had done all that was queued before the phase ended (of kind ``copy``: the same of a
``prepare_batch`` that copied the batch there). It is open, and begins when the phase began on the
host, until its times are known; if they never were, it stays so where the process was killed, and
else is flagged CUT and has no duration. An ``event`` row is a moment in which the device's memory
was full. Scalars are bytes: what is allocated and what was copied there, from time to time.

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
    8       u32     epoch      as ignite counts: from 1, 0 before the first. In a data journal the
                               ``id`` of a ``pass``, 0 for what belongs to none; in a device
                               journal the number of the phase's row in the rank's journal, or 0
    12      u32     iteration  as ignite counts, over all epochs; on ``step`` and ``get_batch`` the
                               one being fetched. On ``run`` and ``epoch`` as they began, or, where
                               steps are thinned out, the last one reached. In a data journal which
                               batch of its pass, from 1
    16      i64     end, Unix ns; 0 while open. With ``Flag.SCALAR``: an f64, the scalar's value
    24      i64     start, Unix ns; 0: there is no row here (yet)

The file grows by windows of equal size, each filled from its start by one thread, so rows of
several threads do not mix within a window and a window may have unused slots, all zero. Row
numbers of one thread rise with time. *Publication*: a row becomes visible with its ``start``,
written last; it is closed in place, flags first and ``end`` last. A reader therefore skips rows
whose start is 0, looks again at rows whose end was 0, and need not trust any count. A read is not
one moment: while the writer lives, what was read has to be read once more, and then the rows that
the first read saw are whole. When the writer ends, the file becomes shorter by the unused slots
behind its last row: who maps it maps no more than up to a row that was seen there, or reads.

A row flagged ``VOID`` was opened on a guess that proved wrong, or for a fetch that never began: it
is no span, and its children belong to its parent.

**Meta file.** Each line is an object with a ``type``; a reader ignores types and keys that it does
not know, and a last line without its newline (the writer died). A line is written before the
first row that needs it.

    process    ``resource``: OpenTelemetry resource attributes
    traces     ``split``: run, epoch or step: what is a trace (see ``firetrace.tracer.traces``);
               ``parent``: the W3C ``traceparent`` of the program's caller, or null
    name       ``id``, ``kind`` (see ``KINDS``), ``name``; of a handler ``code``: where it is from
    lane       ``id``, ``engine``, ``thread``, ``thread_id``
    run        ``row``, ``max_epochs``, ``epoch_length``, ``max_iters``: how far a run means to go
    exception  ``row``, ``time``, ``exception.type``, ``exception.message``, ``.stacktrace``
    end_reason ``row``, ``reason``: why a row flagged CUT ended: terminate, interrupt, ...
    link       ``row``, ``to``: a run's row, and the row of the interrupted run that it goes on with
    attributes ``row``, ``attributes``: of a span that the user made
    thin       ``every``, ``time``: from here on only every Nth step is recorded (disk budget)
    clock      ``wall``, ``monotonic``: a later anchor; a stepped wall clock shows here
    offset     ``time``, ``offset``, ``error``, ``to``: at this time of this journal's, that of the
               journal with the seed ``to`` (hex), on another host, was ``offset`` ns later, give or
               take ``error`` ns. Between two journals of one boot nothing need be measured
    loading    ``time``, ``lane``, ``iteration``, ``seed``: an engine begins to iterate over a
               loader after so many iterations; ``seed``: of the loader's iterator, or null
    pass       ``id``, ``time``, ``seed``, ``worker``, ``workers``, ``dataset``, ``pid``: of a data
               journal: a worker begins a pass over a data set. Of no worker ``workers`` is 0
    anchor     ``time``, ``lane``, ``error``: of a device journal: at this time the device's clock
               was placed on the host's, give or take ``error`` ns; once a minute
    untimed    ``lane``, ``reason``, ``count``: so many phases have no row in the device journal
    stopped    ``reason``: firetrace had to stop recording; the training went on
    end        ``time``: the writer closed the journal properly

**Alive or dead**: try for a shared ``lockf`` on the lock file; refused means that the writer lives.
A process must not open and close the lock file of its own journal: that would release the lock.
"""

from __future__ import annotations

import enum
import json
import platform
import struct
from dataclasses import dataclass, field
from functools import cache
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
LATEST_NS = 2**62  #: the year 2116
BYTE_ORDER_MARK = 0x01020304
WEAKLY_ORDERED = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")

HEADER = struct.Struct("<8sIIIIqq16sI")
ROW = struct.Struct("<IHBBIIqq")
HOST_OFFSET = 64

#: What a name stands for. ``phase`` is a part of an iteration, ``pair`` a custom
#: ``*_STARTED``/``*_COMPLETED`` pair, ``span`` one that the user made. Of data journals: a
#: ``batch`` has samples, which have transforms, and then its ``collate``. The last two are of
#: device journals.
KINDS = (
    "run", "epoch", "loader", "step", "iteration", "phase", "pair", "event", "handler", "span",
    "scalar", "batch", "sample", "transform", "collate", "device", "copy",
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
    SKIPPED = 128  #: the optimizer was not stepped: gradients accumulate, or were not finite


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
        if not (0 <= wall <= LATEST_NS and 0 <= mono <= LATEST_NS):
            raise JournalError(f"{path}: damaged header (clocks)")
        try:
            text = data[HOST_OFFSET:HEADER_BYTES].rstrip(b"\0").decode(errors="replace")
            more = json.loads(text)
            host, boot_id = str(more["host"]), str(more["boot_id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            host = boot_id = ""  # only needed for aliveness and open durations
        return cls(window, wall, mono, seed, pid, host, boot_id)


@cache
def boot_id() -> str:
    """An id of this boot of this machine ("" where the system has none).

    Monotonic times of two processes compare only where their boot ids are equal.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
