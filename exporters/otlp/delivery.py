"""Delivers a journal's spans to a backend: once, or as they end, and again from where it stopped.

A ``Cursor`` on disk, beside the journal, says up to where the backend has acknowledged. It is
written after each batch, so whoever goes on sends at most one batch twice.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firetrace.exporters.devices import DeviceTimes
from firetrace.exporters.otlp.protobuf import Encoder
from firetrace.exporters.otlp.sender import Sender, Sent
from firetrace.exporters.selection import Selection, selector_of
from firetrace.exporters.spans import maker
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.files import open_own
from firetrace.tracer.lock import lock_path, take_lock
from firetrace.tracer.reader import JournalReader, Position
from firetrace.tracer.run import is_rank
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table

POLL_S = 0.5
VERSION = 1


class CursorError(FiretraceError):
    """A cursor cannot be read or written, or somebody else uses it."""


class Cursor:
    """How much of a journal a backend has; the file ``<journal>.otlp.json``, locked while in use.

    Args:
        journal: the rows file.
        lock: descriptor of its lock, where that is held already.

    Raises:
        CursorError: another process delivers this journal.
    """

    def __init__(self, journal: Path, lock: int | None = None) -> None:
        self.path = journal.with_suffix(".otlp.json")
        try:
            self._lock = take_lock(lock_path(journal)) if lock is None else lock
        except BlockingIOError as error:
            raise CursorError(f"{journal}: another process is sending it") from error
        with JournalReader(journal) as reader:
            self._seed = reader.header.seed.hex()
        self.position: Position | None = None
        self.done = False  #: everything was sent, and there will be no more
        self.sent = self.rejected = 0  #: spans, by all who used this cursor
        self.read()

    def read(self) -> None:
        """Take up what is on disk.

        Raises:
            CursorError: it is damaged.
        """
        try:
            with open(open_own(self.path, os.O_RDONLY), encoding="utf-8") as file:
                found = json.loads(file.read())
            if found["version"] != VERSION:
                raise CursorError(f"{self.path}: version {found['version']} is not known here")
            if found["journal"] != self._seed:  # of one that was here before
                return
            filled = {int(window): int(count) for window, count in found["filled"].items()}
            self.position = Position(int(found["windows"]), filled, [int(n) for n in found["kept"]])
            self.done = bool(found["done"])
            self.sent, self.rejected = int(found["sent"]), int(found["rejected"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CursorError(f"{self.path}: damaged; remove it to send all again") from error

    def write(self, position: Position, sent: Sent, done: bool = False) -> None:
        """Note that everything up to here has been acknowledged or rejected."""
        new = {
            "version": VERSION, "journal": self._seed, "windows": position.windows,
            "filled": position.filled, "kept": position.kept, "done": done,
            "sent": self.sent + sent.accepted, "rejected": self.rejected + sent.rejected,
        }  # fmt: skip
        part = self.path.with_suffix(".part")
        part.unlink(missing_ok=True)  # of one that was killed, or a link that somebody put there
        with open(part, "x", encoding="utf-8") as file:
            file.write(json.dumps(new) + "\n")
        os.replace(part, self.path)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)


class Delivery:
    """Sends a journal's spans.

    Args:
        path: of the rows file.
        sender: what to send them with.
        cursor: where to go on, and to note how far it went.
        split: what is to be a trace; by default as the journal says.
        selection: what to send of it.
        progress: called with the number of spans dealt with.

    Raises:
        JournalError: the journal cannot be read.
    """

    def __init__(
        self,
        path: Path,
        sender: Sender,
        cursor: Cursor | None = None,
        split: str | None = None,
        selection: Selection | None = None,
        progress: Callable[[int], Any] = lambda done: None,
    ) -> None:
        self._stream = Stream(path, cursor.position if cursor is not None else None)
        self._devices = DeviceTimes(self._stream.reader) if is_rank(path) else None
        self._stream.hold = self._devices.waiting if self._devices is not None else None
        self._selector = selector_of(path, selection or Selection())
        self._sender, self._cursor, self._split = sender, cursor, split
        self._progress, self._done = progress, 0
        self._encoder: Encoder | None = None

    @property
    def alive(self) -> bool:
        """Whether the training still writes."""
        reader = self._stream.reader
        known = reader.alive()
        if known is None:  # no locks on this file system; the relay is on the training's host
            return reader.meta.ended is None and Path(f"/proc/{reader.header.pid}").exists()
        return known

    def once(self) -> bool:
        """Send what has ended since the last call. Returns False if the sender gave up.

        Of a training that goes on a phase waits a little for the device (``exporters.devices``).
        """
        return all(self._send(block) for block in self._stream.ended())

    def rest(self) -> bool:
        """Send what is open as well, marked incomplete."""
        found = self._stream.rest()
        if not self._send(found, self._stream.last_ns()):
            return False
        if self._cursor is not None:
            self._cursor.write(self._stream.position, self._sender.sent, done=True)
        return True

    def follow(self, stop: threading.Event) -> bool:
        """Send what ends until the training has ended, and then the rest.

        Returns False if the sender gave up or ``stop`` was set before.
        """
        while True:
            alive = self.alive  # before the last look
            if not self.once():
                return False
            if not alive:
                return self.rest()
            if stop.wait(POLL_S):
                return False

    def _send(self, block: Table, end_ns: int | None = None) -> bool:
        if self._encoder is None:
            self._encoder = Encoder(maker(self._stream.reader, self._split, self._devices))
        for selected in self._selector.select([block]):
            at = 0
            for batch in self._encoder.batches(selected, end_ns):
                if not self._sender.send(batch):
                    return False
                at += len(batch)
                self._done += len(batch)
                self._progress(self._done)
                if self._cursor is not None and at < len(selected):
                    number = int(selected.numbers[at - 1])
                    self._cursor.write(self._stream.position_after(number), self._sender.sent)
        if self._cursor is not None:
            self._cursor.write(self._stream.position, self._sender.sent)
        return True

    def close(self) -> None:
        """Close the journal."""
        self._stream.close()
        self._selector.close()


def deliver(
    path: Path, sender: Sender, split: str | None = None, selection: Selection | None = None
) -> Sent:
    """Send what a journal holds now; what is open ends with it, marked ``ignite.incomplete``."""
    delivery = Delivery(path, sender, None, split, selection)
    try:
        if delivery.once():
            delivery.rest()
    finally:
        delivery.close()
    return sender.sent
