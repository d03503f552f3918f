"""Device time where several threads are at work: engines in them, and autograd's own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from firetrace import TraceHandler
from tests.support.launching import (
    US,
    Parts,
    Work,
    cases,
    checked,
    comparison_error,
    finish,
    supervised,
    taken,
    worst,
)
from tests.support.simulated import SimulatedGpu

#: Between threads of a real clock nothing is known of when a mark is queued.
ANY_NS = 2**62


# Engines


@pytest.mark.parametrize("every", [1, 2])
def test_engines_in_two_threads(every: int, tmp_path: Path) -> None:
    """Each thread's spans are those of its own engine."""
    gpu = SimulatedGpu()
    handler = TraceHandler(tmp_path / "run", device=gpu, every=every)
    both = [supervised(Parts(gpu, Work(*[50 * US] * 5)), steps=60) for _ in range(2)]
    for trainer in both:
        handler.attach(trainer)

    def run(number: int) -> None:
        gpu.stream = number + 1
        both[number].run()

    threads = [threading.Thread(target=run, args=(i,), name=f"thread {i}") for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = finish(handler, gpu)
    if every == 1:
        found.whole()
    numbers = {"SupervisedTrainer": 1, "SupervisedTrainer-2": 2}
    counts = [sum(s.engine == name for s in found.spans()) for name in numbers]
    assert counts == [6 * 60 // every] * 2
    off = worst(found.spans(), gpu, lambda span: numbers[span.engine], ANY_NS)
    assert off <= comparison_error(gpu) + 100 * US  # of which the clocks may drift apart, at most


def test_a_thread_for_each_epoch(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """Threads that come and go leave nothing open and take no more of the disk."""
    trainer = supervised(Parts(gpu), steps=3)
    handler.attach(trainer)
    for epoch in range(1, 9):
        trainer.state.max_epochs = epoch
        thread = threading.Thread(target=trainer.run, name=f"epoch {epoch}")
        thread.start()
        thread.join()
    found = checked(handler, gpu)
    assert not found.untimed()
    assert len(found.spans()) == 8 * 3 * 6
    assert not len(found.device.open_positions())
    assert int(found.device.numbers[-1]) < 8192  # one window


# Backward in a thread of its own, as autograd does it for CUDA


def backward_elsewhere(parts: Parts, fired: bool = False) -> Engine:
    def step(engine: Engine, batch: Any) -> None:
        image, label = parts.prepare(batch)
        loss = parts.loss(parts.net(image), label)
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        if fired:
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        parts.optimizer.step()

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    return engine


@pytest.mark.parametrize("watched", [True, False])
def test_backward_in_another_thread(
    watched: bool, gpu: SimulatedGpu, handler: TraceHandler
) -> None:
    """Where no loss is watched, it begins where that thread comes to the model."""
    parts = Parts(gpu)
    engine = backward_elsewhere(parts)
    more = {"loss_fn": parts.loss} if watched else {}
    handler.attach(engine, model=parts.net, optimizer=parts.optimizer, **more)
    engine.run(cases(6))
    found = checked(handler, gpu)
    assert not found.untimed()
    assert taken(found, "backward") == {5000}
    assert taken(found, "loss") == {100}


def test_backward_through_two_models(gpu: SimulatedGpu, handler: TraceHandler) -> None:
    """It begins at the first of their outputs that a gradient reaches."""
    parts, other = Parts(gpu), Parts(gpu)
    last = parts.net
    parts.net = torch.nn.Sequential(other.net, last)
    engine = backward_elsewhere(parts)
    models = {"first": other.net, "last": last}
    handler.attach(engine, model=models, optimizer=parts.optimizer)
    engine.run(cases(6))
    found = checked(handler, gpu)
    assert not found.untimed()
    assert taken(found, "backward") == {10000}
    assert taken(found, "last_loss") == {100}


def test_a_mark_of_another_thread_that_nobody_uses(
    gpu: SimulatedGpu, handler: TraceHandler
) -> None:
    """An event tells of the boundary first: its mark is the event's own, and later ones are too."""
    parts = Parts(gpu)
    engine = backward_elsewhere(parts, fired=True)
    handler.attach(engine, model=parts.net)
    engine.run(cases(6))
    found = checked(handler, gpu)
    assert taken(found, "backward") <= {5100, 5000}
