"""The first promise, in what Python itself shows: attributes, references, warnings, call stacks."""

from __future__ import annotations

import gc
import inspect
import logging
import sys
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from ignite.engine import Engine, EventEnum, Events

from firetrace import TraceHandler
from firetrace.tracer.journal import Flag
from tests.support.trainings import Training, handler_lists, plain_engine
from tests.support.unchanged import WAYS, Stage, compare


def step(engine: Engine, batch: Any) -> Any:
    return batch


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


def test_an_engine_that_only_its_run_keeps_alive() -> None:
    """``make_trainer().run()`` works traced as it does untraced."""

    def make_trainer() -> Engine:
        engine = plain_engine()
        handler.attach(engine)
        return engine

    handler = TraceHandler()
    assert make_trainer().run([1, 2]).iteration == 2
    assert [span.name for span in handler.spans()].count("step") == 2


def frees(stage: Stage) -> None:
    """Engine, model and handler go at once when the program lets go of them."""

    def start() -> list[weakref.ref[Any]]:
        model = torch.nn.Linear(2, 2)
        engine = stage.add(Engine(lambda engine, batch: model(torch.ones(2))))

        def handle(engine: Engine) -> None:
            stage.note(tuple(model.weight.shape))

        engine.add_event_handler(Events.ITERATION_COMPLETED, handle)
        engine.run([1, 2])
        stage.forget(engine)
        return [weakref.ref(each) for each in (engine, model, handle)]

    gc.disable()
    try:
        stage.note([reference() is None for reference in start()])
    finally:
        gc.enable()


def frees_after_an_exception(stage: Stage) -> None:
    """A run that failed keeps nothing alive either."""
    engine = stage.add(Engine(lambda engine, batch: 1 / 0))
    try:
        engine.run([1, 2])
    except ZeroDivisionError:
        pass
    reference = weakref.ref(engine)
    stage.forget(engine)
    gc.disable()
    try:
        del engine
        stage.note(reference() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("program", [frees, frees_after_an_exception])
def test_what_is_dropped_is_freed_at_once(program: Any) -> None:
    """Tracing makes no reference cycle: reference counts free what they free untraced."""
    compare(program, "bare")


def references(stage: Stage) -> None:
    """How often a batch is referred to while it is processed."""
    engine = stage.add(Engine(lambda engine, batch: stage.note(sys.getrefcount(batch))))
    engine.run([object(), object()])


def reruns(stage: Stage) -> None:
    """A method that was taken from the engine before goes on working."""
    engine = stage.add(Engine(step))
    run, fire = engine.run, engine.fire_event
    run([1])
    fire(Events.STARTED)
    stage.note(inspect.signature(engine.run))
    stage.note([engine.run == run, inspect.ismethod(engine.run), engine.run.__self__ is engine])
    stage.note(str(inspect.signature(engine._fire_event)))
    stage.note([name for name in dir(engine) if not name.startswith("__")])


def inherits(stage: Stage) -> None:
    """A subclass with a ``_fire_event`` of its own."""

    class Trainer(Engine):
        def _fire_event(self, event_name: Any, *args: Any, **kwargs: Any) -> None:
            stage.note(f"before {event_name}")
            super()._fire_event(event_name, *args, **kwargs)
            stage.note(f"after {event_name}")

    stage.add(Trainer(step)).run([1])


def inherits_run(stage: Stage) -> None:
    """A subclass with slots, a ``run`` of its own and attributes that cannot be set."""

    class Trainer(Engine):
        __slots__ = ("more",)

        def run(self, *args: Any, **kwargs: Any) -> Any:
            stage.note("run")
            return super().run(*args, **kwargs)

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "forbidden":
                raise AttributeError(name)
            super().__setattr__(name, value)

    stage.add(Trainer(step)).run([1])


def replaces_handlers(stage: Stage) -> None:
    """A handler gives the engine another dictionary of handlers while it runs."""
    engine = stage.add(Engine(step))

    @engine.on(Events.ITERATION_STARTED(once=2))
    def replace() -> None:
        engine._event_handlers = engine._event_handlers.copy()
        engine._event_handlers.pop(Events.ITERATION_STARTED)

    engine.run([1, 2, 3], max_epochs=2)


def replaces_methods(stage: Stage) -> None:
    """A handler replaces the process function and the state while the engine runs."""
    engine = stage.add(Engine(step))

    @engine.on(Events.ITERATION_STARTED(once=2))
    def replace() -> None:
        engine._process_function = lambda engine, batch: stage.note("another step")

    engine.run([1, 2, 3], max_epochs=2)


def warns(stage: Stage) -> None:
    """A handler and the process function warn of themselves."""
    engine = stage.add(Engine(lambda engine, batch: warnings.warn("in the step", stacklevel=1)))
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda: warnings.warn("in a handler", stacklevel=1)
    )
    engine.run([1, 2])


def warns_of_its_caller(stage: Stage) -> None:
    """A handler warns in the name of who called it, which is ignite."""
    engine = stage.add(Engine(step))
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: warnings.warn("here", stacklevel=2))
    engine.run([1, 2])


