"""The help: the table of keys, over the app."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table as RichTable
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from firetrace.tui.keys import KEYS

SIGNS = (
    ("██", "a span that has ended; a folded step shows its parts"),
    ("▒▒", "a span that is open now"),
    ("name ?", "the name is a guess: what followed here before"),
    ("▸ ▾", "folded, unfolded; a mouse click does both"),
)


class Help(ModalScreen[None]):
    """All keys and signs; any of ``? escape q enter`` leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,escape,q,enter", "dismiss", "back", show=False)
    ]

    def compose(self) -> ComposeResult:
        """One box."""
        grid = RichTable.grid(padding=(0, 2))
        for key in KEYS:
            grid.add_row(key.shown, key.help)
        grid.add_row("", "")
        for sign, meaning in SIGNS:
            grid.add_row(sign, meaning)
        grid.columns[0].style = "bold"
        with VerticalScroll(id="help") as box:
            box.border_title = "Keys"
            yield Static(grid)
