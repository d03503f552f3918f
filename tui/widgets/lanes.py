"""Lines below the waterfall, on its own axis: what others did while the step above was made."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip
from firetrace.tui.model.tree import Span
from firetrace.tui.widgets.waterfall import DURATION_CELLS, Axis, Columns


class Lanes(Widget):
    """A line for each of them."""

    snapshot: reactive[Snapshot | None] = reactive(None)
    axis: reactive[Axis | None] = reactive(None)
    cells: reactive[int] = reactive(0)  #: how wide the waterfall is

    def count(self, snapshot: Snapshot) -> int:
        """How many there are."""
        raise NotImplementedError

    def line(
        self, snapshot: Snapshot, index: int, begin_ns: int, axis: Axis, frame: Span,
        columns: Columns,
    ) -> list[Segment]:  # fmt: skip
        """One line; ``begin_ns`` is the time at the axis's left edge, Unix ns."""
        raise NotImplementedError

    def watch_snapshot(self, before: Snapshot | None, snapshot: Snapshot | None) -> None:
        """Lay out the screen anew, but only where there are more lines or fewer."""
        if self._lines(before) != self._lines(snapshot):
            self.refresh(layout=True)

    def _lines(self, snapshot: Snapshot | None) -> int:
        return self.count(snapshot) if snapshot is not None else 0

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A line for each."""
        return self._lines(self.snapshot)

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
        columns = Columns.of(self.cells)
        for index in range(min(self.count(snapshot), self.size.height)):
            if index:
                text.append("\n")
            for segment in self.line(snapshot, index, begin, axis, frame, columns):
                text.append(segment.text, segment.style or "")
        return text


def head(
    name: str, note: str, style: Style, figure: str, columns: Columns
) -> list[Segment]:  # fmt: skip
    """What stands before a bar: whose it is, something about it, and a figure."""
    name = clip(name, columns.label - 2)
    note = clip(f"  {note}", columns.label - 2 - cell_len(name)) if note else ""
    gap = " " * (columns.label - 2 - cell_len(name) - cell_len(note))
    return [
        Segment("  "), Segment(name), Segment(note, style), Segment(gap),
        Segment(f"{figure:>{DURATION_CELLS}}  "),
    ]  # fmt: skip
