"""Memory that is full: what the device journal says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from firetrace import TraceHandler
from firetrace.tracer.journal import Flag
from tests.support.launching import (
    Parts,
    Recorded,
    cases,
    evaluator,
    finish,
    plain,
    supervised,
)
from tests.support.simulated import SimulatedGpu

GIB = 2**30


def out_of_memory(found: Recorded) -> list[dict[str, Any]]:
    """The attributes of each instant."""
    device = found.device
    at = [i for i in device.of_kind("event").tolist() if device.name(i).text == "out of memory"]
    assert all(device.rows["start"][i] == device.rows["end"][i] for i in at)
    given = [device.meta.attributes.get(int(device.numbers[i])) for i in at]
    return [{k.removeprefix("ignite.device.memory."): v for k, v in (each or {}).items()}
            for each in given]  # fmt: skip


def filling(parts: Parts, time: int, phase: str = "forward", swallow: bool = False) -> None:
    """Let a phase run out of memory, the ``time``-th time that it wants to work."""
    before, times, gpu = parts.launch, iter(range(1, 10**6)), parts.gpu

    def launch(now: str) -> None:
        if now == phase and next(times) == time:
            gpu.failures += 1
            gpu.allocated, gpu.peak = 3 * GIB, 4 * GIB
            if not swallow:
                raise torch.OutOfMemoryError(f"CUDA out of memory, the {gpu.failures}. time")
        before(now)

    parts.launch = launch


FULL = {"allocated": 3 * GIB, "reserved": 6 * GIB, "peak": 4 * GIB}


@pytest.mark.parametrize("time", [1, 3])
def test_memory_that_is_full(time: int, gpu: SimulatedGpu, tmp_path: Path) -> None:
    """An instant with what was allocated; the host's span that was open has the same."""
    parts = Parts(gpu)
    filling(parts, time)
    trainer = supervised(parts)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.run()
    found = finish(handler, gpu)
    expected = FULL | {"message": "CUDA out of memory, the 1. time"}
    assert out_of_memory(found) == [expected]
    main = found.main
    noted = [i for i in range(len(main)) if main.meta.attributes.get(int(main.numbers[i]))]
    assert len(noted) == 1
    assert main.name(noted[0]).text == ("forward" if time > 1 else "iteration")
    assert main.rows["flags"][noted[0]] & Flag.ERROR
    given = main.meta.attributes.get(int(main.numbers[noted[0]])) or {}
    assert given == {f"ignite.device.memory.{key}": value for key, value in expected.items()}


def test_a_failure_that_the_program_swallows(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """The allocator's count tells of it, in the first step, too."""
    parts = Parts(gpu)
    filling(parts, 1, swallow=True)
    filling(parts, 4, swallow=True)
    trainer = supervised(parts)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, gpu.time.pass_by, 10**8)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    assert out_of_memory(found) == [FULL | {"message": "the program went on"}] * 2
    assert found.scalars("memory allocated") == [3 * GIB] * 6
    assert found.scalars("memory reserved") == [6 * GIB] * 6
    assert found.scalars("memory peak") == [4 * GIB] * 6


def test_one_failure_is_told_of_once(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """It passes an evaluator and the trainer whose handler runs it; the next one is another."""
    parts = Parts(gpu)
    trainer, judge = supervised(Parts(gpu)), evaluator(parts)
    filling(parts, 2)
    filling(parts, 4)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    for engine in (trainer, judge):
        handler.attach(engine)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: judge.run())
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            trainer.run()
        trainer._internal_run_generator = judge._internal_run_generator = None
    found = finish(handler, gpu)
    messages = [each["message"] for each in out_of_memory(found)]
    assert messages == [f"CUDA out of memory, the {i}. time" for i in (1, 2)]


def test_two_threads_on_a_device_look_at_its_memory_once(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """What one of them has told of, and has seen, the other does not tell again."""
    parts = [Parts(gpu), Parts(gpu)]
    filling(parts[0], 3)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    turn = [threading.Semaphore(1), threading.Semaphore(0)]

    def run(number: int) -> None:
        engine = plain(parts[number])
        handler.attach(engine)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: turn[number].acquire())
        engine.add_event_handler(Events.ITERATION_COMPLETED, gpu.time.pass_by, 10**8)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: turn[1 - number].release())
        try:
            engine.run(cases(3))
        except torch.OutOfMemoryError:
            turn[1 - number].release()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = finish(handler, gpu)
    assert [each["message"] for each in out_of_memory(found)] == ["CUDA out of memory, the 1. time"]
