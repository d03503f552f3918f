from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

import pytest
from ignite.engine import Engine, Events
from rich.cells import cell_len
from textual.widgets import DataTable

from firetrace import TraceHandler
from firetrace.exporters.selection import Selection
from firetrace.tui import app as app_module
from firetrace.tui.actions import Part, new_path
from firetrace.tui.app import WatchApp
from firetrace.tui.feed import Waiting
from firetrace.tui.widgets.headline import Headline
from firetrace.tui.widgets.heat_strip import HeatStrip
from firetrace.tui.widgets.lines_view import AXIS_LINES
from firetrace.tui.widgets.slowest import SlowestTable
from firetrace.tui.widgets.stats_table import PhaseTable
from firetrace.tui.widgets.timeline import Timeline
from tests.support.recordings import Growing, record, record_failing, record_killed
from tests.support.screens import SIZE, row_of_cursor, screen_of, timeline, until, until_shown


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for a reader made for eyes."""
    monkeypatch.setattr(app_module, "PERIOD_S", 0.06)


async def test_shows_a_finished_run() -> None:
    """A finished run has its state, progress, verdict, phases, and its newest step unfolded."""
    directory = record(epochs=3, steps=4)
    async with WatchApp(str(directory)).run_test(size=SIZE) as pilot:
        await until_shown(pilot, "DONE", "training", "epoch 3/3", "4/4", "FOLLOW")
        await until_shown(pilot, "get_batch", "backward", "optimizer", "step/s")
        await until_shown(pilot, "run Trainer", "epoch 3", "run Evaluator", "step 2")


async def test_without_a_name_shows_the_newest_run() -> None:
    """The run that began last is shown."""
    record(epochs=1)
    newest = record(epochs=2)
    async with WatchApp().run_test(size=SIZE) as pilot:
        await until_shown(pilot, "DONE", newest.name, "epoch 2/2")


async def test_shows_a_run_while_it_grows() -> None:
    """Steps appear as they happen, the open one is marked, and the end is said."""
    with Growing(steps=20) as training:
        training.go_on(3)
        async with WatchApp().run_test(size=SIZE) as pilot:
            await until_shown(pilot, "RUN", "epoch 1/2", "step 4 (open ", "ETA")
            training.go_on(10)
            await until_shown(pilot, "epoch 2/2", "step 14 (open ", "4/10")
            training.go_on(20)
            await until_shown(pilot, "DONE", "10/10")


async def test_an_open_span_gets_longer_without_new_rows() -> None:
    """While nothing is written, the clock of what is open goes on."""
    with Growing(steps=20) as training:
        async with WatchApp().run_test(size=SIZE) as pilot:
            training.go_on(1)
            await until_shown(pilot, "step 2 (open ")
            before = re.search(r"step 2 \(open (\S+)\)", screen_of(pilot))
            assert before is not None
            await until(pilot, lambda: before[0] not in screen_of(pilot), "the clock stands still")


async def test_waits_for_a_run_that_is_still_to_come(own_folders: Path) -> None:
    """Without a run the app says that it waits, and for what; then it shows the run."""
    async with WatchApp().run_test(size=SIZE) as pilot:
        await until_shown(pilot, "WAIT", "waiting for a run", str(own_folders))
        record(epochs=2)
        await until_shown(pilot, "DONE", "epoch 2/2")
        await until(pilot, lambda: timeline(pilot).has_focus, "the keys do not work")


async def test_waits_for_a_path_that_does_not_exist_yet(own_folders: Path) -> None:
    """A path may be given before the training makes it; other runs are not taken for it."""
    record(epochs=1)
    async with WatchApp(str(own_folders / "later")).run_test(size=SIZE) as pilot:
        await until_shown(pilot, "WAIT", "later")
        (own_folders / "later").symlink_to(record(epochs=2))
        await until_shown(pilot, "DONE", "epoch 2/2")


async def test_says_that_the_process_died_and_what_was_open() -> None:
    """After SIGKILL: DIED, and the spans that were open then."""
    directory = record_killed()
    async with WatchApp(str(directory)).run_test(size=SIZE) as pilot:
        await until_shown(pilot, "DIED", "epoch 2/3", "step 6", "(open ", "forward ?")


@pytest.mark.parametrize("content", [b"", b"no journal at all", b"FIRETRC\n\x09" + bytes(5000)])
async def test_leaves_with_the_reason_when_it_cannot_read(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no journal ends the app with exit code 1 and a line that names the file."""
    monkeypatch.setattr("firetrace.tui.feed.GRACE_S", 0.05)
    path = tmp_path / "rank0.1.rows"
    path.write_bytes(content)
    app = WatchApp(str(path))
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.return_code == 1, "still there")
    assert str(path) in (app.return_value or "")


