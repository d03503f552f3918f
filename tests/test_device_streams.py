"""Device time where a program does more than one thing after another on one stream.

Other streams, graphs, several engines and devices: spans are the truth in all of them, and each
phase has a span or is counted as one that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from firetrace import TraceHandler
from firetrace.tracer.device import accelerator
from tests.support.launching import (
    MS,
    PHASES,
    US,
    Parts,
    attach,
    cases,
    checked,
    comparison_error,
    evaluator,
    finish,
    supervised,
    taken,
    worst,
)
from tests.support.simulated import MadeTime, SimulatedGpu

# Streams


def test_a_side_stream_that_is_joined(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """What a phase does elsewhere and waits for is a part of it."""
    parts = Parts(gpu)

    def launch(phase: str) -> None:
        if phase == "loss":
            with gpu.on(3):
                gpu.wait_for(0)
                gpu.launch(2 * MS)
            gpu.launch(1 * MS)
            gpu.wait_for(3)

    parts.launch = launch
    trainer = supervised(parts)
    handler.attach(trainer)
    trainer.run()
    assert taken(checked(handler, gpu), "loss") == {2000}


def test_a_stream_of_its_own_for_everything(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Marks are queued where the work is."""
    trainer = supervised(Parts(gpu))
    handler.attach(trainer)
    with gpu.on(5):
        trainer.run()
    found = checked(handler, gpu, lambda span: 5)
    assert taken(found, "forward") == {3000}
    assert not found.untimed()


