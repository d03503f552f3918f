"""Small real runs for the tests of the readers: engines of ignite, recorded into journals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ignite.engine import Engine, EventEnum, Events

from firetrace import TraceHandler
from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table
from tests.support.shape import assert_well_formed


def recorded(handler: TraceHandler) -> Table:
    """Close the handler and read what it has recorded; it must be well formed."""
    assert handler.directory is not None
    directory = handler.directory
    handler.close()
    table = read_table(open_run(directory).newest)
    assert_well_formed(table)
    assert not len(table.open_positions())
    assert table.meta.stopped is None
    assert not table.damaged
    return table


class Phases(EventEnum):
    """What a MONAI trainer fires in an iteration."""

    FORWARD_COMPLETED = "forward"
    LOSS_COMPLETED = "loss"
    BACKWARD_COMPLETED = "backward"
    MODEL_COMPLETED = "model"


class Trainer(Engine):
    """Fires the phases of a MONAI trainer; knows who records it."""

    def __init__(self, process_function: Callable[[Engine, Any], Any]) -> None:
        super().__init__(process_function)
        self.recorder = TraceHandler(name="training")


class Evaluator(Engine):
    """Runs in the trainer's EPOCH_COMPLETED."""


def engines(
    before: Callable[[Engine], Any] = lambda engine: None,
    handlers: tuple[Callable[[Engine], Any], ...] = (),
) -> Trainer:
    """A trainer that validates after each epoch; both are recorded once it runs.

    Args:
        before: called at the beginning of each iteration, inside of the first phase.
        handlers: called after each iteration.
    """

    def update(engine: Engine, batch: Any) -> None:
        before(engine)
        for event in Phases:
            engine.fire_event(event)

    trainer, evaluator = Trainer(update), Evaluator(lambda engine, batch: None)
    trainer.register_events(*Phases)
    for handler in handlers:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, handler)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        evaluator.run([1, 2])

    trainer.recorder.attach(trainer)
    trainer.recorder.attach(evaluator)
    return trainer


def finish(trainer: Trainer) -> Path:
    """Close the recording; the run's directory."""
    directory = trainer.recorder.directory
    trainer.recorder.close()
    assert directory is not None
    return directory


def record(epochs: int = 3, steps: int = 4, **how: Any) -> Path:
    """A finished run's directory."""
    trainer = engines(**how)
    trainer.run(range(steps), max_epochs=epochs)
    return finish(trainer)


def record_failing(failures: int = 2) -> Path:
    """A run in which every training fails in its third iteration."""

    def fail(engine: Engine) -> None:
        if engine.state.iteration == 3:
            raise ValueError("no [b]luck")

    trainer = engines(before=fail)
    for _ in range(failures):
        trainer.state.max_epochs = None
        try:
            trainer.run(range(4), max_epochs=2)
        except ValueError:
            continue
    return finish(trainer)


class Growing:
    """A training in a thread that goes on by one iteration at a time, when told."""

    def __init__(self, steps: int = 1000) -> None:
        self._gate = threading.Semaphore(0)
        self._trainer = engines(before=lambda engine: self._gate.acquire())
        self._steps = steps
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self._trainer.run(range(10), max_epochs=self._steps // 10)

    def __enter__(self) -> Growing:
        self._thread.start()
        return self

    def go_on(self, iterations: int) -> None:
        """Let so many iterations happen."""
        self._gate.release(iterations)

    def __exit__(self, *exc: object) -> None:
        self._trainer.terminate()
        self._gate.release(2 * self._steps)
        self._thread.join(30)
        finish(self._trainer)


def record_killed() -> Path:
    """The directory of a run whose process, a fork of this one, was killed in an iteration."""
    child = os.fork()
    if child == 0:
        try:
            train_and_die()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return next(Path(os.environ["FIRETRACE_DIR"]).iterdir())


def train_and_die() -> None:
    """Kill this very process in the sixth iteration."""

    def die(engine: Engine) -> None:
        if engine.state.iteration == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = engines(before=die)
    trainer.run(range(4), max_epochs=3)


def train_slowly() -> None:
    """Twenty milliseconds an iteration, ten iterations an epoch, until somebody stops it."""
    pause = threading.Event()
    trainer = engines(before=lambda engine: pause.wait(0.02))
    trainer.run(range(10), max_epochs=10_000)
