"""The tree of spans: what is inside what, which lines are visible, what to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from firetrace.tracer.journal import ROW_DTYPE, Flag
from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table
from firetrace.tui.model.report import read_tree
from firetrace.tui.model.tree import Tree
from tests.support.made import MS, MadeTraining, Plan, chain, tree_at, write_rows
from tests.support.recordings import record, record_failing, record_killed
from tests.support.truth import children, labelled, origins_of_errors, positions, shape, walk
from tests.support.wild_journal import WildJournal

SHORT = 1  #: hides events on which nothing ran


def table_and_tree(directory: Path) -> tuple[Table, Tree]:
    path = open_run(directory).newest
    return read_table(path), read_tree(path)


def shown(tree: Tree, unfolded: set[int], least: int = SHORT) -> list[str]:
    lines = tree.lines(unfolded, least)
    found = []
    for line in range(len(lines)):
        number, depth = lines.at(line)
        found.append("  " * depth + labelled(tree, [number])[number])
    return found


def numbers(tree: Tree, *wanted: str) -> set[int]:
    return {number for number, text in labelled(tree, walk(tree)).items() if text in wanted}


@pytest.fixture
def tree() -> Tree:
    return table_and_tree(record(epochs=2, steps=3))[1]


def test_a_folded_run_is_one_line(tree: Tree) -> None:
    """With nothing unfolded only the roots are visible."""
    assert shown(tree, set()) == ["run Trainer"]


def test_unfolding_shows_what_is_right_inside(tree: Tree) -> None:
    """Lines come in the order of time, indented below their parent, two levels of them."""
    unfolded = numbers(tree, "run Trainer", "epoch 1")
    assert shown(tree, unfolded)[:6] == [
        "run Trainer", "  epoch 1", "    loader", "    step 1", "    step 2", "    step 3",
    ]  # fmt: skip
    assert "  epoch 2" in shown(tree, unfolded)


def test_what_is_unfolded_below_something_folded_stays_hidden(tree: Tree) -> None:
    """An unfolded step shows nothing while its epoch is folded."""
    assert shown(tree, numbers(tree, "step 1", "iteration")) == ["run Trainer"]


def test_events_on_which_nothing_ran_are_hidden_on_demand(tree: Tree) -> None:
    """An event with a handler stays and names it; one without is only there when asked for."""
    unfolded = numbers(tree, "run Trainer", "epoch 1", "step 1", "iteration")
    short, whole = shown(tree, unfolded), shown(tree, unfolded, 0)
    assert any(line.startswith("    EPOCH_COMPLETED · ") for line in short)
    for event in ("    EPOCH_STARTED", "      GET_BATCH_STARTED", "        LOSS_COMPLETED"):
        assert event not in short
        assert event in whole


def test_what_is_shorter_than_wanted_is_hidden(tmp_path: Path) -> None:
    """By the digits of its duration in ns; runs, epochs and steps always stay."""
    plan = Plan(epochs=1, steps=2, get_batch=99, forward=100, backward=5000)
    path = MadeTraining(tmp_path, plan).finish().path
    tree = read_tree(path)
    everything = set(walk(tree))
    inside = {
        least: [line.strip() for line in shown(tree, everything, least)] for least in (3, 4, 5, 6)
    }
    assert inside[3].count("get_batch") == 2
    assert inside[4].count("get_batch") == 0
    assert inside[4].count("forward") == 2
    assert inside[5].count("forward") == 0
    assert inside[5].count("backward") == 2
    assert inside[6] == ["run Trainer", "epoch 1", "step 1", "step 2"]


def test_every_span_has_one_line_when_all_is_unfolded() -> None:
    """Nothing is lost and nothing shown twice; one thread's lines stand in the file's order."""
    table, tree = table_and_tree(record(epochs=2, steps=3))
    lines = tree.lines(set(table.numbers.tolist()), 0)
    assert [lines.at(line)[0] for line in range(len(lines))] == table.numbers.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_lines_are_found_by_their_numbers(tmp_path: Path, seed: int) -> None:
    """Of any unfolding: ``index`` undoes ``at``, ``nearest`` finds a nearest, depths are right."""
    journal = WildJournal(tmp_path, seed)
    journal.write(3000)
    tree = read_tree(journal.path)
    everything = list(walk(tree))
    for share in (0.0, 0.3, 0.9, 1.0):
        unfolded = {number for number in everything if journal.random.random() < share}
        for least in (0, 1, 6):
            lines = tree.lines(unfolded, least)
            visible = [lines.at(line) for line in range(len(lines))]
            assert visible == expected_lines(tree, unfolded, least)
            place = {number: line for line, (number, _) in enumerate(visible)}
            assert len(place) == len(visible)
            for number in journal.random.sample(everything, 50):
                assert lines.index(number) == place.get(number)
                near = visible[lines.nearest(number)][0]
                assert abs(near - number) == min(abs(each - number) for each in place)
    journal.end()


def expected_lines(tree: Tree, unfolded: set[int], least: int) -> list[tuple[int, int]]:
    """The visible lines, one by one."""
    found, stack = [], [(number, 0) for number in reversed(tree.children(0, least).tolist())]
    while stack:
        number, depth = stack.pop()
        found.append((number, depth))
        if number in unfolded:
            inside = tree.children(number, least).tolist()
            stack += [(each, depth + 1) for each in reversed(inside)]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_children_are_those_of_the_table(tmp_path: Path, seed: int) -> None:
    """Of every span, in steps and outside of them, ended or open, wherever their rows lie."""
    journal = WildJournal(tmp_path, seed)
    journal.write(6000)
    journal.close_guesses()
    table, tree = read_table(journal.path), read_tree(journal.path)
    assert shape(tree) == children(table)
    ancestors = parents_of(table)
    place = positions(table)
    for number in journal.random.sample(table.numbers.tolist(), 200):
        around = [number, *ancestors(number)]
        assert [span.number for span in tree.ancestors(number)] == around[1:]
        steps = [each for each in around if table.name(place[each]).kind == "step"]
        assert tree.step_of(number) == (steps[-1] if steps else 0)
        assert tree.has_children(number, 0) == bool(len(tree.children(number)))
    journal.end()


def parents_of(table: Table) -> Callable[[int], list[int]]:
    above = dict(zip(table.numbers.tolist(), table.rows["parent"].tolist(), strict=True))

    def around(number: int) -> list[int]:
        found = []
        while above[number]:
            number = above[number]
            found.append(number)
        return found

    return around


def test_a_span_says_what_its_row_does(tmp_path: Path) -> None:
    """Name, kind, lane, place and times; and its parent is a span."""
    journal = WildJournal(tmp_path, 9)
    journal.write(3000)
    table, tree = read_table(journal.path), read_tree(journal.path)
    for at, (number, row) in enumerate(zip(table.numbers.tolist(), table.rows, strict=True)):
        span = tree.span(number)
        assert span is not None
        assert (span.kind, span.text) == (table.name(at).kind, table.name(at).text)
        assert (span.start_ns, span.end_ns, span.parent) == (
            row["start"], row["end"], row["parent"],
        )  # fmt: skip
        assert (span.lane, span.epoch, span.iteration) == (
            row["lane"], row["epoch"], row["iteration"],
        )  # fmt: skip
        assert tree.lane(span) == table.lane(at)
    journal.end()


def test_a_number_that_is_no_span_unfolds_nothing(tree: Tree) -> None:
    """Row numbers that have gone (wrong guesses) do no harm."""
    assert shown(tree, {0, 5, 10**9}) == ["run Trainer"]
    for number in (0, 5, 10**9):
        assert tree.span(number) is None
        assert tree.ancestors(number) == []
        assert tree.frame(number) == 0


def test_follows_the_newest_step_of_a_finished_run(tree: Tree) -> None:
    """The focus is the last step, unfolded with its iteration and all that is around it."""
    newest = tree.newest()
    assert newest is not None
    focus, unfolded = newest
    assert labelled(tree, [focus])[focus] == "step 2"  # the evaluator's second, in the last epoch
    assert {span.number for span in tree.ancestors(focus)} <= unfolded
    assert tree.lines(unfolded, SHORT).index(focus) is not None


def test_follows_what_was_open_when_a_process_died() -> None:
    """After SIGKILL the step in progress is in focus, and its open phase is visible."""
    table, tree = table_and_tree(record_killed())
    newest = tree.newest()
    assert newest is not None
    focus, unfolded = newest
    assert labelled(tree, [focus])[focus] == "step 6"
    visible = tree.lines(unfolded, SHORT)
    for number in table.numbers[table.open_positions()].tolist():
        assert visible.index(number) is not None


def test_a_step_that_has_just_begun_is_not_yet_in_focus(tmp_path: Path) -> None:
    """Of a living run: the one before, until it has been open for half a second."""
    training = MadeTraining(tmp_path, Plan())
    end = training.until(1, 3)
    ended = max(numbers(read_tree(training.path), "step 3"))
    step = training.opened(129, "step", "step", 1, 4)
    for later, focus in ((100, ended), (600, step)):
        newest = tree_at(training.path, end + later * MS).newest()
        assert newest is not None
        assert newest[0] == focus
    training.writer.close()


def test_follows_what_goes_on_after_the_newest_step(tmp_path: Path) -> None:
    """A handler that has been at work for a while at the end of an epoch is in focus."""
    training = MadeTraining(tmp_path, Plan(epochs=1, steps=3))
    end = training.until(1, 3)
    event = training.opened(129, "event", "EPOCH_COMPLETED", 1, 3)
    handler = training.opened(event, "handler", "save", 1, 3)
    newest = tree_at(training.path, end + 900 * MS).newest()
    assert newest is not None
    assert newest[0] == handler
    assert {128, 129, event, handler} <= newest[1]
    training.writer.close()


def test_an_error_is_where_it_was_raised() -> None:
    """Of the spans that an exception went through, only the innermost counts as the error."""
    table, tree = table_and_tree(record_failing(failures=2))
    errors = tree.errors().tolist()
    assert errors == origins_of_errors(table)
    assert len(errors) == 2
    assert np.count_nonzero(table.rows["flags"] & Flag.ERROR) > 2
    assert all(not tree.has_children(each, SHORT) for each in errors)


def test_steps_compare_from_their_own_start_and_phases_from_their_steps(tree: Tree) -> None:
    """In a step's waterfall each step begins at the left, and its phases where they began in it."""
    spans = [tree.span(number) for number in numbers(tree, "step 2", "step 3")]
    steps = [span for span in spans if span and tree.lane(span).engine == "Trainer"]
    frame = tree.frame(int(tree.children(steps[0].number, SHORT)[0]))
    assert frame == steps[0].number
    for step in steps:
        assert tree.origin(step.number, frame) == step.start_ns
        for child in tree.children(step.number, SHORT).tolist():
            assert tree.origin(child, frame) == step.start_ns


