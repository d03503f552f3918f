"""Device time is the truth, and nothing waits for it: on a GPU whose own record is compared.

Most of this runs on a clock that is made (``MadeTime``), so it is exact and takes no time. Beside
it: ``test_device_streams.py`` (other streams, engines, threads), ``test_device_endings.py``,
``test_device_edges.py`` (what goes wrong), ``test_device_cuda.py`` (torch, memory, copies).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import GanTrainer

from firetrace import TraceHandler
from firetrace.tracer.device.track import MOST_MARKS, MOST_STEPS
from firetrace.tracer.journal import Flag
from tests.support.launching import (
    CPU,
    FLOAT_NS,
    MS,
    PHASES,
    US,
    Parts,
    Recorded,
    Work,
    attach,
    cases,
    comparison_error,
    evaluator,
    finish,
    plain,
    sums,
    supervised,
    worst,
)
from tests.support.simulated import MadeTime, SimulatedGpu

SHORT = Work(1 * US, 2 * US, 1 * US, 2 * US, 1 * US)
#: Beside the comparison's error: the time between two events is a 32-bit float of ms.


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> MadeTime:
    """A clock that is made."""
    return MadeTime(monkeypatch)


def run_plain(handler: TraceHandler, parts: Parts) -> None:
    engine = plain(parts)
    attach(handler, engine, parts)
    engine.run(cases(6), max_epochs=2)


def run_trainer(handler: TraceHandler, parts: Parts) -> None:
    trainer = supervised(parts, epochs=2)
    handler.attach(trainer)
    trainer.run()


def run_accumulating(handler: TraceHandler, parts: Parts) -> None:
    trainer = supervised(parts, accumulation_steps=2)
    handler.attach(trainer)
    trainer.run()


def run_evaluator(handler: TraceHandler, parts: Parts) -> None:
    engine = evaluator(parts, 6)
    handler.attach(engine)
    engine.run()


def run_both(handler: TraceHandler, parts: Parts) -> None:
    """An evaluator after each epoch and, on other days, after each iteration."""
    trainer, judge = supervised(parts, epochs=2), evaluator(parts)
    handler.attach(trainer)
    handler.attach(judge)
    for event in (Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED(every=2)):
        trainer.add_event_handler(event, lambda: judge.run())
    trainer.run()


def run_gan(handler: TraceHandler, parts: Parts) -> None:
    critic = Parts(parts.gpu, parts.work)
    trainer = GanTrainer(
        device=CPU, max_epochs=2, latent_shape=4, d_train_steps=2, decollate=False,
        train_data_loader=DataLoader(Dataset([torch.rand(4)] * 6), batch_size=2),
        g_network=parts.net, g_optimizer=parts.optimizer,
        g_loss_function=lambda fake: critic.net(fake).mean(),
        d_network=critic.net, d_optimizer=critic.optimizer,
        d_loss_function=lambda fake, real: critic.net(fake.detach()).mean(),
        d_prepare_batch=lambda batch, *_, **__: parts.prepare({"image": batch, "label": 0})[0],
    )  # fmt: skip
    handler.attach(trainer)
    trainer.run()


Training = Callable[[TraceHandler, Parts], None]
TRAININGS: dict[Training, set[str]] = {
    run_plain: {*PHASES, "output"},
    run_trainer: {*PHASES, "output"},
    run_accumulating: {*PHASES, "output"},
    run_evaluator: {"prepare_batch", "forward"},
    run_both: {*PHASES, "output"},
    run_gan: {
        "prepare_batch", "generator_prepare_batch", "generator_forward", "discriminator_loss",
        "discriminator_backward", "discriminator_optimizer", "generator_loss",
        "generator_backward", "generator_optimizer", "output",
    },
}  # fmt: skip


def trained(gpu: SimulatedGpu, training: Training, work: Work, folder: Path) -> Recorded:
    handler = TraceHandler(folder / "run", device=gpu)
    training(handler, Parts(gpu, work))
    return finish(handler, gpu)


@pytest.mark.parametrize("work", [Work(), SHORT], ids=["busy", "idle"])
@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.__name__)
def test_spans_are_the_truth(
    training: Training, work: Work, time: MadeTime, tmp_path: Path
) -> None:
    """A span lies where the GPU did what its phase had queued; each phase has one."""
    gpu = SimulatedGpu(time=time)
    found = trained(gpu, training, work, tmp_path)
    spans = found.spans()
    found.whole()
    assert not found.untimed()
    assert {span.name for span in spans} == TRAININGS[training]
    assert {span.lane for span in spans} == {"sim:0"}
    assert comparison_error(gpu) < 10 * US
    assert worst(spans, gpu) <= comparison_error(gpu) + FLOAT_NS


def test_a_span_that_is_elsewhere_is_seen(time: MadeTime, tmp_path: Path) -> None:
    """The measure can fail: a span that ends 20 us late is 20 us off."""
    gpu = SimulatedGpu(time=time)
    spans = trained(gpu, run_trainer, Work(), tmp_path).spans()
    late = [span._replace(device=(span.device[0], span.device[1] + 20 * US)) for span in spans]
    assert worst(late, gpu) > 10 * US


@pytest.mark.parametrize("rate", [1 + 50e-6, 1 - 50e-6], ids=["fast", "slow"])
@pytest.mark.parametrize("work", [Work(), SHORT], ids=["busy", "idle"])
def test_a_clock_that_drifts(rate: float, work: Work, time: MadeTime, tmp_path: Path) -> None:
    """The clocks are compared each second; when their rates are known, spans stay where they were.

    Until then they drift apart: by 50 us in the first second, and as long as the GPU is behind.
    """
    gpu = SimulatedGpu(rate=rate, time=time, depth=20)
    parts = Parts(gpu, work)
    trainer = supervised(parts, steps=700)
    trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda: time.pass_by(10 * MS))
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    found.whole()
    spans, error = found.spans(), comparison_error(gpu) + FLOAT_NS
    seconds = (spans[-1].host[1] - spans[0].host[0]) / 1e9
    assert len(gpu.compared) == int(seconds) + 1 >= 7
    first = [span for span in spans if span.host[0] < spans[0].host[0] + 3 * 10**9]
    assert worst(first, gpu) <= error + 60 * US
    assert worst(spans[len(first) :], gpu) <= error + 6 * US


def test_how_well_the_clocks_were_compared_is_noted_each_minute(
    time: MadeTime, tmp_path: Path
) -> None:
    """The note's error holds what the comparison can be wrong by."""
    gpu = SimulatedGpu(time=time)
    trainer = supervised(Parts(gpu, SHORT), steps=150)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: time.pass_by(1_000 * MS))
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    anchors = [note for note in finish(handler, gpu).notes if note["type"] == "anchor"]
    assert len(anchors) == 3
    assert all(abs(gpu.host(gpu.clock(0))) <= 1 <= note["error"] < 10 * US for note in anchors)


