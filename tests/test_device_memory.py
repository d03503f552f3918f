"""Memory that is full, and batches that are copied to a device: what the device journal says."""

from __future__ import annotations

import threading
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents

from firetrace import TraceHandler
from firetrace.tracer.device.copies import Copies, size
from firetrace.tracer.device.marks import COPIES_EVERY_NS
from firetrace.tracer.journal import Flag
from tests.support.launching import (
    MS,
    US,
    Parts,
    Recorded,
    cases,
    evaluator,
    finish,
    plain,
    supervised,
)
from tests.support.programs import on
from tests.support.simulated import SimulatedGpu

GIB = 2**30


# Memory that is full


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


# Batches


META = torch.device("meta")


def on_meta(kind: type, data: list[Any], **how: Any) -> Any:
    """A MONAI engine on a device that is none."""
    net = torch.nn.Linear(4, 4).to(META)
    more: dict[str, Any] = {"device": META, "network": net, "decollate": False} | how
    if kind is SupervisedEvaluator:
        return kind(val_data_loader=data, **more)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    loss = torch.nn.MSELoss()
    return kind(
        max_epochs=1, train_data_loader=data, optimizer=optimizer, loss_function=loss, **more
    )


def plain_batches() -> Iterator[dict[str, Any]]:
    for _ in range(3):
        yield {"image": torch.rand(2, 4), "label": torch.rand(2, 4), "id": ["a", "b"]}


def meta_tensors() -> Iterator[dict[str, Any]]:
    for batch in plain_batches():
        yield {key: MetaTensor(batch[key]) for key in ("image", "label")}


def there_already() -> Iterator[dict[str, Any]]:
    for batch in plain_batches():
        yield {key: batch[key].to(META) for key in ("image", "label")}


@pytest.mark.usefixtures("every_batch")
@pytest.mark.parametrize("kind", [SupervisedTrainer, SupervisedEvaluator])
@pytest.mark.parametrize("batches", [plain_batches, meta_tensors, there_already])
def test_batches_that_are_copied(
    kind: type, batches: Callable[[], Iterator[Any]], gpu: SimulatedGpu, tmp_path: Path
) -> None:
    """MONAI's own ``prepare_batch``: a row of kind copy, with the bytes, unless all is there."""
    engine = on_meta(kind, list(batches()))
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(engine)
    engine.run()
    found = finish(handler, gpu)
    kinds = [span.kind for span in found.spans() if span.name == "prepare_batch"]
    copied = batches is not there_already
    assert kinds == ["copy" if copied else "device"] * 3
    assert {span.kind for span in found.spans() if span.name != "prepare_batch"} == {"device"}
    assert found.scalars("copied to device") == [2 * 2 * 4 * 4] * 3 * copied
    places = [int(row["epoch"]) for row in found.device.scalars if row["epoch"]]
    assert places == [s.row for s in found.spans() if s.kind == "copy"]


def test_a_copy_without_a_span(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Where ``prepare_batch`` itself has no span, the next phase is not taken for the copy."""

    def prepare(batch: Any, *args: Any, **more: Any) -> Any:
        gpu.stream = 2
        return batch["image"], torch.empty(10, device=META)

    trainer = supervised(Parts(gpu), prepare_batch=prepare, loss_function=lambda x, _: x.mean())
    on(Events.GET_BATCH_STARTED, lambda engine: setattr(gpu, "stream", 0))(trainer)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    assert found.untimed() == {"the current stream changed in it": 6}
    assert {span.kind for span in found.spans()} == {"device"}
    assert not found.scalars("copied to device")


def test_short_steps(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Some are looked at, with all that they copy; the others are as the one before."""
    steps, moves_at, step_ns = 200, 90, 2 * MS
    image, label = torch.rand(2, 4), torch.rand(2, 4)

    def prepare(batch: Any, *args: Any, **more: Any) -> Any:
        if trainer.state.iteration < moves_at:
            return image.to(META), label.to(META)
        return batch

    def process(engine: Any, batch: Any) -> None:
        for _ in range(2):
            gpu.launch(10 * US)
            trainer.prepare_batch(batch, META)
        gpu.time.pass_by(step_ns)

    there = image.to(META), label.to(META)
    data = [(image, label)] * (moves_at - 1) + [there] * (steps - moves_at + 1)
    trainer = on_meta(SupervisedTrainer, data, iteration_update=process, prepare_batch=prepare)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    prepared = [span for span in found.spans() if span.name == "prepare_batch"]
    assert len(prepared) == 2 * steps
    copies = [span.iteration for span in prepared if span.kind == "copy"]
    assert copies[: 2 * moves_at - 2] == sorted(2 * [*range(1, moves_at)])
    late = len(copies) - (2 * moves_at - 2)  # until it was looked at again
    assert late <= 2 * COPIES_EVERY_NS // step_ns
    looked_at = [int(row["iteration"]) for row in found.device.scalars if row["epoch"]]
    assert found.scalars("copied to device") == [64] * len(looked_at)
    assert looked_at[0] == looked_at[1] == 1  # both of a step
    assert len(looked_at) == 2 * len(set(looked_at))
    between = np.diff(sorted(set(looked_at))) * step_ns
    assert COPIES_EVERY_NS <= between.min() <= between.max() <= COPIES_EVERY_NS + 2 * step_ns


def test_a_batch_is_not_kept(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """When its phase has ended nothing of firetrace's holds it."""
    images: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def prepare(batch: torch.Tensor, *args: Any, **more: Any) -> Any:
        images.append(weakref.ref(batch))
        return batch.to(META), batch.to(META)

    def process(engine: Any, batch: torch.Tensor) -> None:
        alive.append(sum(each() is not None for each in images))
        trainer.prepare_batch(batch, META)

    data: Any = (torch.rand(2, 4) for _ in range(4))
    trainer = on_meta(
        SupervisedTrainer, data, iteration_update=process, prepare_batch=prepare, epoch_length=4
    )
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    finish(handler, gpu)
    assert alive == [0] * 4


def test_a_batch_that_a_handler_prepares(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """That is not the step's own."""
    trainer = on_meta(SupervisedTrainer, list(there_already()))
    batch = next(plain_batches())
    on(IterationEvents.FORWARD_COMPLETED, lambda _: trainer.prepare_batch(batch, META))(trainer)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    assert {span.kind for span in found.spans()} == {"device"}
    assert not found.scalars("copied to device")


def test_what_is_in_a_batch() -> None:
    """Of dicts, lists and tuples; in any layout; a long list takes no longer than a short one."""

    class Lazy(dict[str, Any]):
        def values(self) -> Any:
            raise AssertionError("asked")

        __getitem__ = __iter__ = values  # type: ignore[assignment]

    one = torch.rand(3)
    sparse = torch.eye(3).to_sparse()
    there = [torch.empty(3, device="meta"), (torch.empty(2, 2, device="meta"),)]
    given: list[Any] = [
        one, [one], (one, one), {"a": [{"b": one}]}, Lazy(a=one), [1] * 10**6 + [one], sparse,
        [one, *there], MetaTensor(one), torch.Size([1]), None, 7, "text", UserDict(a=one), one,
    ]  # fmt: skip
    copies = Copies(torch, "meta")
    sizes = [copies.bytes((each,), there) for each in given]
    assert sizes == [28] * 5 + [0, 28, 0, 28, 0, 0, 0, 0, 0, 28]
    assert size(sparse) == 3 * (2 * 8 + 4)
    assert copies.bytes((one,), [sparse.to("meta")]) == 0
    loop: list[Any] = [one]
    loop.append(loop)
    assert copies.bytes((loop,), there) == 28
