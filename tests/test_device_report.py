"""What the report makes of device time: what a GPU that keeps record says, in numbers and words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from firetrace.tui.cli import main
from firetrace.tui.model.device import DeviceReport
from firetrace.tui.model.report import read_tree
from tests.support.device_runs import (
    A_MARK_NS,
    DeviceRun,
    data_bound,
    device_bound,
    device_of,
    handler_bound,
    launch_bound,
    never_reached,
    out_of_memory,
)
from tests.support.launching import US, Work
from tests.support.recordings import record

Make = Callable[[Path, pytest.MonkeyPatch], DeviceRun]
PHASES = 6  # with ``output``, in which MONAI puts away what came out


@pytest.mark.parametrize("make", [device_bound, launch_bound, data_bound, handler_bound])
def test_a_device_is_idle_at_least_for_as_long_as_it_truly_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    """And here not for longer either: each phase ends with its launch. All time is the steps'."""
    run = make(tmp_path / "run", monkeypatch)
    device = device_of(run.report())
    idle_ns, whole_ns = run.truth()
    off = device.steps * PHASES * A_MARK_NS
    assert device.steps == 20
    assert device.step_ns is not None
    assert device.busy_ns is not None
    assert device.step_ns * 20 == pytest.approx(whole_ns, abs=2 * A_MARK_NS)
    assert device.idle * whole_ns == pytest.approx(idle_ns, abs=off)
    assert device.busy_ns * 20 == pytest.approx(whole_ns - idle_ns, abs=off)
    assert sum(device.idle_in.values()) == pytest.approx(device.idle)
    assert list(device.idle_in.values()) == sorted(device.idle_in.values(), reverse=True)
    assert device.unknown == 0


