"""Trainings whose parts launch work on a simulated GPU, and what was recorded of it beside that.

The truth is the GPU's own record of its kernels and the host's rows, never the marks of firetrace:
a span must begin when the GPU had done what was launched before the phase, and end when it had
done what was launched before the phase's end.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from firetrace import TraceHandler
from firetrace.tracer.journal import Flag, Header
from firetrace.tracer.table import Table, read_table
from tests.support.shape import assert_well_formed
from tests.support.simulated import LATENCY_NS, SimulatedGpu

US, MS = 10**3, 10**6
CPU = torch.device("cpu")
PHASES = "prepare_batch", "forward", "loss", "backward", "optimizer"
#: Of the host, until it goes on after it has queued a mark.
#: By how much 32-bit floats of ms may be off within a second.
FLOAT_NS = 100
SLACK_NS = 20 * US


class Work(NamedTuple):
    """How long the kernels of each phase take, ns."""

    prepare_batch: int = 300 * US
    forward: int = 3 * MS
    loss: int = 100 * US
    backward: int = 5 * MS
    optimizer: int = 500 * US


class _Launch(torch.autograd.Function):
    """Launches when it is called, and when the gradient comes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, launch: Callable[[str], None]) -> torch.Tensor:
        ctx.launch = launch
        launch("forward")
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.launch("backward")
        return gradient, None


class Net(torch.nn.Module):
    """A model."""

    def __init__(self, launch: Callable[[str], None]) -> None:
        super().__init__()
        self.linear, self.launch = torch.nn.Linear(4, 4), launch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        launched = _Launch.apply(x.requires_grad_(), self.launch)  # type: ignore[no-untyped-call]
        answer: torch.Tensor = self.linear(launched)
        return answer


