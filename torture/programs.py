"""Programs in which as much of firetrace as possible runs, for the harness ``unchanged``.

Each is told by a ``Stage`` whether it is traced; what it does must be the same.
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import threading
from contextlib import nullcontext
from typing import Any

import torch
from ignite.engine import Engine, EventEnum, Events
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator

from firetrace.tracer.everywhere import trace_every_engine
from tests.support.programs import failing, interrupt, on, terminate, training
from tests.support.simulated import SimulatedGpu
from tests.support.trainings import Training
from tests.support.unchanged import Program, Stage


class Part(EventEnum):
    """Events of a process function: phases and a pair."""

    FORWARD_COMPLETED = "forward_completed"
    LOSS_COMPLETED = "loss_completed"
    AUGMENT_STARTED = "augment_started"
    AUGMENT_COMPLETED = "augment_completed"


def quiet(engine: Engine) -> None:
    """A handler."""


def events(stage: Stage) -> Any:
    """Phases, pairs, handlers, spans of its own, an evaluator in a handler, events beside."""

    def update(engine: Engine, batch: Any) -> Any:
        with _span(stage, "own"):
            engine.fire_event(Part.AUGMENT_STARTED)
            engine.fire_event(Part.AUGMENT_COMPLETED)
        engine.fire_event(Part.FORWARD_COMPLETED)
        evaluator.fire_event(Part.LOSS_COMPLETED)
        engine.fire_event(Part.LOSS_COMPLETED)
        return batch

    trainer, evaluator = stage.add(Engine(update)), stage.add(Engine(lambda engine, batch: batch))
    for engine in (trainer, evaluator):
        engine.register_events(*Part)
    for event in (Events.STARTED, Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED,
                  Events.ITERATION_STARTED, Events.ITERATION_COMPLETED, Part.FORWARD_COMPLETED,
                  Events.ITERATION_COMPLETED(every=2), Events.COMPLETED):  # fmt: skip
        trainer.add_event_handler(event, quiet)
        trainer.add_event_handler(event, quiet)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        with _span(stage, "validation", cases=2):
            evaluator.run([1, 2])

    trainer.state.metrics["loss"] = 0.5
    return trainer.run([1, 2, 3], max_epochs=2)


def hooks(stage: Stage) -> Any:
    """A model, a loss and an optimizer that torch's hooks tell of, and scalars."""
    model, loss_fn = torch.nn.Linear(3, 1), torch.nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(engine: Engine, batch: Any) -> float:
        loss = loss_fn(model(batch), torch.ones(2, 1))
        loss.backward()
        if engine.state.iteration % 2:
            optimizer.step()
            optimizer.zero_grad()
        output: float = loss.item()
        return output

    trainer = stage.add(Engine(update), attach=False)
    if stage.handler is not None:
        stage.handler.attach(
            trainer, model=model, optimizer=optimizer, loss_fn=loss_fn,
            output_transform=lambda output: {"loss": output},
        )  # fmt: skip
    trainer.run([torch.ones(2, 3)] * 3, max_epochs=2)
    return model.weight, model.bias


def endings(stage: Stage) -> None:
    """Runs that end by an exception, a terminate, an interrupt, and one that goes on."""
    training(on(Events.ITERATION_COMPLETED, failing(ValueError, "bad luck"), 2), runs=2)(stage)
    training(on(Events.ITERATION_STARTED, terminate, 2), max_epochs=2)(stage)
    training(on(Events.GET_BATCH_COMPLETED, interrupt, 2), runs=2, max_epochs=2)(stage)


def raising_data(stage: Stage) -> Any:
    """Data that run out, and data whose iterator fails."""

    class Data:
        def __iter__(self) -> Any:
            raise OSError("no such scan")

    engine = stage.add(Engine(lambda engine, batch: batch))
    engine.run(iter([1, 2, 3]), max_epochs=2, epoch_length=2)
    return engine.run(Data(), max_epochs=1)


def monai(stage: Stage) -> Any:
    """A MONAI training with validation."""
    made = Training(epochs=1)
    stage.add(made.trainer)
    stage.add(made.evaluator)
    made.trainer.run()
    return made.weights()


