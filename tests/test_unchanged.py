"""The first promise: a traced program does exactly what the untraced one does."""

from __future__ import annotations

import copy
import gc
import pickle
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from tests.support.trainings import (
    Training,
    handler_lists,
    log_calls,
    log_lookups,
    plain_engine,
    random_states,
    seed,
)

Log = Callable[[Engine, str, list[tuple[Any, ...]]], None]


def observe(
    prepare: Callable[[Training], Any], traced: bool, log: Log = log_lookups
) -> dict[str, Any]:
    """Run a training and return everything that a program can see of it."""
    events: list[tuple[Any, ...]] = []
    handler = TraceHandler() if traced else None
    training = Training()
    log(training.trainer, "trainer", events)
    log(training.evaluator, "evaluator", events)
    if handler is not None:
        handler.attach(training.trainer)
        handler.attach(training.evaluator)
    raised = None
    try:
        prepare(training)
    except BaseException as error:
        # Of the frames only those of the user's and of ignite's own code: where one of ours stands
        # for ignite's ``_fire_event``, that one is missing.
        frames = traceback.extract_tb(error.__traceback__)
        names = [f.name for f in frames if f.name != "_fire_event" and "/tracer/" not in f.filename]
        raised = (type(error), str(error), names)
    if handler is not None:
        assert handler.directory is not None, "nothing was recorded"
        handler.close()
    return {
        "events": events, "raised": raised, "weights": training.weights(),
        "random": random_states(), "handlers": handler_lists(training.trainer),
        "evaluator handlers": handler_lists(training.evaluator),
        "metrics": dict(training.evaluator.state.metrics),
        "state": (training.trainer.state.epoch, training.trainer.state.iteration),
        "attributes": sorted(vars(training.trainer)),
    }  # fmt: skip


def normal(training: Training) -> None:
    training.trainer.run()


def terminated(training: Training) -> None:
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=4), lambda engine: engine.terminate()
    )
    training.trainer.run()


def failing_handler(training: Training) -> None:
    @training.trainer.on(Events.ITERATION_STARTED(once=5))
    def fail() -> None:
        raise KeyError("no such thing")

    training.trainer.run()


def failing_process_function(training: Training) -> None:
    def loss(*_: Any) -> Any:
        raise ValueError("loss is nan")

    training.trainer.loss_function = loss
    training.trainer.run()


def swallowed(training: Training) -> None:
    training.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    failing_process_function(training)


def interrupted_by_keyboard(training: Training) -> None:
    @training.trainer.on(Events.ITERATION_COMPLETED(once=2))
    def stop() -> None:
        raise KeyboardInterrupt

    training.trainer.run()


def run_twice(training: Training) -> None:
    training.trainer.run()
    training.trainer.state.max_epochs = 3
    training.trainer.run()


def run_inside_its_own_handler(training: Training) -> None:
    @training.trainer.on(Events.EPOCH_COMPLETED(once=1))
    def again() -> None:
        training.trainer.run()

    training.trainer.run()


@pytest.mark.parametrize(
    "prepare",
    [normal, terminated, failing_handler, failing_process_function, swallowed,
     interrupted_by_keyboard, run_twice, run_inside_its_own_handler],
)  # fmt: skip
@pytest.mark.parametrize("log", [log_lookups, log_calls])
def test_a_traced_training_is_the_untraced_one(
    prepare: Callable[[Training], Any], log: Log
) -> None:
    """Events, weights, exceptions, handler lists and random streams are identical.

    Both where firetrace stands for ignite's ``_fire_event`` and where it wraps another tool's.
    """
    untraced = observe(prepare, False, log)
    traced = observe(prepare, True, log)
    assert untraced["events"]
    assert traced == untraced


def test_the_comparison_can_fail() -> None:
    """A training that draws one random number more is told apart."""

    def draws(training: Training) -> None:
        torch.rand(1)
        training.trainer.run()

    assert observe(normal, traced=False) != observe(draws, traced=False)


def test_loader_workers_change_nothing() -> None:
    """With forked loader workers the weights are the same as well, and no child writes a row."""
    results = []
    for traced in (False, True):
        training = Training(workers=2)
        if traced:
            handler = TraceHandler()
            handler.attach(training.trainer)
        training.trainer.run()
        results.append((training.weights(), random_states()))
    assert results[0] == results[1]
    names = [span.name for span in handler.spans()]
    assert names.count("run") == 1
    handler.close()


