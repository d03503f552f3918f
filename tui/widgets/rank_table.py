"""The table of ranks: how each of them fares, those that are waited for first."""

from __future__ import annotations

from typing import ClassVar

from textual.widgets import DataTable

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import bar, clip, count, duration, printable, share
from firetrace.tui.model.deaths import DEAD
from firetrace.tui.model.ranks import RankRow
from firetrace.tui.widgets.chosen import RankChosen
from firetrace.tui.widgets.palette import colours
from firetrace.tui.widgets.rows_table import Cells, Column, RowsTable, right


class RankTable(RowsTable):
    """A row a rank; enter shows its run."""

    PANE = "Ranks: medians of their own steps"
    FIRST = "rank"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("state", 22, 1), Column("steps", 7, 4), Column("step", 7), Column("data", 7, 3),
        Column("forward", 7, 3), Column("handlers", 8, 3), Column("late", 7),
        Column("clock", 8, 5), Column("share", 8),
    )  # fmt: skip

    def rows_of(self, snapshot: Snapshot) -> dict[str, Cells]:
        """A row a rank, what the others waited for most first."""
        skew = snapshot.skew
        if skew is None:
            return {}
        order = sorted(
            skew.rows,
            key=lambda row: (row.rank != skew.first_death, row.state not in DEAD, -row.late_ns),
        )
        return {str(row.rank): self._cells(row) for row in order}

    def _cells(self, row: RankRow) -> Cells:
        own = colours()
        colour = own.error if row.state in DEAD else own.live if row.state == "running" else own.dim
        attempt = f" attempt {row.attempt}" if row.attempt > 1 else ""
        times = (row.step_ns, row.data_ns, row.forward_ns, row.handlers_ns, row.late_ns)
        step, data, forward, handlers, late = (right(duration(each)) for each in times)
        clock = {None: "unknown", 0: "exact"}.get(row.error_ns)
        state = right(clip(_state(row), 22), colour)
        state.justify = "left"
        return (
            self.name_cell(colour, printable(f"{row.rank} {row.host}{attempt}")),
            state,
            right(count(row.steps)), step, data, forward, handlers, late,
            right(clock or f"±{duration(row.error_ns or 0)}"),
            right(f"{share(row.share)} {bar(row.share, 3)}"),
        )  # fmt: skip

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show that rank's run."""
        event.stop()
        if event.row_key.value is not None:
            self.post_message(RankChosen(int(event.row_key.value)))


def _state(row: RankRow) -> str:
    """What has become of it, and of one that died, where."""
    if row.state in DEAD and row.place is not None:
        return printable(f"{row.state} in {row.place.name} {row.place.iteration}")
    return row.state
