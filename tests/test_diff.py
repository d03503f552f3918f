"""Two runs compared: what changed is found and named, what noise can make is not claimed."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ignite.engine import Engine

from firetrace import TraceHandler
from firetrace.tracer.journal import FIRST_ROW, ROW_DTYPE
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tracer.writer import JournalWriter
from firetrace.tui.cli import main
from firetrace.tui.diff import Diff, Difference, diff
from firetrace.tui.noise import (
    Batches,
    corrected,
    mean_change,
    student_quantile,
    student_tail,
    typical_change,
)
from tests.support.recordings import engines, record, record_failing, record_killed


class Clock:
    """The recording's clock, which can be put forward: time passes at once, and in seconds.

    Beside those a busy machine's milliseconds are nothing, so the tests claim the same on any.
    """

    def __init__(self) -> None:
        self.forward_ns = 0

    def __call__(self) -> int:
        return time.monotonic_ns() + self.forward_ns

    def wait(self, seconds: int) -> None:
        self.forward_ns += seconds * 10**9

    def waits(self, seconds: int) -> Callable[[Engine], None]:
        return lambda engine: self.wait(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("fire", "rows", "shortcuts"):
        monkeypatch.setattr(f"firetrace.tracer.{module}.monotonic_ns", clock)
    return clock


def recorded(clock: Clock, forward: int = 10, handler: int | None = None) -> Path:
    """A run of 48 steps, with so many seconds for the forward pass and, if any, a handler."""

    def own_handler(engine: Engine) -> None:
        clock.wait(handler or 0)

    handlers = () if handler is None else (own_handler,)
    return record(epochs=4, steps=12, before=clock.waits(forward), handlers=handlers)


def compared(before: Path, after: Path) -> Diff:
    return diff(open_run(before).newest, open_run(after).newest)


def named(result: Diff, name: str, kind: str = "phase") -> Difference:
    (found,) = (each for each in result.names if (result.label(each), each.kind) == (name, kind))
    return found


def test_a_slower_phase_is_found_and_explains_the_step(clock: Clock) -> None:
    """A phase that takes longer makes the verdict, with its name and the step's growth."""
    fast, slow = recorded(clock), recorded(clock, forward=13)
    result = compared(fast, slow)
    assert named(result, "step", "step").verdict == "slower"
    assert named(result, "forward").verdict == "slower"
    assert not named(result, "loss").clear
    said = "step got 30% slower (10s -> 13s, p < 0.001); forward explains 100% of it"
    assert result.verdict == said
    back = compared(slow, fast)
    assert named(back, "forward").verdict == "faster"
    said = "step got 23% faster (13s -> 10s, p < 0.001); forward explains 100% of it"
    assert back.verdict == said


def test_a_slower_handler_is_found(clock: Clock) -> None:
    """So is a handler; phases that did the same as before explain nothing."""
    result = compared(recorded(clock, handler=1), recorded(clock, handler=45))
    assert named(result, "recorded.own_handler", "handler").verdict == "slower"
    said = (
        "step got 5 times as slow (11s -> 55s, p < 0.001); recorded.own_handler explains 100% of it"
    )
    assert result.verdict == said


def test_what_is_new_or_gone_is_listed_and_explains_the_step(clock: Clock) -> None:
    """A handler that only one run has is no difference, but it can be why a step grew."""
    without, having = recorded(clock), recorded(clock, handler=5)
    result = compared(without, having)
    assert [(each.name, each.kind) for each in result.new] == [("recorded.own_handler", "handler")]
    assert not result.gone
    assert "; new recorded.own_handler explains 100% of it" in result.verdict
    back = compared(having, without)
    assert [each.name for each in back.gone] == ["recorded.own_handler"]
    assert "; gone recorded.own_handler explains 100% of it" in back.verdict


def test_a_part_that_comes_more_often_is_named(clock: Clock) -> None:
    """A step that does the same thing four times is explained by that, not by its duration."""

    def trained(times: int) -> Path:
        def update(engine: Engine, batch: Any) -> None:
            for _ in range(times):
                with handler.span("augment"):
                    clock.wait(2)

        engine, handler = Engine(update), TraceHandler()
        handler.attach(engine)
        engine.run(range(25), max_epochs=2)
        assert handler.directory is not None
        directory = handler.directory
        handler.close()
        return directory

    result = compared(trained(1), trained(4))
    augment = named(result, "augment", "span")
    assert (augment.verdict, augment.often) == ("more often", 4)
    assert "; augment, 4 times as often, explains 100% of it" in result.verdict