def test_detach_puts_the_engine_back() -> None:
    """After detach the engine's attributes and handlers are those of before, the very objects."""
    training = Training()
    for engine in (training.trainer, training.evaluator):
        before, lists = dict(vars(engine)), handler_lists(engine)
        handler = TraceHandler()
        handler.attach(engine)
        assert dict(vars(engine)) != before
        handler.detach(engine)
        assert vars(engine).keys() == before.keys()
        assert all(vars(engine)[name] is value for name, value in before.items())
        assert handler_lists(engine) == lists


@pytest.mark.parametrize("first", [0, 1])
def test_two_tools_detach_in_either_order(first: int, tmp_path: Path) -> None:
    """Two handlers that wrap the same engine leave nothing behind, whichever goes first."""
    engine = plain_engine()
    events: list[Any] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: events.append(1))
    handlers = [TraceHandler(tmp_path / "one"), TraceHandler(tmp_path / "two")]
    for handler in handlers:
        handler.attach(engine)
    engine.run([1, 2])
    handlers[first].detach()
    engine.run([1, 2])
    handlers[1 - first].detach()
    engine.run([1, 2])
    assert len(events) == 6
    for handler in handlers:
        steps = [span for span in handler.spans() if span.name == "step"]
        assert len(steps) == (2 if handler is handlers[first] else 4)
        handler.close()


def test_a_deep_copy_is_untraced_and_its_own() -> None:
    """A copy of a traced engine fires its own handlers, and records nothing."""
    engine = plain_engine()
    seen: list[Engine] = []
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1])
    before = len(list(handler.spans()))
    twin = copy.deepcopy(engine)
    twin.add_event_handler(Events.STARTED, seen.append)
    twin.state.max_epochs = None
    twin.run([1, 2])
    assert seen == [twin]
    assert twin.state.iteration == 2
    assert len(list(handler.spans())) == before
    handler.close()


def test_an_engine_that_only_its_run_keeps_alive() -> None:
    """``make_trainer().run()`` works traced as it does untraced."""

    def make_trainer() -> Engine:
        engine = plain_engine()
        handler.attach(engine)
        return engine

    handler = TraceHandler()
    assert make_trainer().run([1, 2]).iteration == 2
    assert [span.name for span in handler.spans()].count("step") == 2


def test_the_legacy_loop_is_recorded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that cannot be interrupted run ignite's other loop."""
    monkeypatch.setattr(Engine, "interrupt_resume_enabled", False)
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2])
    names = [span.name for span in handler.spans() if span.end_time is not None]
    assert (names.count("run"), names.count("step")) == (1, 2)


def _step(engine: Engine, batch: Any) -> Any:
    return batch


def test_a_traced_engine_can_be_pickled() -> None:
    """An engine that can be pickled untraced can be pickled traced, and runs afterwards."""
    engine = Engine(_step)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2])
    twin = pickle.loads(pickle.dumps(engine))
    twin.state.max_epochs = None
    assert twin.run([1, 2, 3]).iteration == 3
    handler.close()


def test_a_traced_engine_is_freed_by_reference_count() -> None:
    """Tracing makes no cycle: without the collector, the engine and its model go at once."""

    def start() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        model = torch.nn.Linear(2, 2)
        engine = Engine(lambda engine, batch: model(torch.ones(2)))
        handler.attach(engine)
        engine.run([1, 2])
        return weakref.ref(engine), weakref.ref(model)

    handler = TraceHandler()
    gc.disable()
    try:
        gone = start()
        assert gone[0]() is None
        assert gone[1]() is None
    finally:
        gc.enable()
    handler.close()


def test_tracing_draws_no_random_number() -> None:
    """Ids come from the system, not from the program's own seeded generators."""
    seed()
    before = random_states()
    handler = TraceHandler()
    engine = plain_engine()
    handler.attach(engine)
    engine.run([1, 2], max_epochs=2)
    spans = list(handler.spans())
    assert random_states() == before
    assert len({span.context.span_id for span in spans if span.context}) == len(spans)
    handler.close()
