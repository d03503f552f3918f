"""A file that an SDK exporter appends to: one for each process, whole after every flush.

What a flush writes is in the file when ``export`` returns, so a program that is killed has lost
nothing of it; a gzipped file gets one whole member a flush.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import logging
import os
import re
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger("firetrace")

#: Seconds for which spans may wait for a flush, where the program does not say.
FLUSH_SECONDS = "FIRETRACE_FLUSH_SECONDS"


class FileSpanExporter(SpanExporter):
    """What exporters into a file share; they say what a batch is in ``_lines``.

    Args:
        path: the file, or a folder for it. Without one the environment variable ``VARIABLE`` says;
            else it is ``trace-<service or script>-<pid>`` with ``SUFFIX`` in the current folder,
            which is made at the first span. A name that ends in ``.gz`` makes it gzipped. What was
            there is replaced, unless another process is writing it: then, and in the child of a
            fork, it is ``<name>-<pid>``.
        flush_seconds: 0 writes at each ``export``. More lets spans wait until that long after the
            last flush (for a gzipped file without a ``BatchSpanProcessor``, say); they are written
            at the next ``export``, ``force_flush`` or ``shutdown``, and lost if the program is
            killed. Without it ``FIRETRACE_FLUSH_SECONDS`` says.

    Errors of the file never reach the program: ``export`` returns ``FAILURE`` and the first one is
    logged as a warning. The file stays whole and is tried again with the next spans.
    """

    VARIABLE, SUFFIX = "", ""
    #: Before the first line, between two, after the last.
    HEAD, BETWEEN, TAIL = b"", b"", b""

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, flush_seconds: float | None = None
    ) -> None:
        asked = path if path is not None else os.environ.get(self.VARIABLE)
        self._asked = Path(os.path.abspath(asked)) if asked else None
        self._folder = self._asked is None or os.path.isdir(self._asked)
        self._home = self._asked or Path.cwd()  # the program may change its folder
        self._wait = _seconds() if flush_seconds is None else flush_seconds
        self._forked = self._closed = self._warned = False
        self._start()
        if not self._folder:  # claimed now, before children that inherit the variable do
            self._open("")
        _exporters.add(self)

    def _start(self) -> None:
        """Begin a file: nothing is open, nothing waits."""
        self._lock = threading.Lock()
        self._writer = 0  # the thread that holds it
        self._file = -1
        self._size = 0  # bytes that are whole
        self._lines_waiting: list[bytes] = []
        self._flushed = time.monotonic()
        self._path: Path | None = None

    def _lines(self, spans: Sequence[ReadableSpan]) -> list[bytes]:
        raise NotImplementedError

    def _lost(self) -> None:
        """Lines that ``_lines`` gave are not in the file."""

    @property
    def path(self) -> Path | None:
        """The file, once it is known."""
        return self._path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write ended spans."""
        with self._alone() as alone:
            if self._closed or not alone:
                return SpanExportResult.FAILURE
            try:
                self._lines_waiting += self._lines(spans)
            except Exception as error:  # a span that nothing can be made of must not end a program
                self._warn(error)
                self._lost()
                return SpanExportResult.FAILURE
            if time.monotonic() - self._flushed < self._wait:
                return SpanExportResult.SUCCESS
            done = self._flush(_service(spans))
            return SpanExportResult.SUCCESS if done else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Write what waits, down to the disk."""
        with self._alone() as alone:
            if self._closed or not alone or not self._flush(""):
                return False
            try:
                if self._file >= 0:
                    os.fsync(self._file)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EROFS):  # a pipe has no disk
                    self._warn(error)
                    return False
            return True

    def shutdown(self) -> None:
        """Write what waits and close the file; later spans are refused."""
        with self._alone() as alone:
            if self._closed or not alone:
                return
            self._flush("")
            self._closed = True
            if self._file >= 0:
                if self.TAIL:
                    self._write(self.TAIL if self._size else self.HEAD + self.TAIL)
                if self._file >= 0:
                    os.close(self._file)
                self._file = -1

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock; False if this thread does already, in a frame that was interrupted.

        A logging or signal handler may end a span while another is written.
        """
        if self._writer == threading.get_ident():
            yield False
            return
        with self._lock:
            self._writer = threading.get_ident()
            try:
                yield True
            finally:
                self._writer = 0

    def _flush(self, service: str) -> bool:
        """Write the lines that wait; those that cannot be written are lost."""
        lines, self._lines_waiting = self._lines_waiting, []
        self._flushed = time.monotonic()
        if not lines:
            return True
        if (self._file >= 0 or self._open(service)) and self._write(
            (self.BETWEEN if self._size else self.HEAD) + self.BETWEEN.join(lines)
        ):
            return True
        self._lost()
        return False

    def _write(self, data: bytes) -> bool:
        if self._zipped:
            data = gzip.compress(data, 5, mtime=0)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._warn(error)
            try:
                if self._regular:
                    os.ftruncate(self._file, self._size)
                    os.lseek(self._file, self._size, os.SEEK_SET)
            except OSError:  # its end is not whole: nothing can follow
                self._closed = True
                os.close(self._file)
                self._file = -1
            return False
        self._size += len(data)
        return True

    def _open(self, service: str) -> bool:
        try:
            if self._folder:
                name = re.sub(r"[^\w.-]+", "_", service or _script())[:100]
                self._path = self._home / f"trace-{name}-{os.getpid()}{self.SUFFIX}"
                self._file, self._path = _create(self._path)
            else:
                self._home.parent.mkdir(parents=True, exist_ok=True)
                claimed = -1 if self._forked else _claim(self._home)
                if claimed >= 0:
                    self._file, self._path = claimed, self._home
                else:
                    self._file, self._path = _create(_beside(self._home, str(os.getpid())))
        except OSError as error:
            self._warn(error)
            return False
        self._zipped = self._path.suffix.lower() == ".gz"
        self._regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: spans are lost, as %s cannot be written: %r",
                type(self).__name__, self._path or self._home, error,
            )  # fmt: skip

    def _after_fork(self) -> None:
        """In the child: leave the parent's file, its lock and what waits for it alone."""
        if self._file >= 0:
            os.close(self._file)
        self._forked = True
        self._start()
        self._lost()


