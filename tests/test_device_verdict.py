"""What bounds a training, by what its device did: each planted wait is found, and no other one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch.utils.data import DataLoader, Dataset

from firetrace.tracer.data import classes, pipeline
from firetrace.tui.model.progress import progress
from firetrace.tui.model.report import read_tree, report
from firetrace.tui.model.verdict import Parts, verdict
from tests.support.device_runs import (
    LITTLE,
    DeviceRun,
    data_bound,
    device_bound,
    device_of,
    handler_bound,
    launch_bound,
)
from tests.support.launching import MS, Work

Make = Callable[[Path, pytest.MonkeyPatch], DeviceRun]


class Slow(Dataset[Any]):
    """Samples that take their time."""

    def __init__(self, items: list[Any], run: DeviceRun) -> None:
        self.items, self.run = items, run

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.run.wait(7 * MS)
        return self.items[index]


def host_verdict(run: DeviceRun) -> str:
    """What would be said without a device journal."""
    return report(read_tree(run.path)).verdict


@pytest.mark.parametrize(
    ("make", "place", "words"),
    [
        (device_bound, None,
         r"DEVICE-BOUND: the GPU is busy 100% of a step, backward 56% of it"),
        (launch_bound, "forward",
         r"LAUNCH-BOUND: the GPU idles up to 61% of a step, most in forward \(61%\)"),
        (data_bound, "get_batch",
         r"DATA-BOUND: waiting for data is \d+% of the run; get_batch is \d+% of a step; "
         r"the GPU idles up to 72% of a step"),
        (handler_bound, "handlers",
         r"HANDLER-BOUND: handlers are \d+% of the run, .*; get_batch is 0% of a step; "
         r"the GPU idles up to 65% of a step"),
    ],
)  # fmt: skip
def test_the_verdict_says_where_the_device_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, place: str | None, words: str
) -> None:
    """A planted wait makes nearly all of its idle time, and the word is of it."""
    found = make(tmp_path / "run", monkeypatch).report()
    assert re.fullmatch(words, found.verdict)
    if place is not None:
        device = device_of(found)
        assert device.idle_in[place] > 0.99 * device.idle


@pytest.mark.parametrize("where", ["handler", "get_batch"])
def test_who_waits_for_the_device_is_no_bottleneck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The host's times alone blame a handler, or the data, that only waits for the GPU."""
    run = DeviceRun(tmp_path / "run", monkeypatch)
    if where == "handler":
        run.on_iteration(run.gpu.synchronize)
    else:
        run.slow_data(run.gpu.synchronize)
    found = run.run().report()
    assert host_verdict(run).split(":")[0] == {"handler": "HANDLER-BOUND"}.get(where, "DATA-BOUND")
    assert found.verdict.startswith("DEVICE-BOUND")
    assert found.what_if == ""  # nothing would be won without the wait


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("slow", ["", "forward", "get_batch", "handlers"])
def test_the_verdict_is_the_same_where_steps_were_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, every: int
) -> None:
    """Of a step without the one before it counts what is known of it: its wait, its handlers."""
    work = LITTLE if slow else Work()
    run = DeviceRun(tmp_path / "run", monkeypatch, work, steps=80, more={"every": every})
    if slow == "forward":
        run.slow_in("forward", 6 * MS)
    elif slow == "get_batch":
        run.slow_data(lambda: run.wait(6 * MS))
    elif slow == "handlers":
        run.on_iteration(lambda: run.wait(6 * MS))
    found = run.run().report()
    device = device_of(found)
    words = {"": "DEVICE", "forward": "LAUNCH", "get_batch": "DATA", "handlers": "HANDLER"}
    assert found.verdict.startswith(f"{words[slow]}-BOUND")
    assert device.steps == 80 // every
    assert device.idle == pytest.approx(device.idle_in.get(slow, 0.0), abs=0.01)
    assert (device.idle > 0.6) == bool(slow)


@pytest.mark.parametrize("every", [1, 4])
def test_a_wait_in_which_the_device_is_at_work_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """The host waits for data most of the time, and is ahead of the GPU all the same."""
    run = DeviceRun(tmp_path / "run", monkeypatch, steps=80, more={"every": every})
    found = run.slow_data(lambda: run.wait(5 * MS)).run().report()
    assert host_verdict(run).startswith("DATA-BOUND")
    assert found.verdict.startswith("DEVICE-BOUND")
    assert device_of(found).idle < 0.02  # the first wait


def test_the_advice_for_data_counts_on_the_devices_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the host's a step takes nothing without the wait, and no number of workers is enough."""
    run = DeviceRun(tmp_path / "run", monkeypatch, LITTLE, steps=40, more={"data": True})
    for module in (classes, pipeline):
        monkeypatch.setattr(module, "monotonic_ns", run.gpu.time)
    run.trainer.data_loader = run.trainer.state.dataloader = DataLoader(
        Slow(list(run.trainer.data_loader), run), batch_size=None
    )
    found = run.run().report()
    assert found.data is not None
    assert found.data.make_ns == pytest.approx(7 * MS, rel=0.01)
    assert found.data.use_ns == pytest.approx(sum(LITTLE), rel=0.01)
    assert found.data.needed == 4
    assert "; num_workers=4 would hide it" in found.verdict


