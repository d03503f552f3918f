"""A data journal is gone on with: workers come and go each epoch, and would leave files behind.

A worker that begins takes the first of its rank's data journals whose writer is gone, or makes a
new one. So there are as many as there ever were workers at a time.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firetrace.tracer.errors import JournalError
from firetrace.tracer.files import open_own
from firetrace.tracer.journal import Flag, boot_id, written_here
from firetrace.tracer.lock import take_lock
from firetrace.tracer.pages import are_spans
from firetrace.tracer.reader import JournalReader, Position
from firetrace.tracer.storage import Pen
from firetrace.tracer.stream import latest
from firetrace.tracer.writer import JournalWriter

log = logging.getLogger("firetrace")

#: 512 rows: a worker of a short epoch fills no more.
WINDOW_BYTES = 2**14
MOST_FILES = 4096
#: Windows at a journal's end in which something may have been left open.
LOOKED_AT = 8


class StoppedError(OSError):
    """A worker that was before has had to stop recording, and has said so."""


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
        StoppedError: data is recorded no more.
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
        held = take_lock(lock, certainly=True)
    except OSError:  # its writer lives, or nobody can tell
        return None
    try:
        return Continued(stem, held, resource, *more)
    except StoppedError:
        os.close(held)
        raise
    except (OSError, JournalError) as error:  # another host's, or damaged: it stays as it is
        log.debug("not gone on with: %s", error)
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
            try:
                self._take_over(reader)
                left = are_spans(reader.rows, reader.numbers) & (reader.rows["end"] == 0)
                last_ns = latest(reader.rows) if len(reader.rows) else header.wall_ns
                self._open_files(stem)
                try:
                    self._end_what_was_left(reader.numbers[left], last_ns)
                    self._set_floor(min_free_bytes)
                except BaseException:
                    os.close(self._fd)
                    os.close(self._meta_fd)
                    raise
            except BaseException:
                written_here.discard(header.seed)
                raise
        self._lock_fd = self._lock

    def _open_files(self, stem: Path) -> None:
        self._fd = open_own(self.path, os.O_RDWR)
        try:
            meta = stem.with_name(stem.name + ".meta.jsonl")
            self._meta_fd = open_own(meta, os.O_RDWR | os.O_APPEND)
        except BaseException:
            os.close(self._fd)
            raise

    def _take_over(self, reader: JournalReader) -> None:
        header, meta = reader.header, reader.meta
        windows = -(-os.fstat(reader.fileno()).st_size // header.window_bytes)
        if windows > LOOKED_AT:
            reader.go_to(Position(windows - LOOKED_AT, {}, []))
        reader.poll()
        if meta.stopped is not None:
            raise StoppedError(f"{self.path}: {meta.stopped}")
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
            twice = (name.kind, name.text) in self._names  # as they can be read, that is
            self._names[("", str(id)) if twice else (name.kind, name.text)] = id
            self._kinds[id] = name.kind
        for id, lane in meta.lanes.items():
            self._lanes[lane.engine, lane.thread, 0] = id
        for ids, known in ((meta.names, self._names), (meta.lanes, self._lanes)):
            if len(known) != len(ids) or sorted(ids) != list(range(len(ids))):
                raise OSError(f"{meta.path}: lines are missing")  # the next id is their number
        self.passes = max(meta.passes, default=0)

    def _end_what_was_left(self, left: Any, last_ns: int) -> None:
        """Its writer was killed: what was open then ends where the journal did."""
        pen = Pen(self._fd, self._next_window)
        for number in np.sort(left)[::-1].tolist():
            self.note("end_reason", row=number, reason="process died")
            pen.close(number, last_ns, int(Flag.CUT))
