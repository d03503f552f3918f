"""A search's matches: the right spans, in the file's order, one by one and from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from firetrace.tracer.table import Table, read_table
from firetrace.tui.model import search
from firetrace.tui.model.report import read_tree
from firetrace.tui.model.search import Matches
from tests.support.wild_journal import WildJournal

Fits = Callable[[Table, int], bool]


def text(wanted: str) -> Fits:
    return lambda table, at: wanted in table.name(at).text


def kind(wanted: str) -> Fits:
    return lambda table, at: table.name(at).kind == wanted or wanted in table.name(at).text


def numbered(wanted: str, column: str, number: int) -> Fits:
    return lambda table, at: table.name(at).kind == wanted and int(table.rows[column][at]) == number


def of_engine(engine: str, wanted: str) -> Fits:
    return lambda table, at: table.lane(at).engine == engine and wanted in table.name(at).text


PATTERNS: dict[str, Fits] = {
    "forward": text("forward"), "  FORW ": text("forward"), "handler": kind("handler"),
    "a step": text("a step"), "step": kind("step"), "span": kind("span"),
    "Engine2: save": of_engine("Engine2", "save"),
    "step 40": numbered("step", "iteration", 40), "Step #40": numbered("step", "iteration", 40),
    "iteration 7": numbered("step", "iteration", 7), "epoch 3": numbered("epoch", "epoch", 3),
    "step 99999999999999999999": lambda table, at: False, "epoch 0": lambda table, at: False,
    "no such name": lambda table, at: False, "": lambda table, at: False, "(": text("("),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_matches_are_the_rows_that_fit(
    tmp_path: Path, seed: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that have ended, in the file's order; each is found again from its number."""
    monkeypatch.setattr(search, "MOST_WINDOWS", 2)
    journal = WildJournal(tmp_path, seed)
    journal.write(5000)
    journal.close_guesses()
    table = read_table(journal.path)
    matches = Matches(read_tree(journal.path), pattern)
    fits = PATTERNS[pattern]
    expected = [
        int(table.numbers[at]) for at in range(len(table))
        if table.rows["end"][at] != 0 and fits(table, at)
    ]  # fmt: skip
    assert [matches.at(line) for line in range(len(matches))] == [(n, 0) for n in expected]
    assert [matches.index(number) for number in expected] == list(range(len(expected)))
    for number in (0, 1, 128, 10**9, 2**32 - 1, *journal.random.sample(range(6000), 100)):
        after = sum(each <= number for each in expected)
        assert matches.after(number) == after
        assert matches.index(number) == (expected.index(number) if number in expected else None)
        if expected:
            near = matches.at(matches.nearest(number))[0]
            assert abs(near - number) == min(abs(each - number) for each in expected)
    journal.end()


def test_matches_stay_while_the_journal_grows(tmp_path: Path) -> None:
    """They are of one moment: every line is a span that fits, and there are as many as then."""
    journal = WildJournal(tmp_path, 5)
    journal.write(2000)
    matches = Matches(read_tree(journal.path), "save")
    count = len(matches)
    journal.write(2000)
    table = read_table(journal.path)
    fitting = {int(n) for at, n in enumerate(table.numbers) if table.name(at).text == "save"}
    numbers = [matches.at(line)[0] for line in range(len(matches))]
    assert len(numbers) == count > 20
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= fitting
    for line, number in enumerate(numbers):
        assert matches.index(number) == line
    journal.end()


def test_matches_of_a_file_cut_short_are_no_error(tmp_path: Path) -> None:
    """What is no longer there is number 0."""
    journal = WildJournal(tmp_path, 6)
    journal.write(4000)
    journal.end()
    matches = Matches(read_tree(journal.path), "save")
    with open(journal.path, "r+b") as file:
        file.truncate(20_000)
    for line in range(len(matches)):
        number = matches.at(line)[0]
        assert number == 0 or number * 32 < 20_000
        assert 0 <= matches.nearest(line * 7) < len(matches)
    assert matches.at(len(matches) - 1) == (0, 0)
