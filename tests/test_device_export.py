"""Device time in Perfetto: what its own trace processor makes of the device journals of a run."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from firetrace.exporters.chrome.run import export_run
from firetrace.exporters.journals import members
from firetrace.exporters.selection import Selection
from firetrace.tracer import stream
from firetrace.tracer.journal import HEADER_BYTES, ROW_BYTES, Flag
from firetrace.tracer.run import device_journal, open_run
from firetrace.tracer.table import read_table
from firetrace.tui.cli import main
from tests.support.device_exports import LABEL_BYTES, Training, program
from tests.support.launching import MS, Recorded, Span, finish, read, since
from tests.support.many import ERROR, Journal, Made, three_ranks
from tests.support.perfetto import PerfettoTrace
from tests.support.simulated import MadeTime, SimulatedGpu

ROOT = Path(__file__).parents[1]
SLICES = """
    select s.name, s.ts, s.dur, s.category, s.depth, t.name as thread, t.tid, p.name as process,
        extract_arg(s.arg_set_id, 'args.row') as row,
        extract_arg(s.arg_set_id, 'args.host_row') as host,
        extract_arg(s.arg_set_id, 'args.iteration') as iteration
    from slice s join thread_track k on s.track_id = k.id join thread t using (utid)
    join process p using (upid) where s.category != 'mark'
"""
FLOWS = """
    select extract_arg(o.arg_set_id, 'args.row') as source, o.category as category, o.name as name,
        extract_arg(i.arg_set_id, 'args.host_row') as target, i.name as there, p.name as process
    from flow f join slice o on f.slice_out = o.id join slice i on f.slice_in = i.id
    join thread_track k on i.track_id = k.id join thread t using (utid)
    join process p using (upid) where i.category in ('device', 'copy')
"""
MARKS = """
    select s.name, s.ts, s.arg_set_id as args, t.name as thread from slice s
    join thread_track k on s.track_id = k.id join thread t using (utid)
    where s.category = 'mark' order by s.ts
"""
COUNTERS = """
    select c.ts, c.value from counter c join counter_track k on c.track_id = k.id
    where k.name = '{}' order by c.ts
