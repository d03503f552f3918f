"""The table of phases and the table of handlers: how often, how long, how much of the whole."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import bar, count, duration, share
from firetrace.tui.model.distribution import Stats
from firetrace.tui.model.workers import MADE
from firetrace.tui.widgets.device_lanes import COPIES
from firetrace.tui.widgets.palette import Palette, colours
from firetrace.tui.widgets.rows_table import Cells, Column, RowsTable, right
from firetrace.tui.widgets.worker_lanes import colour_of


class StatsTable(RowsTable):
    """One row a name, the longest in all first."""

    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("n", 7), Column("p50", 6), Column("p95", 6, 3), Column("p99", 6, 5),
        Column("max", 6, 2), Column("lately", 6, 4), Column("share", 8),
    )  # fmt: skip

    def cells(self, name: str, stats: Stats, colour: str) -> Cells:
        """A row."""
        return (
            self.name_cell(colour, name),
            right(count(stats.count)),
            right(duration(stats.p50_ns), "bold"),
            right(duration(stats.p95_ns)),
            right(duration(stats.p99_ns)),
            right(duration(stats.max_ns)),
            right(*drift(stats)),
            Text.assemble(f"{share(stats.share):>4} ", (bar(stats.share, 3), colour)),
        )


class PhaseTable(StatsTable):
    """Phases of every engine; their share is that of their engine's steps."""

    PANE = "Phases"
    FIRST = "phase"
    #: Where device time is recorded, its median stands beside the host's.
    DEVICE = (*StatsTable.COLUMNS[:2], Column("device", 6, 1), *StatsTable.COLUMNS[2:])

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot, with device time where there is any."""
        device = snapshot.report.device
        offered = self.DEVICE if device is not None and device.phases else self.COLUMNS
        if offered is not self.offered:
            self.offered, self._snapshot = offered, None
            if self._fitting:
                self.fit()
        super().show(snapshot)

    def rows_of(self, snapshot: Snapshot) -> dict[str, Cells]:
        """A row a phase."""
        palette, device = Palette(snapshot.tree.meta), snapshot.report.device
        rows = {}
        for name, stats in snapshot.report.phases.items():
            cells = self.cells(name, stats, palette.phase(name))
            if self.offered is self.DEVICE and device is not None:
                there = device.phases.get(name) or device.phases.get(COPIES.get(name, ""))
                cells = (*cells[:3], right(duration(there.p50_ns) if there else ""), *cells[3:])
            rows[name] = cells
        return rows


class HandlerTable(StatsTable):
    """Handlers of every event; their share is that of the whole run."""

    PANE = "Handlers"
    FIRST = "handler"

    def rows_of(self, snapshot: Snapshot) -> dict[str, Cells]:
        """A row a handler."""
        handlers = snapshot.report.handlers.items()
        return {name: self.cells(name, stats, colours().handler) for name, stats in handlers}


class TransformTable(StatsTable):
    """What batches are made of; the share is that of the time of who makes them."""

    PANE = "Making batches"
    FIRST = "transform"

    def rows_of(self, snapshot: Snapshot) -> dict[str, Cells]:
        """A row a transform, with the batches and samples they are of."""
        data = snapshot.report.data
        if data is None:
            return {}
        structure = colours().structure
        return {
            name: self.cells(name, each.stats, colour_of(name) if each.kind in MADE else structure)
            for name, each in data.made.items()
        }


#: A median that is off by less than this is drawn as no news.
NEWS = 0.15


def drift(stats: Stats) -> tuple[str, str]:
    """How the last ones compare with all of the run, and in which colour."""
    if stats.drift is None:
        return "", ""
    own = colours()
    colour = own.error if stats.drift > NEWS else own.good if stats.drift < -NEWS else own.dim
    return f"{min(9.99, stats.drift):+.0%}", colour