def test_what_is_around_a_frame_begins_where_it_began(tree: Tree) -> None:
    """A run is no step: in a step's waterfall it begins at its own start; 0 for what is none."""
    (run,), step = numbers(tree, "run Trainer"), max(numbers(tree, "step 3"))
    span = tree.span(run)
    assert span is not None
    assert tree.frame(run) == run
    assert tree.origin(run, step) == span.start_ns
    assert tree.origin(10**9, step) == tree.origin(run, 10**9) == 0


def test_families_of_ended_steps_are_kept_from_tree_to_tree(tmp_path: Path) -> None:
    """A later tree does not read an ended step again, but one that was open it does."""
    training = MadeTraining(tmp_path, Plan())
    end = training.until(1, 3)
    step = training.opened(129, "step", "step", 1, 4)
    first = tree_at(training.path, end)
    ended = max(numbers(first, "step 3"))
    before = first.family(ended), first.family(step)
    assert not first.has_children(step, 0)
    training.opened(step, "iteration", "iteration", 1, 4)
    again = read_tree(training.path)
    later = Tree(again.digest, first.pages, again.open, end, first)
    assert later.family(ended) is before[0]
    assert later.family(step) is not before[1]
    assert later.has_children(step, 0)
    training.writer.close()


def test_an_empty_journal_has_no_lines(tmp_path: Path) -> None:
    """Before the first row there is nothing to show, and nothing fails."""
    tree = read_tree(write_rows(tmp_path / "rank0.1.rows", np.empty(0, ROW_DTYPE)))
    assert len(tree.lines(set(), 0)) == 0
    assert tree.newest() is None
    assert not len(tree.errors())


@pytest.mark.parametrize("kind", ["span", "step"])
def test_nesting_deeper_than_the_call_stack_is_drawn(tmp_path: Path, kind: str) -> None:
    """A damaged journal may be one long chain; its lines are computed all the same."""
    tree = read_tree(write_rows(tmp_path / "rank0.1.rows", chain(5000, kind)))
    assert len(tree.ancestors(128 + 4999)) == 4999
    lines = tree.lines(set(range(6000)), 0)
    assert len(lines) == 5000
    assert lines.at(4999) == (128 + 4999, 4999)
