"""Device time in the app: real trainings on a simulated GPU, also while they go on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from rich.style import Style

from firetrace import TraceHandler
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import device_journal
from firetrace.tui import app as app_module
from firetrace.tui.app import WatchApp
from firetrace.tui.feed import Feed, Snapshot
from firetrace.tui.model.device import DeviceMark
from firetrace.tui.widgets import device_lanes
from firetrace.tui.widgets.device_lanes import DeviceLanes, busy_of
from firetrace.tui.widgets.stats_table import PhaseTable
from firetrace.tui.widgets.waterfall import Bar
from tests.support.launching import Parts, Work, finish, supervised
from tests.support.nvml import nvml
from tests.support.recordings import Phases, record
from tests.support.screens import screen_of, timeline, until, until_shown
from tests.support.simulated import SimulatedGpu
from tests.support.staged import Interrupted, Stage

MS = 10**6
WIDE = (180, 44)


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for a reader made for eyes."""
    monkeypatch.setattr(app_module, "PERIOD_S", 0.06)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A MONAI training of 6 iterations that has ended: its journal's path."""
    gpu = SimulatedGpu(label="cuda:0")
    parts = Parts(gpu, Work(forward=8 * MS))

    def prepare(batch: Any, *args: Any, **more: Any) -> Any:
        gpu.allocated, gpu.peak = 5 * 2**30, 6 * 2**30
        image, label = parts.prepare(batch)
        return image, label, (torch.empty(2**18, device=gpu.kind),), {}  # what is on this GPU

    trainer = supervised(parts, steps=6, prepare_batch=prepare, inferer=inferred)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    return finish(handler, gpu).main.path


def inferred(image: torch.Tensor, network: Any, *more: Any) -> Any:
    """The network is given the image alone."""
    return network(image)


class Growing:
    """A training on a GPU in a thread that goes on by one iteration at a time, when told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gpu = folder, SimulatedGpu(label="cuda:0")
        self._gate = threading.Semaphore(0)
        self.trainer = Engine(self._update)
        self.trainer.register_events(*Phases)
        self.handler = TraceHandler(folder, device=self.gpu)
        self.handler.attach(self.trainer)
        self._thread = threading.Thread(target=self.trainer.run, args=(range(1000),))

    def _update(self, engine: Engine, batch: Any) -> None:
        self._gate.acquire()
        for event in Phases:
            self.gpu.launch(MS)
            engine.fire_event(event)

    def go_on(self, iterations: int) -> None:
        """Let so many iterations happen."""
        self._gate.release(iterations)

    def end(self) -> None:
        """End it."""
        self.trainer.terminate()
        self._gate.release(5000)
        self._thread.join(30)
        self.handler.close()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    """A training that goes on."""
    training = Growing(tmp_path / "run")
    training._thread.start()
    try:
        yield training
    finally:
        training.end()


def lanes_of(app: WatchApp) -> DeviceLanes:
    return app.screen_stack[0].query_one(DeviceLanes)


async def test_a_device_has_a_lane_below_the_waterfall(trained: Path) -> None:
    """With its label, the phases, and how long it was busy in the time that is seen."""
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "Device", "cuda:0", "busy ")
        lanes = lanes_of(app)
        assert lanes.display
        assert "█" in lanes.render().plain
        assert "▒" not in lanes.render().plain
        await pilot.press("2")
        await until_shown(pilot, "cuda:0", "busy ")
        await pilot.press("3")
        await until(pilot, lambda: not lanes.display, "a lane without a waterfall")


async def test_the_lane_goes_with_the_axis_of_a_run_that_is_over(trained: Path) -> None:
    """Zoomed and panned the lane shows the same time as the waterfall above it."""
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "busy ")
        before = lanes_of(app).axis
        for key in ("+", "]", "-"):
            await pilot.press(key)
            await until(
                pilot, lambda: lanes_of(app).axis == timeline(pilot).axis, f"not after {key}"
            )
        await pilot.press("+")
        await until(pilot, lambda: lanes_of(app).axis != before, "the axis of before")


async def test_of_too_many_steps_nothing_is_told_apart(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane of a long run says so, and is no claim that the device was busy or idle."""
    monkeypatch.setattr(device_lanes, "MOST_STEPS", 3)
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "busy ")
        await pilot.press("home")
        await until_shown(pilot, "too many steps: zoom in")
        assert "█" not in lanes_of(app).render().plain
        assert "busy" not in lanes_of(app).render().plain


