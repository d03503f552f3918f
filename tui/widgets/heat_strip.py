"""All steps of the run in one line, by colour: where it was slow, and a way to go there."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import BindingType
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import count, duration
from firetrace.tui.keys import bindings
from firetrace.tui.model.columns import Spans
from firetrace.tui.model.heat import Cell, Heat, shade
from firetrace.tui.widgets.chosen import SpanChosen
from firetrace.tui.widgets.palette import colours

LABEL = "steps "


class HeatStrip(Widget, can_focus=True):
    """A cell stands for equally many steps; a click, or enter, goes to the slowest in it."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("strip", "all")]

    snapshot: reactive[Snapshot | None] = reactive(None)
    at: reactive[int] = reactive(-1)  #: the cell of the cursor; -1: the last one
    cursor: reactive[int] = reactive(0)  #: the row number that the tree's cursor is on

    def __init__(self) -> None:
        super().__init__(id="heat")
        self._cells: list[Cell] = []
        self._heat = Heat(Spans())
        self._looked_at: tuple[Snapshot | None, int] = None, 0

    def render(self) -> Text:
        """The line."""
        text = Text(no_wrap=True, overflow="crop", end="")
        if self._heat.steps is not self._steps:  # another run's
            self._heat, self._cells, self._looked_at = Heat(self._steps), [], (None, 0)
            self.set_reactive(HeatStrip.at, -1)
        if self.snapshot is None or self.snapshot.report.step is None:
            return text
        own, usual = colours(), self.snapshot.report.step.p50_ns
        legend = self._legend()
        wanted = self.snapshot, self.size.width - len(LABEL) - len(legend) - 1
        if wanted != self._looked_at:
            self._looked_at = wanted
            self._cells = self._heat.cells(max(1, wanted[1]))
        text.append(LABEL, own.dim)
        chosen = self._chosen
        for index, cell in enumerate(self._cells):
            typical = shade(cell.median_ns, usual, len(own.heat))
            worst = shade(cell.slowest_ns, usual, len(own.heat))
            here = index == chosen and (self.has_focus or self.cursor)
            # Above how slow the steps usually were, below the slowest of them.
            if here:
                text.append("◆", f"bold {own.ink} on {own.heat[typical]}")
            else:
                text.append("▄", f"{own.heat[worst]} on {own.heat[typical]}")
        text.append(" " + legend, own.dim)
        return text

    @property
    def _steps(self) -> Spans:
        """Those of the main engine."""
        if self.snapshot is None:
            return Spans()
        steps = self.snapshot.tree.digest.steps
        return steps.get(self.snapshot.main_lane, Spans())

    @property
    def _chosen(self) -> int:
        """The cell that is marked: the cursor's own with the focus, else the tree's."""
        if self.has_focus:
            return self.at % len(self._cells) if self._cells else -1
        firsts = [cell.first for cell in self._cells]
        numbers = self._steps.number.values
        if not firsts or not self.cursor:
            return -1
        step = int(numbers.searchsorted(self.cursor, side="right")) - 1
        return max((i for i, first in enumerate(firsts) if first <= step), default=-1)

    def _legend(self) -> str:
        if self.has_focus and self._cells:
            cell = self._cells[self._chosen]
            steps = self._steps.iteration.values
            first, last = int(steps[cell.first]), int(steps[cell.first + cell.count - 1])
            span = count(first) if first == last else f"{count(first)} to {count(last)}"
            return f"{span}: p50 {duration(round(cell.median_ns))}".ljust(30)[:30]
        return ""

    def watch_has_focus(self, value: bool) -> None:
        """Begin where the tree's cursor is."""
        if value:
            self.at = -1
        super().watch_has_focus(value)
        self.refresh()

    def action_earlier(self) -> None:
        """The cell before."""
        self.at = (self._chosen - 1) % max(1, len(self._cells))

    def action_later(self) -> None:
        """The next cell."""
        self.at = (self._chosen + 1) % max(1, len(self._cells))

    def action_choose(self) -> None:
        """Go to the slowest step of the cell."""
        if self._cells:
            self.post_message(SpanChosen(self._cells[self._chosen].number))

    def on_click(self, event: events.Click) -> None:
        """Go to the slowest step of the cell that was clicked."""
        index = event.x - len(LABEL)
        if 0 <= index < len(self._cells):
            self.post_message(SpanChosen(self._cells[index].number))
