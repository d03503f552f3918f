"""Delivers the journals of a run: one after the other, or all of them while they grow.

Each journal has its own resource, its own cursor and its own books; a backend that one of them
could not reach is not tried again for the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from firetrace.exporters.journals import rank_journal
from firetrace.exporters.otlp.delivery import POLL_S, Cursor, CursorError, Delivery
from firetrace.exporters.otlp.sender import Sender, Sent
from firetrace.exporters.selection import Selection
from firetrace.tracer.run import is_data

#: How often one looks for new journals, and at data journals: a batch is made before its step
#: begins, and can only be linked to what is there.
LOOK_S, BATCHES_S = 5.0, 20.0
OPEN_LEFT = "the run is still being written; what is open is left for the next time"


class RunDelivery:
    """Sends the spans of several journals.

    Args:
        find: the journals that there are now, a rank's before those of its workers.
        sender: makes a sender for a journal; all of them have one connection.
        split: what is to be a trace; by default as the journals say.
        selection: what to send of them.
        resume: go on where cursors are, and note in them how far it went.
        progress: called with the number of spans dealt with.
        told: called with a line for the user.
    """

    def __init__(
        self,
        find: Callable[[], Iterable[Path]],
        sender: Callable[[], Sender],
        split: str | None = None,
        selection: Selection | None = None,
        resume: bool = False,
        progress: Callable[[int], Any] = lambda done: None,
        told: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._find, self._sender, self._split = find, sender, split
        self._selection, self._resume = selection, resume
        self._progress, self._told = progress, told
        self._dealt_with: dict[Path, int] = {}  # spans
        self._sent: dict[Path, Sent] = {}
        self._open: dict[Path, _Begun] = {}
        self._left_out = False

    @property
    def journals(self) -> int:
        """Of how many journals something was sent, or was to be."""
        return len(self._sent)

    @property
    def sent(self) -> Sent:
        """How it went, over all journals."""
        total = Sent()
        for each in self._sent.values():
            total.accepted += each.accepted
            total.rejected += each.rejected
            total.unsent += each.unsent
            for reason in each.reasons:
                total.because(reason)
        return total

    def _begin(self, journal: Path, alone: bool) -> _Begun | None:
        """Open a journal, the first time; None, and said, if somebody else sends it.

        Raises:
            CursorError: somebody does, and there is no other journal.
        """
        if journal in self._sent:
            return None
        sender = self._sender()
        self._sent[journal] = sender.sent

        def progress(done: int) -> None:
            self._dealt_with[journal] = done
            self._progress(sum(self._dealt_with.values()))

        try:
            cursor = Cursor(journal) if self._resume else None
        except CursorError as error:
            if alone:
                raise
            self._left_out = True
            self._told(str(error))
            return None
        return _Begun(
            Delivery(journal, sender, cursor, self._split, self._selection, progress), cursor
        )

    def once(self) -> bool:
        """Send what there is, also what is open. Returns False if not all was dealt with.

        With cursors, what is open in a journal that is still written is left for the next time.
        """
        alive: set[Path] = set()
        journals = [*self._find()]
        for journal in journals:
            begun = self._begin(journal, len(journals) == 1)
            if begun is None:
                continue
            with closing(begun):
                if self._resume and (begun.delivery.alive or rank_journal(journal) in alive):
                    if not alive:
                        self._told(OPEN_LEFT)
                    alive.add(journal)
                    whole = begun.delivery.once()
                else:
                    whole = begun.delivery.once() and begun.delivery.rest()
            if not whole:
                return False
        return not self._left_out

    def follow(self, stop: threading.Event) -> bool:
        """Send what ends until all writers have ended, and then the rest.

        Returns False if not all was dealt with, or ``stop`` was set before.
        """
        looked = batches = -inf
        try:
            while True:
                now = time.monotonic()
                if now - looked >= LOOK_S or not self._open:
                    looked = now
                    self._look()
                    if not self._open:
                        return not self._left_out
                with_batches = now - batches >= BATCHES_S
                batches = now if with_batches else batches
                if not all(self._go_on(each, with_batches) for each in [*self._open]):
                    return False
                if self._open and stop.wait(POLL_S):
                    return False
        finally:
            for begun in self._open.values():
                begun.close()

    def _look(self) -> None:
        """Begin with the journals that are new."""
        journals = [*self._find()]
        for journal in journals:
            waits = self._selection and is_data(journal) and rank_journal(journal) in self._open
            if not waits:  # for which steps are chosen, and so which batches
                begun = self._begin(journal, len(journals) == 1)
                if begun is not None:
                    self._open[journal] = begun

    def _go_on(self, journal: Path, with_batches: bool) -> bool:
        """Send what has ended in a journal; and the rest, if there will be no more."""
        begun = self._open[journal]
        alive = begun.delivery.alive
        if is_data(journal):
            # A worker's files are gone on with by the next one, for as long as the training lives.
            alive = alive or rank_journal(journal) in self._open
            if alive and not with_batches:
                return True
        if not begun.delivery.once():
            return False
        if alive:
            return True
        if not begun.delivery.rest():
            return False
        begun.close()
        del self._open[journal]
        return True


@dataclass(frozen=True)
class _Begun:
    """A journal that is being sent."""

    delivery: Delivery
    cursor: Cursor | None

    def close(self) -> None:
        self.delivery.close()
        if self.cursor is not None:
            self.cursor.close()
