"""The table of the slowest steps: which, how long, and what took longer than usual."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.widgets import DataTable

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, count, duration
from firetrace.tui.widgets.chosen import SpanChosen
from firetrace.tui.widgets.palette import Palette, colours
from firetrace.tui.widgets.rows_table import Cells, Column, RowsTable, right

#: Nothing in it took much longer than usual.
EVENLY = "a bit of everything"


class SlowestTable(RowsTable):
    """The slowest steps; enter, or a click on the selected one, goes there in the tree."""

    PANE = "Slowest steps"
    FIRST = "because of"
    COLUMNS: ClassVar[tuple[Column, ...]] = (Column("step", 7), Column("took", 6))

    def rows_of(self, snapshot: Snapshot) -> dict[str, Cells]:
        """A row a step."""
        palette = Palette(snapshot.tree.meta)
        rows: dict[str, Cells] = {}
        for step in snapshot.report.slowest_steps:
            name, ns = step.because[0] if step.because else (EVENLY, 0)
            more = f" +{duration(ns)}" if step.because else ""
            colour = palette.phase(name)
            name = clip(name, self.name_cells - 1 - len(more))
            rows[str(step.number)] = (
                Text.assemble(("▌", colour), name, (more, colours().dim), no_wrap=True),
                right(count(step.iteration)),
                right(duration(step.duration_ns), "bold"),
            )
        return rows

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Tell the app where to go."""
        event.stop()
        if event.row_key.value is not None:
            self.post_message(SpanChosen(int(event.row_key.value)))
