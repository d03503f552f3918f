"""The help: the table of keys, over the app."""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar

from rich.table import Table as RichTable
from rich.text import Text
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
    ("lately", "the median of the last 256 against the whole run's"),
    ("steps ▄▄", "all steps of the run, equally many a cell: above how slow they usually were, "
     "below the slowest"),
    ("≥", "no epoch has ended yet: what comes at its end is not in the ETA"),
)  # fmt: skip


class Help(ModalScreen[None]):
    """All keys and signs; any of ``? escape q enter`` leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,escape,q,enter", "dismiss", "back", show=False)
    ]

    def compose(self) -> ComposeResult:
        """One box."""
        grid = RichTable.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column()
        for section, keys in groupby(KEYS, lambda key: key.section):
            grid.add_row(Text(section, "dim"), "")
            for key in keys:
                grid.add_row(Text(key.shown), Text(key.help))
        grid.add_row(Text("Signs", "dim"), "")
        for sign, meaning in SIGNS:
            grid.add_row(Text(sign), Text(meaning))
        with VerticalScroll(id="help") as box:
            box.border_title = "Keys"
            yield Static(grid)
