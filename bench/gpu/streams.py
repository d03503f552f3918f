"""Streams of the program's own, and CUDA graphs: captured before a training, and inside a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from bench.gpu.check import PART, SHORT_NS, Check, Settings
from bench.gpu.comparison import held
from bench.gpu.machine import Machine
from bench.gpu.recorded import Recorded, record
from bench.gpu.spans import whole
from bench.gpu.trainings import calling, tiny

cuda: Any = torch.cuda  # of which not all is typed
STEPS = 24
#: The iteration that is captured into a graph, and the reasons that are given then and elsewhere.
CAPTURED = 5
WHY_GRAPH, WHY_STREAM = "a graph is captured", "the current stream changed in it"
WORK_MS = 3.0


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """Those that leave CUDA as it was first."""
    yield elsewhere(machine, settings)
    yield joined(machine, settings)
    yield changed(machine, settings)
    yield replayed(machine, settings)
    yield from captured(machine, settings)


def elsewhere(machine: Machine, settings: Settings) -> Check:
    """A training that runs as a whole in a stream of its own."""
    stream = cuda.Stream(machine.device)
    parts = tiny(machine.device)
    machine.synchronize()
    engine = parts.steps(STEPS)

    def run() -> None:
        with cuda.stream(stream):
            engine.run()

    return whole("a training in a stream of its own", record(machine, settings, engine, run), STEPS)


def joined(machine: Machine, settings: Settings) -> Check:
    """A forward that works in another stream and waits for that: against events of its own."""
    side = cuda.Stream(machine.device)
    pairs: list[tuple[Any, Any]] = []

    def within() -> None:
        own = cuda.current_stream(machine.device)
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
        first.record(own)
        side.wait_stream(own)
        with cuda.stream(side):
            machine.work(WORK_MS)
        own.wait_stream(side)
        last.record(own)
        pairs.append((first, last))

    parts = calling(machine.device, within)
    parts.steps(3).run()
    pairs.clear()
    recorded = record(machine, settings, parts.steps(STEPS))
    took = [round(first.elapsed_time(last) * 1e6) for first, last in pairs]
    spans = [
        end - start for start, end in (each.device or (0, 0) for each in recorded.of("forward"))
    ]
    return joined_times(recorded, spans, took)


def joined_times(recorded: Recorded, spans: list[int], took: list[int]) -> Check:
    """The spans hold the work of the other stream. In ns; the network's own kernel is in them."""
    name = "forward that joins another stream, against events"
    problems = recorded.problems()
    if problems or len(spans) != len(took):
        return Check(name, "; ".join([f"{len(spans)} of {len(took)}", *problems]), "all", False)
    return held(name, spans, took, f"{PART:.0%}, or {PART * SHORT_NS / 1e3:.0f} \u00b5s")


def changed(machine: Machine, settings: Settings) -> Check:
    """A program that changes its stream between phases: those are not timed, and it is said why."""
    side = cuda.Stream(machine.device)
    phases = Phases(machine)

    def step(engine: Engine, batch: Any) -> None:
        with cuda.stream(side):
            phases.forward(engine)
        phases.rest(engine)

    recorded = phases.record(step, settings)
    return said("a stream that changes between phases", recorded, WHY_STREAM, STEPS)


def said(name: str, recorded: Recorded, why: str, least: int) -> Check:
    """Whether the phases that could not be timed are counted under a reason, and others go on."""
    counts = {reason: count for (_, reason), count in recorded.meta.untimed.items()}
    stopped = recorded.meta.stopped
    times = sum(each.device is not None for each in recorded.phases)
    text = ", ".join(f"{count} not timed: {reason}" for reason, count in counts.items())
    text = f"{text or 'all timed'}; {times} timed"
    return Check(
        name, f"{text}; stopped: {stopped}" if stopped else text,
        f"not timed: {why}; at least {least} timed",
        why in counts and not stopped and times >= least,
    )  # fmt: skip


def replayed(machine: Machine, settings: Settings) -> Check:
    """A network that was captured before the training and is replayed in each step."""
    parts = tiny(machine.device)
    sample = torch.rand_like(parts.batch["image"])
    parts.network = cuda.make_graphed_callables(parts.network, (sample,))
    return whole("make_graphed_callables", record(machine, settings, parts.steps(STEPS)), STEPS)


@dataclass
class Phases:
    """A step of four phases without a gradient, whose result tells whether all of it was done."""

    machine: Machine

    def __post_init__(self) -> None:
        device = self.machine.device
        self.value = torch.ones(64, 64, device=device)
        self.weight = torch.full((64, 64), 1 / 64, device=device)

    def forward(self, engine: Engine) -> None:
        """The first."""
        self.value.copy_(self.value @ self.weight + 1)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

    def rest(self, engine: Engine) -> None:
        """The others."""
        for event in (
            IterationEvents.LOSS_COMPLETED, IterationEvents.BACKWARD_COMPLETED,
            IterationEvents.MODEL_COMPLETED,
        ):  # fmt: skip
            self.value.mul_(0.75)
            engine.fire_event(event)

    def engine(self, step: Callable[[Engine, Any], None]) -> Engine:
        """One of ignite."""
        found = Engine(step)
        found.register_events(*IterationEvents)
        return found

    def record(self, step: Callable[[Engine, Any], None], settings: Settings) -> Recorded:
        """Run it."""
        engine = self.engine(step)
        return record(self.machine, settings, engine, lambda: engine.run(range(STEPS)))


def captured(machine: Machine, settings: Settings) -> Iterator[Check]:
    """A step that is captured with its events, and replayed from then on."""
    results, recorded = [], None
    for traced in (False, True):
        phases, graph = Phases(machine), cuda.CUDAGraph()

        def step(engine: Engine, batch: Any, phases: Phases = phases, graph: Any = graph) -> None:
            if engine.state.iteration == CAPTURED:
                with cuda.graph(graph):
                    phases.forward(engine)
                    phases.rest(engine)
            if engine.state.iteration < CAPTURED:
                phases.forward(engine)
                phases.rest(engine)
            else:
                graph.replay()
                engine.fire_event(IterationEvents.FORWARD_COMPLETED)

        if traced:
            recorded = phases.record(step, settings)
        else:
            phases.engine(step).run(range(STEPS))
            machine.synchronize()
        results.append(phases.value.sum().item())
    assert recorded is not None
    yield Check(
        "a graph captured inside a step: its result", f"{results[1]:.6f}",
        f"as without firetrace ({results[0]:.6f})", results[0] == results[1],
    )  # fmt: skip
    yield said("a graph captured inside a step", recorded, WHY_GRAPH, STEPS)
