"""Progress on stderr: a bar with rate and time left in a terminal, elsewhere a line at times."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from firetrace.tui.format import duration, printable

LINE_EVERY_S = 30.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Spans a second."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


class Reporting:
    """Shows how far some long work on spans is.

    Args:
        verb: what is being done.
        total: how many spans there are, about.
    """

    def __init__(self, verb: str, total: int) -> None:
        self._verb, self._total, self._done = verb, total, 0
        self._begun = self._told = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
                MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(verb, total=total or None)

    def __call__(self, done: int, total: int | None = None) -> None:
        """So many are done, of so many if that is known better by now."""
        self._done, self._total = done, max(done, total or self._total)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total)
        elif now - self._told > LINE_EVERY_S:
            self._told = now
            rate = done / (now - self._begun)
            left = duration(int((self._total - done) / rate * 1e9)) if rate else "?"
            self.say(
                f"{self._verb} {done:,} of about {self._total:,} spans, {rate:,.0f}/s, {left} left"
            )

    def say(self, line: str) -> None:
        """A line for the user, without spoiling the bar."""
        if self._bar is not None:
            self._bar.console.print(Text(f"firetrace: {printable(line)}"))
        else:
            sys.stderr.write(f"firetrace: {printable(line)}\n")

    def __enter__(self) -> Reporting:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
