"""The last line: the keys that are wanted most; a click does the same.

Textual's own ``Footer`` is a widget a key, which takes a tenth of a second when the app starts.
"""

from __future__ import annotations

from rich.style import Style
from rich.text import Text
from textual import events
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.keys import KEYS, Key


class KeyBar(Widget):
    """Keys with a word in the key table's ``footer``; those of the tree while it has the focus."""

    DEFAULT_CSS = "KeyBar { dock: bottom; height: 1; }"

    in_tree: reactive[bool] = reactive(True)

    def render(self) -> Text:
        """As many as fit."""
        text = Text(no_wrap=True, overflow="crop", end="")
        variables = self.app.theme_variables
        accent, muted = variables.get("accent", ""), self.app.current_theme.foreground or ""
        for key in self._keys():
            text.append(f" {key.shown.split()[0]}", Style(color=_plain(accent), bold=True))
            text.append(f" {key.footer} ", Style(color=_plain(muted), dim=True))
        return text

    def _keys(self) -> list[Key]:
        panes = ("app", "all", "tree") if self.in_tree else ("app", "all")
        found: list[Key] = []
        left = self.size.width
        # What helps and what leaves is there however narrow it is.
        wanted = sorted(KEYS, key=lambda key: key.action not in ("help", "quit"))
        for key in wanted:
            cells = len(key.shown.split()[0]) + len(key.footer) + 3
            if key.footer and key.pane in panes and cells <= left:
                found.append(key)
                left -= cells
        return sorted(found, key=KEYS.index)

    async def on_click(self, event: events.Click) -> None:
        """Do what the key does."""
        edge = 0
        for key in self._keys():
            edge += len(key.shown.split()[0]) + len(key.footer) + 3
            if event.x < edge:
                event.stop()
                self.app.simulate_key(key.keys.partition(",")[0])
                return


def _plain(colour: str) -> str | None:
    """A colour that Rich knows; the terminal's own for the others."""
    return colour if colour.startswith("#") else None