def test_a_run_does_not_differ_from_itself() -> None:
    """All ratios are exactly 1, and nothing is claimed, new or gone."""
    run = record(epochs=4, steps=12)
    result = compared(run, run)
    assert result.verdict == "no difference that noise could not make"
    assert not result.new
    assert not result.gone
    for each in result.names:
        assert not each.clear
        assert each.before == each.after
        if each.mean and each.typical:
            assert each.mean.ratio == each.typical.ratio == 1.0
            assert each.mean.p == each.typical.p == 1.0
            assert each.mean.low <= 1 <= each.mean.high


def test_the_figures_are_those_of_the_rows() -> None:
    """Counts and means equal numpy's on the same rows, less the tenth that is warm-up."""
    run = record(epochs=5, steps=20)
    table = read_table(open_run(run).newest)
    (id,) = (id for id, name in table.names.items() if (name.kind, name.text) == ("phase", "loss"))
    rows = table.rows[table.rows["name"] == id]
    loss = named(compared(run, run), "loss").before
    assert loss.count == len(rows) == 100
    assert loss.mean_ns == pytest.approx((rows["end"] - rows["start"])[10:].mean())
    assert loss.per_step_ns == pytest.approx(loss.mean_ns)
    assert loss.in_a_step == 1


def test_only_what_lies_in_steps_explains_them() -> None:
    """A handler of an epoch's end is in no step; its evaluator's phases are in its own steps."""
    result = compared(record(), record())
    assert named(result, "engines.validate", "handler").before.in_a_step == 0
    fetches = [each for each in result.names if each.name == "get_batch"]
    assert {each.engine: each.before.in_a_step > 0 for each in fetches} == {
        "Trainer": True, "Evaluator": True,
    }  # fmt: skip
    assert {result.label(each) for each in fetches} == {"get_batch", "Evaluator: get_batch"}


def test_spans_that_were_cut_do_not_count() -> None:
    """Neither open spans nor those that an exception ended are compared, also after a kill."""
    failed, killed = record_failing(), record_killed()
    result = compared(failed, killed)
    for run, steps in ((failed, result.before.steps), (killed, result.after.steps)):
        table = read_table(open_run(run).newest)
        found = table.rows[table.of_kind("step")]
        main = found["lane"] == found["lane"][0]
        whole = main & (found["end"] != 0) & (found["flags"] == 0)
        assert steps == np.count_nonzero(whole) < np.count_nonzero(main)


def test_short_runs_are_too_short() -> None:
    """With one step there is nothing to tell; with none nothing to compare."""
    one, many = record(epochs=1, steps=1), record(epochs=4, steps=12)
    assert compared(one, one).verdict == "too few steps to tell a difference from noise"
    assert named(compared(one, many), "forward").verdict == "too few"
    writer = JournalWriter(many.parent / "rank0.1", {})
    writer.close()
    verdict = diff(writer.path, open_run(many).newest).verdict
    assert verdict == "the first run has no completed step: nothing to compare"


def test_a_run_that_goes_on_is_compared_as_far_as_it_is() -> None:
    """A live run is read to its present, and a note says so."""
    trainer = engines()
    trainer.run(range(30))
    time.sleep(0.005)  # of a live journal the last millisecond is left for later
    directory = trainer.recorder.directory
    assert directory is not None
    result = compared(directory, directory)
    assert named(result, "forward").before.count == 30
    assert any("still running" in note for note in result.before.notes)


def test_threads_of_one_engine_are_one(tmp_path: Path) -> None:
    """Spans of engines with the same name are compared together, whatever their threads."""
    writer = JournalWriter(tmp_path / "rank0.1", {})
    phase = writer.name("phase", "load")

    def load() -> None:
        pen, lane = writer.pen(), writer.lane("Loader", 1)
        for index in range(40):
            now = writer.wall_ns + index * 1000
            pen.close(pen.open(0, phase, lane, 0, 1, index, 0, now), now + 100, 0)

    for _ in range(2):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    writer.close()
    (found,) = diff(writer.path, writer.path).names
    assert (found.engine, found.before.count) == ("Loader", 80)


