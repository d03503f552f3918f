"""Programs that the random ones of ``test_generated.py`` have led to, as small as they can be."""

from __future__ import annotations

from typing import Any

import pytest
from ignite.engine import Engine, Events

from tests.support.plans import Custom
from tests.support.programs import (
    Setup,
    failing,
    interrupt,
    on,
    terminate,
    terminate_and_skip,
)
from tests.support.unchanged import Program, Stage, compare


def step(engine: Engine, batch: Any) -> Any:
    return batch


def two_engines(stage: Stage) -> list[Any]:
    engines = [stage.add(Engine(step)), stage.add(Engine(step))]
    for engine in engines:
        engine.register_events(*Custom)
    return engines


def an_engine_in_a_phase(stage: Stage) -> None:
    """Another engine runs in a phase that is seen for the first time."""
    trainer, other = two_engines(stage)

    def update(engine: Engine, batch: Any) -> None:
        other.run([1])
        engine.fire_event(Custom.FORWARD_COMPLETED)

    trainer._process_function = update
    trainer.run([1, 2])


def an_event_in_a_phase(stage: Stage) -> None:
    """Another engine's event is fired in a phase that is seen for the first time."""
    trainer, other = two_engines(stage)

    def update(engine: Engine, batch: Any) -> None:
        other.fire_event(Custom.FORWARD_COMPLETED)
        engine.fire_event(Custom.FORWARD_COMPLETED)

    trainer._process_function = update
    trainer.run([1, 2])


def an_engine_in_a_fetch(stage: Stage) -> None:
    """Another engine runs while a batch is fetched, after the loader has begun anew."""
    trainer, other = two_engines(stage)

    class Data:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            for batch in (1,):
                other.run([1])
                yield batch

    trainer.run(Data(), max_epochs=3)


def an_engine_in_the_loaders_start(stage: Stage) -> None:
    """Another engine runs in the ``__iter__`` of the loader."""
    trainer, other = two_engines(stage)

    class Data:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            other.run([1])
            return iter([1])

    trainer.run(Data(), max_epochs=4)


def a_pair_around_steps(stage: Stage) -> None:
    """One engine's handlers begin and end a pair of another, around its own steps."""
    trainer, other = two_engines(stage)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: other.fire_event(Custom.LOAD_STARTED))
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: other.fire_event(Custom.LOAD_COMPLETED)
    )
    trainer.run([1, 2, 3], max_epochs=2)


def a_pair_that_ends_in_a_step(stage: Stage) -> None:
    """One engine's handlers begin a pair of another before a step, and end it in the step."""
    trainer, other = two_engines(stage)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: other.fire_event(Custom.LOAD_STARTED))
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda: other.fire_event(Custom.LOAD_COMPLETED)
    )
    trainer.run([1, 2, 3])


def attached_in_mid_run(then: Setup, event: Any = Events.ITERATION_STARTED) -> Program:
    """Tracing begins in the first epoch; later, something happens."""

    def program(stage: Stage) -> None:
        engine = stage.add(Engine(step), attach=False)
        on(Events.EPOCH_STARTED, stage.attach, 1)(engine)
        on(event, then, 1)(engine)
        stage.attempt(lambda: engine.run([1, 2], max_epochs=2))
        stage.attempt(lambda: engine.run([1, 2], max_epochs=2))

    return program


def detached_in_mid_run(stage: Stage) -> None:
    """Tracing ends in the first epoch, and begins anew in the second."""
    engine = stage.add(Engine(step))
    on(Events.ITERATION_STARTED, stage.detach, 2)(engine)
    on(Events.GET_BATCH_COMPLETED, stage.attach, 3)(engine)
    engine.run([1, 2], max_epochs=2)


@pytest.mark.parametrize("program", [
    pytest.param(attached_in_mid_run(lambda engine: None), id="attached"),
    pytest.param(attached_in_mid_run(terminate), id="attached, terminated"),
    pytest.param(attached_in_mid_run(terminate_and_skip), id="attached, terminated and skipped"),
    pytest.param(attached_in_mid_run(interrupt), id="attached, interrupted"),
    pytest.param(attached_in_mid_run(failing()), id="attached, failed"),
    pytest.param(detached_in_mid_run, id="detached"),
])  # fmt: skip
def test_tracing_begins_and_ends_in_mid_run(program: Program) -> None:
    """What is recorded of such a run is well formed, and all that was open is closed."""
    compare(program)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("program", [
    an_engine_in_a_phase, an_event_in_a_phase, an_engine_in_a_fetch,
    a_pair_around_steps,
    a_pair_that_ends_in_a_step,
    an_engine_in_the_loaders_start,
], ids=lambda program: program.__name__)  # fmt: skip
def test_found(program: Program, every: int) -> None:
    """It does what it does untraced, and its tree is well formed, also where steps are thinned."""
    how: dict[str, Any] = {} if every == 1 else {"every": every}
    compare(program, **how)