async def test_leaves_when_no_run_has_that_name() -> None:
    """A name, unlike a path, is not waited for."""
    app = WatchApp("no-such-run")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.return_code == 1, "still there")
    assert "no-such-run" in (app.return_value or "")


async def test_leaves_by_itself_when_the_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With exit_when_done the app goes on while the run does, and not longer."""
    monkeypatch.setattr(app_module, "LINGER_S", 0.05)
    app = WatchApp(None, exit_when_done=True)
    with Growing(steps=20) as training:
        async with app.run_test(size=SIZE) as pilot:
            training.go_on(5)
            await until_shown(pilot, "RUN", "step 6")
            assert app.return_code is None
            training.go_on(100)
            await until(pilot, lambda: app.return_code == 0, "still there")


async def test_names_of_a_trace_are_text() -> None:
    """Markup, escape codes, line breaks and wide characters in names are drawn, not obeyed."""
    nasty = "[red]日本語[/red]\x1b[31m\x1b]0;pwned\x07\n\r\t\x9b2J\u202e[bold]" + "界" * 40

    def handler(engine: Engine) -> None:
        return

    handler.__name__ = handler.__qualname__ = nasty
    directory = record(epochs=1, handlers=(handler,))
    async with WatchApp(str(directory)).run_test(size=(200, 60)) as pilot:
        await until_shown(pilot, "DONE", "[red]日本語[/red]␛")  # among the handlers
        view = timeline(pilot)
        await pilot.press("home")
        view.unfolded = set(range(10_000))
        assert isinstance(pilot.app, WatchApp)
        assert pilot.app.shown is not None
        view.show(pilot.app.shown)
        await until_shown(pilot, "ITERATION_COMPLETED", "[red]日本語[/red]␛[31m␛]0;")
        for y in range(view.size.height):
            strip = view.render_line(y)
            width = view.scrollable_content_region.width
            assert strip.cell_length == cell_len(strip.text) == width
            assert strip.text.isprintable()
        assert "\x1b" not in screen_of(pilot)


@pytest.mark.parametrize("size", [(60, 15), (40, 10), (200, 60), (250, 70)])
async def test_fits_terminals_of_every_size(size: tuple[int, int]) -> None:
    """From 60x15 to 250x70 state, mode, phases and tree are there, whatever is pressed."""
    directory = record(epochs=2)
    async with WatchApp(str(directory)).run_test(size=size) as pilot:
        await until_shown(pilot, "DONE", "FOLLOW", "step 2")
        await pilot.press("home", "c", "s", "pagedown", "question_mark", "escape", "tab", "end")
        await pilot.resize_terminal(size[0] + 7, size[1] + 3)
        await until_shown(pilot, "DONE", "FOLLOW")


async def test_the_row_under_the_cursor_stays_where_it_is() -> None:
    """While the run grows, a chosen row keeps its line of the screen; following, it does not."""
    with Growing(steps=40) as training:
        training.go_on(8)
        async with WatchApp().run_test(size=SIZE) as pilot:
            await until_shown(pilot, "step 9 (open ")
            await pilot.press("up", "up")
            chosen = row_of_cursor(pilot)
            await until_shown(pilot, "BROWSE")
            training.go_on(15)
            await until_shown(pilot, "epoch 3/4")
            assert row_of_cursor(pilot) == chosen
            await pilot.press("f")
            await until_shown(pilot, "FOLLOW", "step 24 (open ")


async def test_what_is_read_while_it_closes_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its widgets are removed first; a reading that comes then looks for none of them."""
    app = WatchApp(str(record(epochs=1)))
    close_all = app._close_all

    async def close_slowly() -> None:
        await app.screen_stack[0].query("*").remove()
        for found in (app.shown, Waiting("none yet")):
            assert found is not None
            assert app.post_message(WatchApp.Read(found))
            await asyncio.sleep(0.1)
        await close_all()

    async with app.run_test(size=SIZE) as pilot:
        await until_shown(pilot, "DONE")
        monkeypatch.setattr(app, "_close_all", close_slowly)


