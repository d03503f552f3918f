"""The first promise: a traced program does exactly what the untraced one does.

Here: real trainings, copies and other tools. What engines do, event by event, is in
``test_engine_facts.py``, ``test_endings.py`` and ``test_engines_together.py``; what Python shows in
``test_unchanged_python.py``; programs that nobody thought of in ``test_generated.py``.
"""

from __future__ import annotations

import copy
import logging
import pickle
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import BasicTimeProfiler, HandlersTimeProfiler

from firetrace import TraceHandler
from firetrace.tracer.seam import Seam
from tests.support.described import described_engine
from tests.support.trainings import Training, plain_engine
from tests.support.unchanged import INTERRUPTIBLE, Program, Stage, compare


def on_stage(stage: Stage, **how: Any) -> Training:
    training = Training(**how)
    stage.add(training.trainer, "trainer")
    stage.add(training.evaluator, "evaluator")
    return training


def normal(stage: Stage) -> Any:
    training = on_stage(stage)
    training.trainer.run()
    return training.weights()


def terminated(stage: Stage) -> Any:
    training = on_stage(stage)
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=4), lambda engine: engine.terminate()
    )
    training.trainer.run()
    return training.weights()


def failing_handler(stage: Stage) -> None:
    training = on_stage(stage)

    @training.trainer.on(Events.ITERATION_STARTED(once=5))
    def fail() -> None:
        raise KeyError("no such thing")

    training.trainer.run()


def failing_process_function(stage: Stage, swallow: bool = False) -> None:
    training = on_stage(stage)

    def loss(*_: Any) -> Any:
        raise ValueError("loss is nan")

    training.trainer.loss_function = loss
    if swallow:
        training.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    training.trainer.run()


def swallowed(stage: Stage) -> None:
    failing_process_function(stage, swallow=True)


def interrupted_by_keyboard(stage: Stage) -> None:
    training = on_stage(stage)

    @training.trainer.on(Events.ITERATION_COMPLETED(once=2))
    def stop() -> None:
        raise KeyboardInterrupt

    training.trainer.run()


def run_twice(stage: Stage) -> Any:
    training = on_stage(stage)
    training.trainer.run()
    training.trainer.state.max_epochs = 3
    training.trainer.run()
    return training.weights()


def run_inside_its_own_handler(stage: Stage) -> None:
    training = on_stage(stage)

    @training.trainer.on(Events.EPOCH_COMPLETED(once=1))
    def again() -> None:
        training.trainer.run()

    training.trainer.run()


@pytest.mark.parametrize(
    "program",
    [normal, terminated, failing_handler, failing_process_function, swallowed,
     interrupted_by_keyboard, run_twice, run_inside_its_own_handler],
)  # fmt: skip
@pytest.mark.parametrize("way", INTERRUPTIBLE)
def test_a_traced_training_is_the_untraced_one(program: Program, way: str) -> None:
    """Events, weights, exceptions, handlers, random streams, logs: all is identical."""
    compare(program, way)


def test_loader_workers_change_nothing() -> None:
    """With forked loader workers the weights are the same as well, and no child writes a row."""

    def program(stage: Stage) -> Any:
        training = on_stage(stage, workers=2)
        training.trainer.run()
        return training.weights()

    table = compare(program).recorded
    assert [table.lane(i).engine for i in table.of_kind("run").tolist()].count(
        "SupervisedTrainer"
    ) == 1


BETRAYALS: dict[str, Callable[[Engine], Any]] = {
    "draws a number": lambda engine: random.random(),
    "draws one of torch's": lambda engine: torch.rand(1),
    "warns": lambda engine: warnings.warn("traced", stacklevel=1),
    "logs": lambda engine: logging.getLogger("ignite").info("traced"),
    "looks at handlers": lambda engine: engine._event_handlers[Events.EXCEPTION_RAISED],
    "leaves an attribute": lambda engine: setattr(engine, "traced", True),
    "leaves something in the state": lambda engine: setattr(engine.state, "traced", True),
    "adds a handler": lambda engine: engine.add_event_handler(Events.COMPLETED, print),
    "terminates": lambda engine: engine.terminate(),
    "fires": lambda engine: engine.fire_event(Events.COMPLETED),
    "loses an exception": lambda engine: sys.unraisablehook(
        SimpleNamespace(exc_value=ValueError())
    ),
}


@pytest.mark.parametrize("betrayal", BETRAYALS)
def test_the_comparison_can_fail(betrayal: str) -> None:
    """A traced program that does one thing more is told apart."""

    def program(stage: Stage) -> None:
        engine = stage.add(Engine(lambda engine, batch: batch))
        if stage.handler is not None:
            engine.add_event_handler(
                Events.ITERATION_STARTED, lambda: None
            ).remove()  # the same key in both
            BETRAYALS[betrayal](engine)
        else:
            engine.add_event_handler(Events.ITERATION_STARTED, lambda: None).remove()
        engine.run([1, 2])

    with pytest.raises(AssertionError, match="the traced program differs"):
        compare(program)


# Copies


def step(engine: Any, batch: Any) -> Any:
    engine.steps = getattr(engine, "steps", 0) + 1
    return batch


