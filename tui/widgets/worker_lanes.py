"""What the workers did while the step above it was made: lanes on the waterfall's own axis."""

from __future__ import annotations

import zlib

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, duration
from firetrace.tui.model.workers import MADE, Times, Worker, own_times
from firetrace.tui.widgets.palette import colours
from firetrace.tui.widgets.waterfall import DURATION_CELLS, Axis, Bar, Columns

#: As wide as the timeline beside its scroll bar.
BAR_CELLS = 1


class WorkerLanes(Widget):
    """A line a worker: its batches, and in them the transforms by colour."""

    snapshot: reactive[Snapshot | None] = reactive(None, layout=True)
    axis: reactive[Axis | None] = reactive(None)

    def __init__(self) -> None:
        super().__init__(id="workers")
        self.border_title = "Workers"

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A line for each worker."""
        return len(self.snapshot.workers) if self.snapshot is not None else 0

    def render(self) -> Text:
        """The lines."""
        text = Text(no_wrap=True, overflow="crop", end="")
        snapshot, axis = self.snapshot, self.axis
        if snapshot is None or axis is None:
            return text
        frame = snapshot.tree.span(axis.frame)
        if frame is None:
            return text
        begin = frame.start_ns + axis.begin_ns
        columns = Columns.of(self.size.width - BAR_CELLS)
        for index, worker in enumerate(snapshot.workers[: self.size.height]):
            if index:
                text.append("\n")
            for segment in _line(snapshot, worker, begin, axis.whole_ns, columns):
                text.append(segment.text, segment.style or "")
        return text


def _line(
    snapshot: Snapshot, worker: Worker, begin_ns: int, whole_ns: int, columns: Columns
) -> list[Segment]:
    """A worker: its name, what took it longest in this time, and the bar."""
    own, now = colours(), snapshot.now_ns
    marks = worker.between(begin_ns, begin_ns + whole_ns)
    bar = Bar(columns.bar, whole_ns)
    for mark in marks:
        start, end = mark.start_ns - begin_ns, (mark.end_ns or now) - begin_ns
        if mark.kind == "batch":
            bar.paint(start, end, own.structure)
        elif mark.kind in MADE:
            bar.paint(start, end, colour_of(mark.text))
    longest, took = _longest(own_times(marks, now, begin_ns, begin_ns + whole_ns))
    name = clip(worker.label, columns.label - 2)
    note = clip(f"  {longest}", columns.label - 2 - cell_len(name)) if longest else ""
    gap = " " * (columns.label - 2 - cell_len(name) - cell_len(note))
    figure = duration(took) if took else ""
    return [
        Segment("  "), Segment(name), Segment(note, Style(color=_colour(longest))), Segment(gap),
        Segment(f"{figure:>{DURATION_CELLS}}  "), *bar.segments(False, Style()),
    ]  # fmt: skip


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
