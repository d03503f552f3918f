"""The live terminal app: a reader thread makes snapshots of a run, the widgets draw them.

The thread polls four times a second, posts one immutable snapshot when something changed, and
then rests at least four times as long as that took, so that it costs a fifth of a core at most.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Static
from textual.worker import get_current_worker

from firetrace.tracer.errors import FiretraceError
from firetrace.tui.feed import OVER, Feed, Snapshot, Waiting
from firetrace.tui.finding import Finding
from firetrace.tui.format import printable
from firetrace.tui.keys import bindings
from firetrace.tui.widgets.chosen import SpanChosen
from firetrace.tui.widgets.detail import Detail
from firetrace.tui.widgets.device_lanes import DeviceLanes
from firetrace.tui.widgets.headline import Headline
from firetrace.tui.widgets.heat_strip import HeatStrip
from firetrace.tui.widgets.help import Help
from firetrace.tui.widgets.key_bar import KeyBar
from firetrace.tui.widgets.lanes import Lanes
from firetrace.tui.widgets.rank_strip import RankStrip
from firetrace.tui.widgets.rank_table import RankTable
from firetrace.tui.widgets.rows_table import RowsTable
from firetrace.tui.widgets.scalars import ScalarsPane
from firetrace.tui.widgets.slowest import SlowestTable
from firetrace.tui.widgets.stats_table import HandlerTable, PhaseTable
from firetrace.tui.widgets.step_bar import StepBar
from firetrace.tui.widgets.timeline import Timeline
from firetrace.tui.widgets.vitals import Vitals
from firetrace.tui.widgets.worker_lanes import WorkerLanes

if TYPE_CHECKING:
    from firetrace.tui.child import Child
    from firetrace.tui.gauges import Gauges, Usage
    from firetrace.tui.widgets.output import OutputPane

PERIOD_S = 0.25
#: The reader rests this many times as long as it worked.
REST = 4
#: How long after a change the tables are drawn.
TABLES_S = 0.4
#: How often the gauges are looked at.
GAUGES_S = 2.0
#: With ``exit_when_done``: how long the end stays on the screen.
LINGER_S = 1.5


class WatchApp(Finding):
    """Shows a run. Its result is None, or why it could not be read.

    Args:
        name: as for ``find_run``: a path, a run's name, or None for the newest.
        exit_when_done: leave by itself a moment after the run is over.
        child: the program that is recorded, if it runs under the app; its output gets a pane.
    """

    CSS_PATH = "firetrace.tcss"
    TITLE = "firetrace"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app", "all")]
    # Textual declares these two as instance variables.
    HORIZONTAL_BREAKPOINTS = [(0, "narrow"), (110, "wide"), (160, "wider")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "tiny"), (20, "low"), (30, "middle"), (44, "high")]  # noqa: RUF012

    class Read(Message):
        """The reader found something new. A newer one replaces an older one not yet drawn."""

        def __init__(self, found: Snapshot | Waiting) -> None:
            super().__init__()
            self.found = found

        def can_replace(self, message: Message) -> bool:
            """Only the newest counts."""
            return isinstance(message, WatchApp.Read)

    def __init__(
        self, name: str | None = None, exit_when_done: bool = False, child: Child | None = None
    ) -> None:
        super().__init__(child)
        self._name, self._exit_when_done = name, exit_when_done
        self._tables: Timer | None = None  # they are drawn half as often as the rest
        self._leaving = threading.Event()
        self._switched = False  # to another run; told to the reader
        self._linger: Timer | None = None
        self._held: Snapshot | None = None  # newest while paused
        self._paused = False
        self._came_from = ""  # where to go back to when what was chosen cannot be read
        self._follows = True  # told to the reader: it may go on to another journal

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Headline()
        yield Vitals()
        yield StepBar()
        yield HeatStrip()
        yield RankStrip()
        yield Static("", id="waiting", markup=False)
        with Horizontal(id="panes"):
            yield PhaseTable(id="phases")
            yield HandlerTable(id="handlers")
            yield SlowestTable(id="slowest")
        with Horizontal(id="lower"):
            yield Timeline()
        yield DeviceLanes()
        yield WorkerLanes()
        if self.output is not None:
            yield self.output
        yield KeyBar()

    def on_mount(self) -> None:
        """Begin to read."""
        self.timeline.focus()
        self._read_on()

    def get_default_screen(self) -> Screen[Any]:
        """In the first view at once: a class that comes later is a second layout."""
        return Screen(id="_default", classes="view-all")

    def on_descendant_focus(self) -> None:
        """The keys of the last line are those of the pane."""
        if self.draws:
            self.main(KeyBar).in_tree = self.timeline.has_focus

    def on_unmount(self) -> None:
        """Wake the reader, so that leaving does not wait for it."""
        self._leaving.set()
        self.close_page()

    # Reading

    @work(thread=True, exclusive=True, exit_on_error=True)
    def _read_on(self) -> None:
        """Read until the app leaves (in a thread of its own)."""
        worker, feed, gauges, looked = get_current_worker(), Feed(self._name), None, 0.0
        try:
            while not worker.is_cancelled:
                began = time.monotonic()
                if self._switched:
                    self._switched = False
                    feed.close()
                    feed, gauges = Feed(self._name), None
                feed.may_move_on = self._follows
                try:
                    found = feed.poll()
                except FiretraceError as error:
                    if not self._came_from:
                        self.call_later(self.exit, str(error), 1)
                        return
                    self.call_later(self._go_back, str(error))
                    while not self._switched:
                        if self._leaving.wait(PERIOD_S):
                            return
                    continue
                if found is not None:
                    self.post_message(self.Read(found))
                if isinstance(found, Snapshot) and found.tree.open.alive:
                    header = found.tree.open.header
                    if began - looked >= GAUGES_S:
                        from firetrace.tui.gauges import Gauges  # psutil: 30 ms

                        looked = began
                        if gauges is None or gauges.header != header:
                            gauges = Gauges(header)
                        gpu = str(found.tree.meta.resource.get("hw.id", ""))
                        self.call_later(self._show_usage, gauges, gauges.look(gpu))
                unread = isinstance(found, Snapshot) and found.read < 1
                hurry = unread or (found is not None and feed.hurries)
                rest = 0.0 if hurry else max(PERIOD_S, REST * (time.monotonic() - began))
                if self._leaving.wait(rest):
                    return
        finally:
            feed.close()

    def _show_usage(self, gauges: Gauges, usage: Usage | None) -> None:
        if self.draws:
            vitals = self.main(Vitals)
            vitals.gauges, vitals.usage = gauges, usage

    def switch_to(self, name: str) -> None:
        """Show another run or journal."""
        self._came_from = str(self.shown.path) if self.shown is not None else self._came_from
        self._name, self._switched = name, True
        self.shown = self._held = None
        self._paused, self.pattern = False, ""
        self.close_search()
        self.timeline.forget()
        self._show_mode()

    def _go_back(self, problem: str) -> None:
        """What was chosen cannot be read: show again what was shown before."""
        self.say(problem, 15, wrong=True)
        before, self._came_from = self._came_from, ""
        if before:
            self.switch_to(before)

    def on_watch_app_read(self, message: Read) -> None:
        """Draw it, unless the picture is held."""
        if not self.draws:
            return
        found = message.found
        if isinstance(found, Waiting):
            _settle()
            for line in (self.main(Headline), self.main(Vitals), self.main(StepBar)):
                line.snapshot = None
            self.main(HeatStrip).snapshot = None
            self.shown = None
            self.timeline.forget()
            reason = printable(found.reason)
            self.main(Headline).waiting = reason
            self.screen_stack[0].query_one("#waiting", Static).update(
                f"waiting for a run to begin\n{reason}"
            )
            self.screen_stack[0].add_class("waiting")
            return
        if self._exit_when_done:
            self._leave_soon(found.report.state in OVER and found.read == 1)
        if self._paused:
            self._held = found
            self._show_mode()
        else:
            self._show(found)

    def _show(self, snapshot: Snapshot) -> None:
        old, self.shown = self.shown, snapshot
        main = self.screen_stack[0]
        if main.has_class("waiting"):
            main.remove_class("waiting")
            self.call_after_refresh(self.timeline.focus)  # hidden, it had lost the focus
        self.main(Headline).snapshot = snapshot
        self.timeline.show(snapshot)
        self._show_ranks(snapshot)
        self.on_timeline_moved()
        if old is not None and old.report is snapshot.report:
            return
        for line in (self.main(Vitals), self.main(StepBar), self.main(HeatStrip)):
            line.snapshot = snapshot
        main.set_class(bool(snapshot.workers), "has-workers")
        main.set_class(bool(snapshot.devices), "has-devices")
        if old is None:
            self.show_tables()
            self.call_after_refresh(_settle)
        elif self._tables is None:
            self._tables = self.set_timer(TABLES_S, self.show_tables)

    def _show_ranks(self, snapshot: Snapshot) -> None:
        strip = self.main(RankStrip)
        if strip.snapshot is not None and strip.snapshot.skew is snapshot.skew:
            return
        strip.snapshot = snapshot
        self.screen_stack[0].set_class(snapshot.skew is not None, "has-ranks")
        for table in self.screen_stack[0].query(RankTable):
            table.show(snapshot)

    def show_tables(self) -> None:
        """Draw what is drawn less often than the rest."""
        self._tables = None
        if self.shown is None or not self.draws:
            return
        for table in self.screen_stack[0].query(".rows").results(RowsTable):
            table.show(self.shown)
        for pane in self.screen_stack[0].query(ScalarsPane):
            pane.show(self.shown)

    def _leave_soon(self, over: bool) -> None:
        if over and self._linger is None:
            self._linger = self.set_timer(LINGER_S, self.exit)
        elif not over and self._linger is not None:  # its program began another run
            self._linger.stop()
            self._linger = None

    def on_output_pane_ended(self, message: OutputPane.Ended) -> None:
        """The program has ended; what it left is still looked at."""
        if not self.draws:
            return
        from firetrace.tui.child import shell_code

        self.say(f"the program has ended: exit code {shell_code(message.code)}")
        if self.shown is None:
            self.main(Headline).waiting = "the program has ended, and no engine ran in it"

    # What is where

    def _show_mode(self) -> None:
        if not self.draws:
            return
        if self._paused:
            new = 0
            if self._held is not None and self.shown is not None:
                new = self._held.report.spans - self.shown.report.spans
            mode = f"PAUSED +{new:,}" if new > 0 else "PAUSED"
        else:
            mode = "FOLLOW" if self.timeline.following else "BROWSE"
        self._follows = mode == "FOLLOW"
        self.main(Headline).mode = mode

    def on_timeline_followed(self) -> None:
        """Say so in the first line."""
        self._show_mode()

    def on_timeline_moved(self) -> None:
        """The detail and the strip of steps go with the cursor."""
        if not self.draws:
            return
        self.main(HeatStrip).cursor = self.timeline.cursor
        for lanes in self.screen_stack[0].query(Lanes):
            lanes.snapshot, lanes.axis = self.shown, self.timeline.axis
            lanes.cells = self.timeline.scrollable_content_region.width
        for detail in self.screen_stack[0].query(Detail):
            if detail.display and self.shown is not None:
                detail.show(self.shown, self.timeline.span)

    async def on_timeline_detailed(self) -> None:
        """Show or hide the detail."""
        main = self.screen_stack[0]
        if not main.query(Detail):  # what is not always wanted is made when it is
            await main.query_one("#lower").mount(Detail())
        detail = self.main(Detail)
        detail.display = not detail.display
        self.on_timeline_moved()

    def on_span_chosen(self, message: SpanChosen) -> None:
        """Go to it in the tree."""
        self.go_to(message.number)

    # Keys

    def action_pause(self) -> None:
        """Hold the picture, or show what came in the meantime."""
        self._paused = not self._paused
        held, self._held = self._held, None
        if not self._paused and held is not None:
            self._show(held)
        self._show_mode()

    def action_follow(self) -> None:
        """Follow the newest step again."""
        if self._paused:
            self.action_pause()
        self.close_search()
        self.timeline.follow()
        self.timeline.focus()

    def action_short(self) -> None:
        """Hide longer spans too; at last none."""
        hidden = self.timeline.hide_more()
        self.notify(hidden or "hidden: events on which nothing ran", timeout=2)

    def action_leave(self) -> None:
        """Leave the filter, or the detail."""
        if self.timeline.pattern:
            self.close_search()
        else:
            for detail in self.screen_stack[0].query(Detail):
                detail.display = False
        self.timeline.focus()

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(Help())


def _settle() -> None:
    """What was made so far stays: to look through it again and again takes 50 ms each time."""
    gc.enable()
    gc.freeze()
