"""The half of the app that does things: export, Perfetto, copy, pictures, themes, other runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from textual import work
from textual.app import App, SystemCommand
from textual.screen import Screen
from textual.widget import Widget

from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.run import Run, begun_ns, known_runs, open_run
from firetrace.tui.actions import Part, PerfettoPage, default_path, export, new_path, parts
from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, count, duration, printable
from firetrace.tui.keys import KEYS, Key
from firetrace.tui.widgets import palette
from firetrace.tui.widgets.choice import Choice, Chosen
from firetrace.tui.widgets.detail import Detail, facts
from firetrace.tui.widgets.headline import Headline
from firetrace.tui.widgets.heat_strip import HeatStrip
from firetrace.tui.widgets.key_bar import KeyBar
from firetrace.tui.widgets.lanes import Lanes
from firetrace.tui.widgets.rows_table import RowsTable
from firetrace.tui.widgets.scalars import Curves
from firetrace.tui.widgets.step_bar import StepBar
from firetrace.tui.widgets.timeline import Timeline
from firetrace.tui.widgets.vitals import Vitals

if TYPE_CHECKING:
    from firetrace.tui.child import Child
    from firetrace.tui.widgets.output import OutputPane

W = TypeVar("W", bound=Widget)
#: Runs that the switcher offers.
MOST_RUNS = 100
#: How long what was said stays; an address has to be copied by hand.
READ_S, COPY_S = 6, 60


class Doing(App[str]):
    """What the keys of the section "Do" do, and those that change what is looked at."""

    def __init__(self, child: Child | None) -> None:
        super().__init__()
        for each in palette.THEMES:
            if each.theme is not None:
                self.register_theme(each.theme)
        self.theme = palette.DARK.name
        self.child = child  #: the program that runs under the app
        self.output: OutputPane | None = None  #: what it prints
        if child is not None:
            from firetrace.tui.widgets.output import OutputPane  # pyte: 30 ms

            self.output = OutputPane(child, id="output")
        self.shown: Snapshot | None = None
        self.page: PerfettoPage | None = None

    @property
    def draws(self) -> bool:
        """Whether there is a screen with widgets: not yet before it begins, no more as it ends."""
        return self.is_running and bool(self.screen_stack)

    def main(self, kind: type[W]) -> W:
        """The widget of a type on the screen below any box."""
        return self.screen_stack[0].query_one(kind)

    @property
    def timeline(self) -> Timeline:
        """The tree."""
        return self.main(Timeline)

    def switch_to(self, name: str) -> None:
        """Show another run or journal."""
        raise NotImplementedError

    def say(self, text: str, seconds: float = READ_S, wrong: bool = False) -> None:
        """Say something in the corner; it may hold names from a trace."""
        lines = "\n".join(printable(line) for line in text.splitlines())
        severity = "error" if wrong else "information"
        self.notify(lines, timeout=seconds, markup=False, severity=severity)  # type: ignore[arg-type]

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The command palette has every key of the key table, by what it does."""
        for key in KEYS:
            if key.pane in ("app", "all", "tree") and "command_palette" not in key.action:
                yield SystemCommand(key.help, f"key: {key.shown}", partial(self._do, key))

    async def _do(self, key: Key) -> None:
        await self.run_action(key.action, self.timeline if key.pane == "tree" else self)

    def action_output(self) -> None:
        """Show or hide what the program prints."""
        if self.output is None:
            self.say("the program's output is shown by firetrace run --watch", 4)
        else:
            self.output.display = not self.output.display

    def action_interrupt(self) -> None:
        """Ctrl-C is the program's."""
        if self.child is not None and self.child.poll() is None:
            self.child.interrupt()
            self.say("Ctrl-C sent to the program; q leaves the app", 4)
        else:
            self.say("q leaves", 4)

    # Export

    def action_export(self) -> None:
        """Ask what and where to, then write it."""
        snapshot = self.shown
        if snapshot is None:
            return
        offered = parts(snapshot, self.timeline.shown_spans(), self.timeline.frame)
        by_id = {part.id: part for part in offered}

        def write(chosen: Chosen | None) -> None:
            if chosen is not None:
                self._export(snapshot, by_id[chosen.id], chosen.text)

        options = [(part.id, part.label) for part in offered]
        self.push_screen(
            Choice("Export as Chrome JSON", options, default_path(snapshot), "to the file"), write
        )

    @work(thread=True, group="export")
    def _export(self, snapshot: Snapshot, part: Part, name: str) -> None:
        self.call_from_thread(self.say, f"writing {part.label} ...")
        began = time.monotonic()
        try:
            path = new_path(Path(name).expanduser(), part)
            spans = export(snapshot.path, path, part.selection)
        except (FiretraceError, OSError, ValueError, RuntimeError) as error:
            self.call_from_thread(self.say, f"not written: {error}", COPY_S, True)
            return
        took = duration(round((time.monotonic() - began) * 1e9))
        said = f"{count(spans)} spans written in {took} to\n{path.absolute()}"
        self.call_from_thread(self.say, said, COPY_S / 4)

    def action_perfetto(self) -> None:
        """Serve the run to a browser, as long as the app is open."""
        if self.shown is not None:
            self._open_page(self.shown)

    @work(thread=True, group="perfetto", exclusive=True)
    def _open_page(self, snapshot: Snapshot) -> None:
        self.call_from_thread(self.say, "making the trace for Perfetto ...")
        try:
            page = PerfettoPage(snapshot, self.timeline.frame)
        except (FiretraceError, OSError, ValueError) as error:
            self.call_from_thread(self.say, f"not opened: {error}", COPY_S, True)
            return
        self.close_page()
        self.page = page
        self.call_from_thread(self.say, page.message, COPY_S)

    def close_page(self) -> None:
        """Stop serving."""
        if self.page is not None:
            self.page.close()
            self.page = None

    def action_copy(self) -> None:
        """The span that the cursor is on, as text, to the terminal's clipboard."""
        span = self.timeline.span
        if self.shown is None or span is None:
            return
        details = [pane for pane in self.screen_stack[0].query(Detail) if pane.display]
        if details:
            text = details[0].text
        else:
            lines = [f"{name}: {value}" for name, value in facts(self.shown, span, []) if name]
            text = "\n".join([self.shown.tree.label(span), *lines])
        self.copy_to_clipboard("\n".join(printable(line) for line in text.splitlines()))
        self.say(f"copied: {clip(self.shown.tree.label(span), 60)}", 2)

    def action_save_screen(self) -> None:
        """A picture in the current folder."""
        name = time.strftime("firetrace-%Y%m%d-%H%M%S.svg")
        try:
            path = self.save_screenshot(name)
        except OSError as error:
            self.say(f"not saved: {error}", COPY_S, True)
            return
        self.say(f"saved to {Path(path).absolute()}")

    # What is looked at

    def action_theme(self) -> None:
        """The next theme."""
        names = [each.name for each in palette.THEMES]
        at = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(at + 1) % len(names)]
        self.say(f"theme: {self.theme}", 2)

    def watch_theme(self, name: str) -> None:
        """Draw all anew in the theme's colours."""
        palette.current.use(name)
        if not self.draws:
            return
        for kind in (Headline, Vitals, StepBar, HeatStrip, Curves, KeyBar, Lanes):
            for widget in self.screen_stack[0].query(kind):
                widget.refresh()
        for table in self.screen_stack[0].query(".rows").results(RowsTable):
            table.redraw()
        if self.shown is not None:
            self.timeline.show(self.shown)

    @work(thread=True, group="runs", exclusive=True)
    def action_runs(self) -> None:
        """Offer the journals of this run, then the other runs, newest first."""
        options: list[tuple[str, str]] = []
        here = str(self.shown.path) if self.shown is not None else ""
        if self.shown is not None:
            try:
                run = open_run(self.shown.path.parent)
            except (FiretraceError, OSError):
                run = Run(self.shown.path.parent, (self.shown.path,))
            options = [(str(path), f"{_mark(path)} {path.stem}") for path in run.journals]
        known = known_runs()[::-1]
        runs, more = known[:MOST_RUNS], len(known) - MOST_RUNS
        options += [
            (str(run.path), f"{_mark(run.newest)} {run.name}  begun {_when(run)}") for run in runs
        ]
        unique = list({id: (id, label) for id, label in options}.values())

        def switch(chosen: Chosen | None) -> None:
            if chosen is not None:
                self.switch_to(chosen.id)

        if unique:
            title = "Ranks and attempts of this run; other runs"
            if more > 0:
                title += f" (the newest {MOST_RUNS} of {len(known)}: firetrace watch NAME)"
            box = Choice(title, unique, at=here)
            self.call_from_thread(self.push_screen, box, switch)
        else:
            self.call_from_thread(self.say, "no runs are known here", 2)


def _mark(journal: Path) -> str:
    from firetrace.tracer.reader import lock_is_held

    return "●" if lock_is_held(journal.with_suffix(".lock")) else "○"


def _when(run: Run) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(begun_ns(run) / 1e9))
