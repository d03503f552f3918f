"""What is kept of a journal is what its whole table says, in whatever pieces it was read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firetrace.tracer import stream as streams
from firetrace.tracer.journal import Flag
from firetrace.tracer.pages import Pages
from firetrace.tracer.run import open_run
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table, read_table
from firetrace.tui.model.digest import FETCHING, SLOWEST, Digest
from firetrace.tui.model.report import Report, read_tree, report, tree_of
from firetrace.tui.model.tree import Tree
from tests.support.made import MS, MadeTraining, Plan
from tests.support.recordings import record, record_failing, record_killed
from tests.support.truth import (
    children,
    durations,
    of_kind,
    origins_of_errors,
    positions,
    shape,
    walk,
)
from tests.support.wild_journal import WildJournal

SEEDS = pytest.mark.parametrize("seed", range(4))
NOT_WHOLE = int(Flag.CUT | Flag.SKIPPED)


@pytest.fixture
def journal(tmp_path: Path, seed: int) -> Iterator[WildJournal]:
    made = WildJournal(tmp_path, seed)
    yield made
    made.end()


def real_run(name: str, request: pytest.FixtureRequest) -> Path:
    """A real recording's journal."""
    if name == "monai":
        path: Path = request.getfixturevalue("sample_run")
        return path
    runs: dict[str, Callable[[], Path]] = {
        "finished": record, "failing": record_failing, "killed": record_killed,
    }  # fmt: skip
    return open_run(runs[name]()).newest


REAL = pytest.mark.parametrize("name", ["finished", "failing", "killed", "monai"])


def assert_digest_is_right(table: Table, tree: Tree) -> None:
    """Counts, sums and lists of a digest, against those of the table."""
    digest, rows = tree.digest, table.rows
    ended = int(np.count_nonzero(rows["end"]))
    assert digest.spans == ended
    assert digest.damaged == table.damaged
    assert digest.last_ns == int(rows["end"].max(initial=0))
    everything, whole = durations(table), durations(table, NOT_WHOLE)
    groups = {(group.lane, group.id): group for group in digest.groups.all if group.ended}
    assert groups.keys() == everything.keys()
    inside: dict[tuple[int, int], int] = defaultdict(int)
    place = positions(table)
    for row in rows[(rows["end"] != 0) & (rows["parent"] != 0)]:
        above = rows[place[int(row["parent"])]]
        inside[int(above["lane"]), int(above["name"])] += int(row["end"]) - int(row["start"])
    windows: dict[int, int] = defaultdict(int)
    for key, group in groups.items():
        assert (group.ended, group.ended_ns) == (len(everything[key]), sum(everything[key]))
        assert group.name == table.names[key[1]]
        assert group.inside_ns == inside[key]
        assert_percentiles_are_right(whole[key], group.times.stats(0) if whole[key] else None)
        assert group.times.count == len(whole[key])
        for window, count in group.windows.items():
            windows[window] += count
    in_file = table.numbers[rows["end"] != 0] // tree.pages.per_window
    assert windows == dict(zip(*np.unique(in_file, return_counts=True), strict=True))
    assert_lists_are_right(table, digest)
    assert tree.errors().tolist() == origins_of_errors(table)
    assert {
        number: f"{line['exception.type']}" for number, line in table.meta.exceptions.items()
    } == {number: text.partition(":")[0] for number, text in digest.exceptions.items()}
    assert sorted(tree.open.numbers) == table.numbers[rows["end"] == 0].tolist()


def assert_percentiles_are_right(took: list[int], stats: Any) -> None:
    """Count, total and maximum to the digit, percentiles within 0.4%."""
    if stats is None:
        assert not took
        return
    assert (stats.count, stats.total_ns, stats.max_ns) == (len(took), sum(took), max(took))
    found = (stats.p50_ns, stats.p95_ns, stats.p99_ns)
    for ours, theirs in zip(found, np.percentile(took, (50, 95, 99)), strict=True):
        assert abs(ours - theirs) <= 0.004 * theirs + 0.501


