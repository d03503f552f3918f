"""A data journal is gone on with: workers come and go each epoch, and would leave files behind.

A worker that begins takes the first of its rank's data journals whose writer is gone, or makes a
new one. So there are as many as there ever were workers at a time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import Flag, boot_id, written_here
from firetrace.tracer.lock import open_own, take_lock
from firetrace.tracer.pages import is_span
from firetrace.tracer.reader import JournalReader, Position
from firetrace.tracer.storage import Pen
from firetrace.tracer.stream import latest
from firetrace.tracer.writer import JournalWriter

#: 512 rows: a worker of a short epoch fills no more.
WINDOW_BYTES = 2**14
MOST_FILES = 4096
#: Windows at a journal's end in which something may have been left open.
LOOKED_AT = 8


class Place(NamedTuple):
    """Where and how the data of a rank is recorded; goes to its workers."""

    stem: Path  #: of the rank's journal: ``run/rank0.1``
    resource: dict[str, Any]
    max_bytes: int
    min_free_bytes: int | None
    mapped: bool | None
    every: int


def open_journal(place: Place, resource: dict[str, Any]) -> JournalWriter:
    """A data journal that nobody writes.

    Raises:
        OSError: there is none and none can be made.
    """
    more = (place.max_bytes, place.min_free_bytes, place.every, place.mapped, WINDOW_BYTES)
    for number in range(MOST_FILES):
        stem = place.stem.with_name(f"{place.stem.name}.data{number}")
        found = _gone_on_with(stem, resource, more)
        if found is not None:
            return found
        with suppress(FileExistsError):
            return JournalWriter(stem, resource, *more)
    raise OSError(f"{place.stem}: no free name for a data journal")


def _gone_on_with(
    stem: Path, resource: dict[str, Any], more: tuple[Any, ...]
) -> JournalWriter | None:
    lock = stem.with_name(stem.name + ".lock")
    if not lock.exists():
        return None
    try:
        held = take_lock(lock)
    except OSError:  # its writer lives
        return None
    try:
        return Continued(stem, held, resource, *more)
    except (OSError, JournalError):  # another host's, or damaged: it stays as it is
        os.close(held)
        return None


class Continued(JournalWriter):
    """A journal whose writer is gone, written on by another process of the same host.

    Args:
        lock: the descriptor of its lock file, which is locked.

    Raises:
        OSError, JournalError: it cannot be gone on with.
    """

    def __init__(self, stem: Path, lock: int, *more: Any) -> None:
        self._lock = lock
        super().__init__(stem, *more)

    def _make_files(
        self, stem: Path, resource: dict[str, Any], min_free_bytes: int | None,
        made: list[tuple[int, Path]],
    ) -> None:  # fmt: skip
        with JournalReader(self.path) as reader:
            header = reader.header
            if header.boot_id != boot_id() or not header.boot_id:
                raise OSError(f"{self.path}: its clock was another one")
            # First: a reader of a journal that is not our own would touch its lock.
            written_here.add(header.seed)
            self._take_over(reader)
            left = reader.numbers[
                is_span(reader.numbers, reader.rows["parent"], reader.rows["flags"],
                        reader.rows["start"], reader.rows["end"]) & (reader.rows["end"] == 0)
            ]  # fmt: skip
            last_ns = latest(reader.rows) if len(reader.rows) else header.wall_ns
        self._lock_fd = self._lock
        flags = os.O_RDWR
        self._fd = open_own(self.path, flags)
        try:
            self._meta_fd = open_own(stem.with_name(stem.name + ".meta.jsonl"), flags | os.O_APPEND)
        except OSError:
            os.close(self._fd)
            raise
        try:
            self._end_what_was_left(left, last_ns)
        except OSError:
            os.close(self._fd)
            os.close(self._meta_fd)
            raise
        self._set_floor(min_free_bytes)

    def _take_over(self, reader: JournalReader) -> None:
        header, meta = reader.header, reader.meta
        windows = -(-os.fstat(reader.fileno()).st_size // header.window_bytes)
        if windows > LOOKED_AT:
            reader.go_to(Position(windows - LOOKED_AT, {}, []))
        reader.poll()
        self._windows = windows
        self.wall_ns, self.monotonic_ns, self.seed = (
            header.wall_ns, header.monotonic_ns, header.seed,
        )  # fmt: skip
        self._last_clock = self.monotonic_ns
        self._window_bytes = header.window_bytes
        self._meta_bytes = os.stat(meta.path).st_size
        if self._meta_bytes != meta.read_bytes:
            raise OSError(f"{meta.path}: its last line is not whole")
        for id, name in meta.names.items():
            self._names[name.kind, name.text], self._kinds[id] = id, name.kind
        for id, lane in meta.lanes.items():
            self._lanes[lane.engine, lane.thread, 0] = id
        self.passes = max(meta.passes, default=0)

    def _end_what_was_left(self, left: Any, last_ns: int) -> None:
        """Its writer was killed: what was open then ends where the journal did."""
        pen = Pen(self._fd, self._next_window)
        for number in np.sort(left)[::-1].tolist():
            self.note("end_reason", row=number, reason="process died")
            pen.close(number, last_ns, int(Flag.CUT))