def test_the_phases_of_a_step_add_up(time: MadeTime, tmp_path: Path) -> None:
    """Where the queue is full, a step's spans are its kernels, to 2%."""
    gpu = SimulatedGpu(time=time, depth=100)
    found = trained(gpu, run_trainer, Work(), tmp_path)
    of_kernels = sum(Work())
    steps = sums(found.spans())
    assert len(steps) == 12
    assert all(abs(ns - of_kernels) < 0.02 * of_kernels for ns in list(steps.values())[1:])


@pytest.mark.parametrize("gap", [200 * US, 7 * MS])
def test_a_planted_gap_shows(gap: int, time: MadeTime, tmp_path: Path) -> None:
    """Where a handler keeps the host while the GPU has nothing to do, its spans lie apart."""
    gpu = SimulatedGpu(time=time)
    trainer = supervised(Parts(gpu))

    def wait() -> None:
        gpu.synchronize()
        time.pass_by(gap)

    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    from monai.engines.utils import IterationEvents

    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, wait)
    trainer.run()
    spans = finish(handler, gpu).spans()
    apart = [
        after.device[0] - before.device[1]
        for before, after in pairwise(spans)
        if (before.name, after.name) == ("loss", "backward")
    ]
    assert len(apart) == 6
    assert all(abs(found - gap) < 10 * US for found in apart)


STANDARD = [
    Events.STARTED, Events.EPOCH_STARTED, Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED,
    Events.COMPLETED, Events.DATALOADER_STOP_ITERATION,
]  # fmt: skip