async def test_the_phases_have_a_column_of_device_time(trained: Path) -> None:
    """Beside the host's median; forward returned at once and took the GPU 8 ms."""
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "device", "forward")
        table = app.screen_stack[0].query_one(PhaseTable)
        titles = [str(column.label) for column in table.ordered_columns]
        at = titles.index("device")
        assert titles[at - 1] == "p50"
        assert str(table.get_row("forward")[at]) == "8ms"
        assert str(table.get_row("prepare_batch")[at]) == "300µs"
        assert str(table.get_row("get_batch")[at]) == ""


async def test_memory_of_the_device_is_a_gauge(trained: Path) -> None:
    """What was allocated last, and at most; GiB that the network took."""
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "cuda:0 5.0G/peak 6.0G")


async def test_the_detail_of_a_phase_says_what_the_device_did(trained: Path) -> None:
    """How long it took there, how much later it began, what of it may have been idle."""
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "busy ")
        await pilot.press("slash", *"forward", "enter", "enter")
        await pilot.press("enter")
        await until_shown(pilot, "device", "on cuda:0", "later than here")


async def test_the_detail_of_a_step_and_of_a_copy(trained: Path) -> None:
    """A step's time on the device is that of its phases; a copy says how much was copied."""
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "busy ")
        await pilot.press("s", "enter")
        await until_shown(pilot, "on cuda:0", "than here")
        await pilot.press("escape", "slash", *"prepare_batch", "enter", "enter")
        await pilot.press("enter")
        await until_shown(pilot, "copied", "1.0M")


async def test_memory_that_was_not_enough_is_said(tmp_path: Path) -> None:
    """In the line of the gauges, and in the detail of where the exception passed, with units."""

    class OutOfMemoryError(RuntimeError):  # torch's own cannot be made without a GPU
        pass

    def prepare(batch: Any, *args: Any, **more: Any) -> Any:
        gpu.allocated = gpu.peak = 7 * 2**30
        if trainer.state.iteration == 3:
            raise OutOfMemoryError("CUDA out of memory")
        return parts.prepare(batch)

    gpu = SimulatedGpu(label="cuda:0")
    parts = Parts(gpu)
    trainer = supervised(parts, prepare_batch=prepare)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    with pytest.raises(OutOfMemoryError):
        trainer.run()
    handler.close()
    app = WatchApp(str(tmp_path / "run"))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "out of memory: 1")
        await pilot.press("2", "e", "enter")
        await until_shown(pilot, "ignite.device.memory.allocated  7.0G")


async def test_what_a_program_that_died_left_open_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the device had not reached then is not shown as if it were still to come."""
    stage = Stage(tmp_path / "run", device=True)
    with contextlib.suppress(Interrupted):
        stage.run(4, stop_at=27, error=Interrupted())
    monkeypatch.setattr(JournalReader, "now_ns", lambda self: stage.now + 700 * MS)
    app = WatchApp(str(tmp_path / "run"))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "step 27 (open ", "not known yet")
        await pilot.press("up")
        await until(pilot, lambda: "▒" in lanes_of(app).render().plain, "nothing is hatched")
        stage.die()
        await until_shown(pilot, "DIED")
        await until(pilot, lambda: "▒" not in lanes_of(app).render().plain, "still hatched")


async def test_the_gpu_is_found_by_the_journal(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where NVML does not know the process: load and memory of the GPU that it trains on."""
    (tmp_path / "nvml").mkdir()
    nvml(tmp_path / "nvml", monkeypatch, pids=())
    growing.go_on(3)
    app = WatchApp(str(growing.folder))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "GPU 70%", "VRAM 18G")


async def test_a_run_without_device_time_looks_as_before() -> None:
    """No lane, no column."""
    app = WatchApp(str(record(epochs=1)))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "DONE", "forward")
        assert not lanes_of(app).display
        assert "device" not in screen_of(pilot).lower()


async def test_device_spans_appear_while_the_training_runs(growing: Growing) -> None:
    """What the device has passed is painted, what it has not reached is hatched."""
    growing.go_on(3)
    app = WatchApp(str(growing.folder))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "RUN", "step 4 (open ")
        lanes = lanes_of(app)

        def drawn() -> bool:
            growing.go_on(1)
            return "█" in lanes.render().plain

        await until(pilot, drawn, "no device spans")
        growing.gpu.stuck = True
        growing.go_on(2)
        await until(pilot, lambda: "▒" in lanes.render().plain, "nothing is hatched")
        growing.gpu.stuck = False


