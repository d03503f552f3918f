"""The tree of spans with its waterfall: a Line API view that draws only the lines on the screen.

Textual's ``Tree`` and ``DataTable`` hold an object a row: seconds and 100 MB at 100,000 rows.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import count
from firetrace.tui.keys import bindings
from firetrace.tui.tree import Lines
from firetrace.tui.widgets.palette import Palette
from firetrace.tui.widgets.waterfall import Axis, Columns, line

#: The axis stands still above the lines.
AXIS_LINES = 1


class Timeline(ScrollView, can_focus=True):
    """Follows the newest step until a row is chosen; then that row stays where it is."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("rows", "tree", "all")]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"timeline--cursor"}

    class Followed(Message):
        """Whether the newest step is followed has changed."""

        def __init__(self, following: bool) -> None:
            super().__init__()
            self.following = following

    def __init__(self) -> None:
        super().__init__(id="timeline")
        self.border_title = "Timeline"
        self.following = True
        self.hide_short = True
        self.unfolded: set[int] = set()  #: row numbers
        self.cursor = 0  #: a row number
        self._snapshot: Snapshot | None = None
        self._palette: Palette | None = None
        self._lines = Lines(np.empty(0, np.int64), np.empty(0, np.int64))
        self._axis: Axis | None = None
        self._slowest = -1

    # What is shown

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot; the cursor's row stays on its line of the screen unless following."""
        self._snapshot, self._palette = snapshot, Palette(snapshot.table)
        if self.following:
            newest = snapshot.tree.newest(snapshot.now_ns)
            if newest is not None:
                self.cursor = snapshot.tree.number(newest[0])
                self.unfolded = newest[1]
        self._lay_out()

    def _lay_out(self) -> None:
        """Compute the lines anew and keep the view still."""
        if self._snapshot is None:
            return
        tree = self._snapshot.tree
        above = self.line - self.scroll_offset.y
        self._lines = tree.lines(self.unfolded, self.hide_short)
        self.virtual_size = Size(self.size.width, len(self._lines) + AXIS_LINES)
        position = tree.position(self.cursor)
        if len(self._lines) and (position is None or self._lines.index(position) is None):
            # Gone (a wrong guess), hidden or folded away: the line nearest in time.
            numbers = tree.table.numbers[self._lines.positions].astype(np.int64)
            self.cursor = int(numbers[np.argmin(np.abs(numbers - self.cursor))])
            position = tree.position(self.cursor)
        self._axis = None if position is None else Axis.around(self._snapshot, position)
        if self.following:
            self._scroll(self.max_scroll_y)
            self._reveal()
        else:
            self._scroll(self.line - above)
        spans = count(self._snapshot.report.spans)
        more = "" if self.hide_short else " · short ones too"
        self.border_title = f"Timeline · {spans} spans{more}"
        self.refresh()

    def _scroll(self, y: float) -> None:
        # Forced: right after the first rows, Textual does not know yet that there is a scrollbar.
        self.scroll_to(y=y, animate=False, immediate=True, force=True)

    @property
    def line(self) -> int:
        """On which line the cursor is."""
        if self._snapshot is None:
            return 0
        position = self._snapshot.tree.position(self.cursor)
        return 0 if position is None else self._lines.index(position) or 0

    def _reveal(self) -> None:
        """Scroll as little as shows the cursor's line."""
        at, top, height = self.line, self.scroll_offset.y, self._page
        if at < top:
            self._scroll(at)
        elif at >= top + height:
            self._scroll(at - height + 1)

    @property
    def _page(self) -> int:
        return max(1, self.scrollable_content_region.height - AXIS_LINES)

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        width = self.scrollable_content_region.width
        at = self.scroll_offset.y + y - AXIS_LINES
        snapshot, axis, palette = self._snapshot, self._axis, self._palette
        base = self.rich_style
        if snapshot is None or palette is None or axis is None or at >= len(self._lines):
            return Strip.blank(width, base)
        columns = Columns.of(width)
        if y < AXIS_LINES:
            title = f"from the start of its {snapshot.table.name(axis.frame).kind}"
            strip = Strip(axis.segments(columns, title))
            return strip.adjust_cell_length(width).apply_style(base)
        position, number = self._position(at), self._number(at)
        segments = line(
            snapshot, palette, position, int(self._lines.depths[at]), number in self.unfolded,
            self.hide_short, axis, columns,
        )  # fmt: skip
        strip = Strip(segments).adjust_cell_length(width)
        if number == self.cursor:
            ground = self.get_component_rich_style("timeline--cursor").bgcolor
            base = base + Style(bgcolor=ground)
        return Strip(list(Segment.apply_style(strip, base)), width)

    def _position(self, at: int) -> int:
        return int(self._lines.positions[at])

    def _number(self, at: int) -> int:
        assert self._snapshot is not None
        return self._snapshot.tree.number(self._position(at))

    def watch_has_focus(self, value: bool) -> None:
        """The cursor is drawn in another colour with the focus."""
        super().watch_has_focus(value)
        self.refresh()

    def on_resize(self) -> None:
        """Keep the newest step in view."""
        self._lay_out()

    # What the user does

    def follow(self, following: bool = True) -> None:
        """Follow the newest step, or stay where we are."""
        if following != self.following:
            self.following = following
            self.post_message(self.Followed(following))
        if following and self._snapshot is not None:
            self.show(self._snapshot)

    def _move(self, at: int) -> None:
        if not len(self._lines):
            return
        self.follow(False)
        self.cursor = self._number(min(max(at, 0), len(self._lines) - 1))
        self._lay_out()
        self._reveal()

    def go_to(self, position: int) -> None:
        """Unfold what is around a span and put the cursor on it."""
        if self._snapshot is None:
            return
        tree = self._snapshot.tree
        self.follow(False)
        self.unfolded |= {tree.number(each) for each in tree.ancestors(position)}
        self.cursor = tree.number(position)
        self._lay_out()
        middle = self.line - self._page // 3
        self._scroll(max(0, middle))
        self.refresh()

    def action_cursor_up(self) -> None:
        """One row up."""
        self._move(self.line - 1)

    def action_cursor_down(self) -> None:
        """One row down."""
        self._move(self.line + 1)

    def action_page_up(self) -> None:
        """One page up."""
        self._move(self.line - self._page)

    def action_page_down(self) -> None:
        """One page down."""
        self._move(self.line + self._page)

    def action_scroll_top(self) -> None:
        """The first row."""
        self._move(0)

    def _set_unfolded(self, unfolded: bool) -> None:
        self.follow(False)
        (self.unfolded.add if unfolded else self.unfolded.discard)(self.cursor)
        self._lay_out()
        self._reveal()

    def _foldable(self) -> bool:
        if self._snapshot is None or not len(self._lines):
            return False
        position = self._position(self.line)
        return self._snapshot.tree.has_children(position, self.hide_short)

    def action_fold(self) -> None:
        """Fold; on what is folded already, go to the row around it."""
        if self._snapshot is None or not len(self._lines):
            return
        if self.cursor in self.unfolded and self._foldable():
            self._set_unfolded(False)
            return
        parent = int(self._snapshot.tree.parents[self._position(self.line)])
        at = self._lines.index(parent)
        if at is not None:
            self._move(at)

    def action_unfold(self) -> None:
        """Unfold; on what is unfolded already, go to the first row inside."""
        if not self._foldable():
            return
        if self.cursor in self.unfolded:
            self._move(self.line + 1)
        else:
            self._set_unfolded(True)

    def action_toggle_fold(self) -> None:
        """Fold or unfold."""
        if self._foldable():
            self._set_unfolded(self.cursor not in self.unfolded)

    def toggle_short(self) -> None:
        """Hide or show the events on which nothing ran."""
        self.hide_short = not self.hide_short
        self._lay_out()
        self._reveal()

    def next_error(self, direction: int) -> bool:
        """Go to the next (1) or previous (-1) error; False if there is none that way."""
        if self._snapshot is None:
            return False
        tree = self._snapshot.tree
        errors = tree.errors()
        numbers = tree.table.numbers[errors].astype(np.int64)
        that_way = errors[(numbers - self.cursor) * direction > 0]
        if len(that_way):
            self.go_to(int(that_way[0 if direction > 0 else -1]))
        return bool(len(that_way))

    def on_click(self, event: events.Click) -> None:
        """Choose the row; a click on its mark, or on the row chosen before, folds it."""
        offset = event.get_content_offset(self)
        if offset is None or offset.y < AXIS_LINES:
            return
        at = self.scroll_offset.y + offset.y - AXIS_LINES
        if at >= len(self._lines):
            return
        mark = 2 * int(self._lines.depths[at])
        again = not self.following and self._number(at) == self.cursor
        self._move(at)
        if again or mark <= offset.x < mark + 2:
            self.action_toggle_fold()
