"""``make gpu-check`` judges rightly: each check is given what is right, and what is wrong.

The GPU is simulated, or its spans and kernels are made up. A real one is the command's own affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import clocks, comparison, cost, engines, memory, planted, spans, streams, waits
from bench.gpu.check import Check, Settings, guarded, render
from bench.gpu.recorded import Phase
from bench.gpu.traces import Activity, Trace, trace_of
from bench.gpu.trainings import calling, tiny
from firetrace.tracer.meta import Anchor
from tests.support.machine import (
    MS,
    STEPS,
    US,
    SimulatedCuda,
    SimulatedMachine,
    made,
    recorded,
)  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path, steps=12, pairs=2, tiny_steps=3, planted_steps=10, many_steps=40,
                    clock_s=0.5, calls=20, compiled=False)  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SimulatedMachine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SimulatedMachine(tmp_path)
    torch.set_num_threads(threads)


def missed(checks: Iterable[Check]) -> set[str]:
    """The rows that are missed, by what they are called after the training's name."""
    return {each.name.partition(": ")[2] or each.name for each in checks if each.ok is False}


# Spans


def rows(phases: list[Phase], trace: Trace) -> list[Check]:
    """What is said of them."""
    return list(comparison.judged("it", comparison.compare(phases, trace, 2), trace, 10 * US))


def moved(phases: list[Phase], start: Callable[[Phase], int], end: Callable[[Phase], int]) -> Any:
    """The same, with other spans on the device: so many ns later."""
    found = []
    for each in phases:
        assert each.device is not None
        times = each.device[0] + start(each), each.device[1] + end(each)
        found.append(replace(each, device=times))
    return found


@pytest.mark.parametrize("work", [3.0, 0.03])
def test_right_spans_are_found_right(work: float) -> None:
    """Of a GPU that is behind the host, and of one that waits for it."""
    found = rows(*made(work))
    assert missed(found) == set()
    assert [each.ok for each in found[:4]] == [True] * 4
    busy = next(each for each in found if "busy" in each.name)
    assert (busy.ok is True) == (work > 1)
    assert "0.00%, 0.00% at worst of 10" in found[0].measured


INSIDE = "kernels lie in their phase's span"
BUSY = "first to last kernel, phases begun on a busy GPU"
NAMES = {"forward", "backward", "optimizer"}


@pytest.mark.parametrize(
    ("start", "end", "wrong"),
    [
        (lambda each: 0, lambda each: 300 * US, {"a step's device spans", *NAMES, BUSY}),
        (lambda each: MS, lambda each: MS, {INSIDE}),
        (lambda each: -MS, lambda each: -MS, {INSIDE}),
        (
            lambda each: -MS if each.name == "backward" else 0,
            lambda each: -MS if each.name == "forward" else 0,
            {"forward", "backward", BUSY, INSIDE},
        ),
    ],
    ids=["too long", "late", "early", "a kernel too few, and too many"],
)
def test_wrong_spans_are_found_wrong(
    start: Callable[[Phase], int], end: Callable[[Phase], int], wrong: set[str]
) -> None:
    """Each in the rows that are about it."""
    phases, trace = made()
    assert missed(rows(moved(phases, start, end), trace)) == wrong


def test_phases_without_times_are_missed() -> None:
    """One that has none, one that is not there, one that is excused, a recording that stopped."""
    phases, _ = made()
    assert spans.whole("it", recorded(phases), STEPS).ok
    assert not spans.whole("it", recorded([replace(phases[0], device=None), *phases[1:]]), STEPS).ok
    assert not spans.whole("it", recorded(phases[1:]), STEPS).ok
    excused, stopped = recorded(phases), recorded(phases)
    excused.meta.untimed[0, "a graph is captured"] = 1
    stopped.meta.stopped = "the device has failed"
    assert "a graph is captured" in spans.whole("it", excused, STEPS).measured
    assert not spans.whole("it", excused, STEPS).ok
    assert not spans.whole("it", stopped, STEPS).ok
    assert spans.anchored("it", excused).ok
    excused.meta.anchors[0] = Anchor(0, 0, MS)
    assert not spans.anchored("it", excused).ok