def test_phases_take_what_their_kernels_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host queues them in microseconds. The shares are of a step, and all of them are it."""
    device = device_of(device_bound(tmp_path / "run", monkeypatch).report())
    assert list(device.phases)[:2] == ["backward", "forward"]  # the longest first
    for name, ns in Work()._asdict().items():
        stats = device.phases[name]
        assert stats.count == 20
        assert stats.p50_ns == pytest.approx(ns, abs=A_MARK_NS)
        assert stats.share == pytest.approx(ns / sum(Work()), abs=0.01)
    assert sum(stats.share for stats in device.phases.values()) == pytest.approx(1, abs=0.01)


def test_a_full_memory_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each time with iteration, bytes and message, as text and in JSON."""
    run = out_of_memory(tmp_path / "run", monkeypatch)
    (full,) = device_of(run.report()).ooms
    assert (full.iteration, full.allocated) == (5, 70 * 2**30)
    assert full.message == "CUDA out of memory. Tried to allocate [b]2 GiB[/b]"
    tree = read_tree(run.path)
    assert tree.digest.runs[0].start.values[0] < full.time_ns <= tree.digest.last_ns
    assert main(["report", str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert f"out of memory in iteration 5 with 70G allocated: {full.message}\n" in said
    assert main(["report", "--json", str(run.folder)]) == 0
    (line,) = json.loads(capsys.readouterr().out)["device"]["ooms"]
    assert line == {
        "time_ns": full.time_ns, "iteration": 5, "allocated": 70 * 2**30, "message": full.message,
    }  # fmt: skip


def test_phases_that_were_never_reached_are_counted_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU that hangs, or a program that ends before it is done."""
    run = never_reached(tmp_path / "run", monkeypatch)
    device = device_of(run.report())
    assert device.steps == 12
    assert device.unresolved == 8 * PHASES
    assert device.step_ns == pytest.approx(sum(Work()), rel=0.01)
    assert main(["report", str(run.folder)]) == 0
    assert f"{8 * PHASES} phases have no times: never reached\n" in capsys.readouterr().out


def test_memory_and_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated over the run and at the end, and how much is copied in a step."""
    run = DeviceRun(tmp_path / "run", monkeypatch, epochs=5, steps=10)

    def prepare(batch: Any) -> Any:
        iteration = run.trainer.state.iteration
        run.gpu.allocated, run.gpu.peak = iteration * 2**20, (iteration + 7) * 2**20
        image, label = run.parts.prepare(batch)
        return image, label, (torch.empty(2**18, device=run.gpu.kind),), {}  # what is on this GPU

    run.prepare = prepare
    run.trainer.inferer = lambda image, network, *more: network(image)
    device = device_of(run.on_iteration(run.gpu.synchronize).run().report())
    assert device.copied_bytes == 2**20
    assert device.phases["copy to device"].count == 50
    assert "prepare_batch" not in device.phases
    assert device.allocated is not None
    assert 48 * 2**20 <= device.allocated <= 50 * 2**20  # it is looked at now and then
    assert device.reserved == 2 * device.allocated
    assert device.peak == device.allocated + 7 * 2**20
    assert len(device.memory) > 10
    assert list(device.memory) == sorted(device.memory)
    assert device.memory[-1] == device.allocated


def test_what_is_not_known_of_the_hardware_is_not_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a GPU only where that is known; its clock's error is the largest of the anchors."""
    run = device_bound(tmp_path / "run", monkeypatch)
    device = device_of(run.report())
    assert (device.label, device.model, device.kind) == ("cuda:0", "Simulated", "GPU")
    assert device.error_ns is not None
    assert 0 < device.error_ns < 10 * US
    beside = run.folder / "rank0.1.device.meta.jsonl"
    lines = [json.loads(line) for line in beside.read_text().splitlines()]
    for line in lines:
        if line["type"] == "process":
            line["resource"] = {"hw.model": 7}
    lines.append({"type": "anchor", "time": 5, "lane": 0, "error": 123_456})
    lines.append({"type": "anchor", "time": 5, "lane": 9, "error": 10**9})
    beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = run.report()
    device = device_of(found)
    assert (device.model, device.kind, device.error_ns) == ("", "device", 123_456)
    assert found.verdict.startswith("DEVICE-BOUND: the device is busy")


def test_the_text_the_page_and_the_json_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Phases, places, the step, memory, the clock; names from a trace are text."""
    run = launch_bound(tmp_path / "run", monkeypatch)
    device = device_of(run.report())
    assert main(["report", str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^on the device +n +total", said, re.M)
    assert re.search(r"^forward +61%$", said, re.M)
    step = r"cuda:0 Simulated: 20 steps of 5.1ms, busy for 2ms of that or more, idle 61% or less"
    assert re.search(rf"^{step}$", said, re.M)
    assert re.search(r"^memory: 0B allocated, reserved 0B, at most 0B", said, re.M)
    assert re.search(r"^its clock is placed on the host's to within \S+µs$", said, re.M)
    assert main(["report", "--html", "-", str(run.folder)]) == 0
    page = capsys.readouterr().out
    assert "<h2>Device</h2>" in page
    assert step in page
    assert "LAUNCH-BOUND: the GPU idles up to 61% of a step, most in forward (61%)" in page
    assert main(["report", "--json", str(run.folder)]) == 0
    written = json.loads(capsys.readouterr().out)["device"]
    assert written["idle"] == device.idle
    assert written["idle_in"] == device.idle_in
    assert written["phases"]["forward"]["p50_ns"] == device.phases["forward"].p50_ns
    assert set(written) == set(DeviceReport.__dataclass_fields__)


def test_without_device_time_all_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """No line, no section, null in JSON."""
    run = str(record())
    assert main(["report", run]) == 0
    assert "device" not in capsys.readouterr().out
    assert main(["report", "--html", "-", run]) == 0
    assert "<h2>Device</h2>" not in capsys.readouterr().out
    assert main(["report", "--json", run]) == 0
    assert json.loads(capsys.readouterr().out)["device"] is None