def test_what_handlers_launch_is_of_no_phase(time: MadeTime, tmp_path: Path) -> None:
    """A handler on every event launches 2 ms: the phases take what their own kernels take."""
    from monai.engines.utils import IterationEvents

    gpu = SimulatedGpu(time=time)
    trainer = supervised(Parts(gpu), epochs=2)
    for event in (*STANDARD, *IterationEvents):
        if event in trainer._allowed_events:
            trainer.add_event_handler(event, lambda: gpu.launch(2 * MS, "handler"))
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    found.whole()
    own = Work()._asdict() | {"output": 0}
    later = [span for span in found.spans() if span.iteration > 1]
    assert len(later) == 66
    assert all(abs(span.ns - own[span.name]) <= US for span in later)
    assert worst(found.spans(), gpu) <= comparison_error(gpu) + FLOAT_NS


# Nothing waits


def test_nothing_waits(time: MadeTime, tmp_path: Path) -> None:
    """The program's own waits are all there are: one in ten, as a scaler or an ``item`` does."""
    waits = []
    for traced in (False, True):
        gpu = SimulatedGpu(time=time)
        trainer = supervised(Parts(gpu), steps=20)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=10), gpu.synchronize)
        handler = TraceHandler(tmp_path / str(traced), device=gpu)
        if traced:
            handler.attach(trainer)
        trainer.run()
        waits.append(gpu.waits)
        if traced:
            assert len(finish(handler, gpu).spans()) == 120
            assert gpu.calls["elapsed_ms"] >= 120
            waits.append(gpu.waits)
    assert waits == [2, 2, 2]


def test_a_gpu_that_is_stuck(time: MadeTime, tmp_path: Path) -> None:
    """The training ends; what was not reached says so; nothing grows beyond its bounds."""
    gpu = SimulatedGpu(time=time)
    trainer = supervised(Parts(gpu), steps=1000)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=10), gpu.synchronize)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=13), setattr, gpu, "stuck", True)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    assert trainer.state.iteration == 1000
    found = finish(handler, gpu)
    found.whole()
    spans = found.spans()
    cut = [span for span in spans if span.flags & Flag.CUT]
    assert {span.iteration for span in spans if not span.flags & Flag.CUT} == {*range(1, 11)}
    assert len(cut) == 6 * MOST_STEPS
    assert all(span.ns == 0 for span in cut)
    assert all(0 <= span.device[0] - span.host[0] <= US for span in cut)
    reasons = {found.device.meta.reasons.get(int(n)) for n in found.device.numbers}
    assert reasons == {None, "not reached by the device"}
    assert found.untimed() == {"the device is too far behind": 6 * (990 - MOST_STEPS)}
    assert gpu.events <= (MOST_STEPS + 2) * 7 + len(gpu.compared) + 1
    assert gpu.calls["done"] < 10_000


def test_a_gpu_that_is_stuck_from_the_beginning(time: MadeTime, tmp_path: Path) -> None:
    """The clocks cannot be compared: no phase has a span, and each is counted."""
    gpu = SimulatedGpu(time=time, stuck=True)
    found = trained(gpu, run_trainer, SHORT, tmp_path)
    assert not found.spans()
    assert found.untimed() == {"the clocks could not be compared": 72}
    assert gpu.events == 1


def test_a_gpu_that_was_too_far_behind_and_catches_up(time: MadeTime, tmp_path: Path) -> None:
    """Steps have spans again as soon as there is room for them."""
    gpu = SimulatedGpu(time=time)
    trainer = supervised(Parts(gpu), steps=600)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=400), gpu.synchronize)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    found.whole()
    timed = {span.iteration for span in found.spans()}
    assert {*range(1, MOST_STEPS), *range(410, 600)} <= timed
    assert len(timed) < 600
    assert worst(found.spans(), gpu) <= comparison_error(gpu) + 10 * FLOAT_NS


def test_more_phases_than_marks(time: MadeTime, tmp_path: Path) -> None:
    """A step may have many phases; those beyond the bound are counted."""
    gpu = SimulatedGpu(time=time)
    parts = Parts(gpu, SHORT)

    def step(engine: Engine, batch: Any) -> None:
        for _ in range(700):
            parts.net(batch["image"])

    engine = Engine(step)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    attach(handler, engine, parts)
    engine.run(cases(3))
    found = finish(handler, gpu)
    found.whole()
    assert found.untimed().keys() == {"too many phases in a step"}
    each = [sum(span.iteration == i for span in found.spans()) for i in (1, 2, 3)]
    assert all(MOST_MARKS // 2 - 2 <= count <= MOST_MARKS for count in each)
    assert gpu.events <= 3 * MOST_MARKS + 2
    assert worst(found.spans(), gpu) <= comparison_error(gpu) + FLOAT_NS