def test_a_simulated_gpu_passes(machine: SimulatedMachine, settings: Settings) -> None:
    """A real training, a real journal, torch's profiler on the host: all times on one clock."""
    parts = calling(machine.device, lambda: machine.work(4))
    found = list(spans.training("it", lambda: parts, machine, settings))
    assert [each.name for each in found if not each.ok] == []
    assert len(found) == 7


def test_a_profiler_that_sees_nothing_is_no_success(
    machine: SimulatedMachine, settings: Settings
) -> None:
    """The row that it ought to have made says why, and those before it stay."""
    machine.seen = False
    parts = calling(machine.device, lambda: machine.work(1))
    found = list(
        guarded("spans", lambda: spans.training("it", lambda: parts, machine, settings), print)
    )
    assert missed(found) == {"kernels of which the launch was seen", "spans"}
    assert "CUPTI" in found[-1].measured


# The profiler's trace


def test_launches_come_onto_the_hosts_clock(machine: SimulatedMachine) -> None:
    """To what the trace says of its error: by the markers that the real profiler wrote."""

    def run() -> None:
        for _ in range(5):
            machine.work(0.1)

    trace = machine.profile(run)
    truth = [each.launched for each in machine.gpu.kernels]
    slack = trace.error_ns + 5 * US  # of the two clocks that the machine itself compares
    assert len(truth) == 5
    assert all(
        abs(each.launched - at) <= slack for each, at in zip(trace.activities, truth, strict=True)
    )
    assert trace.begin <= truth[0] <= truth[-1] <= trace.end
    assert trace.error_ns < MS


def document(*events: dict[str, Any], base: int = 10**18) -> dict[str, Any]:
    """A profile, with a marker at its begin and end: monotonic time is that of the trace + 500."""
    marks = [
        {"ph": "X", "cat": "user_annotation", "name": name, "ts": ts, "dur": 1.0}
        for name, ts in (("m before 0", 1.0), ("m after 0", 99.0))
    ]
    return {"baseTimeNanoseconds": base, "traceEvents": [*marks, *events]}


def event(cat: str, name: str, ts: float, dur: float, **about: int) -> dict[str, Any]:
    """One event; times in us."""
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": about}


def test_a_trace_is_read() -> None:
    """Kernels find their launches; calls outside of what was profiled do not count."""
    marks = {"m before 0": (1_400, 2_600), "m after 0": (99_400, 100_600)}
    found = trace_of(
        document(
            event("cuda_runtime", "cudaLaunchKernel", 10, 2, correlation=1),
            event("kernel", "k", 20, 5, correlation=1, stream=7),
            event("gpu_memcpy", "c", 22, 8, correlation=2, stream=7),
            event("cuda_driver", "cuStreamSynchronize_ptsz", 30, 5, correlation=3),
            event("cuda_runtime", "cudaDeviceSynchronize", 100.5, 5, correlation=4),
            {"ph": "M", "name": "process_name", "args": {}},
        ),
        marks,
    )
    assert found.activities == [Activity(0, 22_500, 30_500, 7), Activity(10_500, 20_500, 25_500, 7)]
    assert found.calls == [("cudaLaunchKernel", 10_500), ("cuStreamSynchronize", 30_500)]
    assert (found.begin, found.end, found.error_ns) == (2_600, 99_400, 101)
    assert found.busy_ns(0, 10**6) == 10_000
    assert found.busy_ns(24_500, 26_500) == 2_000
    with pytest.raises(ValueError, match="markers"):
        trace_of({"traceEvents": []}, marks)


# Cost, clocks, waits


def times(added: float) -> cost.Times:
    """Of pairs with some noise."""
    off = [500.0, 510.0, 490.0, 505.0, 495.0, 500.0, 502.0, 498.0, 501.0, 499.0]
    on = [each + added + noise for each, noise in zip(off, (-1.0, 1.0) * 5, strict=True)]
    return cost.Times(on, off, on, off)


def test_what_device_time_costs_is_held_against_its_bar() -> None:
    assert missed(cost.added("it", times(10))) == set()
    assert len(missed(cost.added("it", times(15.5)))) == 2
    assert cost.longer("it", times(0)).ok
    assert cost.longer("it", times(-20)).ok
    assert not cost.longer("it", times(10)).ok
    wild = [600.0, 400.0] * 5
    assert not cost.longer("it", replace(times(0), wall_on=wild)).ok  # nothing can be told