"""
DEVICE_KINDS = "device", "copy"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """On a clock that is made."""
    return SimulatedGpu(label="cuda:0", rate=1 + 20e-6, time=MadeTime(monkeypatch))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, every_batch: None) -> None:
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)


def trained(training: Training) -> Recorded:
    """Train, and read what was recorded."""
    training.trainer.run()
    return finish(training.handler, training.gpu)


def export(folder: Path, path: Path, selection: Selection | None = None) -> int:
    return export_run(members(open_run(folder)), path, selection)


def settled(found: Recorded) -> list[Span]:
    return [span for span in found.spans() if span.device[1] and not span.flags & Flag.CUT]


def check(trace: PerfettoTrace, found: Recorded, spans: list[Span]) -> None:
    """Each of these is a slice where it was and as long as it was; its phase leads there."""
    all_ = trace.sql(SLICES)
    host = {row["row"]: row for row in all_ if row["category"] not in DEVICE_KINDS}
    first = int(found.main.numbers[0])
    begin = host[first]["ts"] - (int(found.main.rows["start"][0]) - since(found.main.header))
    slices = {row["host"]: row for row in all_ if row["category"] in DEVICE_KINDS}
    assert len(slices) == sum(row["category"] in DEVICE_KINDS for row in all_)
    assert slices.keys() == {span.row for span in spans}
    for span in spans:
        got = slices[span.row]
        assert (got["ts"], got["dur"]) == (begin + span.device[0], span.ns)
        assert got["category"] == span.kind
        assert got["name"] == ("copy to device" if span.kind == "copy" else span.name)
        assert got["iteration"] == span.iteration
        assert got["thread"].startswith(span.lane)
        assert got["tid"] > max(row["tid"] for row in host.values())
    flows = trace.sql(FLOWS)
    assert sorted(flow["source"] for flow in flows) == sorted(s.row for s in spans if s.ns)
    for flow in flows:
        assert flow["source"] == flow["target"]
        assert flow["name"] == host[flow["source"]]["name"]
        assert flow["category"] == "phase"


def counter(trace: PerfettoTrace, name: str) -> list[float]:
    return [row["value"] for row in trace.sql(COUNTERS.format(name))]


def args_of(trace: PerfettoTrace, mark: dict[str, Any]) -> dict[str, Any]:
    rows = trace.sql(
        "select key, coalesce(string_value, cast(int_value as text)) as value from args"
        f" where arg_set_id = {mark['args']}"
    )
    return {row["key"].removeprefix("args."): row["value"] for row in rows}


def test_the_device_is_a_thread_below_the_engines(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Every row is a slice with its very times and an arrow from its phase; there are counters."""
    training = Training(tmp_path / "run", gpu)
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, training.grow)
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: gpu.time.pass_by(9 * MS)
    )
    found = trained(training)
    spans = settled(found)
    path = tmp_path / "t.json"
    count = export(training.folder, path)
    assert count == len(found.main) + len(spans)
    with PerfettoTrace(path) as trace:
        check(trace, found, spans)
        threads = trace.sql("select name, tid from thread where name is not null order by tid")
        for name in ("memory allocated", "memory reserved", "memory peak", "copied to device"):
            assert counter(trace, f"cuda:0 {name}") == found.scalars(name)
        times = [row["ts"] for row in trace.sql(COUNTERS.format("cuda:0 memory allocated"))]
        (zero,) = trace.sql("select ts from slice where name = 'run' and depth = 0 limit 1")
    names = ["SupervisedTrainer", "SupervisedEvaluator", "cuda:0"]
    assert [row["name"] for row in threads] == names
    assert len(set(found.scalars("memory allocated"))) > 1
    assert set(found.scalars("copied to device")) == {LABEL_BYTES}
    assert {span.kind for span in spans} == {"device", "copy"}
    ids = [id for id, name in found.device.names.items() if name.text == "memory allocated"]
    rows = found.device.scalars[np.isin(found.device.scalars["name"], ids)]
    begun = int(found.main.rows["start"][0]) - since(found.main.header)
    expected = [int(row["start"]) - since(found.device.header) - begun for row in rows]
    assert [time - zero["ts"] for time in times] == expected


