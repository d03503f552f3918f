"""Device time of runs that end in every way, that are thinned out, and of programs that compare.

What was over before is timed; what was cut short has no span; the next run is whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from firetrace import TraceHandler
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from tests.support.launching import (
    PHASES,
    Parts,
    Recorded,
    attach,
    cases,
    checked,
    comparison_error,
    evaluator,
    finish,
    plain,
    supervised,
    worst,
)
from tests.support.programs import failing, interrupt, on
from tests.support.simulated import SimulatedGpu
from tests.support.trainings import Training
from tests.support.unchanged import Stage, compare


def run_again(engine: Engine, *data: Any) -> None:
    """After an exception, from the beginning."""
    engine._internal_run_generator = None  # ignite keeps the one that has failed
    engine.state.iteration = engine.state.epoch = 0
    engine.run(*data)


def iterations(found: Recorded) -> list[int]:
    """Whose forward has a span, in their order."""
    return [span.iteration for span in found.spans() if span.name == "forward"]


EVENTS = [
    Events.STARTED, Events.EPOCH_STARTED, Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED, *IterationEvents, Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
]  # fmt: skip
FIRED = [
    e for e in EVENTS if e.name not in ("INNER_ITERATION_STARTED", "INNER_ITERATION_COMPLETED")
]


@pytest.mark.parametrize("event", FIRED, ids=lambda event: event.name)
def test_a_handler_that_raises(event: Any, gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """The exception passes; the training that begins again after it is timed as a whole."""
    trainer = supervised(Parts(gpu), steps=4, epochs=2)
    time = 1 if event in (Events.STARTED, Events.EPOCH_COMPLETED) else 2
    on(event, failing(ValueError, "bad luck"), time)(trainer)
    handler.attach(trainer)
    with pytest.raises(ValueError, match="bad luck"):
        trainer.run()
    before = trainer.state.iteration
    run_again(trainer)
    found = checked(handler, gpu)
    assert not found.untimed()
    assert iterations(found)[-8:] == [*range(1, 9)]
    assert len(iterations(found)) in (8 + before, 8 + before - 1)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("library", [plain, supervised], ids=["ignite", "monai"])
def test_a_process_function_that_raises(
    phase: str, library: Callable[[Parts], Engine], gpu: SimulatedGpu, handler: TraceHandler
) -> None:
    """The phase that raised has no span, those before it have theirs."""
    parts = Parts(gpu)
    before, times = parts.launch, iter(range(1000))

    def launch(now: str) -> None:
        before(now)
        if now == phase and next(times) == 2:
            raise ValueError("bad luck")

    parts.launch = launch
    engine = library(parts)
    attach(handler, engine, parts) if library is plain else handler.attach(engine)
    data: list[Any] = [cases(6)] if library is plain else []
    with pytest.raises(ValueError, match="bad luck"):
        engine.run(*data)
    run_again(engine, *data)
    found = checked(handler, gpu)
    assert not found.untimed()
    of_third = [span.name for span in found.spans() if span.iteration == 3]
    done = PHASES[: PHASES.index(phase)]
    assert of_third == [*done, *PHASES, "output"]


@pytest.mark.parametrize("way", ["terminate", "terminate_epoch"])
@pytest.mark.parametrize(
    "event",
    [Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED, IterationEvents.LOSS_COMPLETED,
     Events.ITERATION_COMPLETED],
)  # fmt: skip
def test_a_run_that_is_terminated(
    way: str, event: Any, gpu: SimulatedGpu, handler: TraceHandler
) -> None:
    """What has happened has its spans."""
    trainer = supervised(Parts(gpu), steps=4, epochs=2)
    on(event, lambda engine: getattr(engine, way)(), 2)(trainer)
    handler.attach(trainer)
    trainer.run()
    assert not checked(handler, gpu).untimed()


@pytest.mark.parametrize(
    "event",
    [Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED,
     Events.ITERATION_COMPLETED],
)  # fmt: skip
def test_a_run_that_is_interrupted_and_goes_on(
    event: Any, gpu: SimulatedGpu, handler: TraceHandler
) -> None:
    """Every phase has a span, also of the step in the middle of which it was interrupted."""
    trainer = supervised(Parts(gpu), steps=4, epochs=2)
    on(event, interrupt, 3)(trainer)
    handler.attach(trainer)
    trainer.run()
    trainer.run()
    found = checked(handler, gpu)
    assert not found.untimed()
    assert iterations(found) == [*range(1, 9)]
    assert len(found.spans()) == 8 * 6


def test_the_keyboard(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Ctrl-C in a phase."""
    parts = Parts(gpu)
    before, times = parts.launch, iter(range(1000))

    def launch(now: str) -> None:
        before(now)
        if next(times) == 12:
            raise KeyboardInterrupt

    parts.launch = launch
    trainer = supervised(parts)
    handler.attach(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert len(checked(handler, gpu).spans()) == 14


@pytest.mark.parametrize("event", FIRED[2:], ids=lambda event: event.name)
def test_an_engine_that_is_detached(event: Any, gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Up to there it is timed; the evaluator goes on to be."""
    trainer, judge = supervised(Parts(gpu), steps=4, epochs=2), evaluator(Parts(gpu))
    handler.attach(trainer)
    handler.attach(judge)
    on(event, handler.detach, 1 if event == Events.EPOCH_COMPLETED else 3)(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: judge.run())
    trainer.run()
    found = checked(handler, gpu)
    assert not found.untimed()
    assert sum(span.engine == "SupervisedEvaluator" for span in found.spans()) == 8
    own = [span.iteration for span in found.spans() if span.engine == "SupervisedTrainer"]
    assert max(own) in (2, 3, 4)


def test_a_recording_that_is_closed_meanwhile(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """The training goes on without another call of the GPU."""
    trainer = supervised(Parts(gpu), steps=8)
    calls: list[dict[str, int]] = []

    def close(engine: Engine) -> None:
        gpu.synchronize()
        handler.close()
        calls.append(dict(gpu.calls))

    on(IterationEvents.LOSS_COMPLETED, close, 5)(trainer)
    handler.attach(trainer)
    trainer.run()
    assert calls == [gpu.calls]
    found = finish(handler, gpu)
    assert iterations(found) == [1, 2, 3, 4, 5]
    assert not len(found.device.open_positions())


# Thinned out


@pytest.mark.parametrize("every", [2, 3])
def test_every_so_many_steps(every: int, gpu: SimulatedGpu, tmp_path: Path) -> None:
    """The steps that the rank's journal has are those that have spans; the others have no mark."""
    handler = TraceHandler(tmp_path / "run", device=gpu, every=every)
    trainer = supervised(Parts(gpu), steps=12, epochs=2)
    handler.attach(trainer)
    trainer.run()
    found = checked(handler, gpu)
    assert not found.untimed()
    assert iterations(found) == [*range(every, 25, every)]
    assert gpu.calls["record"] == 24 // every * 7


def test_an_evaluator_in_steps_that_are_thinned(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Its steps and the trainer's are thinned by themselves: each of them is timed."""
    handler = TraceHandler(tmp_path / "run", device=gpu, every=3)
    parts = Parts(gpu)
    trainer, judge = supervised(parts, steps=12), evaluator(parts, 3)
    for engine in (trainer, judge):
        handler.attach(engine)
    for event in (Events.ITERATION_COMPLETED, IterationEvents.BACKWARD_COMPLETED):
        trainer.add_event_handler(event, lambda: judge.run())
    trainer.run()
    found = checked(handler, gpu)
    assert not found.untimed()
    assert [s.iteration for s in found.spans() if s.name == "backward"] == [3, 6, 9, 12]
    assert sum(s.engine == "SupervisedEvaluator" for s in found.spans()) == 2 * 24


def test_a_small_budget(gpu: SimulatedGpu, tmp_path: Path, caplog: Any) -> None:
    """The device journal thins by itself as it fills, and stays within its part of the budget."""
    handler = TraceHandler(tmp_path / "run", device=gpu, max_bytes=2**16)
    trainer = supervised(Parts(gpu), steps=1500)
    handler.attach(trainer)
    gpu.depth = 12
    trainer.run()
    found = finish(handler, gpu)
    assert not found.untimed()
    assert worst(found.spans()[::7], gpu) <= comparison_error(gpu) + 60_000
    assert found.device.path.stat().st_size <= 2**16
    timed = iterations(found)
    assert timed[:20] == [*range(1, 21)]
    assert max(timed) > 1000
    assert any(note["type"] == "thin" for note in found.notes)
    assert not [r for r in caplog.records if r.name == "firetrace" and r.levelname == "WARNING"]


# The program is the same


def traced_training(stage: Stage) -> Any:
    """A MONAI training with validation, whose parts ask a GPU for work."""
    training = Training()
    stage.add(training.trainer, "trainer")
    stage.add(training.evaluator, "evaluator")
    training.trainer.run()
    stage.note(random.random())
    return training.weights()


def failing_training(stage: Stage) -> Any:
    """The same, ended by an exception in a handler."""
    training = Training()
    stage.add(training.trainer, "trainer")

    on(Events.ITERATION_COMPLETED, failing(KeyError, "no such thing"), 4)(training.trainer)
    training.trainer.run()


@pytest.mark.parametrize("program", [traced_training, failing_training])
@pytest.mark.parametrize("way", ["lookups", "calls", "bare", "debug"])
def test_the_training_is_the_untraced_one(program: Callable[[Stage], Any], way: str) -> None:
    """Losses, parameters, random streams, events, logs, what is left in the engines: all of it."""
    gpu = SimulatedGpu()
    seen = compare(program, way, device=gpu)
    assert gpu.calls["record"] > 20
    assert not gpu.misused
    assert not seen.said


# Without a device


def test_without_a_device_nothing_is_different(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Rows, names and moves are those of a program that is recorded as it always was."""
    shapes = []
    for name, device in (("never", False), ("none here", None), ("one", gpu)):
        trainer = supervised(Parts(SimulatedGpu(time=gpu.time)))
        handler = TraceHandler(tmp_path / name, device=device)
        handler.attach(trainer)
        trainer.run()
        recorder = handler._recording._recorders[0]
        made = [m for node in recorder.rules._nodes.values() for m in node.moves.values()]
        wrapped = {move.action.__name__ for move in made if move.action is not None}
        assert ("action" in wrapped) == (device is gpu)
        handler.close()
        table = read_table(open_run(tmp_path / name).main)
        rows = [(str(table.name(i)), int(table.rows["flags"][i]), int(table.rows["parent"][i]),
                 int(table.rows["iteration"][i])) for i in range(len(table))]  # fmt: skip
        shapes.append((rows, table.names))
        assert (tmp_path / name / "rank0.1.device.rows").exists() == (device is gpu)
    assert shapes[0] == shapes[1] == shapes[2]
