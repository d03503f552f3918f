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

#: With a GPU the host only queues the work, which takes that longer.
QUEUEING = (("get_batch", 21), ("prepare_batch", 2), ("forward", 8), ("loss", 1), ("backward", 11))
DEVICE_PARTS = {"prepare_batch": 3, "forward": 33, "loss": 3, "backward": 44, "optimizer": 4}
GPU = {"hw.type": "gpu", "hw.id": "GPU-1", "hw.name": "cuda:0", "hw.model": "Staged GPU"}


class Stage:
    """Writes a training with a validation after each epoch, as a recorder would.

    Args:
        folder: the run's directory.
        rank: of the journal.
        device: whether the time of a GPU is written beside it.
    """

    def __init__(self, folder: Path, rank: int = 0, device: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        resource = {"service.name": "spleen-unet", "ignite.run.id": "spleen-unet"}
        self.writer = JournalWriter(folder / f"rank{rank}.1", resource, min_free_bytes=0)
        self.pen = self.writer.pen()
        self.trainer = self.writer.lane("SupervisedTrainer", 1)
        self.evaluator = self.writer.lane("SupervisedEvaluator", 2)
        self.now = self.writer.wall_ns
        self.epoch = self.iteration = 0
        stem = folder / f"rank{rank}.1.device"
        self.device = StagedDevice(stem, resource) if device else None
        if device:
            self.writer.note("process", resource={**resource, **GPU})

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
        parts = PARTS if self.device is None else QUEUEING
        with self.span("step", "step", epoch) as step:
            self._part("get_batch", parts[0][1] * slow, step)
            with self.span("iteration", "iteration", step) as iteration:
                for name, ms in parts[1:]:
                    if stop and name == "forward" and error is not None:
                        with self.span("phase", name, iteration):
                            self.now += 3 * ms * MS
                            raise error
                    self._part(name, ms + self.iteration % 3, iteration)
                self._part("optimizer", 9, iteration)
                with self.span("event", "ITERATION_COMPLETED", iteration) as event:
                    self._part("StatsHandler.iteration_completed", self._looks(), event, "handler")
                loss = 1 / (1 + self.iteration / 8)
                (bits,) = struct.unpack("<q", struct.pack("<d", loss))
                id = self.writer.name("scalar", "loss")
                place = self.epoch, self.iteration
                self.pen.open(iteration, id, self.trainer, Flag.SCALAR, *place, bits, self.now)
        if self.device is not None:
            self.device.end_step(self.iteration, self.now)

    def _looks(self) -> int:
        """How long the handler takes, ms: in most steps it waits for the GPU's loss."""
        if self.device is None or self.iteration % 13 == 0:
            return 2
        return 2 + max(0, self.device.free - self.now) // MS

    def _part(self, name: str, ms: int, parent: int, kind: str = "phase") -> None:
        with self.span(kind, name, parent) as row:
            begun = self.now
            self.now += ms * MS
        if self.device is not None and name in DEVICE_PARTS:
            self.device.phase(name, row, self.iteration, begun, self.now)

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

        for pen, writer in (
            (self.pen, self.writer),
            *([(self.device.pen, self.device.writer)] if self.device is not None else []),
        ):
            pen.release()
            journal.written_here.discard(writer.seed)
            os.close(writer._lock_fd)


class StagedDevice:
    """Writes what a GPU did meanwhile: it begins later than the host and has more to do."""

    def __init__(self, stem: Path, resource: dict[str, str]) -> None:
        self.writer = JournalWriter(stem, {**resource, **GPU}, min_free_bytes=0)
        self.pen = self.writer.pen()
        self.lane = self.writer.lane("cuda:0", 0)
        self.writer.note("anchor", time=self.writer.wall_ns, lane=self.lane, error=4_000)
        self.free = self.writer.wall_ns  # until when it is busy
        self.step: list[tuple[int, int, int]] = []  # rows of it, with their times
        self.waiting: list[list[tuple[int, int, int]]] = []  # the steps before
        self.peak = 0

    def phase(self, name: str, host_row: int, iteration: int, begun: int, ended: int) -> None:
        """A phase has ended on the host: what it queued is done when all before it is."""
        work = DEVICE_PARTS[name] * (9 + iteration % 4) * MS // 10
        start = max(begun, self.free)
        self.free = end = max(ended, start + work)
        kind, text = ("copy", "copy to device") if name == "prepare_batch" else ("device", name)
        if kind == "copy":
            self._scalar("copied to device", 37 * 2**20, host_row, iteration, ended)
        place = 0, host_row, iteration
        row = self.pen.open(0, self.writer.name(kind, text), self.lane, *place, 0, begun)
        self.step.append((row, start, end))

    def end_step(self, iteration: int, now: int) -> None:
        """Settle what has been reached."""
        self.waiting.append(self.step)
        self.step = []
        while self.waiting and (not self.waiting[0] or self.waiting[0][-1][2] <= now):
            for row, start, end in self.waiting.pop(0):
                self.pen.settle(row, start, end)
        allocated = (4800 + 40 * (iteration * 7 % 11)) * 2**20
        self.peak = max(self.peak, allocated + 900 * 2**20)
        for name, value in (
            ("memory allocated", allocated), ("memory reserved", 7 * 2**30),
            ("memory peak", self.peak),
        ):  # fmt: skip
            self._scalar(name, value, 0, iteration, now)

    def _scalar(self, name: str, value: float, host_row: int, iteration: int, now: int) -> None:
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        id = self.writer.name("scalar", name)
        self.pen.open(0, id, self.lane, Flag.SCALAR, host_row, iteration, bits, now)


class Failed(Exception):
    """An exception that passes through the spans."""


class Interrupted(Exception):
    """The picture is taken here: what is open stays open."""
