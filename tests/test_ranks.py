"""Many ranks: who is blamed, who is not, who died first; against runs of which all is known."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from firetrace.tracer import journal
from firetrace.tracer.journal import HEADER_BYTES, ROW_DTYPE, Flag, Rows
from firetrace.tui.cli import main
from firetrace.tui.model import ranks as ranks_module
from firetrace.tui.model.ranks import Ranks, Skew, skew
from tests.support.ranks import MS, SimulatedRun

PARTS = {"data": ("data", "get_batch"), "forward": ("forward", "forward"),
         "handlers": ("handler", "save"), "optimizer": ("optimizer", "optimizer")}  # fmt: skip


def read(run: SimulatedRun, folder: Path) -> Skew:
    """Write a run and say what is to be said of it."""
    return read_again(run.write(folder / "run"))


def read_again(folder: Path) -> Skew:
    """What is to be said of a run's directory."""
    ranks = Ranks(folder)
    ranks.poll()
    return skew(ranks)


def plant(run: SimulatedRun, rank: int, cause: str, ns: int) -> None:
    """Make a rank slow in every step."""
    getattr(run, PARTS[cause][0])[rank] += ns


@pytest.mark.parametrize("forward_barrier", [False, True])
@pytest.mark.parametrize("cause", list(PARTS))
@pytest.mark.parametrize(("count", "slow"), [(2, 0), (2, 1), (3, 1), (16, 0), (16, 11)])
def test_the_right_rank_is_blamed_for_the_right_cause(
    tmp_path: Path, count: int, slow: int, cause: str, forward_barrier: bool
) -> None:
    """With a barrier in backward, and with another one in forward, where fast ranks wait."""
    run = SimulatedRun(ranks=count, forward_barrier=forward_barrier, epoch_length=20)
    plant(run, slow, cause, 50 * MS)
    found = read(run, tmp_path)
    (blamed,) = found.chronic
    assert (blamed.rank, blamed.cause, blamed.name) == (slow, cause, PARTS[cause][1])
    assert blamed.own_ns - blamed.others_ns == pytest.approx(50 * MS, rel=0.1)
    assert blamed.share == pytest.approx(50 / 134, rel=0.1)
    assert found.verdict.startswith(f"STRAGGLER: rank {slow} makes the others wait 3")
    late = {row.rank: row.late_ns for row in found.rows}
    assert late.pop(slow) == pytest.approx(50 * MS, rel=0.1)
    assert max(late.values()) < 2 * MS  # who waits is not late
    assert found.heat[slow][1:].min() > 40 * MS  # what was before the first step is not known
    assert np.delete(found.heat, slow, axis=0).max() < 3 * MS


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("forward_barrier", [False, True])
@pytest.mark.parametrize("count", [2, 3, 16])
def test_of_even_ranks_nobody_is_blamed(
    tmp_path: Path, count: int, forward_barrier: bool, barrier: bool
) -> None:
    """The opposite of what is planted elsewhere."""
    found = read(
        SimulatedRun(ranks=count, forward_barrier=forward_barrier, barrier=barrier), tmp_path
    )
    assert not found.chronic
    assert not found.one_offs
    assert found.verdict.startswith("ranks are even: at most ")
    assert found.compared == 60
    assert sum(row.straggled for row in found.rows) == 0


def test_a_long_backward_is_not_blamed(tmp_path: Path) -> None:
    """Behind the barrier everybody takes as long as the slowest."""
    run = SimulatedRun(ranks=4)
    run.backward[2] += 60 * MS
    assert not read(run, tmp_path).chronic


def test_without_barriers_only_what_a_step_adds_counts(tmp_path: Path) -> None:
    """A rank that drifts away is not later by all that it is behind."""
    run = SimulatedRun(ranks=3, barrier=False)
    plant(run, 1, "data", 30 * MS)
    found = read(run, tmp_path)
    (blamed,) = found.chronic
    assert (blamed.rank, blamed.cause) == (1, "data")
    assert found.rows[1].late_ns == pytest.approx(30 * MS, rel=0.1)


