"""Looking at the app: what its screen shows, and waiting until it shows something."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable

from textual.pilot import Pilot

from firetrace.tui.app import WatchApp
from firetrace.tui.widgets.lines_view import AXIS_LINES
from firetrace.tui.widgets.timeline import Timeline

SIZE = (120, 36)


def screen(app: WatchApp) -> str:
    """What the terminal shows, as text."""
    rows: dict[float, str] = {}
    for y, text in re.findall(
        r'<text[^>]* y="([\d.]+)"[^>]*>(.*?)</text>', app.export_screenshot()
    ):
        rows[float(y)] = rows.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
    return "\n".join(rows[y] for y in sorted(rows))


async def until(
    pilot: Pilot[str], condition: Callable[[], bool], what: str, seconds: float = 60
) -> None:
    """Wait for a condition, for a minute at most if nothing else is said: machines are shared."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}:\n{screen_of(pilot)}"
        await pilot.pause(0.03)  # a look costs as much as a frame


async def until_shown(pilot: Pilot[str], *texts: str) -> None:
    """Wait until the screen shows all these."""
    await until(pilot, lambda: all(text in screen_of(pilot) for text in texts), f"not {texts}")


def screen_of(pilot: Pilot[str]) -> str:
    assert isinstance(pilot.app, WatchApp)
    return screen(pilot.app)


def timeline(pilot: Pilot[str]) -> Timeline:
    return pilot.app.screen_stack[0].query_one(Timeline)


def row_of_cursor(pilot: Pilot[str]) -> tuple[int, str]:
    """The cursor's line of the screen, and what stands there."""
    view = timeline(pilot)
    y = view.line - view.scroll_offset.y + AXIS_LINES
    return y, view.render_line(y).text.split("(")[0].strip()[:20].strip()
