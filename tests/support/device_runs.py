"""Trainings on a simulated GPU that are slow in one known place, and how idle it truly was.

All run in made time: what they wait for takes as long as it says and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.tui.model.device import DeviceReport
from firetrace.tui.model.report import Report, read_report
from tests.support.launching import (
    MS,
    US,
    Parts,
    Recorded,
    Work,
    evaluator,
    finish,
    since,
    supervised,
)
from tests.support.simulated import MadeTime, SimulatedGpu

#: So little that the GPU is idle most of the time where the host is slow.
LITTLE = Work(100 * US, 700 * US, 50 * US, MS, 150 * US)
#: What the GPU is behind the host, and its clock off the host's, at each mark of a phase.
A_MARK_NS = 12 * US


@dataclass
class DeviceRun:
    """A training to come: ``trainer`` may be given more handlers, then ``run`` it.

    Args:
        folder: of the run.
        patch: for the time to be made.
        work: of the GPU in a step.
        steps: an epoch.
        more: of the ``TraceHandler``.
    """

    folder: Path
    patch: pytest.MonkeyPatch
    work: Work = field(default_factory=Work)
    steps: int = 20
    epochs: int = 1
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gpu = SimulatedGpu(label="cuda:0", time=MadeTime(self.patch))
        self.parts = Parts(self.gpu, self.work)
        self.prepare: Callable[[Any], Any] = self.parts.prepare
        self.trainer = supervised(
            self.parts, self.steps, self.epochs,
            prepare_batch=lambda batch, *args, **more: self.prepare(batch),
        )  # fmt: skip
        self.handler = TraceHandler(self.folder, device=self.gpu, **self.more)
        self.handler.attach(self.trainer)
        self.recorded: Recorded | None = None

    def wait(self, ns: int) -> None:
        """The host does something else."""
        self.gpu.time.pass_by(ns)

    def slow_in(self, phase: str, ns: int) -> DeviceRun:
        """The host takes its time in a phase, before it launches its kernels."""
        launch = self.parts.launch

        def slowly(name: str) -> None:
            if name == phase:
                self.wait(ns)
            launch(name)

        self.parts.launch = slowly
        return self

    def slow_data(
        self, wait: Callable[[], Any], wait_first: Callable[[], Any] = lambda: None
    ) -> DeviceRun:
        """Call this for each batch; and that when the loader is asked for all of them."""
        self.trainer.data_loader = _Slow(self.trainer.data_loader, wait, wait_first)
        self.trainer.state.dataloader = self.trainer.data_loader
        return self

    def on_iteration(self, handler: Callable[[], Any]) -> DeviceRun:
        """Call this after each iteration."""
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: handler())
        return self

    def validate(self, event: Any = Events.EPOCH_COMPLETED, ns: int = 0) -> DeviceRun:
        """Run an evaluator, of which each batch takes so long."""
        own = evaluator(self.parts)
        own.data_loader = _Slow(own.data_loader, lambda: self.wait(ns), lambda: None)
        own.state.dataloader = own.data_loader
        return self.nested(own, event, lambda: own.run())

    def nested(self, own: Engine, event: Any, run: Callable[[], Any]) -> DeviceRun:
        """Record another engine, too, that runs in a handler of the trainer's."""
        self.handler.attach(own)
        self.trainer.add_event_handler(event, lambda engine: run())
        return self

    def run(self) -> DeviceRun:
        """Train, and end the recording."""
        try:
            self.trainer.run()
        finally:
            self.wait(MS)
            self.recorded = finish(self.handler, self.gpu)
        return self

    @property
    def path(self) -> Path:
        """The rank's journal."""
        return self.folder / "rank0.1.rows"

    def report(self) -> Report:
        """What there is to say."""
        return read_report(self.path)

    def truth(self) -> tuple[int, int]:
        """From when the first step began until the last span ended: no kernel ran; in all. ns."""
        assert self.recorded is not None
        spans, main = self.recorded.spans(), self.recorded.main
        first = int(main.rows["start"][main.of_kind("step")[0]]) - since(main.header)
        begin, end = self.gpu.clock(first), self.gpu.clock(spans[-1].device[1])
        busy = sum(max(0, min(k.end, end) - max(k.start, begin)) for k in self.gpu.kernels)
        return end - begin - busy, end - begin


def device_of(found: Report) -> DeviceReport:
    """What is said of the device."""
    assert found.device is not None
    return found.device


@dataclass
class _Slow:
    """A loader, or anything to iterate over."""

    items: Any
    wait: Callable[[], Any]
    wait_first: Callable[[], Any]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        self.wait_first()
        return self._all()

    def _all(self) -> Iterator[Any]:
        for item in self.items:
            self.wait()
            yield item


def device_bound(folder: Path, patch: pytest.MonkeyPatch) -> DeviceRun:
    """The GPU is never done, though a handler waits for it after each step."""
    run = DeviceRun(folder, patch)
    return run.on_iteration(run.gpu.synchronize).run()


def launch_bound(folder: Path, patch: pytest.MonkeyPatch) -> DeviceRun:
    """The host takes 5 ms in each forward, of a step that takes the GPU 2 ms."""
    return DeviceRun(folder, patch, LITTLE).slow_in("forward", 5 * MS).run()


def data_bound(folder: Path, patch: pytest.MonkeyPatch) -> DeviceRun:
    """A batch takes 7 ms."""
    run = DeviceRun(folder, patch, LITTLE)
    return run.slow_data(lambda: run.wait(7 * MS)).run()


def handler_bound(folder: Path, patch: pytest.MonkeyPatch) -> DeviceRun:
    """A handler takes 6 ms after each step."""
    run = DeviceRun(folder, patch, LITTLE)
    return run.on_iteration(lambda: run.wait(6 * MS)).run()


def out_of_memory(folder: Path, patch: pytest.MonkeyPatch) -> DeviceRun:
    """In iteration 5 the GPU's memory is full, in ``forward``; the program ends."""
    run = DeviceRun(folder, patch)
    launch = run.parts.launch

    def full(phase: str) -> None:
        if phase == "forward" and run.trainer.state.iteration == 5:
            run.gpu.allocated, run.gpu.failures = 70 * 2**30, 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate [b]2 GiB[/b]")
        launch(phase)

    run.parts.launch = full
    with pytest.raises(torch.OutOfMemoryError):
        run.run()
    return run


def never_reached(folder: Path, patch: pytest.MonkeyPatch) -> DeviceRun:
    """After iteration 12 of 20 the GPU reaches nothing any more."""
    run = DeviceRun(folder, patch)

    def stop() -> None:
        run.gpu.synchronize()
        run.gpu.stuck = run.trainer.state.iteration > 12

    return run.on_iteration(stop).run()