def test_a_late_begin_is_not_blamed(tmp_path: Path) -> None:
    """A rank that began ten seconds after the others, and is as fast."""
    run = SimulatedRun(ranks=3, begun=[0, 0, 10**10], barrier=False)
    assert read(run, tmp_path).verdict.startswith("ranks are even")
    plant(again := SimulatedRun(ranks=3, begun=[0, 0, 10**10], barrier=False), 2, "data", 30 * MS)
    assert read(again, tmp_path / "slow").chronic[0].rank == 2


def test_of_rotating_stragglers_none_is_chronic(tmp_path: Path) -> None:
    """Each rank is slow in its turn: there is waiting, but nobody to blame."""
    run = SimulatedRun(ranks=4, steps=120)
    for step in range(120):
        run.data[step % 4, step] += 40 * MS
    found = read(run, tmp_path)
    assert not found.chronic
    assert not found.one_offs
    assert found.verdict.startswith("ranks wait 3")
    assert "now for this one, now for that" in found.verdict
    assert {row.straggled for row in found.rows} == {30}


def test_a_rank_that_was_slow_for_half_of_the_run_is_not_chronic(tmp_path: Path) -> None:
    """Both halves count, or the last steps of a run that goes on."""
    run = SimulatedRun(ranks=2, steps=1000)
    run.data[1, :300] += 40 * MS
    assert not read(run, tmp_path / "early").chronic
    late = SimulatedRun(ranks=2, steps=1000, seed=2, held=(0, 1))
    late.data[1, 700:] += 40 * MS
    late.ends = dict.fromkeys(range(2), int(late.times["end"][:, -1].max()))
    try:
        (blamed,) = read(late, tmp_path / "late").chronic
    finally:
        journal.written_here.difference_update(map(late.seed_of, range(2)))
    assert (blamed.lately, blamed.rank) == (True, 1)


def test_a_single_slow_step_is_a_one_off(tmp_path: Path) -> None:
    """It is named with its step, rank and cause, and nobody is a straggler for it."""
    run = SimulatedRun(ranks=3, epoch_length=20)
    run.data[2, 33] += 400 * MS
    run.epoch_end[0, 39] += 900 * MS
    found = read(run, tmp_path)
    assert not found.chronic
    first, second = found.one_offs
    assert (first.rank, first.iteration, first.cause, first.name) == (
        0, 41, "handlers", "CheckpointSaver",
    )  # fmt: skip
    assert (second.rank, second.epoch, second.iteration, second.name) == (2, 2, 34, "get_batch")
    assert first.cost_ns == pytest.approx(900 * MS, rel=0.05)
    assert "2 steps: in step 41 rank 0 was waited for 9" in found.verdict


def test_what_the_first_rank_alone_does_after_each_epoch_is_chronic(tmp_path: Path) -> None:
    """A few steps, always for the same rank, for a good part of the time."""
    run = SimulatedRun(ranks=4, steps=120, epoch_length=10)
    run.epoch_end[0] += 900 * MS
    (blamed,) = read(run, tmp_path).chronic
    assert (blamed.rank, blamed.cause, blamed.name) == (0, "handlers", "CheckpointSaver")
    assert (blamed.often, blamed.steps) == (False, 11)
    assert blamed.share == pytest.approx(90 / 174, abs=0.05)


@pytest.mark.parametrize(("bound", "wrong", "blamed"), [(60, 55, []), (60, -55, []), (5, 4, [2])])
@pytest.mark.parametrize("forward_barrier", [False, True])
def test_lateness_below_the_clocks_error_blames_nobody(
    tmp_path: Path, bound: int, wrong: int, blamed: list[int], forward_barrier: bool
) -> None:
    """Ranks 2 and 3 are on another host, whose clock was measured wrong by so many ms."""
    run = SimulatedRun(
        ranks=4, hosts=[0, 0, 1, 1], clock_errors={1: wrong * MS}, said_errors={1: bound * MS},
        forward_barrier=forward_barrier,
    )  # fmt: skip
    plant(run, 2, "data", 40 * MS)
    found = read(run, tmp_path)
    assert [each.rank for each in found.chronic] == blamed
    assert [row.error_ns for row in found.rows] == [0, 0, bound * MS, bound * MS]
    assert {row.host for row in found.rows} == {"node0", "node1"}


