"""The epochs one below the other: how long each took, and what of that was waiting."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.widgets import DataTable

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import count, duration
from firetrace.tui.model.digest import EpochTime
from firetrace.tui.widgets.chosen import SpanChosen
from firetrace.tui.widgets.palette import Palette, colours
from firetrace.tui.widgets.rows_table import Cells, Column, RowsTable, right


class EpochsTable(RowsTable):
    """A bar an epoch, all to the same scale; enter, or a click on the selected one, goes there."""

    PANE = "Epochs"
    FIRST = "waiting, steps, other engines, between"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("epoch", 6), Column("took", 6), Column("waited", 6, 2), Column("others", 6, 3),
        Column("steps", 8, 1),
    )  # fmt: skip

    def rows_of(self, snapshot: Snapshot) -> dict[str, Cells]:
        """A row an epoch, the newest first."""
        times = snapshot.report.epoch_times[::-1]
        longest = max((each.end_ns - each.start_ns for each in times), default=1)
        palette = Palette(snapshot.tree.meta)
        return {
            str(each.number): (
                self._bar(each, longest, palette), right(f"{each.epoch}"),
                right(duration(each.end_ns - each.start_ns), "bold"),
                right(duration(each.wait_ns) if each.wait_ns else ""),
                right(duration(each.nested_ns) if each.nested_ns else ""),
                right(count(each.iterations)),
            )
            for each in times
        }  # fmt: skip

    def _bar(self, each: EpochTime, longest: int, palette: Palette) -> Text:
        took = each.end_ns - each.start_ns
        steps = max(0, each.steps_ns - each.wait_ns + each.loading_ns)
        rest = max(0, took - each.steps_ns - each.loading_ns - each.nested_ns)
        own = colours()
        parts = (
            (each.wait_ns, palette.phase("get_batch")), (steps, palette.phase("forward")),
            (each.nested_ns, own.handler), (rest, own.structure),
        )  # fmt: skip
        text, done, edge = Text(no_wrap=True), 0, 0
        for ns, colour in parts:
            done = min(done + ns, longest)
            cells = round(done / max(1, longest) * (self.name_cells - 1)) - edge
            if cells > 0:
                text.append("█" * cells, colour)
                edge += cells
        return text

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Tell the app where to go."""
        event.stop()
        if event.row_key.value is not None:
            self.post_message(SpanChosen(int(event.row_key.value)))