def test_trainings_are_timed_in_turn(machine: SimulatedMachine, settings: Settings) -> None:
    found = cost.measure(tiny(machine.device), machine, settings, settings.tiny_steps)
    assert [len(each) for each in vars(found).values()] == [2] * 4
    assert all(value > 0 for each in vars(found).values() for value in each)
    assert len(list(cost.calls(machine, settings))) == 7


def test_clocks_are_held_against_their_bars(machine: SimulatedMachine, settings: Settings) -> None:
    """Also of a device that never answers, and of one whose clock runs away."""
    assert clocks.judged("it", [10_000.0] * 20).ok
    assert not clocks.judged("it", [60_000.0] * 20).ok
    assert clocks.apart(*clocks.followed(machine, 0.5)).ok
    machine.gpu.rate = 1 + 400e-6
    assert not clocks.apart(*clocks.followed(machine, 0.5)).ok
    machine.gpu.stuck = True
    assert not clocks.judged("it", clocks.errors(machine, False)).ok


def test_waits_are_counted() -> None:
    """Equal numbers are well, one more is not, and none at all means that nothing was seen."""
    once = [("cudaStreamSynchronize", 1), ("cudaLaunchKernel", 2)] * 10
    _, trace = made()
    off = replace(trace, calls=once)
    on = replace(trace, calls=[*once, ("cudaEventRecord", 3)])
    worse = replace(trace, calls=[*once, ("cudaEventSynchronize", 3)])
    assert missed(waits.judged(off, on, 10)) == set()
    assert len(missed(waits.judged(off, worse, 10))) == 1
    assert len(missed(waits.judged(trace, trace, 10))) == 1
    phases, _ = made()
    assert waits.quiet(recorded(phases), STEPS, works=True).ok
    assert not waits.quiet(recorded(phases), STEPS, works=False).ok
    assert not waits.quiet(recorded(phases[:-3]), STEPS, works=True).ok


# What is planted


def test_idle_time_is_held_against_the_profiler(
    machine: SimulatedMachine, settings: Settings
) -> None:
    """A training with a handler that sleeps; then what would be wrong about its report."""
    plant = next(each for each in planted.TRAININGS if each.where == "handlers")
    report, truth = planted.tried(plant, machine, settings)
    assert 0.3 < truth < 1
    device = report.device
    assert device is not None

    def wrong(plant: planted.Planted = plant, report: Any = report, **more: Any) -> set[str]:
        changed = replace(report, device=replace(device, **more)) if more else report
        return missed(planted.judged(plant, changed, truth))

    assert wrong(idle=truth + 0.01) == set()
    assert wrong(idle=truth + 0.03) == {"idle"}
    assert wrong(idle=truth - 0.03) == {"idle"}
    assert wrong(replace(plant, exact=False), idle=truth + 0.03) == set()
    assert wrong(replace(plant, exact=False), idle=truth - 0.03) == {"idle"}
    assert wrong(idle=truth, idle_in={"forward": 0.5}) == {"verdict"}
    assert wrong(replace(plant, verdict="DATA-BOUND"), idle=truth) == {"verdict"}
    assert wrong(report=replace(report, device=None)) == {"report"}


# Memory, engines, streams


@pytest.mark.parametrize("caught", [False, True])
def test_a_full_memory_is_told(machine: SimulatedMachine, settings: Settings, caught: bool) -> None:
    assert missed(memory.full(machine, settings, caught)) == set()