def test_ranks_whose_clock_is_unknown_are_not_compared(tmp_path: Path) -> None:
    """The others are; a note says so."""
    run = SimulatedRun(ranks=5, hosts=[0, 0, 0, 1, 1], said_errors={1: -1})
    plant(run, 3, "data", 40 * MS)
    plant(run, 1, "data", 20 * MS)
    found = read(run, tmp_path)
    assert [each.rank for each in found.chronic] == [1]
    assert found.notes == (
        "rank 3 and 1 more not compared: how far the clocks are apart was not measured",
    )
    assert found.rows[3].error_ns is None
    assert found.rows[3].data_ns > 40 * MS


@pytest.mark.parametrize("part", ["data", "forward", "handler"])
@pytest.mark.parametrize("later", [400 * MS, 30_000 * MS])
def test_the_first_death_is_named(tmp_path: Path, part: str, later: int) -> None:
    """Others are heard of last before it, as they wait, or after it; that tells nothing."""
    run = SimulatedRun(ranks=4)
    run.data[2] += 15 * MS
    run.kill(2, step=37, part=part, others_later=later)
    found = read(run, tmp_path)
    assert found.first_death == 2
    assert [row.state for row in found.rows] == ["died"] * 4
    place = found.rows[2].place
    assert place is not None
    name = {"data": "get_batch", "forward": "forward", "handler": "save"}[part]
    assert (place.name, place.iteration, place.epoch) == (name, 37, 1)
    assert found.verdict.startswith(f"rank 2 DIED first, in {name} of step 37; ")
    waiting = found.rows[0].place
    assert waiting is not None
    assert waiting.name == "backward"


def test_the_first_death_is_told_by_time_where_ranks_do_not_wait(tmp_path: Path) -> None:
    """Without barriers, how far a rank got says nothing."""
    run = SimulatedRun(ranks=3, barrier=False)
    run.data[1] += 40 * MS  # far behind
    run.ends = {0: 3000 * MS, 1: 3500 * MS, 2: 3400 * MS}
    found = read(run, tmp_path)
    assert found.first_death == 0
    assert "; rank 2 was last heard of " in found.verdict
    assert found.verdict.endswith(" later, and 1 more")


def test_which_died_first_is_not_claimed_of_ranks_that_all_waited(tmp_path: Path) -> None:
    """All died in the all-reduce."""
    run = SimulatedRun(ranks=3)
    at = int(run.times["ready"][:, 20].max()) + 5 * MS
    run.ends = dict.fromkeys(range(3), at)
    found = read(run, tmp_path)
    assert found.verdict.endswith(": which was first cannot be told")
    assert " first," not in found.verdict


def test_which_died_first_is_not_claimed_where_nobody_waited_yet(tmp_path: Path) -> None:
    """One is killed on its way to the all-reduce, and the launcher kills the other on its own."""
    run = SimulatedRun(ranks=2)
    at = int(run.times["data"][:, 20].min()) + 5 * MS
    run.data[0, 20] += 50 * MS  # rank 1 is ahead, and was the one that died
    run.ends = {0: at + 100 * MS, 1: at}
    found = read(run, tmp_path)
    assert found.verdict.endswith(": which was first cannot be told")


def test_a_death_while_others_run_is_told(tmp_path: Path) -> None:
    """They will wait for a while yet."""
    run = SimulatedRun(ranks=3, held=(0, 2))
    run.kill(1, step=11, part="forward", others_later=10**9)
    try:
        found = read(run, tmp_path)
    finally:
        journal.written_here.difference_update(map(run.seed_of, range(3)))
    assert [row.state for row in found.rows] == ["running", "died", "running"]
    assert found.verdict == "rank 1 DIED, in forward of step 11; 2 other ranks still run"


def rewritten(path: Path, change: Callable[[Rows], Rows]) -> None:
    """Change the rows of a journal."""
    data = path.read_bytes()
    rows = change(np.frombuffer(data[HEADER_BYTES:], ROW_DTYPE).copy())
    path.write_bytes(data[:HEADER_BYTES] + rows.tobytes())


