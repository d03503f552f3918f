"""Runs that are written at chosen times, so that every picture of them is the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firetrace.tracer import journal
from firetrace.tracer.journal import Flag
from firetrace.tracer.writer import JournalWriter

MS, S = 10**6, 10**9
EPOCHS, STEPS = 20, 8
#: How long the parts of a step take.
PARTS = (("get_batch", 58), ("prepare_batch", 2), ("forward", 24), ("loss", 3), ("backward", 31))


class Stage:
    """Writes a training with a validation after each epoch, as a recorder would.

    Args:
        folder: the run's directory.
        rank: of the journal.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        resource = {"service.name": "spleen-unet", "ignite.run.id": "spleen-unet"}
        self.writer = JournalWriter(folder / f"rank{rank}.1", resource, min_free_bytes=0)
        self.pen = self.writer.pen()
        self.trainer = self.writer.lane("SupervisedTrainer", 1)
        self.evaluator = self.writer.lane("SupervisedEvaluator", 2)
        self.now = self.writer.wall_ns
        self.epoch = self.iteration = 0

    @contextmanager
    def span(
        self, kind: str, name: str, parent: int, lane: int | None = None, flags: int = 0
    ) -> Iterator[int]:
        """A span around what is written inside; not closed when that raises ``Interrupted``."""
        id = self.writer.name(kind, name)
        lane = self.trainer if lane is None else lane
        row = self.pen.open(parent, id, lane, 0, self.epoch, self.iteration, 0, self.now)
        try:
            yield row
        except Failed as failed:
            what = {"exception.type": "ValueError", "exception.message": str(failed)}
            self.writer.note("exception", row=row, time=self.now, **what)
            self.pen.close(row, self.now, int(Flag.ERROR | Flag.CUT))
            raise
        self.pen.close(row, self.now, flags)

    def run(self, epochs: int, stop_at: int = 0, error: Exception | None = None) -> None:
        """Train; ``error`` is raised in the forward phase of iteration ``stop_at``."""
        with self.span("run", "run", 0) as run:
            plan = {"max_epochs": EPOCHS, "epoch_length": STEPS, "max_iters": None}
            self.writer.note("run", row=run, **plan)
            for self.epoch in range(1, epochs + 1):
                with self.span("epoch", "epoch", run) as epoch:
                    for _ in range(STEPS):
                        self.iteration += 1
                        self._step(epoch, self.iteration == stop_at, error)
                    self._validate(epoch)

    def _step(self, epoch: int, stop: bool, error: Exception | None) -> None:
        slow = 6 if self.iteration % 13 == 5 else 1  # of the fetches
        with self.span("step", "step", epoch) as step:
            self._part("get_batch", PARTS[0][1] * slow, step)
            with self.span("iteration", "iteration", step) as iteration:
                for name, ms in PARTS[1:]:
                    if stop and name == "forward" and error is not None:
                        with self.span("phase", name, iteration):
                            self.now += 3 * ms * MS
                            raise error
                    self._part(name, ms + self.iteration % 3, iteration)
                self._part("optimizer", 9, iteration)
                with self.span("event", "ITERATION_COMPLETED", iteration) as event:
                    self._part("StatsHandler.iteration_completed", 2, event, kind="handler")
                loss = 1 / (1 + self.iteration / 8)
                (bits,) = struct.unpack("<q", struct.pack("<d", loss))
                id = self.writer.name("scalar", "loss")
                place = self.epoch, self.iteration
                self.pen.open(iteration, id, self.trainer, Flag.SCALAR, *place, bits, self.now)

    def _part(self, name: str, ms: int, parent: int, kind: str = "phase") -> None:
        with self.span(kind, name, parent):
            self.now += ms * MS

    def _validate(self, epoch: int) -> None:
        with self.span("event", "EPOCH_COMPLETED", epoch) as event:
            with self.span("handler", "ValidationHandler", event) as handler:
                lane = self.evaluator
                with self.span("run", "run", handler, lane) as run:
                    for _ in range(2):
                        step = self.span("step", "step", run, lane)
                        with step as number, self.span("phase", "forward", number, lane):
                            self.now += 90 * MS
            self._part("CheckpointSaver.epoch_completed", 40, event, kind="handler")

    def die(self) -> None:
        """As after SIGKILL: the files stay as they are, and nobody holds the lock."""
        import os

        self.pen.release()
        journal.written_here.discard(self.writer.seed)
        os.close(self.writer._lock_fd)


class Failed(Exception):
    """An exception that passes through the spans."""


class Interrupted(Exception):
    """The picture is taken here: what is open stays open."""