def test_what_is_wrong_about_memory_is_missed(settings: Settings) -> None:
    phases, _ = made()
    assert memory.same_allocated([(1, 5e6), (9, 1.0)], {1: 5_000_000}).ok
    assert not memory.same_allocated([(1, 9e6)], {1: 5_000_000}).ok
    assert not memory.same_allocated([], {1: 5_000_000}).ok
    sizes, copies = [(1, 64.0), (2, 64.0)], [replace(each, copied=True) for each in phases[:2]]
    assert memory.same_copied(
        replace(recorded(copies), scalars={"copied to device": sizes}), 64, 2
    ).ok
    assert not memory.same_copied(recorded(copies), 64, 2).ok
    assert memory.few_events(recorded(phases), STEPS).ok
    assert not memory.few_events(recorded(phases, events=10_000), STEPS).ok
    assert not memory.few_events(recorded(phases, events=0), STEPS).ok
    assert memory.same_error("it", "OutOfMemoryError: a", "OutOfMemoryError: a", False).ok
    assert not memory.same_error("it", "OutOfMemoryError: a", "RuntimeError: a", False).ok
    assert not memory.same_error("it", "no exception", "no exception", False).ok
    assert memory.instant("it", [(4, 1e9)], 10**9, False).ok
    wrong: list[list[tuple[int, float | None]]] = [
        [], [(3, 1e9)], [(4, 2e9)], [(4, None)], [(4, 1e9), (4, 1e9)],
    ]  # fmt: skip
    assert not any(memory.instant("it", each, 10**9, False).ok for each in wrong)


def test_counts_of_memory_and_events(machine: SimulatedMachine, settings: Settings) -> None:
    assert memory.allocated(machine, settings).ok
    assert memory.events(machine, settings).ok


def test_engines_have_their_phases(machine: SimulatedMachine, settings: Settings) -> None:
    assert engines.gathered(machine, settings).ok
    assert engines.validated(machine, settings).ok
    skipped = engines.compiled("default", machine, settings)
    assert (skipped.ok, skipped.measured) == (None, "skipped: the short form")
    phases, _ = made()
    assert not engines.counted("it", recorded(phases), {"forward": STEPS + 1}).ok
    assert not engines.both(recorded(phases)).ok


def test_streams_and_graphs(
    machine: SimulatedMachine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of those trainings runs through, and is recorded as it should be."""
    monkeypatch.setattr(streams, "cuda", SimulatedCuda(machine.gpu))
    found = list(streams.checks(machine, settings))
    assert [each.name for each in found if not each.ok] == []
    assert len(found) == 6


def test_phases_that_cannot_be_timed_must_say_why() -> None:
    phases, _ = made()
    excused = recorded(phases)
    excused.meta.untimed[0, streams.WHY_GRAPH] = 4
    assert streams.said("it", excused, streams.WHY_GRAPH, STEPS).ok
    assert not streams.said("it", excused, streams.WHY_STREAM, STEPS).ok
    assert not streams.said("it", excused, streams.WHY_GRAPH, 1_000).ok
    assert not streams.said("it", recorded(phases), streams.WHY_GRAPH, STEPS).ok
    took = [3 * MS] * STEPS
    assert streams.joined_times(recorded(phases), took, took).ok
    assert not streams.joined_times(recorded(phases), [2 * MS] * STEPS, took).ok
    assert not streams.joined_times(recorded(phases), took[1:], took).ok


# The command


def test_without_a_gpu_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where something is not installed, what. Neither is a success."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setitem(command.NEEDED, "no_such_module", "what-it-is-called")
    assert command.main([]) == 2
    out = capsys.readouterr().out
    assert "has no what-it-is-called" in out
    assert out.count("\n") == 1


@pytest.mark.parametrize("broken", [False, True])
def test_its_exit_code_tells_of_what_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    broken: bool,
) -> None:  # fmt: skip
    """A subject that breaks is a row that is missed; the others are tried all the same."""
    monkeypatch.setattr(command, "missing", lambda: "")
    monkeypatch.setattr(command, "machine", lambda: "a machine")
    monkeypatch.setattr("bench.gpu.machine.Gpu", lambda settings: SimulatedMachine(tmp_path))
    if broken:
        monkeypatch.setattr(cost, "calls", lambda machine, settings: 1 / 0)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert command.main(["calls", "engines", "--quick"]) == broken
    out = capsys.readouterr().out
    assert "a validation inside the training" in out
    assert ("MISSED: calls: ZeroDivisionError" in out) == broken


def test_a_warning_of_firetraces_is_a_row() -> None:
    quiet, warned = command.Warned(), command.Warned()
    assert quiet.check().ok
    logging.getLogger("firetrace").warning("no device time is recorded")
    assert not warned.check().ok
    assert "no device time" in render([warned.check()])
