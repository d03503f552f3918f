from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from firetrace.tracer.journal import FIRST_ROW, ROW_DTYPE, Flag, Header, Lane, Name
from firetrace.tracer.reader import Meta
from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table
from firetrace.tui.tree import Tree
from tests.support.recordings import record, record_failing, record_killed


def tree_of(directory: Path) -> Tree:
    return Tree.of(read_table(open_run(directory).newest))


def labels(tree: Tree, unfolded: set[int], hide_short: bool = True) -> list[str]:
    lines = tree.lines(unfolded, hide_short)
    return [
        "  " * int(depth) + tree.label(int(position))
        for position, depth in zip(lines.positions, lines.depths, strict=True)
    ]


def numbers(tree: Tree, *wanted: str) -> set[int]:
    return {tree.number(p) for p in range(len(tree.table)) if tree.label(p) in wanted}


@pytest.fixture
def tree() -> Tree:
    return tree_of(record(epochs=2, steps=3))


def test_a_folded_run_is_one_line(tree: Tree) -> None:
    """With nothing unfolded only the roots are visible."""
    assert labels(tree, set()) == ["run Trainer"]


def test_unfolding_shows_what_is_right_inside(tree: Tree) -> None:
    """Lines come in the order of time, indented below their parent, two levels of them."""
    unfolded = numbers(tree, "run Trainer", "epoch 1")
    assert labels(tree, unfolded)[:6] == [
        "run Trainer", "  epoch 1", "    loader", "    step 1", "    step 2", "    step 3",
    ]  # fmt: skip
    assert "  epoch 2" in labels(tree, unfolded)


def test_what_is_unfolded_below_something_folded_stays_hidden(tree: Tree) -> None:
    """An unfolded step shows nothing while its epoch is folded."""
    assert labels(tree, numbers(tree, "step 1", "iteration")) == ["run Trainer"]


def test_events_on_which_nothing_ran_are_hidden_on_demand(tree: Tree) -> None:
    """An event with a handler stays and names it; one without is only there when asked for."""
    unfolded = numbers(tree, "run Trainer", "epoch 1")
    short, all_of_it = labels(tree, unfolded), labels(tree, unfolded, hide_short=False)
    assert any(line.startswith("    EPOCH_COMPLETED · ") for line in short)
    assert not any("EPOCH_STARTED" in line for line in short)
    assert any("EPOCH_STARTED" in line for line in all_of_it)


def test_every_span_has_one_line_when_all_is_unfolded(tree: Tree) -> None:
    """Nothing is lost and nothing shown twice."""
    lines = tree.lines(set(tree.table.numbers.tolist()), hide_short=False)
    assert sorted(lines.positions.tolist()) == list(range(len(tree.table)))
    assert np.array_equal(lines.positions, np.arange(len(tree.table)))  # one thread: file order


def test_a_number_that_is_no_span_unfolds_nothing(tree: Tree) -> None:
    """Row numbers that have gone (wrong guesses) do no harm."""
    assert labels(tree, {0, 5, 10**9}) == ["run Trainer"]
    assert tree.position(10**9) is None


def test_follows_the_newest_step_of_a_finished_run(tree: Tree) -> None:
    """The focus is the last step, unfolded with its iteration and all that is around it."""
    newest = tree.newest(tree.table.last_ns())
    assert newest is not None
    focus, unfolded = newest
    assert tree.label(focus) == "step 2"  # the evaluator's second, in the last epoch
    assert {tree.number(each) for each in tree.ancestors(focus)} <= unfolded
    assert tree.lines(unfolded, True).index(focus) is not None


def test_follows_what_was_open_when_a_process_died() -> None:
    """After SIGKILL the step in progress is in focus, and its open phase is visible."""
    tree = tree_of(record_killed())
    newest = tree.newest(tree.table.last_ns())
    assert newest is not None
    assert tree.label(newest[0]) == "step 6"
    visible = tree.lines(newest[1], True).positions
    assert set(tree.table.open_positions().tolist()) <= set(visible.tolist())


def test_an_error_is_where_it_was_raised() -> None:
    """Of the spans that an exception went through, only the innermost counts as the error."""
    tree = tree_of(record_failing(failures=2))
    errors = tree.errors()
    assert len(errors) == 2
    assert np.count_nonzero(tree.table.rows["flags"] & Flag.ERROR) > 2
    assert all(not len(tree.children(int(each), True)) for each in errors)


def test_steps_compare_from_their_own_start_and_phases_from_their_steps(tree: Tree) -> None:
    """In a step's waterfall each step begins at the left, and its phases where they began in it."""
    table = tree.table
    steps = [p for p in tree.steps.tolist() if table.lane(p).engine == "Trainer"]
    frame = tree.frame(tree.children(steps[1], True).tolist()[0])
    assert frame == steps[1]
    for step in steps:
        assert tree.origin(step, frame) == table.rows["start"][step]
        for child in tree.children(step, True).tolist():
            assert tree.origin(child, frame) == table.rows["start"][step]


def test_an_empty_journal_has_no_lines() -> None:
    """Before the first row there is nothing to show, and nothing fails."""
    rows = np.empty(0, ROW_DTYPE)
    tree = Tree.of(table_of(rows))
    assert len(tree.lines(set(), True)) == 0
    assert tree.newest(1) is None
    assert not len(tree.errors())


def test_nesting_deeper_than_the_call_stack_is_drawn() -> None:
    """A damaged journal may be one long chain; its lines are computed all the same."""
    rows = np.zeros(5000, ROW_DTYPE)
    rows["start"] = rows["end"] = np.arange(1, 5001)
    rows["parent"][1:] = np.arange(FIRST_ROW, FIRST_ROW + 4999)
    tree = Tree.of(table_of(rows))
    assert len(tree.lines(set(tree.table.numbers.tolist()), True)) == 5000


def table_of(rows: np.ndarray[tuple[int], np.dtype[np.void]]) -> Table:
    meta = Meta(Path("absent"))
    meta.names, meta.lanes = {0: Name("span", "x")}, {0: Lane("Engine", "main")}
    header = Header(4096, 0, 0, bytes(16), 1, "", "")
    count = np.arange(FIRST_ROW, FIRST_ROW + len(rows), dtype=np.uint32)
    return Table(Path("absent"), header, meta, count, rows, rows[:0], 0, False, 10**6)
