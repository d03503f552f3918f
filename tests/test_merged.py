"""Exports of many processes: ranks, their attempts and their workers, read by the real readers."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from firetrace.exporters.chrome.export import export_chrome
from firetrace.exporters.chrome.run import export_run
from firetrace.exporters.chrome.values import safe
from firetrace.exporters.journals import members, paths, readable
from firetrace.exporters.otlp.file import export_otlp_file
from firetrace.exporters.selection import Selection
from firetrace.tracer import stream
from firetrace.tracer.run import open_run
from firetrace.tracer.stream import blocks
from firetrace.tracer.table import read_table
from firetrace.tui.cli import main
from tests.support.many import ERROR, Made, Plan, Process, three_ranks, write
from tests.support.perfetto import PerfettoTrace

SLICES = """
    select s.name, s.ts, s.dur, s.category, p.name as process, t.name as thread,
        extract_arg(s.arg_set_id, 'args.row') as row
    from slice s join thread_track k on s.track_id = k.id join thread t using (utid)
    join process p using (upid) where s.category != 'mark'
"""
FLOWS = """
    select o.name as source, i.name as target, i.category, i.ts - o.ts as late,
        extract_arg(o.arg_set_id, 'args.row') as batch, ot.name as worker, p.name as process,
        extract_arg(i.arg_set_id, 'args.row') as row,
        extract_arg(a.arg_set_id, 'args.row') as around
    from flow f join slice o on f.slice_out = o.id join slice i on f.slice_in = i.id
    left join slice a on i.parent_id = a.id
    join thread_track k on o.track_id = k.id join thread ot using (utid)
    join process p using (upid) where o.category = 'batch'
"""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Three ranks, one of which began twice and one is on another host, with workers."""
    return three_ranks(tmp_path / "a [bold]run")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)


