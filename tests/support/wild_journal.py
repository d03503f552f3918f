"""Journals that are wilder than any recorder's, of which everything that a view shows is known."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path

from firetrace.tracer.journal import Flag
from firetrace.tracer.writer import JournalWriter

#: What lies in what; the first is the most frequent one.
INSIDE: dict[str, tuple[str, ...]] = {
    "": ("run", "run", "span"),
    "run": ("epoch", "event", "phase"),
    "epoch": ("step", "step", "loader", "event", "phase"),
    "loader": ("span",),
    "step": ("iteration", "phase", "event", "step"),
    "iteration": ("phase", "event", "pair"),
    "phase": ("span", "event", "phase"),
    "pair": ("span",),
    "event": ("handler",),
    "handler": ("span", "run", "event"),
    "span": ("span", "handler"),
}
TEXTS = {"phase": ("get_batch", "forward", "backward"), "handler": ("save", "log")}
#: How often a span of this kind goes on when something happens.
STAYS = {"run": 0.98, "epoch": 0.96, "step": 0.8}
DEEPEST = 14


@dataclass
class Open:
    """A span that is open."""

    row: int
    kind: str
    lane: int
    epoch: int
    flags: int


class WildJournal:
    """Two threads, engines inside engines, guesses that prove wrong, errors, scalars.

    Windows have 256 rows. Times are of the hour before the present.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.writer = JournalWriter(folder / "rank0.1", {}, max_bytes=2**19, min_free_bytes=0)
        self.random = random.Random(seed)
        self.path = self.writer.path
        self.now = self.writer.wall_ns - 3600 * 10**9
        self._pens = [self.writer.pen() for _ in range(2)]
        self._stacks: list[list[Open]] = [[], []]
        self._epochs = self._iterations = 0

    def write(self, moves: int) -> None:
        """Open and close so many spans."""
        for _ in range(moves):
            self.now += self.random.choice((0, 1, 1, 1000, 2_000_000, 40_000_000))
            thread = self.random.randrange(2)
            stack = self._stacks[thread]
            kind = stack[-1].kind if stack else ""
            if stack and self.random.random() > STAYS.get(kind, 0.5):
                self.close(thread)
            elif stack and self.random.random() < 0.05:
                self._scalar(thread)
            elif len(stack) < DEEPEST:
                self._open(thread, self.random.choice(INSIDE[kind]))

    def _open(self, thread: int, kind: str) -> None:
        stack = self._stacks[thread]
        above = stack[-1] if stack else Open(0, "", 0, 0, 0)
        nested = sum(each.kind == "run" for each in stack) + (kind == "run")
        lane = self.writer.lane(f"Engine{nested}", thread)
        epoch = above.epoch
        if kind == "epoch":
            self._epochs += 1
            epoch = self._epochs
        self._iterations += kind == "step"
        sure = kind != "phase" or any(each.flags for each in stack)
        flags = 0 if sure or self.random.random() < 0.5 else int(Flag.GUESS)
        name = self._name(kind)
        self.now += kind in ("run", "epoch")  # an epoch begins after the one before it
        place = epoch, self._iterations
        row = self._pens[thread].open(above.row, name, lane, flags, *place, 0, self.now)
        stack.append(Open(row, kind, lane, epoch, flags))

    def _name(self, kind: str) -> int:
        return self.writer.name(kind, self.random.choice(TEXTS.get(kind, (f"a {kind}",))))

    def _scalar(self, thread: int) -> None:
        within = self._stacks[thread][-1]
        (bits,) = struct.unpack("<q", struct.pack("<d", self.random.choice((0.0, 0.5, 7e9))))
        name = self.writer.name("scalar", "loss")
        self._pens[thread].open(
            within.row, name, within.lane, Flag.SCALAR, within.epoch, 0, bits, self.now
        )

    def close(self, thread: int) -> None:
        """Close a thread's innermost span."""
        span, pen, flags = self._stacks[thread].pop(), self._pens[thread], 0
        if span.flags & Flag.GUESS and self.random.random() < 0.5:
            flags = int(Flag.VOID)
        elif span.flags & Flag.GUESS:
            pen.rename(span.row, self._name("phase"))
        if not flags and self.random.random() < 0.1:
            flags = self.random.choice((1, 2, 3, int(Flag.SKIPPED)))
            if flags & Flag.ERROR:
                self.writer.note("exception", row=span.row, **{"exception.type": "E"})
            if flags & Flag.CUT:
                self.writer.note("end_reason", row=span.row, reason="terminate")
        pen.close(span.row, self.now, flags)

    def close_guesses(self) -> None:
        """Close what a guess lies around: only then it is known what is in it."""
        for thread, stack in enumerate(self._stacks):
            while any(each.flags & Flag.GUESS for each in stack):
                self.close(thread)

    def end(self) -> None:
        """End the recording; what is open stays open, as after a kill."""
        self.writer.close()
