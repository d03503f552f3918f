"""A view of lines with a cursor that is on a row and not on a line, so that it stays on its row."""

from __future__ import annotations

from textual.geometry import Size
from textual.scroll_view import ScrollView

from firetrace.tui.model.lines import Lines
from firetrace.tui.model.search import Matches

#: The axis stands still above the lines.
AXIS_LINES = 1


class LinesView(ScrollView, can_focus=True):
    """Where the cursor is, and how it moves."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.cursor = 0  #: a row number
        self._lines: Lines | Matches = Lines()

    def _move(self, at: int) -> None:
        """Put the cursor on a line, or on the last one."""
        raise NotImplementedError

    def _set_height(self, lines: int) -> None:
        """Tell the scrollbar. The whole screen is laid out anew only where that comes or goes."""
        size = Size(self.size.width, lines)
        page = self.scrollable_content_region.height
        if self.show_vertical_scrollbar and page < min(lines, self.virtual_size.height):
            self.set_reactive(ScrollView.virtual_size, size)
            self.vertical_scrollbar.window_virtual_size = lines
        elif size != self.virtual_size:
            self.virtual_size = size

    def _scroll(self, y: float) -> None:
        # Forced: right after the first rows, Textual does not know yet that there is a scrollbar.
        self.scroll_to(y=y, animate=False, immediate=True, force=True)

    @property
    def line(self) -> int:
        """On which line the cursor is."""
        return self._lines.index(self.cursor) or 0

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