def test_a_validation_is_no_part_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps or after an epoch; and while most time is spent on it, it is what is said."""
    run = DeviceRun(tmp_path / "run", monkeypatch, epochs=2, steps=8)
    run.validate(ns=500 * MS).validate(Events.ITERATION_COMPLETED(every=3), ns=5 * MS).run()
    found = run.report()
    device = device_of(found)
    assert found.verdict.startswith("VALIDATION-BOUND")
    assert device.steps == 16
    assert device.step_ns == pytest.approx(sum(Work()), rel=0.01)
    assert device.idle < 0.01
    assert {stats.count for stats in device.phases.values()} == {16}


@pytest.mark.parametrize(
    "event", [Events.ITERATION_COMPLETED(every=3), IterationEvents.LOSS_COMPLETED]
)
def test_what_a_validation_that_has_no_device_time_took_is_not_idle_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: Any
) -> None:
    """The GPU may have been at work for it."""
    run = DeviceRun(tmp_path / "run", monkeypatch, epochs=2, steps=8)
    other = Engine(lambda engine, batch: run.gpu.launch(50 * MS))

    def validate() -> None:
        other.run(range(2))
        run.gpu.synchronize()

    run.nested(other, event, validate).run()
    device = device_of(run.report())
    assert device.step_ns == pytest.approx(sum(Work()), rel=0.01)
    assert device.idle < 0.01


def test_an_engine_in_another_thread_is_no_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs beside the training, which is idle all the same."""
    small = {"max_bytes": 2**19, "min_free_bytes": 0}  # so are windows: its rows lie nearby
    run, ended = DeviceRun(tmp_path / "run", monkeypatch, LITTLE, more=small), Event()
    other = Engine(lambda engine, batch: ended.wait(60))
    run.handler.attach(other)
    beside = Thread(target=other.run, args=(range(1),))
    run.trainer.add_event_handler(Events.STARTED, lambda engine: beside.start())
    run.trainer.add_event_handler(Events.COMPLETED, lambda engine: ended.set())
    run.trainer.add_event_handler(Events.COMPLETED, lambda engine: beside.join())
    found = run.on_iteration(lambda: run.wait(6 * MS)).run().report()
    assert device_of(found).idle_in["handlers"] > 0.6


@pytest.mark.parametrize("first", ["loader", "batch"])
def test_the_first_wait_of_an_epoch_is_part_of_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Workers that are started anew for each epoch of a few steps leave the GPU idle."""
    run = DeviceRun(tmp_path / "run", monkeypatch, LITTLE, epochs=5, steps=4)
    batches = iter(range(100))
    if first == "loader":
        run.slow_data(lambda: None, lambda: run.wait(60 * MS))
    else:
        run.slow_data(lambda: run.wait(0 if next(batches) % 4 else 60 * MS))
    found = run.run().report()
    device = device_of(found)
    assert found.verdict.startswith("DATA-BOUND")
    # The first loader is made before the first step; in the other waits the GPU ends its steps.
    whole_ns = (4 if first == "loader" else 5) * 60 * MS + 4 * sum(LITTLE)
    assert device.step_ns == pytest.approx(whole_ns / 20, rel=0.01)
    assert device.idle == pytest.approx(1 - 20 * sum(LITTLE) / whole_ns, abs=0.01)


def test_what_lies_outside_of_the_steps_is_the_hosts_affair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after each epoch that takes most of the run is not seen in any step."""
    run = DeviceRun(tmp_path / "run", monkeypatch, epochs=3, steps=4)
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: run.wait(200 * MS))
    found = run.run().report()
    assert device_of(found).idle < 0.01
    assert found.verdict.startswith("HANDLER-BOUND")


def test_phases_without_device_time_are_neither_busy_nor_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one that changes the stream there is none: then the host says what bounds the run."""
    run = DeviceRun(tmp_path / "run", monkeypatch, LITTLE).slow_in("backward", 20 * MS)
    launch = run.parts.launch

    def elsewhere(phase: str) -> None:
        launch(phase)
        if phase == "backward":
            run.gpu.stream = 1 - run.gpu.stream

    run.parts.launch = elsewhere
    found = run.run().report()
    device = device_of(found)
    assert device.untimed == {"the current stream changed in it": 20}
    assert device.unknown > 0.8
    assert device.idle < 0.1
    assert "backward" not in device.phases
    assert found.verdict == host_verdict(run)
    assert found.verdict.startswith("COMPUTE-BOUND")


def test_what_a_wait_costs_is_said_where_the_device_is_idle_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something else bounds the run; elsewhere nothing would be won."""
    assert data_bound(tmp_path / "data", monkeypatch).report().what_if.startswith("without the")
    run = DeviceRun(tmp_path / "both", monkeypatch, LITTLE).on_iteration(lambda: run.wait(6 * MS))
    found = run.slow_data(lambda: run.wait(2 * MS)).run().report()
    assert found.verdict.startswith("HANDLER-BOUND")
    assert found.what_if.startswith("without the wait")


def test_what_is_idle_between_the_phases_is_not_blamed_on_handlers_that_take_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is slow to launch, wherever that is."""
    run = handler_bound(tmp_path / "run", monkeypatch)
    device, tree = device_of(run.report()), read_tree(run.path)
    step = run.report().step
    assert step is not None
    quick = Parts(step.total_ns, step, {}, {"log": step}, events_in_steps_ns=step.total_ns // 100)
    said = verdict(quick, progress(tree, 0, None), None, device).text
    assert said == (
        "LAUNCH-BOUND: the GPU idles up to 65% of a step, "
        "most in what lies between the phases (65%)"
    )  # fmt: skip
