"""What the workers did while the step above it was made: lanes on the waterfall's own axis."""

from __future__ import annotations

import zlib

from rich.segment import Segment
from rich.style import Style

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import duration
from firetrace.tui.model.tree import Span
from firetrace.tui.model.workers import MADE, Times, own_times
from firetrace.tui.widgets.lanes import Lanes, head
from firetrace.tui.widgets.palette import colours
from firetrace.tui.widgets.waterfall import Axis, Bar, Columns


class WorkerLanes(Lanes):
    """A line a worker: its batches, and in them the transforms by colour."""

    def __init__(self) -> None:
        super().__init__(id="workers")
        self.border_title = "Workers"

    def count(self, snapshot: Snapshot) -> int:
        """A line for each worker."""
        return len(snapshot.workers)

    def line(
        self, snapshot: Snapshot, index: int, begin_ns: int, axis: Axis, frame: Span,
        columns: Columns,
    ) -> list[Segment]:  # fmt: skip
        """A worker: its name, what took it longest in this time, and the bar."""
        own, now, worker = colours(), snapshot.now_ns, snapshot.workers[index]
        whole_ns = axis.whole_ns
        marks = worker.between(begin_ns, begin_ns + whole_ns)
        bar = Bar(columns.bar, whole_ns)
        for mark in marks:
            start, end = mark.start_ns - begin_ns, (mark.end_ns or now) - begin_ns
            if mark.kind == "batch":
                bar.paint(start, end, own.structure)
            elif mark.kind in MADE:
                bar.paint(start, end, colour_of(mark.text))
        longest, took = _longest(own_times(marks, now, begin_ns, begin_ns + whole_ns))
        style = Style(color=_colour(longest))
        before = head(worker.label, longest, style, duration(took) if took else "", columns)
        return [*before, *bar.segments(False, Style())]


def _colour(name: str) -> str | None:
    return colour_of(name) if name else None


def _longest(took: Times) -> tuple[str, int]:
    """The transform that took most of this time, and how much."""
    if not took:
        return "", 0
    name = max(took, key=lambda each: took[each])
    return name, took[name]


def colour_of(name: str) -> str:
    """A transform's colour: the same in every worker, run and view."""
    own = colours().others
    return own[zlib.crc32(name.encode("utf-8", "replace")) % len(own)]