def stepped(path: Path, seed: int, slower: float = 1.0) -> Path:
    """A written run of one engine: 500 steps of 10 ms with 20% noise, the first takes a minute."""
    noise = 1 + 0.2 * np.random.default_rng(seed).standard_normal(500)
    path.mkdir()
    writer = JournalWriter(path / "rank0.1", {})
    pen, lane = writer.pen(), writer.lane("Trainer", 1)
    names = [writer.name(kind, kind) for kind in ("run", "step")] + [writer.name("phase", "fit")]
    now = writer.wall_ns - 3600 * 10**9
    run = pen.open(0, names[0], lane, 0, 0, 0, 0, now)
    for index, times in enumerate(np.maximum(noise, 0.1) * slower):
        step = pen.open(run, names[1], lane, 0, 1, index + 1, 0, now)
        phase = pen.open(step, names[2], lane, 0, 1, index + 1, 0, now)
        now += 60 * 10**9 if index == 0 else int(times * 10**7)
        pen.close(phase, now, 0)
        pen.close(step, now, 0)
    pen.close(run, now, 0)
    writer.close()
    return writer.path


def test_ten_percent_of_a_noisy_phase_is_found(tmp_path: Path) -> None:
    """500 steps are enough for +10% in 20% of noise; the slow first step does not count."""
    before, after = stepped(tmp_path / "a", 1), stepped(tmp_path / "b", 2, slower=1.1)
    result = diff(before, after)
    fit = named(result, "fit")
    assert fit.verdict == "slower"
    assert fit.mean is not None
    assert fit.mean.low < 1.1 < fit.mean.high
    assert fit.before.mean_ns < 11e6
    assert result.verdict.endswith("; fit explains 100% of it")
    assert diff(before, stepped(tmp_path / "c", 3)).verdict.startswith("no difference")


def durations(generator: np.random.Generator, count: int, shape: tuple[int, ...]) -> Any:
    """1 ms each, as real ones are: neighbours alike (0.9), stalls, and a slow drift."""
    noise = generator.standard_normal((*shape, count))
    for index in range(1, count):
        noise[..., index] = 0.9 * noise[..., index - 1] + math.sqrt(0.19) * noise[..., index]
    turns = np.linspace(0, 1, count) + generator.random((*shape, 1))
    drift = 0.1 * np.sin(2 * np.pi * turns)
    stalls = np.where(generator.random(noise.shape) < 0.01, 20, 1)
    return (10**6 * np.maximum(1 + 0.15 * noise + drift, 0.05) * stalls).astype(np.int64)


def reduced(values: Any) -> Batches:
    batches = Batches(len(values))
    batches.add(values)
    return batches


def test_noise_is_hardly_ever_a_difference() -> None:
    """Of 40 pairs of equal runs with ten names each, one in twenty may be claimed to differ."""
    generator = np.random.default_rng(5)
    runs = durations(generator, 400, (40, 10, 2))
    false = 0
    for pair in runs:
        chances = [
            change(reduced(before), reduced(after)).p
            for before, after in pair
            for change in (mean_change, typical_change)
        ]
        false += min(corrected(chances)) < 0.05
    assert false <= 2


def test_single_spans_would_have_claimed_it() -> None:
    """The same noise, taken for independent, would be a difference in a third of the pairs."""
    logs = np.log(durations(np.random.default_rng(5), 400, (100, 2)))
    error = np.hypot(logs[:, 0].std(axis=1), logs[:, 1].std(axis=1)) / math.sqrt(400)
    apart = np.abs(logs[:, 0].mean(axis=1) - logs[:, 1].mean(axis=1))
    assert np.mean(apart > 1.96 * error) > 1 / 3