def test_a_rank_that_failed_is_named_with_its_exception(tmp_path: Path) -> None:
    """An exception closes every span; the innermost that it passed through is the place."""
    folder = SimulatedRun(ranks=2).write(tmp_path / "run")

    def fail(rows: Rows) -> Rows:
        rows = rows[: 2 + 14 * 20 + 7]  # run, epoch, 20 steps, and the 21st until its forward
        for at in (0, 1, -7, -3, -1):  # run, epoch, step, iteration, forward
            rows["flags"][at], rows["end"][at] = Flag.ERROR | Flag.CUT, rows["end"][-1]
        return rows

    rewritten(folder / "rank1.1.rows", fail)
    with (folder / "rank1.1.meta.jsonl").open("a") as file:
        said = {"type": "exception", "row": 128, "time": 1, "exception.type": "MemoryError"}
        file.write(json.dumps(said) + "\n")
    found = read_again(folder)
    assert found.rows[1].state == "failed"
    assert found.verdict == "rank 1 FAILED (MemoryError), in forward of step 21"


def test_what_became_of_the_others_is_told(tmp_path: Path) -> None:
    """The launcher ended the other in an orderly way, so when that was is known."""
    run = SimulatedRun(ranks=2)
    run.kill(1, step=37, part="forward", others_later=10**9)
    folder = run.write(tmp_path / "run")

    def end(rows: Rows) -> Rows:
        still = rows["end"] == 0
        rows["end"][still] = rows["start"].max() + 2 * 10**9
        rows["flags"][still] = int(Flag.CUT)
        return rows

    rewritten(folder / "rank0.1.rows", end)
    found = read_again(folder)
    assert [row.state for row in found.rows] == ["ended", "died"]
    assert found.verdict.startswith("rank 1 DIED, in forward of step 37; 2.0")
    assert found.verdict.endswith("s later rank 0 ended")


@pytest.mark.parametrize(("ranks", "compared"), [(2, 30), (3, 60), (4, 60), (5, 60)])
def test_steps_that_most_ranks_have_are_compared(tmp_path: Path, ranks: int, compared: int) -> None:
    """The last rank has stopped after 30 of 60 steps."""
    folder = SimulatedRun(ranks=ranks).write(tmp_path / "run")
    SimulatedRun(ranks=ranks, steps=30).write(folder, only=(ranks - 1,))
    assert read_again(folder).compared == compared


def test_less_than_a_millisecond_is_nobodys_fault(tmp_path: Path) -> None:
    """Steps of a few ms, in which who sends is always a little earlier than who receives."""
    run = SimulatedRun(ranks=2, steps=300)
    for column in (run.data, run.forward, run.backward, run.optimizer, run.handler):
        column //= 25
    run.forward[1] += 6 * MS // 10
    found = read(run, tmp_path)
    assert found.verdict.startswith("no rank stands out: 1")
    assert not found.chronic


def test_a_journal_is_read_as_it_grows(tmp_path: Path) -> None:
    """In pieces of any size the same comes out as at once; nothing is open in between."""
    run = SimulatedRun(ranks=3, epoch_length=7, held=(0, 1, 2))
    plant(run, 1, "handlers", 40 * MS)
    run.ends = dict.fromkeys(range(3), 10**15)
    wanted = run.write(tmp_path / "whole")
    growing = tmp_path / "growing"
    growing.mkdir()
    ranks = Ranks(growing)
    before = len(os.listdir("/proc/self/fd"))
    random = np.random.default_rng(3)
    total = {path.name: path.read_bytes() for path in wanted.iterdir()}
    try:
        for path in wanted.glob("*.meta.jsonl"):
            (growing / path.name).write_bytes(total[path.name])
        for now in np.sort(random.integers(0, int(run.times["after"].max()), 40)).tolist():
            for name, data in total.items():
                if name.endswith(".rows"):
                    (growing / name).write_bytes(_until(data, now, int(name[4])))
            ranks.poll()
            assert len(os.listdir("/proc/self/fd")) == before
        for name, data in total.items():
            (growing / name).write_bytes(data)
        assert ranks.poll()
        found, at_once = skew(ranks), read_again(wanted)
    finally:
        journal.written_here.difference_update(map(run.seed_of, range(3)))
    assert found.verdict == at_once.verdict
    for one, other in zip(found.rows, at_once.rows, strict=True):
        assert one == other
    assert np.array_equal(found.heat, at_once.heat)