def count(engine: Any) -> None:
    engine.state.count = getattr(engine.state, "count", 0) + 1


def copies(make: Callable[[Engine], Any], handle: Callable[..., Any] = count) -> Program:
    """A copy of an engine that has run, used beside it."""

    def program(stage: Stage) -> None:
        engine = stage.add(Engine(step))
        engine.add_event_handler(Events.ITERATION_STARTED, handle)
        engine.run([1])
        stage.partial = True  # the copy is not traced
        twin = make(engine)
        twin.add_event_handler(Events.EPOCH_STARTED, lambda engine: stage.note(engine is twin))
        for each in (twin, engine, twin):
            each.state.max_epochs = None
            stage.attempt(lambda each=each: each.run([1, 2]))  # type: ignore[misc]
        stage.note((described_engine(twin, attributes=False), engine.steps, twin.steps))

    return program


def nothing() -> None: ...


COPIES: dict[str, Program] = {
    "deepcopy": copies(copy.deepcopy),
    "deepcopy of two": copies(lambda engine: copy.deepcopy([engine, engine])[1]),
    "pickle": copies(lambda engine: pickle.loads(pickle.dumps(engine)), nothing),
    "pickle that cannot be": copies(lambda engine: pickle.loads(pickle.dumps(engine)), count),
    "copy": copies(copy.copy),
}


@pytest.mark.parametrize("name", [
    *list(COPIES)[:-1],
    pytest.param("copy", marks=pytest.mark.xfail(strict=True, reason="shares the seams")),
])  # fmt: skip
def test_copies(name: str) -> None:
    """A copy runs its own handlers on its own state."""
    compare(COPIES[name], "bare")


@pytest.mark.parametrize("make", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_copy_bears_nothing_that_acts(make: Callable[[Engine], Engine]) -> None:
    """A copy has the methods of its class, for which others can stand that know no recording."""
    engine, handler = Engine(step), TraceHandler()
    names = set(vars(engine))
    handler.attach(engine)
    twin = make(engine)
    for name in set(vars(twin)) - names:
        held = vars(twin)[name]
        seam = held.__self__
        if isinstance(seam, Seam):
            assert seam.tracer is None
            assert seam.engine() is twin
        else:
            assert seam.__func__ is getattr(type(twin), name)
            assert seam.__self__ is twin


def test_a_deep_copy_records_nothing() -> None:
    """A copy of a traced engine is not traced."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1])
    before = len(list(handler.spans()))
    twin = copy.deepcopy(engine)
    twin.state.max_epochs = None
    twin.run([1, 2])
    assert twin.state.iteration == 2
    assert len(list(handler.spans())) == before
    handler.close()


# Other tools, before and after


class Replacing:
    """Replaces ``_fire_event``, and puts the old one back."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def attach(self, engine: Any) -> None:
        self.engine, self.old = engine, engine._fire_event
        engine._fire_event = self.fire

    def fire(self, event: Any, *args: Any, **kwargs: Any) -> None:
        self.names.append(getattr(event, "name", event))
        self.old(event, *args, **kwargs)

    def detach(self) -> None:
        self.engine._fire_event = self.old


class ReplacingRun(Replacing):
    """Replaces ``_internal_run``."""

    def attach(self, engine: Any) -> None:
        self.engine, self.old = engine, engine._internal_run
        engine._internal_run = self.run

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.names.append("run")
        return self.old(*args, **kwargs)

    def detach(self) -> None:
        self.engine._internal_run = self.old


class Profiling:
    """One of ignite's profilers, which cannot be detached."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.names: list[str] = []

    def attach(self, engine: Engine) -> None:
        self.kind().attach(engine)

    def detach(self) -> None: ...


TOOLS: dict[str, Callable[[], Any]] = {
    "one that replaces _fire_event": Replacing,
    "one that replaces _internal_run": ReplacingRun,
    "BasicTimeProfiler": lambda: Profiling(BasicTimeProfiler),
    "HandlersTimeProfiler": lambda: Profiling(HandlersTimeProfiler),
}


@pytest.mark.parametrize("way", ["lookups", "bare"])
@pytest.mark.parametrize("order", ["tool on top", "tool below"])
@pytest.mark.parametrize("first", ["tool goes first", "tool goes last"])
@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools(tool: str, first: str, order: str, way: str) -> None:
    """Whoever comes and goes first: both do their work, and in the end nothing is left behind."""

    def program(stage: Stage) -> Any:
        engine, other = stage.add(Engine(step), attach=False), TOOLS[tool]()
        engine.add_event_handler(Events.ITERATION_COMPLETED, count)
        coming = [lambda: stage.attach(engine), lambda: other.attach(engine)]
        going = [lambda: stage.detach(engine), other.detach]
        if order == "tool below":
            coming.reverse()
        if first == "tool goes first":
            going.reverse()
        for act in (*coming, *going):
            act()
            engine.run([1, 2])
        return [*other.names]

    compare(program, way)


@pytest.mark.parametrize("first", [0, 1])
def test_two_handlers_detach_in_either_order(first: int, tmp_path: Path) -> None:
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