class Loss(torch.nn.Module):
    """Its work."""

    def __init__(self, launch: Callable[[str], None]) -> None:
        super().__init__()
        self.launch = launch

    def forward(self, answer: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.launch("loss")
        return ((answer - label) ** 2).mean()


class Step(torch.optim.SGD):
    """An optimizer."""

    launch: Callable[[str], None]

    def _init_group(self, *args: Any) -> Any:
        """At the beginning of ``step``, which torch hooks once for each class that has its own."""
        self.launch("optimizer")
        return super()._init_group(*args)  # type: ignore[no-untyped-call]


class Parts:
    """A model, its loss and its optimizer; ``launch`` is told which phase wants to work."""

    def __init__(self, gpu: SimulatedGpu, work: Work | None = None) -> None:
        work = work or Work()
        self.gpu, self.work = gpu, work

        def launch(phase: str) -> None:
            gpu.launch(getattr(self.work, phase), phase)

        self.launch: Callable[[str], None] = launch
        torch.manual_seed(0)
        self.net: torch.nn.Module = Net(self._launch)
        self.loss = Loss(self._launch)
        self.optimizer = Step(self.net.parameters(), 0.1)
        self.optimizer.launch = self._launch

    def _launch(self, phase: str) -> None:
        self.launch(phase)

    def prepare(self, batch: Any, *args: Any, **more: Any) -> Any:
        """MONAI's ``prepare_batch``."""
        self._launch("prepare_batch")
        return batch["image"].clone(), batch["label"]


def cases(count: int) -> list[dict[str, torch.Tensor]]:
    """Batches for MONAI."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.rand(2, 2, 4, generator=generator) for _ in range(count)]
    return [{"image": image, "label": label} for image, label in made]


def supervised(parts: Parts, steps: int = 6, epochs: int = 1, **how: Any) -> Any:
    """MONAI's trainer."""
    return SupervisedTrainer(
        max_epochs=epochs, network=parts.net, optimizer=parts.optimizer, decollate=False,
        **{
            "device": CPU, "prepare_batch": parts.prepare, "loss_function": parts.loss,
            "train_data_loader": cases(steps),
        } | how,
    )  # fmt: skip


def evaluator(parts: Parts, steps: int = 2, **how: Any) -> Any:
    """MONAI's evaluator."""
    return SupervisedEvaluator(
        val_data_loader=cases(steps), network=parts.net, decollate=False,
        **{"device": CPU, "prepare_batch": parts.prepare} | how,
    )  # fmt: skip


def plain(parts: Parts) -> Engine:
    """An engine of ignite's."""

    def step(engine: Engine, batch: Any) -> float:
        image, label = parts.prepare(batch)
        loss = parts.loss(parts.net(image), label)
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return float(loss.detach())

    return Engine(step)


def attach(handler: TraceHandler, engine: Engine, parts: Parts) -> None:
    """To a plain engine, with all that there is to know."""
    handler.attach(engine, model=parts.net, optimizer=parts.optimizer, loss_fn=parts.loss)


class Span(NamedTuple):
    """A phase on both sides. Times: ns of the host's monotonic clock."""

    name: str
    kind: str
    engine: str
    lane: str
    epoch: int
    iteration: int
    host: tuple[int, int]
    device: tuple[int, int]
    flags: int
    row: int  #: in the rank's journal

    @property
    def ns(self) -> int:
        """How long the device took."""
        return self.device[1] - self.device[0]


@dataclass
class Recorded:
    """Both journals of a run."""

    main: Table
    device: Table
    notes: list[dict[str, Any]]  #: the device journal's meta lines

    def spans(self) -> list[Span]:
        """The phases that the device journal has, in its order."""
        return list(self._spans())

    def _spans(self) -> Iterator[Span]:
        at = {int(number): i for i, number in enumerate(self.main.numbers)}
        own, other = since(self.main.header), since(self.device.header)
        for i, row in enumerate(self.device.rows):
            name = self.device.name(i)
            if name.kind not in ("device", "copy"):
                continue
            j = at[int(row["epoch"])]
            host = self.main.rows[j]
            assert self.main.name(j).kind == "phase"
            assert name.kind == "copy" or name.text == self.main.name(j).text
            assert row["iteration"] == host["iteration"]
            assert self.main.lane(j).thread == self.device.lane(i).thread
            yield Span(
                self.main.name(j).text, name.kind, self.main.lane(j).engine,
                self.device.lane(i).engine, int(host["epoch"]), int(row["iteration"]),
                (int(host["start"]) - own, int(host["end"]) - own),
                (int(row["start"]) - other, int(row["end"]) - other if row["end"] else 0),
                int(row["flags"]), int(row["epoch"]),
            )  # fmt: skip

    def phases(self) -> Counter[str]:
        """The phases of the rank's journal that were not cut, by name; none is of a batch's way."""
        rows, names = self.main.rows, self.main.name
        return Counter(
            names(i).text for i in self.main.of_kind("phase").tolist()
            if not rows["flags"][i] & (Flag.CUT | Flag.VOID) and names(i).text != "get_batch"
        )  # fmt: skip

    def untimed(self) -> dict[str, int]:
        """Phases without a row, by the reason."""
        return {n["reason"]: n["count"] for n in self.notes if n["type"] == "untimed"}

    def scalars(self, name: str) -> list[float]:
        """The values of the device journal's scalar of this name."""
        ids = [id for id, each in self.device.names.items() if each.text == name]
        rows = self.device.scalars[[row["name"] in ids for row in self.device.scalars]]
        return [float(value) for value in rows["end"].copy().view("<f8")]

    def whole(self) -> None:
        """Each phase has a row, or is counted as one that has none."""
        have = sum(self.phases().values())
        assert len(self.spans()) + sum(self.untimed().values()) == have


def since(header: Header) -> int:
    """What a journal's times are ahead of the host's monotonic clock."""
    return header.wall_ns - header.monotonic_ns


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What firetrace has warned of."""
    return [
        record.getMessage() for record in caplog.records
        if record.name == "firetrace" and record.levelname != "INFO"
    ]  # fmt: skip


def device_path(directory: Path) -> Path:
    """The device journal of a run."""
    return directory / "rank0.1.device.rows"


def read(directory: Path) -> Recorded:
    """Both journals of a run that has ended."""
    main, device = read_table(directory / "rank0.1.rows"), read_table(device_path(directory))
    assert_well_formed(main)
    assert main.meta.stopped is None
    assert not main.damaged
    assert not device.damaged
    lines = device_path(directory).with_suffix(".meta.jsonl").read_text().splitlines()
    return Recorded(main, device, [json.loads(line) for line in lines])


def finish(handler: TraceHandler, gpu: SimulatedGpu) -> Recorded:
    """Let the GPU do what it has to do, end the recording, and read it; all must have gone well."""
    directory, waits = handler.directory, gpu.waits
    assert directory is not None
    if not gpu.stuck:
        gpu.synchronize()
        gpu.waits = waits  # the program's own
    handler.close()
    assert not gpu.misused
    found = read(directory)
    assert found.device.meta.stopped is None
    return found


def worst(
    spans: list[Span], gpu: SimulatedGpu, stream: Callable[[Span], int] | None = None,
    slack_ns: int = SLACK_NS,
) -> int:  # fmt: skip
    """By how much, in ns, a span is off the truth at most; 0: it is the truth.

    How soon the host comes to queue a mark is not known: after the row's time, before the next
    launch.

    Args:
        spans: which.
        gpu: where.
        stream: that a span was in; by default all were in 0.
        slack_ns: how long the host may take to come to queue a mark.
    """
    assert spans
    truths: dict[int, _Truth] = {}
    off = 0
    for span in spans:
        number = 0 if stream is None else stream(span)
        truth = truths.get(number) or truths.setdefault(number, _Truth(gpu, number))
        for host_ns, device_ns in zip(span.host, span.device, strict=True):
            off = max(off, truth.off(host_ns, device_ns, slack_ns))
    return off


class _Truth:
    """What one stream did."""

    def __init__(self, gpu: SimulatedGpu, stream: int) -> None:
        kernels = [each for each in gpu.kernels if each.stream == stream]
        self.launched = [each.launched for each in kernels]
        assert self.launched == sorted(self.launched)
        self.done = [gpu.host(each.end) for each in kernels]  # rising: one after another

    def off(self, host_ns: int, device_ns: int, slack_ns: int) -> int:
        """How far a time is from when a mark was reached that was queued about then."""
        at = bisect_left(self.launched, host_ns)
        reached = self.done[at - 1] if at else 0
        next_one = self.launched[at] if at < len(self.launched) else 2**62
        first = max(reached, host_ns + LATENCY_NS)
        last = max(reached, min(next_one, host_ns + slack_ns) + LATENCY_NS)
        return max(first - device_ns, device_ns - last, 0)


def comparison_error(gpu: SimulatedGpu) -> int:
    """By how much a comparison of the clocks may be wrong, ns, at most."""
    return max(seen - queued for queued, seen in gpu.compared) // 2 + US


def checked(
    handler: TraceHandler, gpu: SimulatedGpu, stream: Callable[[Span], int] | None = None
) -> Recorded:
    """What was recorded: the truth, and nothing is missing."""
    found = finish(handler, gpu)
    found.whole()
    assert not len(found.device.open_positions())
    assert worst(found.spans(), gpu, stream) <= comparison_error(gpu) + FLOAT_NS
    return found


def taken(found: Recorded, name: str) -> set[int]:
    """How long the phases of a name took, in us."""
    return {round(span.ns / US) for span in found.spans() if span.name == name}


def sums(spans: list[Span]) -> dict[int, int]:
    """What the device took for the phases of each iteration, ns."""
    found: dict[int, int] = {}
    for span in spans:
        found[span.iteration] = found.get(span.iteration, 0) + span.ns
    return found