def _until(data: bytes, now: int, rank: int) -> bytes:
    """A journal as it was at a time, ns after the begin of rank 0's."""
    rows = np.frombuffer(data[HEADER_BYTES:], ROW_DTYPE).copy()
    limit = int(rows["start"][0]) + now
    rows = rows[rows["start"] <= limit]
    rows["end"][rows["end"] > limit] = 0
    return data[:HEADER_BYTES] + bytes(rows.tobytes())


def test_a_late_rank_and_a_new_attempt_are_found(tmp_path: Path) -> None:
    """Journals that come later; of a rank that was restarted the newest counts."""
    run = SimulatedRun(ranks=3)
    folder = run.write(tmp_path / "run", only=(0, 1))
    ranks = Ranks(folder)
    assert ranks.poll()
    assert not ranks.poll()
    assert skew(ranks).notes == ("only 2 of 3 ranks have a journal here",)
    run.write(folder, only=(2,))
    assert ranks.poll()
    assert [row.rank for row in skew(ranks).rows] == [0, 1, 2]
    again = SimulatedRun(ranks=3, attempt=2, seed=5, steps=30)
    plant(again, 1, "data", 50 * MS)
    again.write(folder)
    assert ranks.poll()
    found = skew(ranks)
    assert [(row.attempt, row.attempts, row.steps) for row in found.rows] == [(2, 2, 30)] * 3
    assert found.chronic[0].rank == 1


def test_one_restarted_rank_is_not_late_by_all_that_lay_between(tmp_path: Path) -> None:
    """Its steps have the numbers of steps that others made long before."""
    run = SimulatedRun(ranks=3)
    folder = run.write(tmp_path / "run")
    again = SimulatedRun(ranks=3, attempt=2, begun=[10**12] * 3)
    again.write(folder, only=(1,))
    found = read_again(folder)
    assert found.rows[1].attempt == 2
    assert found.verdict.startswith("ranks are even")


@pytest.mark.parametrize("cause", ["data", "handlers"])
def test_thinned_steps_compare(tmp_path: Path, cause: str) -> None:
    """What lies between recorded steps is not known, and blamed on nobody."""
    run = SimulatedRun(ranks=3, steps=300, every=5)
    plant(run, 2, cause, 50 * MS)
    found = read(run, tmp_path)
    (blamed,) = found.chronic
    assert (found.compared, blamed.rank, blamed.cause) == (60, 2, cause)
    even = SimulatedRun(ranks=3, steps=300, every=5, seed=2, barrier=False)
    even.data[1, ::5] += 50 * MS  # in steps that are not recorded
    assert read(even, tmp_path / "even").verdict.startswith("ranks are even")


@pytest.mark.parametrize("cause", ["data", "handlers"])
def test_engines_without_phases_compare(tmp_path: Path, cause: str) -> None:
    """No backward to be seen: the end of the process function is where ranks have met."""
    run = SimulatedRun(ranks=3, phases=False)
    plant(run, 1, cause, 50 * MS)
    (blamed,) = read(run, tmp_path).chronic
    assert (blamed.rank, blamed.cause) == (1, cause)
    assert read(SimulatedRun(ranks=3, phases=False, seed=2), tmp_path / "even").verdict.startswith(
        "ranks are even"
    )


