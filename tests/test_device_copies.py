"""Batches that are copied to a device: what the device journal says of them, and what is asked."""

from __future__ import annotations

import gc
import signal
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
from firetrace.tracer.device.copies import EVERY_NS, Copies
from tests.support.launching import MS, US, Parts, finish, supervised
from tests.support.programs import on
from tests.support.simulated import SimulatedGpu

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
    assert late <= 2 * EVERY_NS // step_ns
    looked_at = [int(row["iteration"]) for row in found.device.scalars if row["epoch"]]
    assert found.scalars("copied to device") == [64] * len(looked_at)
    assert looked_at[0] == looked_at[1] == 1  # both of a step
    assert len(looked_at) == 2 * len(set(looked_at))
    between = np.diff(sorted(set(looked_at))) * step_ns
    assert EVERY_NS <= between.min() <= between.max() <= EVERY_NS + 2 * step_ns


def test_several_batches_in_a_step(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Each is as it was in the step that was looked at; one that was not there is looked at."""
    here, there = next(plain_batches()), next(there_already())

    def process(engine: Any, batch: Any) -> None:
        for each in (here, there, here)[: 2 + (engine.state.iteration > 1)]:
            gpu.launch(10 * US)
            trainer.prepare_batch(batchdata=each, device=META)
        gpu.time.pass_by(MS)

    trainer = on_meta(SupervisedTrainer, [here] * 60, iteration_update=process)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    spans = finish(handler, gpu).spans()
    kinds = [span.kind for span in spans if span.name == "prepare_batch"]
    assert kinds == ["copy", "device", *["copy", "device", "copy"] * 59]


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


@pytest.mark.usefixtures("every_batch")
def test_a_class_of_the_programs_is_not_kept(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """It may be made for one step, and hold its batch."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def process(engine: Any, batch: Any) -> None:
        made = type("Batch", (dict,), {"source": torch.rand(9)})
        alive.append(weakref.ref(made.source))  # type: ignore[attr-defined]
        trainer.prepare_batch(made(batch), META)

    trainer = on_meta(SupervisedTrainer, list(plain_batches()), iteration_update=process)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    gc.collect()
    assert [each() for each in alive] == [None] * 3
    assert finish(handler, gpu).scalars("copied to device") == [64] * 3


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


@pytest.mark.usefixtures("every_batch")
@pytest.mark.parametrize("where", ["in the dict", "in the tensors"])
def test_a_batch_that_is_moved_in_place(gpu: SimulatedGpu, tmp_path: Path, where: str) -> None:
    """What was given is what comes back, and was elsewhere before."""

    def prepare(batch: Any, *args: Any, **more: Any) -> Any:
        for key in ("image", "label"):
            if where == "in the dict":
                batch[key] = batch[key].to(META)
            else:
                moved = batch[key].to(META)
                torch.utils.swap_tensors(batch[key], moved)  # type: ignore[no-untyped-call]
        return batch["image"], batch["label"]

    trainer = on_meta(SupervisedTrainer, list(plain_batches()), prepare_batch=prepare)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    assert finish(handler, gpu).scalars("copied to device") == [64] * 3


def copied(given: Any, result: Any, kind: str = "meta") -> int:
    """How many bytes of a batch were copied."""
    copies = Copies(torch, kind)
    there = copies.there((given,))
    return 0 if there is None else copies.bytes(there, result)


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
    sizes = [copied(each, there) for each in given]
    assert sizes == [28] * 5 + [0, 28, 0, 28, 0, 0, 0, 0, 0, 28]
    assert copied(one, [sparse.to("meta")]) == 0
    loop: list[Any] = [one]
    loop.append(loop)
    assert copied(loop, there) == 28


def test_a_batch_of_odd_classes() -> None:
    """None is asked for its hash, none of the tensors for where it is."""

    def asked(*_: Any) -> Any:
        raise AssertionError("asked")

    lying = type("Lying", (type,), {"__eq__": asked, "__hash__": asked})
    made = type("Tensor", (torch.Tensor,), {
        "device": property(asked), "nbytes": property(asked), "layout": property(asked),
        "__getattribute__": asked, "__torch_function__": classmethod(asked),
    })  # fmt: skip
    tensor: Any = torch.Tensor._make_subclass(made, torch.empty(5, device="meta"))
    given = [lying("Odd", (), {})(), lying("Dict", (dict,), {})(a=torch.rand(3)), tensor]

    class Mode(torch.overrides.TorchFunctionMode):
        __torch_function__ = asked

    with Mode():
        assert copied(given, ({}, tensor)) == 0
        assert copied(given[:2], ({}, tensor)) == 20


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors() -> None:
    """What they hold, not what they would as dense ones."""
    made, one = torch.eye(1000), torch.empty(3, device="meta")
    sizes = [copied(one, each, "cpu") for each in (
        made.to_sparse(), made.to_sparse_csr(), made.to_sparse_csc(),
        made.to_sparse_bsr((500, 500)), made.to_sparse_bsc((500, 500)),
    )]  # fmt: skip
    blocks = 3 * 8 + 2 * 8 + 2 * 500 * 500 * 4
    rows = 1001 * 8 + 1000 * 8 + 1000 * 4
    assert sizes == [1000 * (2 * 8 + 4), rows, rows, blocks, blocks]


def test_a_signal_while_a_tensor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler may raise what a tensor does; such as torch's, of a worker that has died."""
    copies = Copies(torch, "cpu")

    def handle(*_: Any) -> None:
        raise RuntimeError("DataLoader worker is killed")

    def layout(tensor: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(copies, "_layout", layout)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(RuntimeError, match="worker is killed"):
            copies.bytes(set(), torch.rand(3))
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.setattr(copies, "_layout", handle)
    assert copies.bytes(set(), torch.rand(3)) == 0