def test_streams_that_overlap_lie_side_by_side(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """What overlaps in a lane has another one, so no slice is shortened, nested or lost."""
    training = Training(tmp_path / "run", gpu, steps=10, epochs=1)

    @training.trainer.on(Events.GET_BATCH_STARTED)
    def change(engine: Engine) -> None:
        gpu.stream = engine.state.iteration % 2

    found = trained(training)
    export(training.folder, tmp_path / "t.json")
    with PerfettoTrace(tmp_path / "t.json") as trace:
        check(trace, found, settled(found))
        threads = {row["thread"] for row in trace.sql(SLICES)}
        deep = trace.sql(SLICES + " and s.category = 'device' and s.depth > 0 and s.dur > 0")
    assert threads == {"SupervisedTrainer", "SupervisedEvaluator", "cuda:0", "cuda:0 #2"}
    assert not deep


def test_full_memory_is_a_mark(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """With what was allocated then."""
    training = Training(tmp_path / "run", gpu)
    launch = training.parts.launch

    def full(phase: str) -> None:
        if phase == "forward" and training.trainer.state.iteration == 5:
            gpu.allocated, gpu.failures = 70 * 2**30, 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate [b]2 GiB")
        launch(phase)

    training.parts.launch = full
    with pytest.raises(torch.OutOfMemoryError):
        training.trainer.run()
    found = finish(training.handler, gpu)
    export(training.folder, tmp_path / "t.json")
    with PerfettoTrace(tmp_path / "t.json") as trace:
        check(trace, found, settled(found))
        (mark,) = [row for row in trace.sql(MARKS) if row["name"] == "out of memory"]
        said = args_of(trace, mark)
    assert mark["thread"] == "cuda:0"
    assert said["iteration"] == "5"
    assert said["ignite.device.memory.allocated"] == str(70 * 2**30)
    assert "Tried to allocate [b]2 GiB" in said["ignite.device.memory.message"]


def test_what_was_never_reached_is_no_slice(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Its times are not known; a mark at the end says of how many, and why."""
    training = Training(tmp_path / "run", gpu, epochs=1)
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=4), lambda engine: setattr(gpu, "stuck", True)
    )
    found = trained(training)
    left = len(found.spans()) - len(settled(found))
    assert left > 6
    export(training.folder, tmp_path / "t.json")
    with PerfettoTrace(tmp_path / "t.json") as trace:
        check(trace, found, settled(found))
        (mark,) = [row for row in trace.sql(MARKS) if row["thread"] == "cuda:0"]
        assert mark["name"] == f"{left} phases without device time"
        assert args_of(trace, mark) == {"not reached by the device": str(left)}


def test_a_killed_process_leaves_no_endless_slice(tmp_path: Path) -> None:
    """Rows that stayed open are none: nothing on the device's track is longer than it was."""
    folder = tmp_path / "run"
    done = subprocess.run(program("train_and_die", str(folder)), cwd=ROOT, timeout=100, check=False)
    assert done.returncode == -9
    found = read(folder)
    spans = settled(found)
    left = [span for span in found.spans() if not span.device[1]]
    assert len(left) > 10
    export(folder, tmp_path / "t.json")
    with PerfettoTrace(tmp_path / "t.json") as trace:
        check(trace, found, spans)
        assert not trace.sql(SLICES + " and s.dur < 0 and t.name = 'cuda:0'")
        (mark,) = [row for row in trace.sql(MARKS) if row["thread"] == "cuda:0"]
        assert args_of(trace, mark) == {"the process ended before": str(len(left))}


# A part of a run


@pytest.mark.parametrize("what", ["epoch", "slow", "time"])
def test_a_selection_takes_what_its_phases_did(
    gpu: SimulatedGpu, tmp_path: Path, what: str
) -> None:
    """Of the device only rows whose phase is there; counters of those steps."""
    training = Training(tmp_path / "run", gpu)
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, training.grow)
    for slow in (3, 9):
        training.trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=slow), lambda engine: gpu.time.pass_by(50 * MS)
        )
    found = trained(training)
    rows, steps = found.main.rows, found.main.of_kind("step")
    middle = int(rows["start"][steps[len(steps) // 2]])
    selection = {
        "epoch": Selection(from_epoch=2),
        "slow": Selection(slower_than_ns=40 * MS),
        "time": Selection(from_ns=middle),
    }[what]
    export(training.folder, tmp_path / "t.json", selection)
    with PerfettoTrace(tmp_path / "t.json") as trace:
        shown = {row["row"] for row in trace.sql(SLICES) if row["category"] == "phase"}
        spans = [span for span in settled(found) if span.row in shown]
        check(trace, found, spans)
        copied = counter(trace, "cuda:0 copied to device")
        allocated = counter(trace, "cuda:0 memory allocated")
    assert 0 < len(spans) < len(settled(found))
    assert len(copied) == sum(span.kind == "copy" for span in spans)
    everything = found.scalars("memory allocated")
    assert 0 < len(allocated) < len(everything)
    if what == "slow":  # noted when the two steps ended
        assert {span.iteration for span in spans} == {3, 9}
        assert len(allocated) == 2


# Many ranks


def with_devices(made: Made) -> dict[str, dict[int, tuple[int, int]]]:
    """Give each rank a device journal; by process and row, when its phases were on the device."""
    expected: dict[str, dict[int, tuple[int, int]]] = {}
    for name, process in made.processes.items():
        rank = process.journal
        wrong_ns = rank.wall_ns - (rank.writer.wall_ns - rank.writer.monotonic_ns)
        later = time.time_ns() + 12_345  # by a wall clock that was set meanwhile
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time_ns", lambda later=later: later)
            own = Journal(device_journal(rank.path).with_suffix(""), {}, wrong_ns, rank._boot_id)
        lane = own.lane(f"cuda:{len(expected)}", 0)
        found = expected[name] = {}
        failed = {rank.times[row][1] for row, flags in rank._flags.items() if flags}
        for row, text in rank.names.items():
            begin, end = rank.times[row]
            if text == "get_batch" and begin not in failed and end - begin > MS:  # any phase
                found[row] = begin + 777, begin + MS
                own.span(0, "device", text, lane, (row, 1), *found[row])
        own.close()
    return expected


def test_each_rank_has_its_device(tmp_path: Path) -> None:
    """In its process, and at the time of the reference, as exactly as the rank itself."""
    made = three_ranks(tmp_path / "run")
    expected = with_devices(made)
    export(made.folder, tmp_path / "t.json")
    zero = next(iter(made.processes.values())).journal
    with PerfettoTrace(tmp_path / "t.json") as trace:
        rows = trace.sql(SLICES)
        flows = trace.sql(FLOWS)
    run = min(zero.times)
    (begin,) = [
        row["ts"] - zero.times[run][0] for row in rows
        if (row["row"], row["category"], row["process"]) == (run, "run", "rank 0 run")
    ]  # fmt: skip
    slices = {(row["process"], row["host"]): row for row in rows if row["category"] == "device"}
    assert slices.keys() == {(name, row) for name, each in expected.items() for row in each}
    assert sum(map(len, expected.values())) > 20
    for (name, row), got in slices.items():
        start, end = expected[name][row]
        assert got["dur"] == end - start
        assert abs(got["ts"] - begin - start) == (ERROR // 2 if "±" in name else 0)
    assert sorted((f["process"], f["source"]) for f in flows) == sorted(slices)
    threads = {row["process"]: row["thread"] for row in slices.values()}
    assert [threads[name] for name in expected if expected[name]] == [
        f"cuda:{index}" for index, each in enumerate(expected.values()) if each
    ]


# Journals that are not what they should be


def damaged(path: Path, how: str) -> None:
    """Spoil a journal."""
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(3)
    if how == "header":
        data[:8] = b"nothing\n"
    elif how == "rows":
        at = random.integers(HEADER_BYTES, len(data), len(data) // 20)
        for place in at.tolist():
            data[place] = int(random.integers(0, 256))
    elif how == "noise":
        data[HEADER_BYTES:] = random.bytes(len(data) - HEADER_BYTES)
    elif how == "empty":
        del data[HEADER_BYTES:]
    elif how == "cut":
        del data[HEADER_BYTES + 5 * ROW_BYTES + 7 :]
    elif how == "names":
        path.with_suffix("").with_suffix(".device.meta.jsonl").write_bytes(random.bytes(5000))
    elif how == "gone":
        path.unlink()
        return
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["header", "rows", "noise", "cut", "empty", "names", "gone"])
@pytest.mark.parametrize("to", ["chrome", "otlp-file"])
def test_a_bad_device_journal_fails_no_export(
    gpu: SimulatedGpu, tmp_path: Path, how: str, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every span of the rank's is there; one that cannot be read at all is named."""
    training = Training(tmp_path / "run", gpu)
    found = trained(training)
    damaged(device_journal(training.path), how)
    path = tmp_path / "out.json"
    assert main(["export", "--to", to, "-o", str(path), str(training.folder)]) == 0
    said = capsys.readouterr().err
    assert ("rank0.1.device.rows: not a firetrace journal; left out" in said) == (how == "header")
    if to == "chrome":
        with PerfettoTrace(path) as trace:
            rows = {r["row"] for r in trace.sql(SLICES) if r["category"] not in DEVICE_KINDS}
        assert rows >= set(found.main.numbers.tolist())
    else:
        assert path.read_bytes().count(b'"spanId"') >= len(found.main)


def test_a_device_journal_that_goes_away(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Between being chosen and being read."""
    training = Training(tmp_path / "run", gpu)
    found = trained(training)
    chosen = members(open_run(training.folder))
    assert chosen[0].device is not None
    chosen[0].device.unlink()
    assert export_run(chosen, tmp_path / "t.json") == len(found.main)
    alone = [replace(chosen[0], device=None)]
    export_run(alone, tmp_path / "alone.json")
    with PerfettoTrace(tmp_path / "t.json") as one, PerfettoTrace(tmp_path / "alone.json") as two:
        assert one.sql(SLICES) == two.sql(SLICES)
    assert len(read_table(training.path)) == len(found.main)