def test_of_very_many_steps_some_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded; what is left says the same."""
    monkeypatch.setattr(ranks_module, "MOST_STEPS", 1000)
    run = SimulatedRun(ranks=4, steps=900)
    plant(run, 3, "handlers", 50 * MS)
    folder = run.write(tmp_path / "run")
    ranks = Ranks(folder)
    ranks.poll()
    assert ranks.kept() == 900
    found = skew(ranks)
    assert (found.chronic[0].rank, found.chronic[0].cause) == (3, "handlers")
    assert found.chronic[0].share == pytest.approx(50 / 134, rel=0.1)
    assert [row.steps for row in found.rows] == [900] * 4
    assert found.notes == ("of so many steps every 4th is compared",)


def test_damaged_journals_are_told_and_the_others_read(tmp_path: Path) -> None:
    """Garbage rows, a header alone, an empty file, another file, a torn meta line."""
    run = SimulatedRun(ranks=8)
    plant(run, 1, "data", 50 * MS)
    folder = run.write(tmp_path / "run")
    random = np.random.default_rng(7)
    data = bytearray((folder / "rank2.1.rows").read_bytes())
    for at in random.integers(0, (len(data) - HEADER_BYTES) // 32, 60).tolist():
        begin = HEADER_BYTES + 32 * at
        data[begin : begin + 32] = random.bytes(32)
    (folder / "rank2.1.rows").write_bytes(data)
    (folder / "rank3.1.rows").write_bytes(data[:HEADER_BYTES])
    (folder / "rank4.1.rows").write_bytes(b"")
    (folder / "rank5.1.rows").write_bytes(b"no journal" * 1000)
    meta = folder / "rank6.1.meta.jsonl"
    meta.write_bytes(meta.read_bytes() + b'{"type": "na')
    (folder / "rank7.1.meta.jsonl").write_bytes(b"\xff{]\n" * 100)
    found = read_again(folder)
    assert [row.state for row in found.rows] == [
        "finished", "finished", "finished", "empty",
        "unreadable", "unreadable", "finished", "empty",
    ]  # fmt: skip
    assert found.chronic[0].rank == 1
    assert any(note.startswith("rank 4: ") and "1 more like this" in note for note in found.notes)
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_never_raise(tmp_path: Path, seed: int) -> None:
    """Whatever the rows and the meta lines hold."""
    folder = SimulatedRun(ranks=3, steps=20, seed=seed).write(tmp_path / "run")
    random = np.random.default_rng(seed)
    for path in sorted(folder.glob("rank[12].1.*")):
        data = bytearray(path.read_bytes())
        begin = HEADER_BYTES if path.suffix == ".rows" else 0
        for at in random.integers(begin, len(data), 200).tolist() if len(data) > begin else []:
            data[at] = int(random.integers(0, 256))
        path.write_bytes(data)
    json.dumps(read_again(folder).as_json(), allow_nan=False)


def test_more_ranks_than_files_may_be_open(tmp_path: Path) -> None:
    """No file stays open between two polls."""
    run = SimulatedRun(ranks=150, steps=12)
    plant(run, 77, "forward", 50 * MS)
    folder = run.write(tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ranks = Ranks(folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        ranks.poll()
        ranks.poll()
        found = skew(ranks)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.compared == 12
    assert not any(row.trouble for row in found.rows)
    assert found.chronic[0].rank == 77


def test_the_report_has_a_section_of_the_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text and as JSON, for a directory; a journal that is named is reported alone."""
    run = SimulatedRun(ranks=20)
    plant(run, 4, "data", 50 * MS)
    folder = run.write(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "STRAGGLER: rank 4 makes the others wait 3" in out
    assert "(get_batch 6" in out
    lines = out.splitlines()
    table = next(at for at, line in enumerate(lines) if line.startswith("rank  host"))
    assert lines[table + 1].startswith("4     node0  finished")
    assert "... and 4 ranks that were less late (--json has all)" in out
    assert main(["report", "--json", str(folder)]) == 0
    said = json.loads(capsys.readouterr().out)["ranks"]
    assert len(said["rows"]) == len(said["heat"]) == 20
    assert said["chronic"][0]["rank"] == 4
    assert main(["report", "--json", str(folder / "rank1.1.rows")]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] is None


def test_names_in_the_section_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A host, a handler and an exception may be called anything."""
    run = SimulatedRun(ranks=2)
    plant(run, 1, "handlers", 50 * MS)
    run.kill(1, step=30, part="handler", others_later=10**9)
    folder = run.write(tmp_path / "run")
    for meta in folder.glob("*.meta.jsonl"):
        text = meta.read_text().replace('"save"', '"[red]\\u001b[2J\\n"')
        meta.write_text(text.replace('"node0"', '"\\u001b]0;x\\u0007[bold]"'))
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07"} & set(out)
    assert "in [red]␛[2J␊ of step 30" in out


def test_rows_can_be_compared_with_those_of_before(tmp_path: Path) -> None:
    """What is said is said again when nothing has changed; asking changes nothing."""
    folder = SimulatedRun(ranks=3).write(tmp_path / "run")
    ranks = Ranks(folder)
    ranks.poll()
    first, second = skew(ranks), skew(ranks)
    assert first.rows == second.rows
    assert first.rows[0] != replace(first.rows[0], rank=5)
