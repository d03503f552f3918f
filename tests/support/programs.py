"""Small programs for the harness ``unchanged``, made from what happens at which event."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from ignite.engine import Engine, Events

from firetrace.tracer.table import Table
from tests.support.shape import brief
from tests.support.unchanged import Program, Seen, Stage, compare

Setup = Callable[[Engine], Any]

S, ES, EC, C = Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED
GS, GC = Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED
IS, IC = Events.ITERATION_STARTED, Events.ITERATION_COMPLETED
STOP, EXC = Events.DATALOADER_STOP_ITERATION, Events.EXCEPTION_RAISED
TSE, TERMINATE = Events.TERMINATE_SINGLE_EPOCH, Events.TERMINATE
INTERRUPT = Events.INTERRUPT


class Case(NamedTuple):
    """A program and what is to be seen of it."""

    name: str
    program: Program
    events: str | None = None  #: of its first engine, by their short names
    tree: str | None = None  #: of what is recorded, by ``short``


def params(cases: list[Case]) -> list[Any]:
    """The cases for ``pytest.mark.parametrize``."""
    return [pytest.param(case, id=case.name) for case in cases]


def check_case(case: Case, way: str) -> Seen:
    """Run a case in one way: as untraced, with the events and the tree that it says."""
    seen = compare(case.program, way)
    assert way == "bare" or case.events in (None, seen.short())
    if case.tree is not None:
        if way != "calls":
            assert short(seen.recorded) == case.tree
        elif "act" not in case.tree:  # there handlers are not told apart
            assert short(seen.recorded) == case.tree.replace("*", "")
    return seen


def on(event: Any, action: Setup, time: int = 0) -> Setup:
    """When this event fires (only the ``time``-th time, from 1), do this with the engine."""

    def setup(engine: Engine) -> None:
        times = itertools.count(1)

        def act(*_: Any, **__: Any) -> None:
            if not time or next(times) == time:
                action(engine)

        act.__qualname__ = "act"
        engine.add_event_handler(event, act)

    return setup


def training(
    *setups: Setup,
    data: Any = (1, 2),
    runs: int = 1,
    step: Callable[[Engine, Any], Any] = lambda engine, batch: batch,
    **how: Any,
) -> Program:
    """An engine that runs over ``data`` (or what it returns), ``runs`` times, come what may."""

    def program(stage: Stage) -> Any:
        engine = stage.add(Engine(step))
        for setup in setups:
            setup(engine)
        for _ in range(runs - 1):
            stage.attempt(lambda: engine.run(_fresh(data), **how))
        return engine.run(_fresh(data), **how)

    return program


def _fresh(data: Any) -> Any:
    return data() if callable(data) else data


def failing(kind: type[BaseException] = ValueError, *args: Any) -> Setup:
    """Raise a new exception of this kind."""

    def fail(engine: Engine) -> None:
        raise kind(*args)

    return fail


def keep(engine: Engine, value: Any) -> None:
    """Keep something that a handler has seen, where the comparison finds it."""
    vars(engine.state)["seen"] = [*getattr(engine.state, "seen", []), value]


def keeping(what: Callable[[Engine], Any]) -> Setup:
    """Keep what this says of the engine."""
    return lambda engine: keep(engine, what(engine))


def terminate(engine: Engine) -> None:
    engine.terminate()


def terminate_and_skip(engine: Engine) -> None:
    engine.terminate(skip_completed=True)


def terminate_epoch(engine: Engine) -> None:
    engine.terminate_epoch()


def terminate_epoch_and_skip(engine: Engine) -> None:
    engine.terminate_epoch(skip_epoch_completed=True)


def interrupt(engine: Engine) -> None:
    engine.interrupt()


def short(table: Table) -> str:
    """A recording by ``brief``, but shorter: whole steps as ``step``, handlers of ``on`` as ``*``.

    A step in which the loader has begun anew is a ``restart``.
    """
    text = brief(table).replace("[act]", "*")
    for stars in itertools.product(("", "*"), repeat=4):
        gs, gc, begin, end = stars
        rest = f"get_batch GC{gc} iteration[IS{begin} IC{end}]]"
        text = text.replace(f"step[GS{gs} {rest}", "step" + "*" * stars.count("*"))
        for stop in ("", "*"):
            text = text.replace(f"step[GS{gs} get_batch STOP{stop} loader {rest}",
                                "restart" + "*" * (stars.count("*") + len(stop)))  # fmt: skip
    return text


def registering(*events: Any) -> Setup:
    """Register these events."""
    return lambda engine: engine.register_events(*events)


def fire(event: Any) -> Setup:
    """Fire this event."""
    return lambda engine: engine.fire_event(event)
