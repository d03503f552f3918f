"""Ranks in the app: real journals of many ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from firetrace.tui import app as app_module
from firetrace.tui import feed as feed_module
from firetrace.tui.app import WatchApp
from firetrace.tui.widgets.rank_strip import RankStrip, chosen, spread
from firetrace.tui.widgets.rank_table import RankTable
from tests.support.ranks import MS, SimulatedRun
from tests.support.screens import SIZE, screen_of, until_shown


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for a reader made for eyes."""
    monkeypatch.setattr(app_module, "PERIOD_S", 0.06)
    monkeypatch.setattr(feed_module, "RANKS_S", 0.1)


def slow_in_data(ranks: int, which: int, steps: int = 60) -> SimulatedRun:
    run = SimulatedRun(ranks, steps)
    run.data[which] += 30 * MS
    return run


async def test_the_straggler_is_named_and_ranks_have_lines(tmp_path: Path) -> None:
    """The verdict comes first; each rank has a line, with how late it was."""
    slow_in_data(3, 1).write(tmp_path / "run")
    app = WatchApp(str(tmp_path / "run"))
    async with app.run_test(size=SIZE) as pilot:
        await until_shown(pilot, "STRAGGLER: rank 1", "its data is slow", "rank 0 of 3")
        await until_shown(pilot, "rank 0 ", "rank 1 ", "rank 2 ", "ranks, step 1")
        await pilot.press("5")
        await until_shown(pilot, "Ranks: medians of their own steps")
        table = app.screen_stack[0].query_one("#ranks")
        assert isinstance(table, RankTable)
        assert table.ordered_rows[0].key.value == "1"


async def test_a_rank_is_chosen_in_the_table(tmp_path: Path) -> None:
    """Enter shows that rank; the ranks stay."""
    slow_in_data(2, 1).write(tmp_path / "run")
    app = WatchApp(str(tmp_path / "run"))
    async with app.run_test(size=SIZE) as pilot:
        await until_shown(pilot, "STRAGGLER: rank 1")
        await pilot.press("5")
        await until_shown(pilot, "Ranks: medians")
        await pilot.press("enter")
        await until_shown(pilot, "rank 1 of 2", "STRAGGLER: rank 1")


async def test_a_rank_that_died_is_said_to_have_died(tmp_path: Path) -> None:
    """By name, and where, in the colour of errors and in the second line."""
    run = SimulatedRun(3, 40)
    run.kill(2, 17, "forward", 50 * MS)
    run.write(tmp_path / "run")
    app = WatchApp(str(tmp_path / "run"))
    async with app.run_test(size=SIZE) as pilot:
        await until_shown(pilot, "rank 2 DIED")
        assert "✖ rank 2" in screen_of(pilot)


async def test_many_ranks_are_folded_to_those_that_were_late(tmp_path: Path) -> None:
    """Of 40 ranks the lines that fit are those of the worst, in their order."""
    slow_in_data(40, 33, 20).write(tmp_path / "run")
    app = WatchApp(str(tmp_path / "run"))
    async with app.run_test(size=SIZE) as pilot:
        await until_shown(pilot, "STRAGGLER: rank 33", "ranks, step", "rank 33   ▀")
        skew = app.shown.skew if app.shown is not None else None
        assert skew is not None
        rows = chosen(skew, 4)
        assert len(rows) == 4
        assert 33 in [row.rank for row in rows]
        assert [row.rank for row in rows] == sorted(row.rank for row in rows)
        assert 2 <= app.screen_stack[0].query_one(RankStrip).size.height <= 9


def test_values_are_spread_over_cells() -> None:
    """Of several in a cell the largest; where there is none, nothing."""
    import numpy as np

    assert spread(np.array([1.0, 5.0, 2.0, 3.0]), 2) == [5.0, 3.0]
    assert spread(np.array([1.0, 2.0]), 4) == [1.0, 1.0, 2.0, 2.0]
    assert np.isnan(spread(np.array([np.nan, np.nan]), 1)).all()
    assert np.isnan(spread(np.empty(0), 3)).all()