def test_batches_are_the_same_however_the_durations_come() -> None:
    """A journal's blocks end anywhere; batches, means and medians do not show it."""
    generator = np.random.default_rng(1)
    for count in (1, 5, 17, 100, 1000):
        values = generator.integers(1, 10**9, count)
        whole, pieces = reduced(values), Batches(count)
        for piece in np.split(values, np.sort(generator.integers(0, count, 5))):
            pieces.add(piece)
        pieces.add(values)  # what comes meanwhile is left out
        assert (whole.means, whole.medians) == (pieces.means, pieces.medians)
        assert whole.mean == pieces.mean == pytest.approx(values[min(10, count // 10) :].mean())


@pytest.mark.parametrize(
    ("t", "dof", "chance"),
    [(12.7062, 1, 0.05), (4.302653, 2, 0.05), (2.228139, 10, 0.05), (3.645959, 30, 0.001)],
)
def test_students_distribution(t: float, dof: float, chance: float) -> None:
    """Tail and quantile equal the printed tables."""
    assert student_tail(t, dof) == pytest.approx(chance, rel=1e-4)
    assert student_tail(-t, dof) == student_tail(t, dof)
    assert student_quantile(chance, dof) == pytest.approx(t, rel=1e-4)


def test_holms_correction() -> None:
    """The smallest chance counts for all, the next for all but one; order is kept."""
    assert corrected([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert corrected([]) == []


def test_durations_of_nothing_make_no_trouble() -> None:
    """Spans shorter than the clock's tick, all equal: a ratio of 1, or a certain change."""
    nothing, something = reduced(np.zeros(50, np.int64)), reduced(np.full(50, 1000))
    assert mean_change(nothing, nothing).p == 1
    change = mean_change(nothing, something)
    assert (change.ratio, change.low, change.high, change.p) == (1001, 1001, 1001, 0)


NASTY = "\x1b[31m[bold red]x[/] [link=file:///etc]\n\u202e"


def test_names_are_text(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Markup is shown as it is and escape codes as pictures, in table and verdict."""

    def trained(seconds: int) -> str:
        handler = TraceHandler(name="\x1b[31m[bold red]x")

        def update(engine: Engine, batch: Any) -> None:
            with handler.span(NASTY):
                clock.wait(seconds)

        engine = Engine(update)
        handler.attach(engine)
        engine.run(range(40))
        assert handler.directory is not None
        directory = str(handler.directory)
        handler.close()
        return directory

    runs = trained(1), trained(2)
    assert main(["diff", *runs]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("␛[31m[bold red]x[/] [link=file:///etc]␊�") >= 2
    assert main(["diff", "--json", *runs]) == 0
    said = json.loads(capsys.readouterr().out)
    assert NASTY in {each["name"] for each in said["names"]}


def test_the_text_says_what_the_json_says(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdict, runs and changes are the same; every chance and ratio is a number."""
    runs = [str(recorded(clock)), str(recorded(clock, forward=20))]
    assert main(["diff", *runs]) == 0
    text = capsys.readouterr().out
    assert main(["diff", "--json", *runs]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said["verdict"] in text
    assert (said["before"]["steps"], said["after"]["steps"]) == (48, 48)
    assert {each["kind"] for each in said["names"]} >= {"step", "phase", "handler"}
    first = said["names"][0]
    assert (first["name"], first["verdict"]) == ("step", "slower")
    assert set(first["mean"]) == set(first["typical"]) == {"ratio", "low", "high", "p"}
    for side in ("before", "after"):
        assert set(first[side]) == {
            "count", "mean_ns", "typical_ns", "per_step_ns", "in_a_step",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["{run}", "no/such/run"], 1, "no/such/run: no such run"),
        (["{empty}", "{run}"], 1, "no journal in this directory"),
        (["{run}", "{fake}"], 1, "not a firetrace journal"),
        (["{run}"], 2, "required: RUN"),
        ([], 2, "required: RUN"),
        (["{run}", "{run}", "{run}"], 2, "unrecognized arguments"),
    ],
)
def test_errors_have_their_exit_codes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    reason: str,
) -> None:
    """1 and one line where a run cannot be read, 2 for wrong usage; nothing on stdout."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "rank0.1.rows").write_text("x" * 5000)
    places = {"empty": str(tmp_path / "empty"), "fake": str(tmp_path / "fake")}
    places["run"] = str(record())
    try:
        ended = main(["diff", *(argument.format(**places) for argument in arguments)])
    except SystemExit as end:
        ended = end.code  # type: ignore[assignment]
    said = capsys.readouterr()
    assert ended == code
    assert reason in said.err
    assert said.out == ""
    if code == 1:
        assert said.err.startswith("firetrace: ")
        assert said.err.count("\n") == 1


def test_the_help_says_what_no_statistics_can(capsys: pytest.CaptureFixture[str]) -> None:
    """Examples, and that one run of two may have been slower for reasons outside of it."""
    with pytest.raises(SystemExit) as end:
        main(["diff", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "firetrace diff baseline candidate" in text
    assert "no statistics of two runs can rule" in text


def test_the_command_needs_no_torch() -> None:
    """A login node can compare."""
    run = str(record())
    program = (
        "import sys; from firetrace.tui.cli import main\n"
        f"assert main(['diff', {run!r}, {run!r}]) == 0\n"
        "heavy = ('torch', 'ignite', 'textual', 'opentelemetry')\n"
        "assert not [m for m in heavy if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_damaged_rows_are_counted_once(tmp_path: Path) -> None:
    """A row that makes no sense is left out, and a note says so."""
    path = stepped(tmp_path / "a", 1)
    rows = np.memmap(path, ROW_DTYPE, mode="r+")
    rows["end"][FIRST_ROW + 7] = 5
    rows.flush()
    assert diff(path, path).before.notes == ("1 damaged rows and 0 damaged lines left out",)


def looped(path: Path, steps: int, loaders: int, engine: str = "Trainer", loads: int = 1) -> Path:
    """A written run of one engine: so many steps of 10 ms, loaders between them, and spans."""
    path.mkdir(parents=True, exist_ok=True)
    writer = JournalWriter(path / "rank0.1", {})
    pen, lane = writer.pen(), writer.lane(engine, 1)
    kinds = (("run", "run"), ("step", "step"), ("loader", "worker start"), ("span", "load"))
    run_name, step_name, loader_name, span_name = (writer.name(*kind) for kind in kinds)
    now = writer.wall_ns - 3600 * 10**9
    run = pen.open(0, run_name, lane, 0, 0, 0, 0, now)
    for index in range(steps):
        step = pen.open(run, step_name, lane, 0, 1, index + 1, 0, now)
        for name, often in ((loader_name, loaders), (span_name, loads)):
            for _ in range(often):
                pen.close(pen.open(step, name, lane, 0, 1, index + 1, 0, now), now + 10**5, 0)
                now += 10**5
        now += 10**7
        pen.close(step, now, 0)
    pen.close(run, now, 0)
    writer.close()
    return writer.path


def test_how_often_needs_steps_and_is_not_said_of_loaders(tmp_path: Path) -> None:
    """Three steps are no claim, however many spans they have; a loader comes once an epoch."""
    few, often = looped(tmp_path / "a", 3, 1, loads=7), looped(tmp_path / "b", 3, 50, loads=350)
    result = diff(few, often)
    assert named(result, "load", "span").often == 50
    assert not any(each.clear for each in result.names)
    assert result.verdict == "too few steps to tell a difference from noise"
    one, more = looped(tmp_path / "c", 40, 1), looped(tmp_path / "d", 40, 50, loads=50)
    result = diff(one, more)
    assert named(result, "load", "span").verdict == "more often"
    assert not named(result, "worker start", "loader").clear


def test_too_few_steps_are_not_called_equal(clock: Clock) -> None:
    """Where a part of three steps got slower, of the steps themselves nothing is claimed."""

    def trained(seconds: int) -> Path:
        def update(engine: Engine, batch: Any) -> None:
            for _ in range(40):
                with handler.span("augment"):
                    clock.wait(seconds)

        engine, handler = Engine(update), TraceHandler()
        handler.attach(engine)
        engine.run(range(3))
        assert handler.directory is not None
        directory = handler.directory
        handler.close()
        return directory

    verdict = compared(trained(1), trained(2)).verdict
    assert verdict.startswith("augment got 100% slower")
    assert verdict.endswith("; too few steps to compare")


def test_other_main_engines_are_warned_of(tmp_path: Path) -> None:
    """A step of one engine is not a step of another."""
    one, other = looped(tmp_path / "a", 40, 1), looped(tmp_path / "b", 40, 1, engine="Evaluator")
    (note,) = diff(one, other).after.notes
    assert note.startswith("the main engine is Evaluator, in the other run Trainer")
    assert not diff(one, one).after.notes


def test_runs_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two journals of a run have their file names, two runs of a name their paths."""
    first = looped(tmp_path / "x" / "att", 9, 1)
    second = first.with_name("rank1.1.rows")
    second.write_bytes(first.read_bytes())
    meta = first.with_suffix(".meta.jsonl")
    second.with_suffix(".meta.jsonl").write_bytes(meta.read_bytes())
    assert main(["diff", str(first), str(second)]) == 0
    text = capsys.readouterr().out
    assert "before  att rank0.1.rows  9 steps" in text
    assert "after   att rank1.1.rows  9 steps" in text
    assert main(["diff", str(first), str(looped(tmp_path / "y" / "att", 9, 1))]) == 0
    text = "".join(capsys.readouterr().out.split())
    assert f"before{first}9steps" in text
    assert f"after{tmp_path / 'y' / 'att' / first.name}9steps" in text


@pytest.mark.parametrize("cells", [60, 80, None])
def test_figures_of_a_comparison_are_whole(
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cells: int | None,
) -> None:
    """Names and the less important columns give way."""
    runs = [str(recorded(clock)), str(recorded(clock, forward=13))]
    if cells:
        for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(cells))):
            monkeypatch.setenv(name, value)
    assert main(["diff", *runs]) == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    (row,) = (line for line in text.splitlines() if line.startswith("forward "))
    assert len(row) <= (cells or 160)
    assert "10s -> 13s" in row
    assert {"+30%", "+3s"} <= set(row.split())
    assert ("48 -> 48" in row) == (cells != 60)
    assert (" .. " in row) == (cells is None)