def check_slices(trace: PerfettoTrace, made: Made) -> None:
    """Each span of each journal is there once, where it was and as long as it was."""
    found = {(row["process"], row["thread"], row["row"]): row for row in trace.sql(SLICES)}
    rows = trace.sql("select count(*) as n from slice where category != 'mark'")
    zero = next(iter(made.processes.values())).journal
    run = min(zero.times)
    expected = {
        (name, safe(each.lanes[row]), row): (each, row)
        for name, process in made.processes.items()
        for each in (process.journal, *process.data) for row in each.times
    }  # fmt: skip
    assert found.keys() == expected.keys()
    assert rows == [{"n": len(expected)}]
    start = found[next(key for key, value in expected.items() if value == (zero, run))]["ts"]
    for key, (journal, row) in expected.items():
        begin, end = journal.times[row]
        got = found[key]
        assert got["name"] == safe(journal.names[row])
        assert got["dur"] == end - begin
        off = abs(got["ts"] - start - (begin - zero.times[run][0]))
        assert off == (ERROR // 2 if "±" in key[0] else 0)


def test_ranks_are_processes_and_workers_threads(made: Made, tmp_path: Path) -> None:
    """Perfetto has every span of every journal with its exact duration, at the same time as others.

    The ranks' clocks differ by seconds; on one boot that is put right to the nanosecond, for
    another host within the error, which stands in the process's name.
    """
    path = tmp_path / "t.json"
    count = export_run(made.members, path)
    assert count == sum(len(read_table(each)) for each in paths(made.members))
    with PerfettoTrace(path) as trace:
        check_slices(trace, made)
        order = trace.sql("select pid, name from process where name is not null order by pid")
        threads = trace.sql(
            "select t.name, is_main_thread as main from thread t join process p using (upid)"
            " where p.pid = 2 and t.name is not null order by tid"
        )
    names = [*made.processes]
    assert [(row["pid"], row["name"]) for row in order] == [
        (1, names[0]), (2, names[2]), (3, names[3]), (4, names[1]),
    ]  # fmt: skip
    assert [row["name"] for row in threads] == ["Trainer", "Evaluator", "worker 0", "worker 1"]
    assert not any(row["main"] for row in threads)
    events = json.loads(path.read_bytes())
    sort = [event for event in events if event["name"] == "process_sort_index"]
    assert [event["args"]["sort_index"] for event in sort] == [0, 1, 2, 3]
    flows = [event["id"] for event in events if event["ph"] == "s"]
    assert len(flows) == len(set(flows))


def test_arrows_lead_from_batches_to_what_used_them(made: Made, tmp_path: Path) -> None:
    """As many as batches were used: to the fetch, or step; where that waited, to a mark in it."""
    path = tmp_path / "t.json"
    export_run(made.members, path)
    with PerfettoTrace(path) as trace:
        flows = trace.sql(FLOWS)
    found = {(flow["process"], flow["worker"], flow["batch"]): flow for flow in flows}
    expected = {
        (name, own.lanes[row], row): (step, fetch, batch)
        for name, process in made.processes.items()
        for (_, batch), (own, row, step, fetch) in process.used.items()
    }
    assert len(expected) == 12 + 6 + 11 + 12
    assert len(flows) == len(found)
    assert found.keys() == expected.keys()
    for key, (step, fetch, batch) in expected.items():
        flow = found[key]
        assert flow["source"] == "batch"
        assert flow["late"] > 0
        if batch % 3:
            assert (flow["target"], flow["row"]) == (
                ("get_batch", fetch) if fetch else ("step", step)
            )
        else:
            assert flow["category"] == "mark"
            assert flow["target"] == f"batch {batch} of {key[1]}"
            assert flow["around"] == (fetch or step)


def test_one_journal_is_what_it_was(made: Made, tmp_path: Path) -> None:
    """A run of one process without workers gives the very bytes of an export of its journal."""
    alone = members(open_run(made.folder), [[0]], workers=False)
    export_run(alone, tmp_path / "run.json")
    export_chrome(blocks(alone[0].path), tmp_path / "journal.json")
    assert (tmp_path / "run.json").read_bytes() == (tmp_path / "journal.json").read_bytes()


def test_gzip_has_the_same_text(made: Made, tmp_path: Path) -> None:
    """And Perfetto takes it."""
    export_run(made.members, tmp_path / "t.json")
    export_run(made.members, tmp_path / "t.json.gz")
    text = gzip.decompress((tmp_path / "t.json.gz").read_bytes())
    assert text == (tmp_path / "t.json").read_bytes()
    with PerfettoTrace(tmp_path / "t.json.gz") as trace:
        check_slices(trace, made)


def test_what_was_not_compared_is_said(tmp_path: Path) -> None:
    """A rank on another host without a measured offset keeps its times, and says so."""
    folder, begin = tmp_path / "run", time.monotonic_ns()
    write(folder, Plan(0), begin)
    write(folder, Plan(1, boot_id="another", workers=0), begin)
    export_run(members(open_run(folder)), tmp_path / "t.json")
    with PerfettoTrace(tmp_path / "t.json") as trace:
        names = trace.sql("select name from process where name is not null order by pid")
    assert [row["name"] for row in names] == ["rank 0 run", "rank 1 run (clock not compared)"]


def test_a_clock_is_compared_over_an_earlier_attempt(tmp_path: Path) -> None:
    """A rank that knows the first attempt of rank 0 alone is aligned with the second."""
    folder, begin = tmp_path / "run", time.monotonic_ns()
    first = write(folder, Plan(0, 1, wrong_ns=10**9), begin)
    write(folder, Plan(1, boot_id="another", wrong_ns=10**12, compared=(first.journal, 2)), begin)
    write(folder, Plan(0, 2), begin)
    export_run(members(open_run(folder)), tmp_path / "t.json")
    with PerfettoTrace(tmp_path / "t.json") as trace:
        rows = trace.sql(SLICES + " and s.name = 'run' and t.name = 'Trainer'")
    times = [row["ts"] for row in rows]
    assert max(times) - min(times) == 1
    assert {row["process"] for row in rows} >= {"rank 1 run (clock ±1 µs)"}


def test_a_selection_keeps_the_batches_of_its_steps(made: Made, tmp_path: Path) -> None:
    """Slow steps, epochs, failures: of the workers only what was made for these."""
    for selection, used in (
        (Selection(slower_than_ns=25 * 10**6), {(1, 3), (2, 3)}),
        (Selection(errors=True), {(1, 5)}),
        (Selection(from_epoch=2), {(2, batch) for batch in range(1, 7)}),
    ):
        path = tmp_path / "t.json"
        some = members(open_run(made.folder), [[0]])
        count = export_run(some, path, selection)
        with PerfettoTrace(path) as trace:
            found = trace.sql(
                "select extract_arg(arg_set_id, 'args.pass') as pass,"
                " extract_arg(arg_set_id, 'args.batch') as batch from slice where name = 'batch'"
            )
            (all_,) = trace.sql("select count(*) as n from slice where category != 'mark'")
            flows = trace.sql(FLOWS)
        assert Counter((row["pass"], row["batch"]) for row in found) == Counter(used)
        assert all_["n"] == count
        assert len(flows) == len(used)
        file = tmp_path / "t.jsonl"
        assert export_otlp_file([*paths(some)], file, selection) == count


# The command


def exported(made: Made, tmp_path: Path, *words: str) -> Counter[str]:
    """How many spans of each process a trace has."""
    path = tmp_path / "t.json"
    assert main(["export", "--to", "chrome", "-o", str(path), *words]) == 0
    with PerfettoTrace(path) as trace:
        return Counter(row["process"] for row in trace.sql(SLICES))


def spans_in(process: Process, workers: bool = True) -> int:
    return sum(len(each.times) for each in (process.journal, *process.data * workers))


def test_the_command_takes_ranks_and_workers(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory is all journals, a file that rank's; --ranks and --no-workers take some."""
    names = [*made.processes]
    sizes = {name: spans_in(process) for name, process in made.processes.items()}
    assert exported(made, tmp_path, str(made.folder)) == sizes
    assert "of 12 journals. Open it" in capsys.readouterr().out
    own = {names[0]: sizes[names[0]]}
    assert exported(made, tmp_path, str(made.folder / "rank0.1.rows")) == own
    some = exported(made, tmp_path, str(made.folder), "--ranks", "0-1,1", "--no-workers")
    assert some == {
        name: spans_in(made.processes[name], False) for name in names[:3]
    }  # fmt: skip
    words = ["export", "--to", "chrome", str(made.folder), "--ranks"]
    for wrong in ("x", "3-1", ""):
        with pytest.raises(SystemExit, match="2"):
            main([*words, wrong])
    assert main([*words, "7"]) == 2
    assert f"there is no rank 7; {made.folder} has 0-2" in capsys.readouterr().err


def test_a_journal_that_cannot_be_read_is_left_out(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are exported, and one line says which was not."""
    (made.folder / "rank3.1.rows").write_bytes(b"nothing")
    assert len(exported(made, tmp_path, str(made.folder))) == 4
    assert "rank3.1.rows: not a firetrace journal; left out" in capsys.readouterr().err
    found = members(replace(open_run(made.folder), journals=(made.folder / "rank3.1.rows",)))
    with pytest.raises(Exception, match="not a firetrace journal"):
        readable(found)