def test_every_step_in_another_stream(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Steps of two streams overlap on the device, as they do."""
    trainer = supervised(Parts(gpu), steps=10)

    @trainer.on(Events.GET_BATCH_STARTED)
    def change(engine: Engine) -> None:
        gpu.stream = engine.state.iteration % 2  # the one before, at this event

    handler.attach(trainer)
    trainer.run()
    found = checked(handler, gpu, lambda span: (span.iteration - 1) % 2)
    assert not found.untimed()
    first, second = ([s for s in found.spans() if s.iteration == i] for i in (1, 2))
    assert second[0].device[0] < first[-1].device[0]


def test_a_stream_that_changes_between_phases(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """A handler between two phases changes it: each phase lies in its own."""
    trainer = supervised(Parts(gpu))
    handler.attach(trainer)
    for event, stream in (
        (IterationEvents.FORWARD_COMPLETED, 1),
        (IterationEvents.BACKWARD_COMPLETED, 0),
    ):
        trainer.add_event_handler(event, setattr, gpu, "stream", stream)
    # Stream 0 has less to do: its last mark is reached before those of the other one.
    trainer.add_event_handler(Events.ITERATION_COMPLETED, gpu.time.pass_by, 4 * MS)
    trainer.run()
    found = checked(handler, gpu, lambda span: int(span.name in ("loss", "backward")))
    assert not found.untimed()
    assert taken(found, "backward") == {5000}


def test_a_stream_that_changes_within_a_phase(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Between two streams there is no time; that phase is counted, and the next has its span."""
    parts = Parts(gpu)
    before = parts.launch

    def launch(phase: str) -> None:
        before(phase)
        if phase in ("forward", "optimizer"):
            gpu.stream = 2 if phase == "forward" else 0

    parts.launch = launch
    trainer = supervised(parts)
    handler.attach(trainer)
    trainer.run()
    found = checked(handler, gpu, lambda span: 2 if span.name in ("loss", "backward") else 0)
    assert found.untimed() == {"the current stream changed in it": 12}
    assert {span.name for span in found.spans()} == {*PHASES, "output"} - {"forward", "optimizer"}


# Graphs


def capturing(parts: Parts, steps: Callable[[int], bool]) -> Engine:
    """A process function that captures its forward and loss in some steps, and replays them."""

    def step(engine: Engine, batch: Any) -> None:
        image, label = parts.prepare(batch)
        with ExitStack() as stack:
            captured = steps(engine.state.iteration)
            replay = stack.enter_context(parts.gpu.captured()) if captured else None
            loss = parts.loss(parts.net(image), label)
        if replay is not None:
            replay()
        loss.backward()
        parts.optimizer.step()

    return Engine(step)


@pytest.mark.parametrize("every", [1, 3])
def test_graphs(every: int, gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """No mark, no query while a graph is captured: its phases are counted, the others timed."""
    parts = Parts(gpu)
    engine = capturing(parts, lambda iteration: iteration % every == 0)
    attach(handler, engine, parts)
    engine.run(cases(9), max_epochs=2)
    found = checked(handler, gpu)
    steps = 18 // every
    # The first ends in the capture, the last begins in it: where the loss ended.
    assert found.untimed() == {"a graph is captured": 4 * steps}
    assert len(found.spans()) == 18 * 6 - 4 * steps
    assert taken(found, "optimizer") == {500}


def test_a_graph_inside_a_phase(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """That is captured and replayed in one phase: the phase takes what the graph takes."""
    parts = Parts(gpu)
    before = parts.launch

    def launch(phase: str) -> None:
        with gpu.captured() as replay:
            before(phase)
        replay()

    parts.launch = launch
    trainer = supervised(parts)
    handler.attach(trainer)
    trainer.run()
    found = checked(handler, gpu)
    assert not found.untimed()
    assert taken(found, "forward") == {3000}


def test_a_capture_from_one_step_to_another(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Nothing is asked of the GPU at the end of a step in which a capture goes on."""
    trainer = supervised(Parts(gpu), steps=12)
    handler.attach(trainer)
    stack = ExitStack()
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=4), lambda: stack.enter_context(gpu.captured())
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=7), stack.close)
    trainer.run()
    found = checked(handler, gpu)
    assert found.untimed() == {"a graph is captured": 18}
    assert {span.iteration for span in found.spans()} == {1, 2, 3, 4, *range(8, 13)}


# Several engines


def test_an_engine_inside_a_process_function(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """The phase around it has no span of its own; before, inside and after all have theirs."""
    parts = Parts(gpu)
    judge, before = evaluator(parts), parts.launch

    def launch(phase: str) -> None:
        if phase == "loss":
            judge.run()
        before(phase)

    parts.launch = launch
    trainer = supervised(parts)
    handler.attach(trainer)
    handler.attach(judge)
    trainer.run()
    found = checked(handler, gpu)
    assert found.untimed() == {"its beginning has no mark": 6}
    names = [(span.engine, span.name) for span in found.spans() if span.row]
    inner = [("SupervisedEvaluator", name) for name in ("prepare_batch", "forward")]
    outer = [("SupervisedTrainer", name) for name in (*PHASES, "output")]
    assert names == (outer[:2] + inner * 2 + outer[3:]) * 6


def test_two_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A trainer on one and its evaluator on another: each has a lane and a clock of its own."""
    time = MadeTime(monkeypatch)
    both = [
        SimulatedGpu(offset, 1 + drift, f"meta:{i}", time=time)
        for i, (offset, drift) in enumerate([(5 * 10**9, 30e-6), (10**15, -30e-6)])
    ]

    class Found:
        @staticmethod
        def find(torch: Any, index: int) -> tuple[SimulatedGpu, str]:
            return both[index], ""

    monkeypatch.setitem(accelerator.KINDS, "meta", Found)
    handler = TraceHandler(tmp_path / "run")
    trainer = supervised(Parts(both[0]), device=torch.device("meta", 0))
    judge = evaluator(Parts(both[1]), device=torch.device("meta", 1))
    handler.attach(trainer)
    handler.attach(judge)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: judge.run())
    trainer.run()
    both[1].synchronize()
    found = finish(handler, both[0])
    assert not both[1].misused
    found.whole()
    for number, engine in enumerate(("SupervisedTrainer", "SupervisedEvaluator")):
        spans = [span for span in found.spans() if span.lane == f"meta:{number}"]
        assert {span.engine for span in spans} == {engine}
        assert worst(spans, both[number]) <= comparison_error(both[number]) + 5 * US


def test_spans_of_the_users_inside_phases(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """They change nothing of the phase that they are in, not in the first step either."""
    parts = Parts(gpu)
    before = parts.launch

    def launch(phase: str) -> None:
        with handler.span("own"), handler.span("inner"):
            before(phase)

    parts.launch = launch
    trainer = supervised(parts)
    handler.attach(trainer)
    trainer.run()
    found = checked(handler, gpu)
    assert not found.untimed()
    assert len(found.spans()) == 36


def test_an_event_that_another_tool_has_wrapped(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Where events are recorded around another's ``_fire_event``, phases have their spans too."""
    trainer = supervised(Parts(gpu))
    original = trainer._fire_event
    vars(trainer)["_fire_event"] = lambda *args, **more: original(*args, **more)
    trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda: gpu.launch(2 * MS))
    handler.attach(trainer)
    trainer.run()
    found = checked(handler, gpu)
    assert len(found.spans()) == 36
    assert taken(found, "forward") == {3000}
