"""A journal that is written at random: two threads' windows, spans that stay open long, scalars."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from firetrace.tracer.journal import Flag
from firetrace.tracer.writer import JournalWriter

KINDS = ("run", "epoch", "step", "iteration", "phase", "event", "handler", "span")
LONG = ("run", "epoch")


class RandomJournal:
    """Writes rows as the recorder would, only wilder.

    ``ended`` holds what has ended by now, ``scalars`` how many numbers each span has; both by row
    number. Windows have 256 rows.
    """

    def __init__(self, folder: Path, seed: int, pens: int = 2) -> None:
        self.writer = JournalWriter(
            folder / "rank0.1", {"service.name": "x", "ignite.run.id": "r"}, max_bytes=2**19,
            min_free_bytes=0,
        )  # fmt: skip
        self.random = random.Random(seed)
        self.path = self.writer.path
        self.now = self.writer.wall_ns - 3600 * 10**9  # nothing lies in the future
        self.ended: set[int] = set()
        self.scalars: dict[int, int] = {}
        self._pens = [(self.writer.pen(), self.writer.lane("Engine", key)) for key in range(pens)]
        self._stacks: list[list[tuple[int, str]]] = [[] for _ in range(pens)]
        self._names = {kind: self.writer.name(kind, f"a {kind}") for kind in KINDS}
        self._number = self.writer.name("scalar", "loss")
        self._epoch = 0

    @property
    def open(self) -> set[int]:
        """The spans that are open."""
        return {row for stack in self._stacks for row, _ in stack}

    def write(self, moves: int) -> None:
        """Open and close so many spans."""
        for _ in range(moves):
            self._move(self.random.randrange(len(self._pens)))

    def _move(self, thread: int) -> None:
        (pen, lane), stack = self._pens[thread], self._stacks[thread]
        self.now += self.random.choice((1, 1, 1000, 2_000_000))
        long = bool(stack) and stack[-1][1] in LONG
        if stack and self.random.random() < (0.01 if long else 0.45):
            self._close(thread)
        elif stack and self.random.random() < 0.1:
            (bits,) = struct.unpack("<q", struct.pack("<d", self.random.choice((0.0, 0.5))))
            parent = stack[-1][0]
            pen.open(parent, self._number, lane, Flag.SCALAR, 0, 0, bits, self.now)
            self.scalars[parent] = self.scalars.get(parent, 0) + 1
        elif len(stack) < 12:
            depth = len(stack)
            kind = KINDS[depth] if depth < 4 else self.random.choice(KINDS[2:])
            self._epoch += kind == "epoch"
            parent = stack[-1][0] if stack else 0
            row = pen.open(parent, self._names[kind], lane, 0, self._epoch, 1, 0, self.now)
            stack.append((row, kind))

    def _close(self, thread: int) -> None:
        row, kind = self._stacks[thread].pop()
        wrong = kind == "phase" and self.random.random() < 0.3
        flags = Flag.VOID if wrong else 0
        self._pens[thread][0].close(row, self.now, flags)
        if not wrong:
            self.ended.add(row)

    def close(self) -> None:
        """End the recording; what is open stays open, as after a kill."""
        self.writer.close()
