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
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import count
from firetrace.tui.keys import bindings
from firetrace.tui.model.lines import Lines
from firetrace.tui.model.search import Matches
from firetrace.tui.model.tree import Span
from firetrace.tui.widgets.lines_view import AXIS_LINES, LinesView
from firetrace.tui.widgets.palette import Palette
from firetrace.tui.widgets.waterfall import Axis, Columns, Place, line
from firetrace.tui.widgets.zoom import Zoom

#: What ``c`` hides, one after the other: sizes as in ``outline.py``, and how that is called.
HIDING = (
    (1, ""), (7, "below 100µs hidden"), (8, "below 1ms hidden"), (9, "below 10ms hidden"),
    (10, "below 100ms hidden"), (0, "all of them"),
)  # fmt: skip


class Timeline(LinesView):
    """Follows the newest step until a row is chosen; then that row stays where it is.

    With a pattern it is the list of the spans that match.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("rows", "tree", "all")]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"timeline--cursor"}

    class Followed(Message):
        """Whether the newest step is followed has changed."""

        def __init__(self, following: bool) -> None:
            super().__init__()
            self.following = following

    class Moved(Message):
        """The cursor is on another span, or the same one has more to say."""

        def can_replace(self, message: Message) -> bool:
            """Only the newest counts."""
            return isinstance(message, Timeline.Moved)

    class Detailed(Message):
        """All of the cursor's span is wanted."""

    def __init__(self) -> None:
        super().__init__("timeline")
        self.border_title = "Timeline"
        self.following = True
        self.unfolded: set[int] = set()  #: row numbers
        self.pattern = ""
        self._hiding = 0
        self._snapshot: Snapshot | None = None
        self._palette: Palette | None = None
        self._axis: Axis | None = None
        self._zoom = Zoom()
        self._base = Style()

    # What is shown

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot; the cursor's row stays on its line of the screen unless following."""
        self._snapshot, self._palette = snapshot, Palette(snapshot.tree.meta)
        if self.following and not self.pattern:
            newest = snapshot.tree.newest()
            if newest is not None:
                self.cursor, self.unfolded = newest
        self._lay_out()

    def forget(self) -> None:
        """Another run comes: nothing of this one is looked at any more."""
        self._snapshot, self._lines, self._axis = None, Lines(), None
        self.unfolded, self.cursor, self.pattern = set(), 0, ""
        self._zoom.fit()
        self.border_title = "Timeline"
        self.follow()
        self.refresh()

    @property
    def least(self) -> int:
        """The size below which spans are hidden."""
        return HIDING[self._hiding][0]

    @property
    def span(self) -> Span | None:
        """The span that the cursor is on."""
        return self._snapshot.tree.span(self.cursor) if self._snapshot is not None else None

    @property
    def frame(self) -> Span | None:
        """The step, epoch or run around the cursor."""
        if self._snapshot is None or self._axis is None:
            return None
        return self._snapshot.tree.span(self._axis.frame)

    @property
    def axis(self) -> Axis | None:
        """What the bars are laid out in."""
        return self._axis

    def shown_spans(self) -> list[Span]:
        """The spans on the screen, top to bottom."""
        if self._snapshot is None:
            return []
        top = round(self.scroll_offset.y)
        bottom = min(top + self._page, len(self._lines))
        numbers = (self._lines.at(line)[0] for line in range(top, bottom))
        spans = (self._snapshot.tree.span(number) for number in numbers)
        return [span for span in spans if span is not None]

    def _lay_out(self) -> None:
        """Find the lines anew and keep the view still."""
        if self._snapshot is None:
            return
        tree = self._snapshot.tree
        above = self.line - self.scroll_offset.y
        self._lines = (
            Matches(tree, self.pattern) if self.pattern else tree.lines(self.unfolded, self.least)
        )
        self._set_height(len(self._lines) + AXIS_LINES)
        if len(self._lines) and self._lines.index(self.cursor) is None:
            # Gone (a wrong guess), hidden or folded away: the line nearest in time.
            self.cursor = self._lines.at(self._lines.nearest(self.cursor))[0]
        self._lay_out_axis()
        if self.following and not self.pattern:
            self._scroll(self.max_scroll_y)
            self._reveal()
        else:
            self._scroll(self.line - above)
        self._entitle()
        self.refresh()

    def _lay_out_axis(self) -> None:
        shown = self._snapshot is not None and len(self._lines) > 0
        self._axis = self._zoom.axis(self._snapshot, self.cursor) if shown else None

    def _entitle(self) -> None:
        assert self._snapshot is not None
        if self.pattern:
            title = f"{count(len(self._lines))} spans match"
        else:
            title = f"Timeline · {count(self._snapshot.report.spans)} spans"
        hidden = HIDING[self._hiding][1]
        if hidden and not self.pattern:
            title += f" · {hidden}"
        if self._zoom.is_on:
            title += " · zoomed"
        self.border_title = title

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of a part of the screen; what they have in common is found once."""
        self._base = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        width = self.scrollable_content_region.width
        at = round(self.scroll_offset.y) + y - AXIS_LINES
        snapshot, axis, palette = self._snapshot, self._axis, self._palette
        base = self._base
        if snapshot is None or palette is None or axis is None or at >= len(self._lines):
            return Strip.blank(width, base)
        columns = Columns.of(width)
        if y < AXIS_LINES:
            frame = snapshot.tree.span(axis.frame)
            title = f"from the start of its {frame.kind if frame is not None else 'run'}"
            strip = Strip(axis.segments(columns, title))
            return strip.adjust_cell_length(width).apply_style(base)
        number, depth = self._lines.at(at)
        span = snapshot.tree.span(number)
        if span is None:
            return Strip.blank(width, base)
        segments = line(snapshot, palette, span, self._place(span, depth), axis, columns)
        strip = Strip(segments).adjust_cell_length(width)
        if number == self.cursor:
            ground = self.get_component_rich_style("timeline--cursor").bgcolor
            base = base + Style(bgcolor=ground)
        return Strip(list(Segment.apply_style(strip, base)), width)

    def _place(self, span: Span, depth: int) -> Place:
        assert self._snapshot is not None
        tree = self._snapshot.tree
        if not self.pattern:
            folds = tree.has_children(span.number, self.least)
            return Place(depth, span.number in self.unfolded, folds)
        around = tree.ancestors(span.number)
        step = next((each for each in around if each.kind in ("step", "epoch")), None)
        return Place(0, False, False, f"  {tree.label(step)}" if step is not None else "")

    def watch_has_focus(self, value: bool) -> None:
        """The cursor is drawn in another colour with the focus."""
        super().watch_has_focus(value)
        self.refresh()

    def on_resize(self) -> None:
        """Keep the newest step in view."""
        self._lay_out()
        self.post_message(self.Moved())

    # What the user does

    def follow(self, following: bool = True) -> None:
        """Follow the newest step, or stay where we are."""
        if following:
            self.pattern = ""
        if following != self.following:
            self.following = following
            self.post_message(self.Followed(following))
        if following and self._snapshot is not None:
            self.show(self._snapshot)

    def _move(self, at: int) -> None:
        if not len(self._lines):
            return
        self.follow(False)
        self.cursor = self._lines.at(min(max(at, 0), len(self._lines) - 1))[0]
        self._lay_out_axis()
        self._reveal()
        self.post_message(self.Moved())
        self.refresh()

    def go_to(self, number: int) -> None:
        """Unfold what is around a span and put the cursor on it."""
        if self._snapshot is None:
            return
        self.follow(False)
        self.pattern = ""
        around = self._snapshot.tree.ancestors(number)
        self.unfolded = self.unfolded | {each.number for each in around}
        self.cursor = number
        self._lay_out()
        self._scroll(max(0, self.line - self._page // 3))
        self.post_message(self.Moved())
        self.refresh()

    def search(self, pattern: str) -> None:
        """Show the spans that match; none: the tree again, with the cursor where it was."""
        if pattern == self.pattern:
            return
        was = self.pattern
        if was and not pattern and self.cursor:
            self.go_to(self.cursor)
            return
        if pattern:
            self.follow(False)
        self.pattern = pattern
        self._lay_out()
        self._reveal()
        self.post_message(self.Moved())

    def next_match(self, pattern: str, direction: int) -> bool:
        """Go to the next (1) or previous (-1) match; False if there is none that way."""
        if self._snapshot is None or not pattern:
            return False
        found = Matches(self._snapshot.tree, pattern)
        at = found.after(self.cursor)
        if direction < 0:
            at -= 1
            if 0 <= at < len(found) and found.at(at)[0] == self.cursor:
                at -= 1
        if not 0 <= at < len(found):
            return False
        self.go_to(found.at(at)[0])
        return True

    def _set_unfolded(self, unfolded: bool) -> None:
        self.follow(False)
        change = {self.cursor}
        self.unfolded = self.unfolded | change if unfolded else self.unfolded - change
        self._lay_out()
        self._reveal()

    def _foldable(self) -> bool:
        if self._snapshot is None or not len(self._lines) or self.pattern:
            return False
        return self._snapshot.tree.has_children(self.cursor, self.least)

    def action_fold(self) -> None:
        """Fold; on what is folded already, go to the row around it."""
        if self.cursor in self.unfolded and self._foldable():
            self._set_unfolded(False)
            return
        span = self.span
        at = self._lines.index(span.parent) if span is not None else None
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

    def action_detail(self) -> None:
        """All about the span; of a match: where it is in the tree."""
        if self.pattern:
            self.go_to(self.cursor)
        else:
            self.post_message(self.Detailed())

    def action_zoom(self, direction: int) -> None:
        """See less (1) or more (-1) time around the cursor's span."""
        if self._axis is not None and self._snapshot is not None and self.span is not None:
            self._zoom.zoom(self._snapshot, self._axis, self.span, direction)
            self._redraw_axis()

    def action_pan(self, direction: int) -> None:
        """Later (1) or earlier (-1) times."""
        if self._axis is not None:
            self._zoom.pan(self._axis, direction)
            self._redraw_axis()

    def action_fit(self) -> None:
        """The whole step, epoch or run."""
        self._zoom.fit()
        self._redraw_axis()

    def _redraw_axis(self) -> None:
        self.follow(False)
        self._lay_out_axis()
        if self._snapshot is not None:
            self._entitle()
        self.post_message(self.Moved())  # what is below is drawn on the same axis
        self.refresh()

    def hide_more(self) -> str:
        """Hide longer spans too, at last none. Return what is hidden now, in words."""
        self._hiding = (self._hiding + 1) % len(HIDING)
        self._lay_out()
        self._reveal()
        return HIDING[self._hiding][1]

    def next_error(self, direction: int) -> bool:
        """Go to the next (1) or previous (-1) error; False if there is none that way."""
        if self._snapshot is None:
            return False
        errors = self._snapshot.tree.errors().astype(np.int64)
        that_way = errors[(errors - self.cursor) * direction > 0]
        if len(that_way):
            self.go_to(int(that_way[0 if direction > 0 else -1]))
        return bool(len(that_way))

    def on_click(self, event: events.Click) -> None:
        """Choose the row; a click on its mark, or on the row chosen before, folds it."""
        offset = event.get_content_offset(self)
        if offset is None or offset.y < AXIS_LINES:
            return
        at = round(self.scroll_offset.y) + offset.y - AXIS_LINES
        if at >= len(self._lines):
            return
        number, depth = self._lines.at(at)
        again = not self.following and number == self.cursor
        self._move(at)
        if again and self.pattern:
            self.go_to(number)
        elif (again or 2 * depth <= offset.x < 2 * depth + 2) and self._foldable():
            self._set_unfolded(number not in self.unfolded)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """With ctrl: see more time; with shift: later times; else the rows scroll."""
        self._scroll_time(event, -1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """With ctrl: see less time; with shift: earlier times; else the rows scroll."""
        self._scroll_time(event, 1)

    def _scroll_time(self, event: events.MouseEvent, direction: int) -> None:
        if event.ctrl or event.shift:
            event.stop()
            event.prevent_default()
            (self.action_zoom if event.ctrl else self.action_pan)(
                direction if event.ctrl else -direction
            )
        else:
            self.follow(False)
