"""Trainings on a simulated GPU that copy their batches there, for the tests of exports."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.exporters.devices import COPIED, DEVICE, DURATION, OFFSET, UNRESOLVED
from firetrace.tracer.journal import Flag
from tests.support.launching import MS, US, Parts, Recorded, Work, evaluator, supervised
from tests.support.simulated import SimulatedGpu

#: Of the GPU, in a step; nothing is done in ``loss``.
WORK = Work(200 * US, 900 * US, 0, MS, 100 * US)
LABEL_BYTES = 2 * 4 * 4


class Copying(Parts):
    """Copies the label to the GPU."""

    def prepare(self, batch: Any, *args: Any, **more: Any) -> Any:
        """MONAI's ``prepare_batch``."""
        self._launch("prepare_batch")
        return batch["image"].clone(), batch["label"].to("meta")


class Training:
    """A trainer with an evaluator, and what records them.

    Args:
        folder: of the run.
        gpu: where it runs.
        steps: an epoch.
        more: of the ``TraceHandler``.
    """

    def __init__(
        self, folder: Path, gpu: SimulatedGpu, steps: int = 6, epochs: int = 2, **more: Any
    ) -> None:
        self.gpu, self.folder = gpu, folder
        self.parts = Copying(gpu, WORK)
        self.trainer = supervised(
            self.parts, steps, epochs,
            loss_function=lambda answer, label: self.parts.loss(answer, torch.zeros(2, 4)),
        )  # fmt: skip
        self.evaluator = evaluator(self.parts)
        self.handler = TraceHandler(folder, device=gpu, **more)
        self.handler.attach(self.trainer)
        self.handler.attach(self.evaluator)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self.evaluator.run())

    @property
    def path(self) -> Path:
        """The rank's journal."""
        return self.folder / "rank0.1.rows"

    def grow(self, engine: Engine) -> None:
        """An event's handler: a little more is allocated."""
        self.gpu.allocated += 1000 * engine.state.iteration
        self.gpu.peak = max(self.gpu.peak, self.gpu.allocated)


def expected(found: Recorded) -> dict[int, dict[str, Any]]:
    """What the spans of the phases are to say, by row: what the device journal says."""
    values = found.device.scalars["end"].copy().view("<f8").tolist()
    names = found.device.names
    copied = {
        int(row["epoch"]): int(value)
        for row, value in zip(found.device.scalars, values, strict=True)
        if names[int(row["name"])].text == "copied to device"
    }
    told: dict[int, dict[str, Any]] = {}
    for span in found.spans():
        about: dict[str, Any] = {DEVICE: span.lane}
        if span.device[1] and not span.flags & Flag.CUT:
            about |= {DURATION: span.ns, OFFSET: span.device[0] - span.host[0]}
        else:
            about[UNRESOLVED] = True
        if span.row in copied:
            about[COPIED] = copied[span.row]
        told[span.row] = about
    return told


def of_device(attributes: Any) -> dict[str, Any]:
    """The attributes of a span that say something of the device."""
    return {key: value for key, value in (attributes or {}).items() if key.startswith(DEVICE)}


def train_slowly(folder: str, label: str = "cuda:0") -> None:
    """Train for as long as one lets it; the GPU is half a step behind. For a new process."""
    gpu = SimulatedGpu(label=label)
    training = Training(Path(folder), gpu, steps=10, epochs=10_000)
    pause = threading.Event()
    training.trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: pause.wait(0.02))
    training.trainer.run()


def train_and_die(folder: str) -> None:
    """From iteration 4 on the GPU reaches nothing; in iteration 9 the process is killed."""
    gpu = SimulatedGpu(label="cuda:0")
    training = Training(Path(folder), gpu, steps=10)

    def stop(engine: Engine) -> None:
        time.sleep(0.01)
        gpu.stuck = engine.state.iteration >= 4
        if engine.state.iteration == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    training.trainer.run()


def program(function: str, *arguments: str) -> list[str]:
    """A command that calls one of these functions."""
    code = f"import sys; from {__name__} import *; {function}(*sys.argv[1:])"
    return [sys.executable, "-c", code, *arguments]