_exporters: weakref.WeakSet[FileSpanExporter] = weakref.WeakSet()


def _after_fork() -> None:
    for exporter in list(_exporters):
        exporter._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _seconds() -> float:
    try:
        return float(os.environ.get(FLUSH_SECONDS) or 0)
    except ValueError:
        return 0.0


def _service(spans: Sequence[ReadableSpan]) -> str:
    """The service that a file is named after; "" for one that the SDK has made up."""
    name = str(spans[0].resource.attributes.get("service.name") or "") if spans else ""
    return "" if name.startswith("unknown_service") else name


def _script() -> str:
    return Path((sys.argv or [""])[0]).stem or "python"


def _beside(path: Path, word: str) -> Path:
    """``trace.json.gz`` and ``7`` as ``trace-7.json.gz``."""
    bare = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return path.with_name(f"{bare.stem}-{word}{path.name[len(bare.stem) :]}")


def _claim(path: Path) -> int:
    """Open a file to replace what is in it; -1 if another process writes it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if stat.S_ISREG(os.fstat(file).st_mode):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return -1
            except OSError:
                pass  # a file system without locks
            os.ftruncate(file, 0)
    except OSError:
        os.close(file)
        raise
    return file


def _create(path: Path) -> tuple[int, Path]:
    """Open a file that was not there; pids come again, in containers at once."""
    for count in range(1, 10_000):
        free = path if count == 1 else _beside(path, str(count))
        try:
            return os.open(free, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), free
        except FileExistsError:
            continue
    raise FileExistsError(errno.EEXIST, "so are its 9,999 successors", str(path))