def copies(stage: Stage) -> Any:
    """Copies of a traced engine, detaching in mid-run, a forked child that trains."""
    engine = stage.add(Engine(lambda engine, batch: batch))
    engine.add_event_handler(Events.EPOCH_COMPLETED, quiet)

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def fork(engine: Engine) -> None:
        child = os.fork()
        if child == 0:
            try:
                Engine(lambda engine, batch: batch).run([1])
                engine.fire_event(Events.EPOCH_COMPLETED)
                os._exit(0)
            except BaseException:
                os._exit(9)
        stage.note(os.waitpid(child, 0)[1])

    engine.run([1, 2])
    other = copy.deepcopy(engine)
    other.remove_event_handler(fork, Events.ITERATION_COMPLETED)
    stage.note(other.run([1]).iteration)
    engine.remove_event_handler(fork, Events.ITERATION_COMPLETED)
    bare = stage.add(Engine(_identity))
    bare.run([1])
    stage.note(pickle.loads(pickle.dumps(bare)).run([1]).iteration)
    engine.add_event_handler(Events.ITERATION_STARTED(once=4), lambda engine: stage.detach(engine))
    return engine.run([1, 2], max_epochs=3)


def _identity(engine: Engine, batch: Any) -> Any:
    return batch


def threads(stage: Stage) -> None:
    """Two engines in two threads, and one that changes its thread."""
    both = [stage.add(Engine(_identity)) for _ in range(2)]
    for engine in both:
        engine.add_event_handler(Events.ITERATION_COMPLETED, quiet)
    for _ in range(2):
        started = [
            threading.Thread(target=engine.run, args=([1, 2],), name=f"thread {number}")
            for number, engine in enumerate(both)
        ]
        for thread in started:
            thread.start()
            thread.join()
    both[0].run([1], max_epochs=2)


class Counted(IdGenerator):
    """The SDK's own draws from the program's ``random``, more for a span without parent."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def generate_span_id(self) -> int:
        """The next one."""
        return next(self._ids)

    generate_trace_id = generate_span_id


def opentelemetry(stage: Stage) -> list[int]:
    """A program with spans of its own that asks for the current span."""
    provider = TracerProvider(shutdown_on_exit=False, id_generator=Counted())
    tracer, depths = provider.get_tracer("own"), []

    def update(engine: Engine, batch: Any) -> None:
        with tracer.start_as_current_span("mine") as span:
            depths.append(int(trace.get_current_span() is span))
        trace.get_current_span().is_recording()

    stage.add(Engine(update)).run([1, 2])
    return depths


def everywhere(stage: Stage) -> Any:
    """Every engine of the process is traced, as ``firetrace run`` does it."""
    end = trace_every_engine(stage.folder / "journal") if stage.handler is not None else None
    try:
        engine = stage.add(Engine(_identity), attach=False)
        engine.add_event_handler(Events.ITERATION_COMPLETED, quiet)
        engine.run([1, 2])
        return engine.run([1, 2], max_epochs=2)
    finally:
        if end is not None:
            end()


def _span(stage: Stage, name: str, **attributes: Any) -> Any:
    return nullcontext() if stage.handler is None else stage.handler.span(name, **attributes)


#: By name: a program and how it is recorded.
PROGRAMS: dict[str, tuple[Program, dict[str, Any]]] = {
    "events": (events, {}),
    "events, while it gives up": (events, {"min_free_bytes": 2**60}),
    "events, thinned": (events, {"every": 2}),
    "torch's hooks": (hooks, {}),
    "a device": (events, {"device": SimulatedGpu()}),
    "a device, torch's hooks": (hooks, {"device": SimulatedGpu()}),
    "a device, MONAI": (monai, {"device": SimulatedGpu()}),
    "endings": (endings, {}),
    "data that fail": (raising_data, {}),
    "MONAI": (monai, {}),
    "copies, detaching, a fork": (copies, {}),
    "threads": (threads, {}),
    "OpenTelemetry": (opentelemetry, {}),
    "every engine": (everywhere, {}),
}
