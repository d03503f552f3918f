"""Every key of the key table does what its help says."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.pilot import Pilot

from firetrace.tui import app as app_module
from firetrace.tui.app import WatchApp
from firetrace.tui.keys import KEYS
from firetrace.tui.widgets.heat_strip import HeatStrip
from firetrace.tui.widgets.help import Help
from firetrace.tui.widgets.palette import THEMES
from firetrace.tui.widgets.stats_table import HandlerTable
from firetrace.tui.widgets.timeline import Timeline
from tests.support.recordings import record, record_failing
from tests.support.screens import SIZE, row_of_cursor, screen_of, timeline, until, until_shown


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for a reader made for eyes."""
    monkeypatch.setattr(app_module, "PERIOD_S", 0.06)


# One check a key: it gets the pilot on a run with two errors, the cursor on the first row.

Check = Callable[[Pilot[str], str], Awaitable[None]]


async def check_quit(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until(pilot, lambda: pilot.app.return_code == 0, "still there")


async def check_pause(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "PAUSED")


async def check_follow(pilot: Pilot[str], key: str) -> None:
    await until_shown(pilot, "BROWSE")
    await pilot.press("tab", key)
    await until_shown(pilot, "FOLLOW")


async def check_up(pilot: Pilot[str], key: str) -> None:
    await pilot.press("down", "down", key)
    assert timeline(pilot).line == 1


async def check_down(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    assert timeline(pilot).line == 1


async def check_page_down(pilot: Pilot[str], key: str) -> None:
    await pilot.press("c", key)
    assert timeline(pilot).line > 5


async def check_page_up(pilot: Pilot[str], key: str) -> None:
    await pilot.press("c", "pagedown", key)
    assert timeline(pilot).line == 0


async def check_top(pilot: Pilot[str], key: str) -> None:
    await pilot.press("down", "down", key)
    assert timeline(pilot).line == 0


async def check_fold(pilot: Pilot[str], key: str) -> None:
    view = timeline(pilot)
    await pilot.press("e", key)
    assert view.line > 0
    await pilot.press(*[key] * 8)
    assert view.cursor not in view.unfolded
    assert row_of_cursor(pilot)[1].endswith("run Trainer")


async def check_unfold(pilot: Pilot[str], key: str) -> None:
    view = timeline(pilot)
    await pilot.press("left", key)
    assert view.cursor in view.unfolded
    await pilot.press(key)
    assert view.line == 1


async def check_view_all(pilot: Pilot[str], key: str) -> None:
    await pilot.press("2", key)
    await until_shown(pilot, "Phases", "Timeline")


async def check_view_tree(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until(pilot, lambda: "Phases" not in screen_of(pilot), "the tables stay")
    assert "Timeline" in screen_of(pilot)


async def check_view_tables(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "Phases", "Handlers", "Slowest steps")
    assert "Timeline" not in screen_of(pilot)


async def check_view_epochs(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "Epochs", "Scalars")
    assert "Timeline" not in screen_of(pilot)


async def check_runs(pilot: Pilot[str], key: str) -> None:
    other = record(epochs=2)
    await pilot.press(key)
    await until_shown(pilot, "rank0.1", other.name)
    await pilot.press("down", "enter")
    await until_shown(pilot, "DONE", "epoch 2/2", other.name)


async def check_view_ranks(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "this run has one rank")


async def check_view_data(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "TraceHandler(data=True)")


async def check_why(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "TraceHandler(data=True)")


async def check_theme(pilot: Pilot[str], key: str) -> None:
    seen = []
    for _ in THEMES:
        picture = pilot.app.export_screenshot()
        seen.append((pilot.app.theme, picture))
        await pilot.press(key)
        await until(pilot, lambda: pilot.app.export_screenshot() != picture, "the same")  # noqa: B023
    assert len({name for name, _ in seen}) == len({picture for _, picture in seen}) == len(THEMES)
    assert pilot.app.theme == seen[0][0]


async def check_output(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "firetrace run --watch")


async def check_next_pane(pilot: Pilot[str], key: str) -> None:
    await pilot.press("shift+tab", key)
    assert isinstance(pilot.app.focused, Timeline)


async def check_pane_before(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    assert isinstance(pilot.app.focused, HandlerTable)


async def check_detail(pilot: Pilot[str], key: str) -> None:
    await pilot.press("e", key)
    await until_shown(pilot, "ValueError: no [b]luck", "thread", "MainThread", "Traceback")
    await pilot.press(key)
    await until(pilot, lambda: "MainThread" not in screen_of(pilot), "the detail stays")


def axis_of(pilot: Pilot[str]) -> str:
    return timeline(pilot).render_line(0).text


async def check_zoom_in(pilot: Pilot[str], key: str) -> None:
    before = axis_of(pilot)
    await pilot.press(key, key)
    await until_shown(pilot, "zoomed")
    assert axis_of(pilot) != before


async def check_zoom_out(pilot: Pilot[str], key: str) -> None:
    before = axis_of(pilot)
    await pilot.press("plus", "plus", key)
    assert axis_of(pilot) != before
    await pilot.press(key)
    assert axis_of(pilot) == before


async def check_pan_back(pilot: Pilot[str], key: str) -> None:
    await pilot.press("plus", "plus", "right_square_bracket", "right_square_bracket")
    before = axis_of(pilot)
    await pilot.press(key)
    assert axis_of(pilot) != before


async def check_pan_on(pilot: Pilot[str], key: str) -> None:
    await pilot.press("plus", "plus", "0", "plus")
    before = axis_of(pilot)
    await pilot.press(key)
    assert axis_of(pilot) != before


async def check_fit(pilot: Pilot[str], key: str) -> None:
    before = axis_of(pilot)
    await pilot.press("plus", "right_square_bracket", key)
    assert axis_of(pilot) == before


async def strip(pilot: Pilot[str]) -> HeatStrip:
    found = pilot.app.screen_stack[0].query_one(HeatStrip)
    found.focus()
    await until(pilot, lambda: found.has_focus, "no focus")
    return found


async def check_strip_earlier(pilot: Pilot[str], key: str) -> None:
    view = await strip(pilot)
    await pilot.press(key)
    assert view.at == 4  # of six steps, from the last one


async def check_strip_later(pilot: Pilot[str], key: str) -> None:
    view = await strip(pilot)
    await pilot.press(key)
    assert view.at == 0


async def check_strip_choose(pilot: Pilot[str], key: str) -> None:
    await strip(pilot)
    await pilot.press("left", key)
    await until(pilot, lambda: row_of_cursor(pilot)[1].endswith("step 2"), "not at the step")
    assert timeline(pilot).has_focus


async def check_search(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key, *"LOSS")
    await until_shown(pilot, "8 spans match", "LOSS_COMPLETED  step 1")
    await pilot.press(
        "backspace", "backspace", "backspace", "backspace", *"step", "space", "2", "enter"
    )
    await until_shown(pilot, "2 spans match")
    await pilot.press("enter")
    await until_shown(pilot, "Timeline ·")
    assert row_of_cursor(pilot)[1].endswith("step 2")


async def check_next_match(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "nothing has been searched for")
    await pilot.press("slash", *"optimizer", "escape", "home", key)
    first = timeline(pilot).cursor
    assert "optimizer" in row_of_cursor(pilot)[1]
    await pilot.press(key)
    assert timeline(pilot).cursor > first
    await pilot.press(key, key, key)
    await until_shown(pilot, "no match further on")


async def check_previous_match(pilot: Pilot[str], key: str) -> None:
    await pilot.press("slash", *"optimizer", "escape", "home", "n", "n")
    second = timeline(pilot).cursor
    await pilot.press(key)
    assert "optimizer" in row_of_cursor(pilot)[1]
    assert timeline(pilot).cursor < second
    await pilot.press(key)
    await until_shown(pilot, "no match before")


async def check_leave(pilot: Pilot[str], key: str) -> None:
    await pilot.press("enter")
    await until_shown(pilot, "MainThread")
    await pilot.press(key)
    await until(pilot, lambda: "MainThread" not in screen_of(pilot), "the detail stays")
    await pilot.press("slash", *"loss", "enter", key)
    await until_shown(pilot, "Timeline ·")


async def check_export(pilot: Pilot[str], key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        await pilot.press("e", key)
        await until_shown(pilot, "what is on the screen", "the whole run", "epoch 1")
        await pilot.press("tab", "ctrl+u", *str(path), "enter")
        await until(pilot, path.exists, "nothing was written")
        assert any(event["name"] == "forward" for event in json.loads(path.read_text()))
        await until_shown(pilot, "spans written")


async def check_perfetto(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "http://127.0.0.1:")
    assert isinstance(pilot.app, WatchApp)
    assert pilot.app.page is not None
    url = re.search(r"http://127\S+", pilot.app.page.message)
    assert url is not None
    # The page is served by a thread of this process, so asking must not stand in its way.
    answer = await asyncio.to_thread(lambda: urllib.request.urlopen(url[0]).read())
    assert b"perfetto" in answer.lower()


async def check_copy(pilot: Pilot[str], key: str) -> None:
    await pilot.press("e", key)
    await until_shown(pilot, "copied: forward")
    assert "engine: Trainer" in pilot.app.clipboard


async def check_save_screen(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "saved to")
    (picture,) = Path.cwd().glob("firetrace-*.svg")
    assert picture.read_text().startswith("<svg")


async def check_interrupt(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until_shown(pilot, "q leaves")
    assert pilot.app.return_code is None


async def check_palette(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    await until(pilot, lambda: isinstance(pilot.app.screen, CommandPalette), "no palette")
    await pilot.press(*"timeline", "space", *"alone")
    await until_shown(pilot, "key: 2")
    await pilot.press("enter")
    await until(pilot, lambda: "Phases" not in screen_of(pilot), "the command did nothing")


async def check_short(pilot: Pilot[str], key: str) -> None:
    await pilot.press("e")
    assert "GET_BATCH_STARTED" not in screen_of(pilot)
    for words in ("100µs", "1ms", "10ms", "100ms"):
        await pilot.press(key)
        await until_shown(pilot, f"below {words} hidden")
    lines = [timeline(pilot).render_line(y).text for y in range(10)]
    assert not any("get_batch" in line for line in lines)
    await pilot.press(key)
    await until_shown(pilot, "GET_BATCH_STARTED")


async def check_next_error(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    assert "forward" in row_of_cursor(pilot)[1]
    first = timeline(pilot).cursor
    await pilot.press(key)
    assert timeline(pilot).cursor > first
    await pilot.press(key)
    await until_shown(pilot, "no error further on")


async def check_previous_error(pilot: Pilot[str], key: str) -> None:
    await pilot.press("e", "e")
    second = timeline(pilot).cursor
    await pilot.press(key)
    assert timeline(pilot).cursor < second


async def check_slowest(pilot: Pilot[str], key: str) -> None:
    await pilot.press(key)
    first = timeline(pilot).cursor
    assert "step" in row_of_cursor(pilot)[1]
    await pilot.press(key)
    assert timeline(pilot).cursor != first


async def check_help(pilot: Pilot[str], key: str) -> None:
    await pilot.resize_terminal(120, 80)
    await pilot.press(key)
    await until_shown(pilot, *[each.help for each in KEYS])
    await pilot.press(key)
    await until(pilot, lambda: not isinstance(pilot.app.screen, Help), "the help stays")


CHECKS: dict[str, Check] = {
    "quit": check_quit,
    "pause": check_pause,
    "app.follow": check_follow,
    "cursor_up": check_up,
    "cursor_down": check_down,
    "page_up": check_page_up,
    "page_down": check_page_down,
    "scroll_top": check_top,
    "fold": check_fold,
    "unfold": check_unfold,
    "view('all')": check_view_all,
    "view('tree')": check_view_tree,
    "view('tables')": check_view_tables,
    "view('epochs')": check_view_epochs,
    "view('ranks')": check_view_ranks,
    "view('data')": check_view_data,
    "why": check_why,
    "runs": check_runs,
    "theme": check_theme,
    "output": check_output,
    "app.focus_next": check_next_pane,
    "app.focus_previous": check_pane_before,
    "detail": check_detail,
    "zoom(1)": check_zoom_in,
    "zoom(-1)": check_zoom_out,
    "pan(-1)": check_pan_back,
    "pan(1)": check_pan_on,
    "fit": check_fit,
    "earlier": check_strip_earlier,
    "later": check_strip_later,
    "choose": check_strip_choose,
    "search": check_search,
    "match(1)": check_next_match,
    "match(-1)": check_previous_match,
    "leave": check_leave,
    "export": check_export,
    "perfetto": check_perfetto,
    "copy": check_copy,
    "save_screen": check_save_screen,
    "app.command_palette": check_palette,
    "interrupt": check_interrupt,
    "short": check_short,
    "error(1)": check_next_error,
    "error(-1)": check_previous_error,
    "slowest": check_slowest,
    "help": check_help,
}


@pytest.mark.parametrize(
    ("action", "key"), [(each.action, key) for each in KEYS for key in each.keys.split(",")]
)
async def test_every_key_does_what_its_help_says(
    action: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key of the table has a check, and passes it."""
    monkeypatch.chdir(tmp_path)
    directory = record_failing()
    app = WatchApp(str(directory))
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await until_shown(pilot, "ENDED", "run Trainer")
        await pilot.press("home")
        await CHECKS[action](pilot, key)