def assert_lists_are_right(table: Table, digest: Digest) -> None:
    """Runs, epochs and steps by lane, the slowest steps, and where epochs' time went."""
    for kind, kept in (("run", digest.runs), ("epoch", digest.epochs), ("step", digest.steps)):
        numbers: dict[int, list[int]] = defaultdict(list)
        for at in of_kind(table, kind):
            numbers[int(table.rows["lane"][at])].append(int(table.numbers[at]))
        assert {lane: sorted(spans.number.values.tolist()) for lane, spans in kept.items()} == (
            numbers
        )
        for spans in kept.values():
            rows = table.rows[np.searchsorted(table.numbers, spans.number.values)]
            for column in ("parent", "epoch", "iteration", "start", "end", "flags"):
                assert np.array_equal(getattr(spans, column).values, rows[column])
    took: dict[int, list[int]] = defaultdict(list)
    for at in of_kind(table, "step"):
        row = table.rows[at]
        if not row["flags"] & Flag.CUT:
            took[int(row["lane"])].append(int(row["end"]) - int(row["start"]))
    for lane, (rows, numbers_of) in digest.slowest.items():
        lasted = (rows["end"] - rows["start"]).tolist()
        assert lasted == sorted(took.get(lane, []), reverse=True)[:SLOWEST]
        assert np.array_equal(rows, table.rows[np.searchsorted(table.numbers, numbers_of)])
    assert {lane for lane, (rows, _) in digest.slowest.items() if len(rows)} == took.keys()
    assert_epoch_times_are_right(table, digest)


def assert_epoch_times_are_right(table: Table, digest: Digest) -> None:
    """Of every epoch that has ended: its own steps and waits, by when they happened."""
    rows = table.rows
    spans = np.flatnonzero(rows["end"] != 0)
    steps = np.isin(spans, of_kind(table, "step"))
    waits = np.array([table.name(at).text in FETCHING for at in spans.tolist()], bool)
    found = {}
    for lane, times in digest.epoch_times.items():
        assert [each.end_ns for each in times] == sorted(each.end_ns for each in times)
        for each in times:
            found[each.number] = (lane, each.epoch, each.steps, each.steps_ns, each.wait_ns)
    expected = {}
    for at in of_kind(table, "epoch"):
        epoch = rows[at]
        mine = (rows["lane"][spans] == epoch["lane"]) & (rows["epoch"][spans] == epoch["epoch"])
        mine &= (rows["start"][spans] >= epoch["start"]) & (rows["end"][spans] <= epoch["end"])
        lasted = rows["end"][spans] - rows["start"][spans]
        expected[int(table.numbers[at])] = (
            int(epoch["lane"]), int(epoch["epoch"]), int(np.count_nonzero(mine & steps)),
            int(lasted[mine & steps].sum()), int(lasted[mine & waits].sum()),
        )  # fmt: skip
    assert found == expected


@SEEDS
def test_a_digest_is_right(journal: WildJournal) -> None:
    """Every count, sum and list of a wild journal is that of its table."""
    journal.write(9000)
    journal.close_guesses()
    assert_digest_is_right(read_table(journal.path), read_tree(journal.path))


@REAL
def test_a_digest_of_a_real_run_is_right(name: str, request: pytest.FixtureRequest) -> None:
    """The same of runs that finished, failed, were killed, and of a MONAI bundle."""
    path = real_run(name, request)
    table, tree = read_table(path), read_tree(path)
    assert_digest_is_right(table, tree)
    assert shape(tree) == children(table)
    assert report(tree).spans == len(table)


@REAL
def test_a_report_of_a_real_run_is_right(name: str, request: pytest.FixtureRequest) -> None:
    """Steps, epochs, phases and handlers of the main engine are those of the table."""
    path = real_run(name, request)
    table, found = read_table(path), report(read_tree(path))
    main = found.main_lane
    assert table.lane_of(main).engine == found.engine
    for kind, count in (("step", found.steps), ("epoch", found.epochs)):
        places = np.array(of_kind(table, kind, ended=False))
        assert np.count_nonzero(table.rows["lane"][places] == main) == count
    took: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (lane, id), values in durations(table, NOT_WHOLE).items():
        if lane == main:
            took[table.names[id].kind, table.names[id].text] += values
    for (kind, text), values in took.items():
        if kind in ("phase", "loader", "pair", "span"):
            assert_percentiles_are_right(values, found.phases[text])
        elif kind == "handler":
            assert_percentiles_are_right(values, found.handlers[text])
        elif kind == "step":
            assert_percentiles_are_right(values, found.step)


@SEEDS
def test_the_outline_holds_what_is_outside_of_steps(journal: WildJournal) -> None:
    """And nothing else: memory is for what can be unfolded without reading the file."""
    journal.write(6000)
    journal.close_guesses()
    table, tree = read_table(journal.path), read_tree(journal.path)
    kept = [
        number for level in tree.digest.outline.levels.values()
        for number in level.visible(0).tolist()
    ]  # fmt: skip
    ended = dict(zip(table.numbers.tolist(), (table.rows["end"] != 0).tolist(), strict=True))
    outside = [
        number for number in walk(tree)
        if ended[number] and tree.step_of(number) in (0, number)
    ]  # fmt: skip
    assert sorted(kept) == sorted(outside)


