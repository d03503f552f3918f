"""The writing side of a journal: files, windows, names, the disk budget.

One ``JournalWriter`` a process and run, one pen a thread. The slow path (a new window, a new
name, an exception) takes a lock; writing a row does not. Whatever fails here raises OSError to
the recorder, which ends the recording and lets the training go on.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from firetrace.tracer import journal
from firetrace.tracer.ids import Row, remote_parent
from firetrace.tracer.journal import HEADER_BYTES, ROW_BYTES, Header
from firetrace.tracer.storage import MappedPen, Pen, can_be_mapped

log = logging.getLogger("firetrace")

#: 8,192 rows, some 500 iterations: small enough to be no memory to speak of, large enough that
#: the 50 us of a new window are 0.1 us an iteration.
WINDOW_BYTES = 2**18
MAX_BYTES = 4 * 2**30
#: Half of the budget takes every step. The next 7/16 are 16 levels of equal size, each with half
#: as many of the steps as the one before, so each lasts twice as long: a run that would write a
#: thousand times its budget still has its newest steps. The rest is for runs, epochs and errors.
FULL_SHARE, STEPS_SHARE, LEVELS = 1 / 2, 15 / 16, 16
TEXT_SHARE = 1 / 16  # of the budget, for texts of exceptions
MOST_TEXT = 64 * 1024
LOOK_BYTES = 64 * 1024  # of texts, until the free space is looked at again
NONE_KEPT = 62  # every 2**62th step
CLOCK_EVERY_NS = 60 * 10**9
OTHER = "other"


class BudgetSpentError(OSError):
    """The journal may not grow any more."""


class JournalWriter:
    """Creates and fills the three files of a journal.

    Args:
        stem: the new files' path without suffixes, such as ``run/rank0.1``.
        resource: OpenTelemetry resource attributes of this process.
        max_bytes: what the journal may grow to. As it fills, fewer and fewer steps are kept.
        min_free_bytes: space that stays free on the file system; None: 1 GiB, or 5% of a small one.
            Where less than ``max_bytes`` is free above it, that is the budget.
        every: keep only every Nth step from the start.
        mapped: map the file (True), use ``pwrite`` (False), or as the file system allows (None).
        window_bytes: how much of the file a thread is given at a time, at most.

    Raises:
        OSError: the files cannot be made.
    """

    def __init__(
        self,
        stem: Path,
        resource: dict[str, Any],
        max_bytes: int = MAX_BYTES,
        min_free_bytes: int | None = None,
        every: int = 1,
        mapped: bool | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.path = stem.with_name(stem.name + ".rows")
        self.max_bytes = self._budget = max_bytes
        self.every = self.base_every = every  # one step in ``every`` is recorded
        window = min(window_bytes, max(max_bytes // 64, 2 * mmap.ALLOCATIONGRANULARITY))
        self._window_bytes = 1 << (window.bit_length() - 1)
        if mapped is None:
            mapped = sys.byteorder == "little" and can_be_mapped(stem.parent)
        self._pen_type: type[Pen] = MappedPen if mapped else Pen
        self._pens: list[Pen] = []
        self._guard = threading.RLock()
        self.split = ""  # how the journal is split into traces, once a run has begun
        self.traceparent: str | None = None  # the caller's
        self._names: dict[tuple[str, str], int] = {}
        self._kinds: dict[int, str] = {}  # of the names, by id
        self._lanes: dict[tuple[str, str, int], int] = {}
        self._engines: dict[str, list[int]] = {}
        self._folded: set[str] = set()
        self._meta_bytes = self._look_at = 0
        self._texts_fit = True
        self._windows = 0
        self._given: dict[Pen, tuple[int, int]] = {}  # each pen's window, whole
        self.closed = False
        self.passes = 0  # the last pass of a data journal that was noted
        self._own_pid = os.getpid()
        self._unsaid = ""  # why recording stopped, while there was no room to note it
        made: list[tuple[int, Path]] = []
        try:
            self._make_files(stem, resource, min_free_bytes, made)
        except BaseException:  # half a journal is none, and the training may need the descriptors
            for fd, path in made:
                os.close(fd)
                with suppress(OSError):
                    path.unlink()
            raise
        if every > 1:
            self._thin(every)

    def _make_files(
        self, stem: Path, resource: dict[str, Any], min_free_bytes: int | None,
        made: list[tuple[int, Path]],
    ) -> None:  # fmt: skip
        def new(suffix: str, more: int = 0) -> int:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | more
            path = stem.with_name(stem.name + suffix)
            made.append((os.open(path, flags, 0o666), path))
            return made[-1][0]

        self._lock_fd = new(".lock")
        hold_lock(self._lock_fd)
        self._meta_fd = new(".meta.jsonl", os.O_APPEND)
        if self.path.exists():
            raise FileExistsError(f"{self.path}")
        self._fd = new(".rows.new")

        self._set_floor(min_free_bytes)
        self.wall_ns, self.monotonic_ns = time.time_ns(), time.monotonic_ns()
        self.seed = secrets.token_bytes(16)
        header = Header(
            self._window_bytes, self.wall_ns, self.monotonic_ns, self.seed,
            os.getpid(), socket.gethostname(), journal.boot_id(),
        )  # fmt: skip
        self._last_clock = self.monotonic_ns
        self.note("process", resource=resource)
        if os.pwrite(self._fd, header.pack(), 0) != HEADER_BYTES:
            raise OSError("short write: the disk is full, or a quota is")
        journal.written_here.add(self.seed)
        os.rename(made[-1][1], self.path)  # whoever finds the journal finds its header

    def _set_floor(self, min_free_bytes: int | None) -> None:
        self._free_floor = min_free_bytes
        if min_free_bytes is None:
            self._free_floor = min(2**30, shutil.disk_usage(self.path.parent).total // 20)

    # What the recorder asks for

    def pen(self) -> Pen:
        """A new pen, for the calling thread alone."""
        pen = self._pen_type(self._fd, self._next_window)
        with self._guard:
            self._pens.append(pen)
        return pen

    def note(self, type: str, **fields: Any) -> None:
        """Append a line to the meta file, in one write."""
        line = json.dumps({"type": type, **fields}, default=str).encode("ascii") + b"\n"
        with self._guard:
            if os.write(self._meta_fd, line) != len(line):
                os.ftruncate(self._meta_fd, self._meta_bytes)  # or the next line would be lost, too
                raise OSError("short write: the disk is full, or a quota is")
            self._meta_bytes += len(line)

    def note_stop(self, reason: str) -> None:
        """Note why recording stops. If there is no room for that, ``close`` tries it again."""
        self._unsaid = reason
        self.note("stopped", reason=reason)
        self._unsaid = ""

    def text_room(self) -> int:
        """How many characters of an exception's text may be noted; 0: none any more.

        A training that goes on raising must not fill the disk with stacktraces.
        """
        if self._meta_bytes > self.max_bytes * TEXT_SHARE or not self._floor_allows_texts():
            return 0
        return 500 if self._meta_bytes > self.max_bytes * TEXT_SHARE / 2 else MOST_TEXT

    def _floor_allows_texts(self) -> bool:
        """Whether texts leave the free space alone; looked at now and then."""
        if self._free_floor and self._meta_bytes >= self._look_at:
            self._look_at = self._meta_bytes + LOOK_BYTES
            try:
                self._texts_fit = self._room_above_floor() > 2 * self._window_bytes
            except OSError:
                self._texts_fit = False
        return self._texts_fit

    def name(self, kind: str, text: str, **code: Any) -> int:
        """The id of a name, the same for the same kind and text."""
        text = text if len(text) <= 1000 else text[:999] + "\u2026"
        with self._guard:
            found = self._names.get((kind, text))
            if found is not None:
                return found
            if len(self._names) >= journal.MAX_NAMES - len(journal.KINDS):
                if text == OTHER:  # the ids that were kept for this
                    return self._new_name(kind, text, {})
                self._fold("names")
                return self.name(kind, OTHER)
            return self._new_name(kind, text, code)

    def text_of(self, id: int) -> str:
        """The name with this id."""
        return next((text for (_, text), each in list(self._names.items()) if each == id), OTHER)

    def _new_name(self, kind: str, text: str, code: dict[str, Any]) -> int:
        new = len(self._names)
        more = {"code": code} if code else {}
        self.note("name", id=new, kind=kind, name=text, **more)
        self._names[kind, text], self._kinds[new] = new, kind
        return new

    def _fold(self, what: str) -> None:
        """Say once that there are more of something than a row can tell apart."""
        if what not in self._folded:
            self._folded.add(what)
            log.warning(
                "firetrace: %s has more %s than a journal can tell apart; the rest is recorded "
                "as %r", self.path, what, OTHER,
            )  # fmt: skip

    def choose_split(self, split: str) -> None:
        """Say how the journal is split into traces; once, before the first run's row."""
        with self._guard:
            if not self.split:
                self.split = split
                caller = os.environ.get("TRACEPARENT")
                self.traceparent = caller if remote_parent(caller) else None
                self.note("traces", split=split, parent=self.traceparent)

    def look_up(self, number: int) -> Row | None:
        """What of a row, also of one that is open, says where it stands."""
        try:
            data = os.pread(self._fd, ROW_BYTES, number * ROW_BYTES)
        except OSError:  # the journal has been closed
            return None
        if len(data) < ROW_BYTES:
            return None
        parent, name, _, flags, epoch, _, _, _ = journal.ROW.unpack(data)
        return Row(parent, self._kinds.get(name, ""), epoch, flags)

    def lane(self, engine: str, key: int, name: str = "") -> int:
        """A lane for an engine (told apart by ``key``) in the calling thread, or one so named."""
        thread = threading.current_thread()
        name = name or thread.name
        with self._guard:
            found = self._lanes.get((engine, name, key))
            if found is not None:
                return found
            new = len(self._lanes)
            if new >= journal.MAX_LANES - 1:
                if new == journal.MAX_LANES - 1:
                    self._fold("engines and threads")
                    self.note("lane", id=new, engine=OTHER, thread=OTHER)
                    self._lanes["", "", -1] = new
                return journal.MAX_LANES - 1
            alike = self._engines.setdefault(engine, [])
            if key not in alike:
                alike.append(key)
            number = alike.index(key) + 1
            label = engine if number == 1 else f"{engine}-{number}"
            self.note("lane", id=new, engine=label, thread=name, thread_id=thread.ident or 0)
            self._lanes[engine, name, key] = new
            return new

    # Windows and the budget

    def _next_window(self, pen: Pen) -> tuple[int, int]:
        """The rows that a full pen may write next; thins the steps as the budget fills."""
        with self._guard:
            if self.closed:
                raise BudgetSpentError("the journal is closed")
            first, end = self._given.get(pen, (0, 0))
            if first <= pen.next_row < end:  # it only had to stop here to have the budget looked at
                first = pen.next_row
            elif pen.next_row == end:
                self._look_at_the_budget()
                rows = self._window_bytes // ROW_BYTES
                if (self._windows + 1) * rows > journal.MAX_ROW:
                    raise BudgetSpentError(f"its {journal.MAX_ROW:,} row numbers are used up")
                first, end = self._windows * rows, (self._windows + 1) * rows
                if self._windows == 0:
                    first = HEADER_BYTES // ROW_BYTES
                self._windows += 1  # first: a window that nobody has does no harm
                self._given[pen] = first, end
                self._note_clock()
            # else it was handed out, and Ctrl-C came before the pen had it
            return first, min(end, first + self._rows_to_next_level(end - first))

    def _look_at_the_budget(self) -> None:
        """See what the journal may grow to by now, and whether that has room for a window."""
        if not os.fstat(self._fd).st_nlink:
            raise FileNotFoundError(f"{self.path} was deleted")
        used = self._windows * self._window_bytes + self._meta_bytes
        if used + self._window_bytes > self.max_bytes:
            raise BudgetSpentError(f"its budget of {self.max_bytes:,} bytes is spent")
        self._budget = self.max_bytes
        if self._free_floor:
            room = self._room_above_floor()
            if room < self._window_bytes:
                raise BudgetSpentError(
                    f"its file system has hardly more free than the {self._free_floor:,} bytes "
                    "that are kept free for the training"
                )
            self._budget = min(self.max_bytes, used + room)

    def _room_above_floor(self) -> int:
        """Bytes that this journal may still take; the others of the run go on growing meanwhile.

        Each thread of each process may have been given a window that is not yet on the disk.
        """
        folder = self.path.parent
        writers = sum(name.endswith(".rows") for name in os.listdir(folder))
        others = max(writers, 1) * max(len(self._pens), 1) - 1
        free = shutil.disk_usage(folder).free
        return free - (self._free_floor or 0) - others * self._window_bytes

    def _rows_to_next_level(self, room: int) -> int:
        """Set how many steps are kept; return after how many rows to look again."""
        used = self._windows * self._window_bytes + self._meta_bytes - room * ROW_BYTES
        full = self._budget * FULL_SHARE
        share = self._budget * (STEPS_SHARE - FULL_SHARE) / LEVELS
        level = 0 if used < full else 1 + int((used - full) / share)
        left = full + level * share - used
        if level > LEVELS:
            level, left = NONE_KEPT, room * ROW_BYTES
        if self.base_every << level != self.every:
            self._thin(self.base_every << level)
        return max(1, int(left / ROW_BYTES))

    def _thin(self, every: int) -> None:
        self.every = every
        self.note("thin", every=every, time=self.now_ns())

    def now_ns(self) -> int:
        """Unix ns by the journal's own clock: monotonic since its anchor."""
        return self.wall_ns + time.monotonic_ns() - self.monotonic_ns

    def _note_clock(self) -> None:
        monotonic = time.monotonic_ns()
        if monotonic - self._last_clock >= CLOCK_EVERY_NS:
            self._last_clock = monotonic
            self.note("clock", wall=time.time_ns(), monotonic=monotonic)

    # The end

    def close(self) -> None:
        """Give back unused space, say that the journal ends here, let go of the files."""
        with self._guard:
            if self.closed or os.getpid() != self._own_pid:
                return
            self.closed = True
            used = max((pen.next_row for pen in self._pens), default=0)
            for pen in self._pens:
                pen.release()
            try:
                if used:  # first of all: on a full disk this makes room for the lines
                    os.ftruncate(self._fd, used * ROW_BYTES)
                if self._unsaid:
                    self.note("stopped", reason=self._unsaid)
                self.note("end", time=self.now_ns())
            finally:
                journal.written_here.discard(self.seed)
                held = self._fd, self._meta_fd, self._lock_fd
                # A late call is an OSError then, not a write to somebody else's descriptor.
                self._fd = self._meta_fd = self._lock_fd = -1
                for fd in held:
                    os.close(fd)


def hold_lock(fd: int) -> None:
    """Take the lock that says "the writer lives"; the kernel releases it at death.

    ``lockf``, not ``flock``: it is not inherited by forks, so an orphaned worker cannot hold it.
    """
    try:
        import fcntl

        fcntl.lockf(fd, fcntl.LOCK_EX)
    except (ImportError, OSError):
        return  # no locks here: aliveness will be unknown, nothing else is lost
