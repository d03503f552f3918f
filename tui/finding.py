"""The part of the app that finds: errors, slow steps, names, and the way to any span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.screen import Screen
from textual.widgets import Input

from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.run import open_run
from firetrace.tui.doing import COPY_S, Doing
from firetrace.tui.widgets.chosen import RankChosen
from firetrace.tui.widgets.epochs import EpochsTable
from firetrace.tui.widgets.key_bar import KeyBar
from firetrace.tui.widgets.rank_table import RankTable
from firetrace.tui.widgets.scalars import ScalarsPane
from firetrace.tui.widgets.search_bar import SearchBar
from firetrace.tui.widgets.stats_table import TransformTable

if TYPE_CHECKING:
    from firetrace.tui.child import Child

VIEWS = ("all", "tree", "tables", "epochs", "ranks", "data")


class Finding(Doing):
    """What the keys of the section "Find" do."""

    def __init__(self, child: Child | None) -> None:
        super().__init__(child)
        self.pattern = ""  #: what was searched for last

    def set_view(self, view: str) -> Screen[Any]:
        """Show one of ``VIEWS``; return the screen."""
        main = self.screen_stack[0]
        for each in VIEWS:
            main.set_class(each == view, f"view-{each}")
        return main

    def show_tables(self) -> None:
        """Draw what is drawn less often than the rest."""
        raise NotImplementedError

    async def action_view(self, view: str) -> None:
        """One of ``VIEWS``, with the keys in its first pane."""
        below = self.screen_stack[0].query_one("#lower")
        missing = self._missing(view)
        if missing:
            self.say(missing, 4)
            return
        if view == "epochs" and not self.screen_stack[0].query(EpochsTable):
            await self.screen_stack[0].mount(EpochsTable(id="epochs"), ScalarsPane(), before=below)
            self.show_tables()
        if view == "ranks" and not self.screen_stack[0].query(RankTable):
            await self.screen_stack[0].mount(RankTable(id="ranks"), before=below)
            self.show_tables()
        if view == "data" and not self.screen_stack[0].query(TransformTable):
            await self.screen_stack[0].mount(TransformTable(id="data"), before=below)
            self.show_tables()
        main = self.set_view(view)
        first = {"tables": "#phases", "epochs": "#epochs", "ranks": "#ranks", "data": "#data"}
        self.call_after_refresh(main.query_one(first.get(view, "#timeline")).focus)

    def _missing(self, view: str) -> str:
        """Why a view would be empty; empty: it is not."""
        if self.shown is None:
            return ""
        if view == "ranks" and self.shown.skew is None:
            return "this run has one rank"
        if view == "data" and self.shown.report.data is None:
            return (
                "how batches are made is recorded by TraceHandler(data=True), "
                "or firetrace run --data"
            )
        return ""

    def action_why(self) -> None:
        """The arithmetic behind the verdict."""
        data = self.shown.report.data if self.shown is not None else None
        lines = data.why if data is not None else ()
        missing = self._missing("data") or "no batch has been made yet"
        self.say("\n".join(lines) or missing, COPY_S / 2)

    def on_rank_chosen(self, message: RankChosen) -> None:
        """Show that rank's run in the other views."""
        if self.shown is None:
            return
        try:
            journal = open_run(self.shown.path.parent).ranks.get(message.rank)
        except FiretraceError as error:
            self.say(str(error), wrong=True)
            return
        if journal is not None:
            self.switch_to(str(journal))

    def go_to(self, number: int) -> None:
        """Put the cursor on a span, unfolded, in the tree."""
        if self.shown is None:
            return
        if not self.screen_stack[0].has_class("view-all"):
            self.set_view("tree")
        self.timeline.unfolded = self.timeline.unfolded | {number}
        self.timeline.go_to(number)
        self.timeline.focus()

    def action_error(self, direction: int) -> None:
        """Go to the next or previous error."""
        if not self.timeline.next_error(direction):
            self.notify("no error further on" if direction > 0 else "no error before", timeout=2)

    def action_slowest(self) -> None:
        """Go to the slowest step; from one of the slowest to the next slowest."""
        if self.shown is None or not self.shown.report.slowest_steps:
            return
        numbers = [step.number for step in self.shown.report.slowest_steps]
        here = self.timeline.cursor
        browsing = not self.timeline.following and here in numbers
        self.go_to(numbers[(numbers.index(here) + 1) % len(numbers)] if browsing else numbers[0])

    async def action_search(self) -> None:
        """Type what to look for."""
        if not self.screen_stack[0].query(SearchBar):
            await self.screen_stack[0].mount(SearchBar(), before=self.main(KeyBar))
        bar = self.main(SearchBar)
        bar.display = True
        bar.value = self.pattern
        bar.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as it is typed."""
        if isinstance(event.input, SearchBar) and event.input.display:
            self.pattern = event.value
            self.timeline.search(event.value)

    def on_search_bar_left(self, message: SearchBar.Left) -> None:
        """Back to the tree, or to the list of what matches."""
        self.close_search(message.keep)
        self.timeline.focus()

    def close_search(self, keep: bool = False) -> None:
        """Put the line away, and with ``keep`` not the filter."""
        for bar in self.screen_stack[0].query(SearchBar):
            bar.display = False
        if not keep:
            self.timeline.search("")

    def action_match(self, direction: int) -> None:
        """Go to the next or previous match."""
        if not self.pattern:
            self.notify("nothing has been searched for: / does", timeout=2)
        elif not self.timeline.next_match(self.pattern, direction):
            where = "further on" if direction > 0 else "before"
            self.notify(f"no match {where}", timeout=2)