@SEEDS
def test_any_pieces_make_the_same_digest(
    journal: WildJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read at many moments while it grows, a few windows at a time, or at once at the end."""
    with monkeypatch.context() as patch, Stream(journal.path) as stream:
        patch.setattr(streams, "BLOCK_WINDOWS", 2)
        digest, pages, before = Digest(stream.reader.row), Pages(stream.reader), None
        for _ in range(60):
            journal.write(journal.random.choice((1, 5, 50, 400)))
            for block in stream.ended():
                digest.add(block)
            before = tree_of(digest, stream, pages, before)
            report(before)
            before.lines({int(n) for n in before.children(0)}, 1)
        journal.close_guesses()
        journal.end()
        for block in stream.ended():
            digest.add(block)
        pieces = tree_of(digest, stream, pages, before)
    monkeypatch.setattr(streams, "BLOCK_WINDOWS", 10_000)
    at_once = read_tree(journal.path)
    assert_digest_is_right(read_table(journal.path), pieces)
    assert shape(pieces) == shape(at_once)
    for least in (1, 5, 8):
        assert list(walk(pieces, least)) == list(walk(at_once, least))
    assert pieces.newest() == at_once.newest()
    assert comparable(report(pieces)) == comparable(report(at_once))


def comparable(found: Report) -> dict[str, Any]:
    """A report without what depends on the order in which spans ended that nest in their like."""
    plain = found.as_json()
    for stats in (*plain["phases"].values(), *plain["handlers"].values(), plain["step"] or {}):
        stats["drift"] = None
    plain["scalars"] = [(scalar["name"], scalar["count"]) for scalar in plain["scalars"]]
    plain["slowest_steps"] = [step["duration_ns"] for step in plain["slowest_steps"]]
    plain["exceptions"] = sorted(plain["exceptions"])
    return plain


@pytest.mark.parametrize("every", [1, 7, 40])
def test_any_pieces_make_the_same_report_of_a_training(tmp_path: Path, every: int) -> None:
    """Everything that is said, epoch times too, however often the journal was looked at."""
    plan = Plan(epochs=4, steps=60, get_batch=lambda i: i * MS, validation=300 * MS)
    training = MadeTraining(tmp_path, plan)
    with Stream(training.path) as stream:
        digest = Digest(stream.reader.row)
        for count, _ in enumerate(training):
            if count % every == 0:
                for block in stream.ended():
                    digest.add(block)
        training.writer.close()
        for block in stream.ended():
            digest.add(block)
        pieces = report(tree_of(digest, stream, Pages(stream.reader)))
    at_once = report(read_tree(training.path))
    assert pieces == at_once
    assert [each.epoch for each in pieces.epoch_times] == [1, 2, 3, 4]
    assert all(each.nested_ns == 300 * MS for each in pieces.epoch_times)
    assert [each.between_ns(0) for each in pieces.epoch_times] == [300 * MS] * 4


def test_runs_of_the_same_engine_have_their_own_epochs(tmp_path: Path) -> None:
    """A second run's epoch 1 is another one than the first run's, though read in one piece."""
    directory = record_failing(failures=3)
    path = open_run(directory).newest
    times = report(read_tree(path)).epoch_times
    assert [(each.epoch, each.steps, each.iterations) for each in times] == [(1, 3, 3)] * 3
    assert all(0 < each.wait_ns < each.steps_ns + each.end_ns - each.start_ns for each in times)


def test_an_exception_is_told_while_its_span_is_open(tmp_path: Path) -> None:
    """A process that dies of what it has just noted leaves that on the screen."""
    training = MadeTraining(tmp_path, Plan())
    training.until(1, 2)
    step = training.opened(129, "step", "step", 1, 3)
    training.writer.note(
        "exception", row=step, **{"exception.type": "E", "exception.message": "no luck"}
    )
    tree = read_tree(training.path)
    assert report(tree).exceptions == ("E: no luck",)
    training.writer.close()


def test_what_ended_in_an_open_guess_is_in_the_tree(tmp_path: Path) -> None:
    """A process that was killed inside of a phase: what it did in there can be looked at."""
    training = MadeTraining(tmp_path, Plan(get_batch=5 * MS))
    training.until(1, 2)
    step = training.opened(129, "step", "step", 1, 3)
    guess = training.opened(step, "phase", "forward", 1, 3, flags=Flag.GUESS)
    rows = [training.opened(guess, "span", "mine", 1, 3)]
    training.ended(rows[0])
    rows.append(training.opened(guess, "span", "mine", 1, 3))
    training.writer.close()
    tree = read_tree(training.path)
    assert tree.children(guess).tolist() == rows
    assert [each.number for each in report(tree).incomplete[-3:]] == [step, guess, rows[1]]
