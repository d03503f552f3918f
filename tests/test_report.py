"""The report and the command line: right numbers, clear errors, also after kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from firetrace import TraceHandler
from firetrace.tracer.journal import Flag
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tui.cli import main
from firetrace.tui.model.report import Report, Scalar, read_report
from firetrace.tui.model.slow import SlowStep
from firetrace.tui.text import print_report
from tests.support.recordings import record
from tests.support.simulated import MadeTime
from tests.support.trainings import plain_engine

MS = 10**6
TRAINING = """
import sys, time
from ignite.engine import Engine, Events
from firetrace import TraceHandler
evaluator = Engine(lambda engine, batch: time.sleep(0.002))
trainer = Engine(lambda engine, batch: time.sleep(0.005))
@trainer.on(Events.EPOCH_COMPLETED)
def validate(): evaluator.run(range(3))
handler = TraceHandler(sys.argv[1])
handler.attach(trainer); handler.attach(evaluator)
trainer.run(range(20), max_epochs=1000)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The directory of a training that got SIGKILL in the middle of an epoch."""
    path = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", TRAINING, str(path)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        journal = path / "rank0.1.rows"
        if journal.exists():
            table = read_table(journal)
            # In an epoch of the trainer, some steps in, and not in a validation.
            steps = table.of_kind("step")
            if len(steps) > 50 and table.lane(int(steps[-1])).engine != "<lambda>-2":
                break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return path


def test_after_kill_9_the_report_says_what_was_open(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every span that had ended is there, the open ones are named, the state is DIED."""
    assert main(["report", "--json", str(killed)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == "died"
    open_kinds = [span["kind"] for span in said["incomplete"]]
    assert open_kinds[:2] == ["run", "epoch"]
    assert said["steps"] > 40
    assert said["phases"]["get_batch"]["count"] >= said["steps"] - 1
    assert main(["report", str(killed)]) == 0
    text = capsys.readouterr().out
    assert "DIED" in text
    assert "open spans" in text
    # And it can be handed on.
    assert main(["export", "--to", "chrome", "-o", str(killed / "t.json"), str(killed)]) == 0


def test_the_numbers_are_numpys() -> None:
    """Counts, totals and maxima equal numpy's on the same rows, percentiles within 0.4%."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    engine.run(range(200), max_epochs=2)
    handler.close()
    assert handler.directory is not None
    with JournalReader(open_run(handler.directory).newest) as reader:
        reader.poll()
        rows, names = reader.rows, reader.meta.names
    result = read_report(open_run(handler.directory).newest)
    for name in ("get_batch", "forward", "loss", "backward", "optimizer"):
        (id,) = (i for i, n in names.items() if (n.kind, n.text) == ("phase", name))
        mine = rows[(rows["name"] == id) & (rows["flags"] & Flag.VOID == 0)]
        durations = mine["end"] - mine["start"]
        stats = result.phases[name]
        assert stats.count == len(durations)
        assert stats.total_ns == durations.sum()
        assert stats.max_ns == durations.max()
        for percent, value in ((50, stats.p50_ns), (95, stats.p95_ns), (99, stats.p99_ns)):
            wanted = np.percentile(durations, percent)
            assert abs(value - wanted) <= max(0.5, 0.004 * wanted)
    assert result.steps == 400
    assert result.epochs == 2
    assert result.spans == int((rows["flags"] & Flag.VOID == 0).sum())
    assert result.state == "finished"
    assert result.progress.fraction == 1.0
    longest = [step.duration_ns for step in result.slowest_steps]
    (id,) = (i for i, n in names.items() if n.kind == "step")
    steps = rows[rows["name"] == id]
    assert longest == sorted((steps["end"] - steps["start"]).tolist(), reverse=True)[:10]


def slow_part(part: str, time: MadeTime) -> Any:
    """An engine that spends its time in one part, recorded; returns its report."""
    from ignite.engine import Engine, Events

    def time_waster() -> None:
        time.pass_by(4 * MS)

    def data() -> Any:
        for item in range(15):
            if part == "data":
                time_waster()
            yield item

    def step(engine: Engine, batch: int) -> None:
        if part == "compute":
            time_waster()

    engine, evaluator = Engine(step), Engine(lambda engine, batch: time_waster())
    if part == "handler":
        engine.add_event_handler(Events.ITERATION_COMPLETED, time_waster)
    if part == "validation":
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(range(20)) and None)
    handler = TraceHandler()
    handler.attach(engine)
    handler.attach(evaluator)
    engine.run(data(), epoch_length=15)
    handler.close()
    assert handler.directory is not None
    return read_report(open_run(handler.directory).newest)


@pytest.mark.parametrize(
    ("part", "word", "figure"),
    [
        ("data", "DATA-BOUND", "waiting for data is"),
        ("compute", "COMPUTE-BOUND", "the process function is"),
        ("handler", "HANDLER-BOUND", "time_waster"),
        ("validation", "VALIDATION-BOUND", "is"),
    ],
)
def test_the_verdict_names_the_slow_part(
    part: str, word: str, figure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the time was put is what the verdict says."""
    verdict = slow_part(part, MadeTime(monkeypatch)).verdict
    assert verdict.startswith(word), verdict
    assert figure in verdict


def test_json_has_what_scripts_need(sample_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The documented keys, with the documented types, for a real MONAI training."""
    assert main(["report", "--json", str(sample_run.parent)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["spans"] > 100
    assert (said["steps"], said["epochs"]) == (4, 2)
    keys = {"count", "total_ns", "p50_ns", "p95_ns", "p99_ns", "max_ns", "share", "drift"}
    for group in ("phases", "handlers"):
        assert said[group]
        for stats in said[group].values():
            assert set(stats) == keys
    assert {"forward", "loss", "backward", "optimizer", "get_batch", "prepare_batch"} <= set(
        said["phases"]
    )
    assert "ValidationHandler" in said["handlers"]
    assert "SupervisedEvaluator: CheckpointSaver.metrics_completed" in said["handlers"]
    assert said["incomplete"] == []
    assert said["slowest_steps"][0]["largest"]
    assert [epoch["epoch"] for epoch in said["epoch_times"]] == [1, 2]
    assert "loss" in [scalar["name"] for scalar in said["scalars"]]


def test_the_report_is_text(sample_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there are no escape codes, and names are whole."""
    assert main(["report", str(sample_run)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    for word in (
        "has finished",
        "backward",
        "SupervisedEvaluator: CheckpointSaver.metrics_completed",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["report", "no/such/run"], "no/such/run: no such run"),
        (["report", "nosuchname"], "nosuchname: no such run"),
        (["report", "{empty}"], "no journal in this directory"),
        (["report", "{file}"], "not a run"),
        (["report", "{fake}"], "not a firetrace journal"),
        (["report"], "no run found"),
        (["export", "--to", "chrome", "{fake}"], "not a firetrace journal"),
        (["watch"], "watch needs a terminal"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    """Exit code 1 and one line that names the path and the reason; no traceback."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "rank0.1.rows").write_text("x" * 5000)
    places = {name: str(tmp_path / name) for name in ("empty", "file", "fake")}
    assert main([argument.format(**places) for argument in arguments]) == 1
    said = capsys.readouterr()
    assert reason in said.err
    assert said.err.startswith("firetrace: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["export"], ["prune"], ["report", "--x"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As every command line has it."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_runs_are_listed_found_and_pruned(
    own_folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is the default from any folder; prune keeps what it is told, and the living."""
    made = []
    for name in ("first", "second", "third"):
        engine = plain_engine()
        handler = TraceHandler(name=name)
        handler.attach(engine)
        engine.run([1])
        made.append(handler.directory)
        if name != "third":
            handler.close()
    monkeypatch.setenv("FIRETRACE_DIR", "/nowhere")  # only the user's index knows them now
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(str(path) in listed for path in made)
    assert listed.count("over") == 2
    assert listed.count("alive") == 1
    assert main(["report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(made[-1])
    assert main(["report", "--json", "first"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(made[0])
    assert main(["prune", "--keep", "0", "--dry-run"]) == 0
    assert len(list(own_folders.iterdir())) == 3
    assert main(["prune", "--keep", "0"]) == 0
    assert "(still being written)" in capsys.readouterr().out
    assert list(own_folders.iterdir()) == [made[-1]]


def test_prune_leaves_other_files_alone(own_folders: Path) -> None:
    """A run's directory with something of the user's in it loses only the journals."""
    engine = plain_engine()
    handler = TraceHandler(own_folders / "mine")
    handler.attach(engine)
    engine.run([1])
    handler.close()
    (own_folders / "mine" / "model.pt").write_text("weights")
    assert main(["prune", "--keep", "0"]) == 0
    assert [path.name for path in (own_folders / "mine").iterdir()] == ["model.pt"]


def test_a_closed_pipe_is_no_error(sample_run: Path) -> None:
    """``firetrace report | head -1`` ends quietly."""
    command = f"{sys.executable} -m firetrace.tui.cli report {sample_run} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=os.environ
    )
    assert done.stderr == ""


@pytest.mark.parametrize("command", [["report", "{run}"], ["diff", "{run}", "{run}"], ["list"]])
def test_a_pipe_that_nobody_reads_is_no_error(command: list[str]) -> None:
    """Exit code 0 and no word, whatever the first line was when ``head`` had enough."""
    run = str(record())
    words = [word.format(run=run) for word in command]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "firetrace.tui.cli", *words],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def with_long_names() -> Report:
    """A report whose names are 10 kB long, and whose times take all the cells they can."""
    found = read_report(open_run(record(epochs=25)).newest)
    stats = found.phases["forward"]
    wide = replace(
        stats, count=1_234_567, total_ns=123 * 10**9, p50_ns=111 * 10**6, p95_ns=112 * 10**6,
        p99_ns=113 * 10**6, max_ns=114 * 10**6, drift=0.21, share=0.87,
    )  # fmt: skip
    slow = replace(found.slowest_steps[0], because=(("a" * 10_000, 115 * 10**6),))
    assert isinstance(slow, SlowStep)
    return replace(
        found,
        step=wide, phases={"forward": wide}, handlers={"h" * 10_000: wide, "界" * 99: wide},
        slowest_steps=(slow,), scalars=(Scalar("s" * 10_000, 116, 0.1832, (1.0, 2.0)),) * 23,
    )  # fmt: skip


@pytest.mark.parametrize(("cells", "left_out"), [(60, 3), (80, 1), (None, 0)])
def test_figures_are_whole_however_narrow(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cells: int | None,
    left_out: int,
) -> None:
    """In a terminal and a pipe names are clipped; columns go, the least important first."""
    if cells:
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(cells))
    print_report(with_long_names())
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    rows = [line for line in text.splitlines() if "1,234,567" in line]
    assert len(rows) == 4
    figures = ["113ms", "+21%", "2m03s"]  # p99, lately, total
    for row, share in zip(rows, ("", "87%", "87%", "87%"), strict=True):
        assert cell_len(row) <= (cells or 160)
        assert set(row.split()) >= {"1,234,567", "111ms", "112ms", "114ms", *share.split()}
        assert row.split()[0] not in ("", "…")
    assert [figure in rows[-1] for figure in figures] == [i >= left_out for i in range(3)]
    assert ("too narrow to show: p99" in text) == bool(left_out)
    assert "aaa… +115ms" in text
    assert "0.1832" in text


def test_a_table_that_goes_on_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 25 epochs the last 20 are shown, of 23 scalars 20."""
    print_report(with_long_names())
    text = capsys.readouterr().out
    assert "... and 5 earlier (--json has more)" in text
    assert "... and 3 more (--json has all)" in text


def test_the_list_has_the_end_of_a_path_where_it_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_folders: Path
) -> None:
    """The run's name is there at 60 cells; a pipe has whole paths."""
    deep = own_folders / ("d" * 200)
    handler = TraceHandler(deep / "myrun")
    engine = plain_engine()
    handler.attach(engine)
    engine.run([1])
    handler.close()
    assert main(["list"]) == 0
    assert str(deep / "myrun") in capsys.readouterr().out
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "60")):
        monkeypatch.setenv(name, value)
    assert main(["list"]) == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    (row,) = (line for line in text.splitlines() if "myrun" in line)
    assert row.startswith("…d")
    assert row.split()[0].endswith("d/myrun")
    assert "over" in row
    assert cell_len(row) <= 60


@pytest.mark.parametrize("every", [2, 10, 64])
def test_thinned_steps_count_as_if_they_were_recorded(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of which every Nth step is there, the verdict and the counts are the same."""
    from ignite.engine import Engine

    time = MadeTime(monkeypatch)

    class Data:
        def __iter__(self) -> Iterator[int]:
            for item in range(40):
                time.pass_by(4 * MS)
                yield item

    engine = Engine(lambda engine, batch: time.pass_by(MS))
    handler = TraceHandler(every=every)
    handler.attach(engine)
    engine.run(Data(), max_epochs=3, epoch_length=40)
    handler.close()
    assert handler.directory is not None
    result = read_report(open_run(handler.directory).newest)
    assert result.verdict.startswith("DATA-BOUND"), result.verdict
    assert result.iterations == 120
    assert [epoch.iterations for epoch in result.epoch_times] == [40, 40, 40]
    assert result.progress.fraction == 1.0
    assert result.steps == 120 // every


def test_a_validation_before_the_training_is_not_taken_for_it() -> None:
    """The main engine is the one that means to run longest, whichever ran first or last."""
    from ignite.engine import Engine

    trainer, evaluator = (Engine(lambda engine, batch: None) for _ in range(2))
    handler = TraceHandler()
    handler.attach(trainer)
    handler.attach(evaluator)
    evaluator.run(range(3))
    trainer.run(range(4), max_epochs=5)
    evaluator.run(range(30))
    handler.close()
    assert handler.directory is not None
    result = read_report(open_run(handler.directory).newest)
    assert (result.steps, result.epochs, result.progress.max_epochs) == (20, 5, 5)


def test_json_is_json_when_a_loss_is_not_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    """What is not finite is null: NaN is no JSON."""
    from ignite.engine import Engine

    values = [1.0, float("nan"), float("inf"), float("nan")]
    engine = Engine(lambda engine, batch: values[batch])
    handler = TraceHandler()
    handler.attach(engine, output_transform=lambda output: {"loss": output})
    engine.run(range(4))
    handler.close()
    assert main(["report", "--json", str(handler.directory)]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    said = json.loads(capsys.readouterr().out, parse_constant=refuse)
    (loss,) = said["scalars"]
    assert (loss["last"], loss["count"]) == (None, 4)