async def test_pausing_holds_the_picture_and_misses_nothing() -> None:
    """Paused, nothing on the screen moves; afterwards everything is there."""
    with Growing(steps=40) as training:
        training.go_on(3)
        async with WatchApp().run_test(size=SIZE) as pilot:
            await until_shown(pilot, "step 4 (open ")
            await pilot.press("space")
            training.go_on(10)
            await until_shown(pilot, "PAUSED +")
            assert "step 4 (open " in screen_of(pilot)
            await pilot.press("space")
            await until_shown(pilot, "step 14 (open ", "FOLLOW")


async def test_errors_are_named() -> None:
    """The exception is in the second line, and in the tree where it was raised."""
    directory = record_failing()
    async with WatchApp(str(directory)).run_test(size=SIZE) as pilot:
        await until_shown(pilot, "ENDED", "ValueError: no [b]luck")
        await pilot.press("home", "e")
        assert "step 3" in timeline(pilot).render_line(row_of_cursor(pilot)[0] - 3).text or (
            "ValueError" in timeline(pilot).render_line(row_of_cursor(pilot)[0]).text
        )


async def test_a_click_chooses_a_row_and_a_click_on_its_mark_folds_it() -> None:
    """The mouse does what the keys do."""
    directory = record(epochs=3)
    async with WatchApp(str(directory)).run_test(size=SIZE) as pilot:
        await until_shown(pilot, "DONE", "run Evaluator")
        await pilot.press("home")
        view = timeline(pilot)
        assert view.cursor in view.unfolded
        await pilot.click(Timeline, offset=(8, AXIS_LINES + 3))  # below the rule and the axis
        await until(pilot, lambda: row_of_cursor(pilot)[1].endswith("epoch 2"), "not chosen")
        assert view.cursor not in view.unfolded
        await pilot.click(Timeline, offset=(2, AXIS_LINES + 3))
        await until(pilot, lambda: view.cursor in view.unfolded, "not unfolded")


async def test_choosing_a_slow_step_goes_there() -> None:
    """Enter in the table of the slowest steps puts the tree's cursor on that step."""
    directory = record(epochs=2)
    async with WatchApp(str(directory)).run_test(size=(200, 50)) as pilot:
        await until_shown(pilot, "Slowest steps", "DONE")
        table = pilot.app.query_one(SlowestTable)
        table.focus()
        await until(pilot, lambda: table.has_focus, "no focus")
        await pilot.press("down", "enter")
        wanted = f"step {table.get_row_at(1)[1].plain}"
        await until(pilot, lambda: row_of_cursor(pilot)[1].endswith(wanted), f"not at {wanted}")
        await until(pilot, lambda: timeline(pilot).has_focus, "the table has the focus")


