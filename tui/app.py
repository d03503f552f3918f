"""The live terminal app: a reader thread makes snapshots of a run, the widgets draw them.

The thread polls four times a second, posts one immutable snapshot when something changed, and
then rests at least four times as long as that took, so that it costs a fifth of a core at most.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.theme import Theme
from textual.timer import Timer
from textual.widgets import Footer, Static
from textual.worker import get_current_worker

from firetrace.tracer.errors import FiretraceError
from firetrace.tui.feed import OVER, Feed, Snapshot, Waiting
from firetrace.tui.keys import bindings
from firetrace.tui.widgets.headline import Headline
from firetrace.tui.widgets.help import Help
from firetrace.tui.widgets.slowest import SlowestTable
from firetrace.tui.widgets.stats_table import HandlerTable, PhaseTable
from firetrace.tui.widgets.step_bar import StepBar
from firetrace.tui.widgets.timeline import Timeline

PERIOD_S = 0.25
#: The reader rests this many times as long as it worked.
REST = 4
#: With ``exit_when_done``: how long the end stays on the screen.
LINGER_S = 1.5

THEME = Theme(
    name="firetrace", dark=True, primary="#6ea8d8", secondary="#58b0a2", accent="#6ea8d8",
    foreground="#d5dae0", background="#14171c", surface="#1b1f26", panel="#20262e",
    warning="#d8a657", error="#e06c75", success="#8fb573",
)  # fmt: skip


class WatchApp(App[str]):
    """Shows a run. Its result is None, or why it could not be read.

    Args:
        name: as for ``find_run``: a path, a run's name, or None for the newest.
        exit_when_done: leave by itself a moment after the run is over.
    """

    CSS_PATH = "firetrace.tcss"
    TITLE = "firetrace"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app", "all")]
    # Textual declares these two as instance variables.
    HORIZONTAL_BREAKPOINTS = [(0, "narrow"), (110, "wide"), (160, "wider")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "tiny"), (15, "low"), (24, "middle"), (44, "high")]  # noqa: RUF012

    class Read(Message):
        """The reader found something new. A newer one replaces an older one not yet drawn."""

        def __init__(self, found: Snapshot | Waiting) -> None:
            super().__init__()
            self.found = found

        def can_replace(self, message: Message) -> bool:
            """Only the newest counts."""
            return isinstance(message, WatchApp.Read)

    def __init__(self, name: str | None = None, exit_when_done: bool = False) -> None:
        super().__init__()
        self._name, self._exit_when_done = name, exit_when_done
        self._leaving = threading.Event()
        self._linger: Timer | None = None
        self._shown: Snapshot | None = None
        self._held: Snapshot | None = None  # newest while paused
        self._paused = False

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Headline()
        yield StepBar()
        yield Static("", id="waiting", markup=False)
        with Horizontal(id="panes"):
            yield PhaseTable(id="phases")
            yield HandlerTable(id="handlers")
            yield SlowestTable(id="slowest")
        yield Timeline()
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read."""
        self.register_theme(THEME)
        self.theme = THEME.name
        self.query_one(Timeline).focus()
        self._read_on()

    def on_unmount(self) -> None:
        """Wake the reader, so that leaving does not wait for it."""
        self._leaving.set()

    @work(thread=True, exclusive=True, exit_on_error=True)
    def _read_on(self) -> None:
        """Read until the app leaves (in a thread of its own)."""
        worker, feed = get_current_worker(), Feed(self._name)
        try:
            while not worker.is_cancelled:
                began = time.monotonic()
                try:
                    found = feed.poll()
                except FiretraceError as error:
                    self.call_later(self.exit, str(error), 1)
                    return
                if found is not None:
                    self.post_message(self.Read(found))
                if self._leaving.wait(max(PERIOD_S, REST * (time.monotonic() - began))):
                    return
        finally:
            feed.close()

    def on_watch_app_read(self, message: Read) -> None:
        """Draw it, unless the picture is held."""
        found = message.found
        if isinstance(found, Waiting):
            self.query_one(Headline).waiting = found.reason
            self.query_one("#waiting", Static).update(f"waiting for a run to begin\n{found.reason}")
            self.screen_stack[0].add_class("waiting")
            return
        if self._exit_when_done:
            self._leave_soon(found.report.state in OVER)
        if self._paused:
            self._held = found
            self._show_mode()
        else:
            self._show(found)

    def _show(self, snapshot: Snapshot) -> None:
        if not self.screen_stack:
            return  # the app is closing
        old, self._shown = self._shown, snapshot
        main = self.screen_stack[0]
        if main.has_class("waiting"):
            main.remove_class("waiting")
            self.call_after_refresh(self._timeline.focus)  # hidden, it had lost the focus
        main.query_one(Headline).snapshot = snapshot
        if old is None or old.report is not snapshot.report:
            main.query_one(StepBar).snapshot = snapshot
            for table in (PhaseTable, HandlerTable, SlowestTable):
                main.query_one(table).show(snapshot)
        main.query_one(Timeline).show(snapshot)

    def _leave_soon(self, over: bool) -> None:
        if over and self._linger is None:
            self._linger = self.set_timer(LINGER_S, self.exit)
        elif not over and self._linger is not None:  # its program began another run
            self._linger.stop()
            self._linger = None

    @property
    def _timeline(self) -> Timeline:
        return self.screen_stack[0].query_one(Timeline)

    def _show_mode(self) -> None:
        if self._paused:
            new = 0
            if self._held is not None and self._shown is not None:
                new = len(self._held.table) - len(self._shown.table)
            mode = f"PAUSED +{new:,}" if new > 0 else "PAUSED"
        else:
            mode = "FOLLOW" if self._timeline.following else "BROWSE"
        self.screen_stack[0].query_one(Headline).mode = mode

    def on_timeline_followed(self) -> None:
        """Say so in the first line."""
        self._show_mode()

    def on_slowest_table_chosen(self, message: SlowestTable.Chosen) -> None:
        """Go to the step in the tree."""
        self._go_to_step(message.start_ns)
        self._timeline.focus()

    def _go_to_step(self, start_ns: int) -> None:
        if self._shown is not None:
            position = self._shown.tree.step_at(start_ns)
            if position is not None:
                self._timeline.unfolded.add(self._shown.tree.number(position))
                self._timeline.go_to(position)

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
        self._timeline.follow()
        self._timeline.focus()

    def action_short(self) -> None:
        """Hide or show the events on which nothing ran."""
        self._timeline.toggle_short()

    def action_error(self, direction: int) -> None:
        """Go to the next or previous error."""
        if not self._timeline.next_error(direction):
            self.notify("no error further on" if direction > 0 else "no error before", timeout=2)

    def action_slowest(self) -> None:
        """Go to the slowest step; from one of the slowest to the next slowest."""
        if self._shown is None or not self._shown.report.slowest_steps:
            return
        tree, cursor = self._shown.tree, self._timeline.cursor
        starts = [step.start_ns for step in self._shown.report.slowest_steps]
        here = tree.position(cursor)
        start = int(self._shown.table.rows["start"][here]) if here is not None else 0
        browsing = not self._timeline.following and start in starts
        self._go_to_step(starts[(starts.index(start) + 1) % len(starts)] if browsing else starts[0])

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(Help())


def watch(name: str | None, exit_when_done: bool = False) -> int:
    """Show a run in the terminal until the user leaves.

    Args:
        name: as for ``find_run``: a path, a run's name, or None for the newest.
        exit_when_done: leave by itself about 1.5 s after the run is over.

    Returns:
        The exit code: 0, or 1 if the run could not be read (one line on stderr says why).
    """
    app = WatchApp(name, exit_when_done)
    problem = app.run()
    if problem:
        sys.stderr.write(f"firetrace: {problem}\n")
    return app.return_code or 0