def warns_of_ignites_caller(stage: Stage) -> None:
    """A handler warns in the name of who fired the event."""
    engine = stage.add(Engine(step))
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: warnings.warn("here", stacklevel=3))
    engine.run([1, 2])


def counts_frames(stage: Stage) -> None:
    """A handler looks at the stack above it."""
    engine = stage.add(Engine(step))

    @engine.on(Events.ITERATION_STARTED)
    def look() -> None:
        stage.note([frame.function for frame in inspect.stack(0)[1:4]])

    engine.run([1])


def recurses(stage: Stage) -> None:
    """A handler recurses until Python stops it."""
    engine = stage.add(Engine(step))

    def deeper() -> None:
        deeper()

    engine.add_event_handler(Events.ITERATION_STARTED, lambda: stage.attempt(deeper_error))

    def deeper_error() -> str:
        try:
            deeper()
        except RecursionError as error:
            return type(error).__name__
        return ""

    engine.run([1, 2])


def logs_where(stage: Stage) -> None:
    """Ignite's records say from which of its lines they come."""
    engine = stage.add(Engine(step))
    records: list[logging.LogRecord] = []
    engine.logger = logging.Logger("own", logging.DEBUG)
    listener = logging.Handler()
    vars(listener)["emit"] = records.append
    engine.logger.addHandler(listener)
    engine.run([1])
    stage.note([(r.filename, r.funcName, r.lineno) for r in records])


class Pair(EventEnum):
    LOAD_STARTED = "load_started"
    LOAD_COMPLETED = "load_completed"
    SAVE_STARTED = "save_started"
    SAVE_COMPLETED = "save_completed"


def pairs(stage: Stage) -> None:
    """Pairs of events, nested, left open, closed twice."""
    engine = stage.add(Engine(step))
    engine.register_events(*Pair)
    half = [Pair.LOAD_STARTED, Pair.SAVE_STARTED, Pair.SAVE_COMPLETED]

    @engine.on(Events.ITERATION_COMPLETED)
    def fire() -> None:
        for event in half[: engine.state.iteration]:
            engine.fire_event(event)
        engine.fire_event(Pair.LOAD_COMPLETED)
        engine.fire_event(Pair.LOAD_COMPLETED)

    engine.run([1, 2, 3])


def crossed_pairs(stage: Stage) -> None:
    """Two engines, each of which fires events of the other between its own."""
    one, other = stage.add(Engine(step)), stage.add(Engine(step))
    for engine in (one, other):
        engine.register_events(*Pair)

    @one.on(Events.ITERATION_COMPLETED)
    def fire() -> None:
        one.fire_event(Pair.LOAD_STARTED)
        other.fire_event(Pair.LOAD_STARTED)
        one.fire_event(Pair.LOAD_COMPLETED)
        other.fire_event(Pair.LOAD_COMPLETED)

    one.run([1, 2])


def lasting_pairs(stage: Stage) -> None:
    """One engine's handlers begin and end a pair of the other, which outlasts them."""
    one, other = stage.add(Engine(step)), stage.add(Engine(step))
    other.register_events(*Pair)
    one.add_event_handler(Events.ITERATION_STARTED, partial(other.fire_event, Pair.LOAD_STARTED))
    one.add_event_handler(
        Events.ITERATION_COMPLETED, partial(other.fire_event, Pair.LOAD_COMPLETED)
    )
    one.run([1, 2])


#: What firetrace still gets wrong, and the ways in which it does not.
WRONG: dict[Any, tuple[str, tuple[str, ...]]] = {
    warns_of_its_caller: ("the file that is named is the recorder's", ("calls",)),
    warns_of_ignites_caller: ("the file that is named is the recorder's", ("calls",)),
    counts_frames: ("the recorder is on the stack", ()),
    reruns: (
        "its signature is that of ignite's method, not of the tool below",
        tuple(way for way in WAYS if way != "calls"),
    ),
    logs_where: ("the file that is named is the recorder's", ("calls",)),
}
PROGRAMS = (
    references, reruns, inherits, inherits_run, replaces_handlers, replaces_methods, warns,
    warns_of_its_caller, warns_of_ignites_caller, counts_frames, recurses, logs_where, pairs,
    crossed_pairs, lasting_pairs,
)  # fmt: skip


def closely() -> Iterator[Any]:
    for program in PROGRAMS:
        reason, right = WRONG.get(program, ("", WAYS))
        for way in WAYS:
            marks = [] if way in right else [pytest.mark.xfail(strict=True, reason=reason)]
            yield pytest.param(program, way, marks=marks, id=f"{program.__name__}-{way}")


@pytest.mark.parametrize(("program", "way"), closely())
def test_programs_that_look_closely(program: Any, way: str) -> None:
    """What a program sees of Python is the same, and what it did is recorded."""
    compare(program, way)


def test_crossed_pairs_are_whole() -> None:
    """An event of an engine that does not run opens nothing, and ends nothing of another's."""
    table = compare(crossed_pairs).recorded
    found = table.of_kind("pair")
    assert len(found) == 2
    assert not (table.rows["flags"][found] & Flag.CUT).any()