async def test_rows_of_a_table_are_moved_through_with_the_same_keys() -> None:
    """Up, down, j, k, Home work in the tables, too."""
    directory = record(epochs=2)
    async with WatchApp(str(directory)).run_test(size=SIZE) as pilot:
        await until_shown(pilot, "DONE", "optimizer")
        await pilot.press("tab", "tab", "j", "down", "k")
        table = pilot.app.query_one(PhaseTable)
        assert isinstance(table, DataTable)
        assert table.cursor_row == 1
        await pilot.press("home")
        assert table.cursor_row == 0


async def test_a_running_step_that_hangs_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step open for far longer than any before takes the verdict's place."""
    monkeypatch.setattr("firetrace.tui.model.verdict.HANG_NS", 0)
    with Growing(steps=20) as training:
        training.go_on(5)
        async with WatchApp().run_test(size=SIZE) as pilot:
            await until_shown(
                pilot, "HANGS", "hangs for ", "in forward of Trainer's iteration 6; p99"
            )
            assert isinstance(pilot.app.query_one(Headline), Headline)


async def test_another_run_may_be_shorter_than_the_one_before() -> None:
    """The strip of steps, with the focus, follows the switch."""
    longer, shorter = record(epochs=8, steps=20), record(epochs=1, steps=2)
    app = WatchApp(str(longer))
    async with app.run_test(size=SIZE) as pilot:
        await until_shown(pilot, "DONE", "epoch 8/8")
        strip = app.query_one(HeatStrip)
        strip.focus()
        await until(pilot, lambda: strip.has_focus, "no focus")
        app.switch_to(str(shorter))
        await until_shown(pilot, "DONE", "epoch 1/1", "2/2")


async def test_a_run_that_cannot_be_read_is_left_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen and is no journal: the app says so and shows again what it showed."""
    monkeypatch.setattr("firetrace.tui.feed.GRACE_S", 0.05)
    broken = tmp_path / "rank0.1.rows"
    broken.write_bytes(b"no journal")
    directory = record(epochs=3)
    app = WatchApp(str(directory))
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await until_shown(pilot, "DONE", "epoch 3/3")
        app.switch_to(str(broken))
        await until_shown(pilot, "not a firetrace journal")
        await until_shown(pilot, "DONE", "epoch 3/3", "Timeline")
        assert app.return_code is None


async def test_an_error_that_the_program_caught_does_not_hide_the_verdict() -> None:
    """A run that came to its end has its verdict, and says how many errors there were."""

    def handler(engine: Engine) -> None:
        raise ValueError("cache miss")

    def update(engine: Engine) -> None:
        with contextlib.suppress(ValueError):
            failing.run(range(1))

    failing = Engine(lambda engine, batch: None)
    failing.add_event_handler(Events.STARTED, handler)
    trainer = Engine(lambda engine, batch: update(engine))
    recorder = TraceHandler()
    recorder.attach(trainer)
    recorder.attach(failing)
    trainer.run(range(3), max_epochs=2)
    recorder.close()
    async with WatchApp(str(recorder.directory)).run_test(size=(160, 40)) as pilot:
        await until_shown(pilot, "DONE", "BOUND:", " errors (e)")


def test_an_export_never_replaces_a_file(tmp_path: Path) -> None:
    """A name that is taken gets the part's behind it, then a number."""
    part = Part("epoch3", "", Selection())
    wanted = tmp_path / "run.json.gz"
    assert new_path(wanted, part) == wanted
    wanted.touch()
    assert new_path(wanted, part).name == "run-epoch3.json.gz"
    (tmp_path / "run-epoch3.json.gz").touch()
    assert new_path(wanted, part).name == "run-epoch3-2.json.gz"


@pytest.mark.parametrize("width", [60, 80, 100])
async def test_the_tables_alone_show_their_figures(width: int) -> None:
    """In the view of the tables the numbers are on the screen, however narrow that is."""
    directory = record(epochs=2)
    async with WatchApp(str(directory)).run_test(size=(width, 40)) as pilot:
        await until_shown(pilot, "DONE")
        await pilot.press("3")
        await until_shown(pilot, "p50", "share", "took")