def cut_short(path: Path) -> None:
    os.truncate(path, 5000)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def gone(path: Path) -> None:
    for file in path.parent.glob(f"{path.stem}*"):
        file.unlink()


def no_journal(path: Path) -> None:
    path.write_bytes(b"nothing of the kind" * 1000)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut_short, overwritten, gone, no_journal, a_folder])
async def test_a_damaged_device_journal_leaves_the_rest(damage: Any, trained: Path) -> None:
    """The run is shown as if no device time had been recorded, or with what is left of it."""
    damage(device_journal(trained))
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "DONE", "forward", "prepare_batch")
        await pilot.press("s", "enter", "down", "right", "down")
        await until_shown(pilot, "Span", "its like")


@pytest.mark.parametrize("damage", [overwritten, gone])
async def test_a_device_journal_may_be_damaged_while_it_grows(
    damage: Any, growing: Growing
) -> None:
    """The app goes on, and so does what it says of the host."""
    growing.go_on(30)
    app = WatchApp(str(growing.folder))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "step 31 (open ", "cuda:0")
        damage(device_journal(growing.folder / "rank0.1.rows"))
        await pilot.press("s", "enter", "2")
        growing.go_on(5)
        await pilot.press("1", "f")
        await until_shown(pilot, "step 36 (open ", "RUN")


@pytest.mark.parametrize("damage", [cut_short, overwritten, gone, no_journal, a_folder])
async def test_a_device_journal_may_be_damaged_while_it_is_shown(
    damage: Any, trained: Path
) -> None:
    """What is looked at then is still shown; of the device what can be read."""
    app = WatchApp(str(trained))
    async with app.run_test(size=WIDE) as pilot:
        await until_shown(pilot, "DONE", "cuda:0", "busy ")
        damage(device_journal(trained))
        await pilot.press("s", "enter", "down", "right", "down", "+", "[", "0")
        await until_shown(pilot, "Span", "its like", "DONE")
        await pilot.press("home", "down", "2", "1")
        await until_shown(pilot, "Span", "its like", "forward")


def test_a_disk_that_fails_takes_no_more_than_the_device_time(growing: Growing) -> None:
    """What is read of the host goes on, what was read of the device stays."""
    growing.go_on(5)
    feed = Feed(str(growing.folder))
    found = _polled(feed, lambda found: bool(found.devices) and found.report.steps > 5)
    assert feed._source is not None
    assert feed._source._device.journal is not None
    unreadable = os.open(os.devnull, os.O_WRONLY)
    os.dup2(unreadable, feed._source._device.journal.stream.reader.fileno())
    os.close(unreadable)
    growing.go_on(5)
    later = _polled(feed, lambda found: found.report.steps > 10)
    assert [lane.label for lane in later.devices] == [lane.label for lane in found.devices]
    feed.close()


def _polled(feed: Feed, wanted: Callable[[Snapshot], bool]) -> Snapshot:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = feed.poll()
        if isinstance(found, Snapshot) and wanted(found):
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come")


def test_busy_time_is_what_was_reached_of_the_time_that_is_seen() -> None:
    """Clipped at both ends; while more is queued nothing is known of what comes after it."""
    marks = [
        DeviceMark("device", "forward", 80, 120, 1), DeviceMark("device", "backward", 150, 250, 2),
    ]  # fmt: skip
    assert busy_of(marks, 100, 200) == (70, 100)
    assert busy_of(marks, 100, 1000) == (120, 900)
    ahead = DeviceMark("device", "optimizer", 240, 0, 3)
    assert busy_of([*marks, ahead], 100, 1000) == (120, 150)
    assert busy_of([ahead], 100, 1000) == (0, 0)


def test_a_bar_hatches_what_is_painted_so() -> None:
    """And only that: what is settled stays full on the same line. Half a cell is dim instead."""
    bar = Bar(4, 400)
    bar.paint(0, 100, "#111111")
    bar.paint(200, 350, "#222222", hatched=True)
    segments = bar.segments(False, Style())
    assert [segment.text for segment in segments] == ["█", " ", "▒", "▌"]
    dim = [segment.style is not None and bool(segment.style.dim) for segment in segments]
    assert dim == [False, False, False, True]
