"""What the tables above the tree have in common: columns that fit, rows updated in place."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.binding import BindingType
from textual.coordinate import Coordinate
from textual.widgets import DataTable

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip
from firetrace.tui.keys import bindings
from firetrace.tui.widgets.palette import colours

Cells = tuple[Text, ...]
#: More rows than anyone reads; a table of Textual's gets slow at thousands.
MOST_ROWS = 200
#: Columns are left out before the names get less than this.
NAME_CELLS = 16


class Column(NamedTuple):
    """A column after the first."""

    title: str
    cells: int
    rank: int = 0  #: above 0: left out for want of space, the highest first


class RowsTable(DataTable[Text]):
    """A table whose first column, the names, takes the space that the others leave."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("rows", "all")]
    PANE: ClassVar[str]  #: title of the pane
    FIRST: ClassVar[str]  #: title of the first column
    COLUMNS: ClassVar[tuple[Column, ...]]

    def __init__(self, *, id: str) -> None:
        super().__init__(
            id=id, classes="rows", cursor_type="row", cursor_foreground_priority="renderable"
        )
        self.border_title = self.PANE
        self.name_cells = 0  #: width of the first column
        self.offered = self.COLUMNS  #: the columns after the first that there are now
        self._fitting: list[int] = []  # indices of columns; empty until laid out
        self._laid_out: list[Column] = []
        self._snapshot: Snapshot | None = None
        self._shown: dict[str, Cells] = {}

    def rows_of(self, snapshot: Snapshot) -> dict[str, Cells]:
        """All rows, by key, with a cell for the name and one for each of ``offered``."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw all anew: the colours are others."""
        self._shown = {}
        if self._snapshot is not None:
            self.show(self._snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot; only cells that changed are touched while the rows are the same."""
        self._snapshot = snapshot
        if not self._fitting:
            return  # not on the screen
        found = self.rows_of(snapshot)
        rows = {
            key: (cells[0], *(cells[1 + index] for index in self._fitting))
            for key, cells in list(found.items())[:MOST_ROWS]
        }
        more = len(found) > len(rows)
        self.border_title = f"{self.PANE} · {len(rows)} of {len(found):,}" if more else self.PANE
        if list(rows) != list(self._shown):
            self._show_all(rows)
            return
        for y, (key, cells) in enumerate(rows.items()):
            for x, (cell, old) in enumerate(zip(cells, self._shown[key], strict=True)):
                if cell != old or cell.spans != old.spans:
                    self.update_cell_at(Coordinate(y, x), cell)
        self._shown = rows

    def _show_all(self, rows: dict[str, Cells]) -> None:
        keys, row = list(self._shown), self.cursor_row
        selected = keys[row] if row < len(keys) else None
        top = self.scroll_y
        self.clear()
        for key, cells in rows.items():
            self.add_row(*cells, key=key)
        self._shown = rows
        if selected in rows and row:  # the first row stays the first
            now = list(rows).index(selected)
            self.move_cursor(row=now, scroll=False)
            top = max(0, top + now - row)  # the row stays where it is on the screen
        self.scroll_to(y=top, animate=False, immediate=True)

    def on_resize(self, event: events.Resize) -> None:
        """Choose the columns that fit."""
        self.fit()

    def fit(self) -> None:
        """Choose the columns that fit, of those that there are now."""
        offered = self.offered
        gap = 2 * self.cell_padding
        room = self.scrollable_content_region.width - gap
        fitting = list(range(len(offered)))
        for index in sorted(fitting, key=lambda index: -offered[index].rank):
            taken = sum(offered[each].cells + gap for each in fitting)
            if offered[index].rank and room - taken < NAME_CELLS:
                fitting.remove(index)
        taken = sum(offered[each].cells + gap for each in fitting)
        name_cells = max(8, room - taken)
        wanted = [offered[index] for index in fitting]
        if (wanted, name_cells) == (self._laid_out, self.name_cells):
            return
        self._fitting, self._laid_out, self.name_cells = fitting, wanted, name_cells
        self.clear(columns=True)
        self.add_column(Text(self.FIRST), width=name_cells)
        for column in wanted:
            bar = column.title == "share"  # it ends in one, so its number is not at the right
            title = Text(column.title, justify="left" if bar else "right")
            self.add_column(title, width=column.cells)
        self._shown = {}
        if self._snapshot is not None:
            self.show(self._snapshot)

    def name_cell(self, colour: str, name: str) -> Text:
        """The first column's cell: a mark in a colour, and a name out of the trace.

        Another engine's name (``engine: name``) comes after its phase's, where it may be cut.
        """
        width = self.name_cells - 1
        engine, _, own = name.rpartition(": ")
        own = clip(own, width)
        rest = clip(f" {engine}", width - cell_len(own)) if engine else ""
        return Text.assemble(("▌", colour), own, (rest, colours().dim), no_wrap=True)


def right(text: str, style: str = "") -> Text:
    """A number's cell."""
    return Text(text, style, justify="right", no_wrap=True)
