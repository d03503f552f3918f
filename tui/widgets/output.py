"""What a program prints, as its terminal would show it, with the last 2,000 lines.

A thread reads the program's terminal and keeps the picture; the widget only draws. Escape codes
are pyte's work. That is pure Python and the training may want the core: of a flood only the last
part of each tick is shown, and a line says how much was left out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

import pyte
from pyte import modes
from pyte.screens import Char
from rich.cells import cell_len
from rich.color import Color, ColorParseError
from rich.segment import Segment
from rich.style import Style
from textual import work
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.worker import get_current_worker

from firetrace.tui.child import Child
from firetrace.tui.format import printable

HISTORY = 2000
PERIOD_S = 0.25
#: The thread rests this many times as long as it worked.
REST = 4
#: A thread that cannot leave by then never will; usually it takes a period.
LEAVING_S = 10
#: Of a tick's output that is more than twice this, in bytes, the last part is shown, from the
#: next line on if it begins soon.
LIMIT, LONGEST_LINE = 64 * 1024, 1024
#: In characters. Of a cell, the rest is dropped; a sequence this long was never meant as one.
LONGEST_CELL, LONGEST_SEQUENCE = 8, 4096
#: Bounds of what is kept for reuse: characters a style, and styles.
MOST_CHARACTERS, MOST_STYLES = 4096, 256

BLANK = Char(" ")
#: The colours that pyte names otherwise than Rich; the last is a slip of pyte 0.8.2 for SGR 105.
COLOURS = {
    "brown": "yellow",
    "brightbrown": "bright_yellow",
    "bfightmagenta": "bright_magenta",
    **{f"bright{name}": f"bright_{name}"
       for name in ("black", "red", "green", "blue", "magenta", "cyan", "white")},
}  # fmt: skip

#: A cell without its character: colours and attributes, in the order of pyte's ``Char``.
Look = tuple[str, str, bool, bool, bool, bool, bool, bool]
Line = tuple[tuple[str, Look], ...]
_look: Callable[[Char], Look] = itemgetter(slice(1, None))


@dataclass(frozen=True)
class Printed:
    """What there is to see at a moment."""

    first: int = 0  #: how many lines are no longer kept
    lines: tuple[Line, ...] = ()


class Parser(pyte.ByteStream):
    """Takes any bytes, where pyte 0.8.2 raises or waits for ever for a sequence's end."""

    _inside = 0

    def _send_to_parser(self, data: str) -> bool | None:
        try:
            plain = super()._send_to_parser(data)
        except Exception:  # any kind, after which pyte is ready for text again
            plain = True
        self._inside = 0 if plain else self._inside + 1
        if self._inside > LONGEST_SEQUENCE:
            self._initialize_parser()
            self._inside, plain = 0, True
        return plain


class Cells(dict[str, Char]):
    """The cells of one style by their character; shared, since a line has many of each."""

    def __init__(self, style: Char) -> None:
        self._style = style

    def __missing__(self, character: str) -> Char:
        if len(self) >= MOST_CHARACTERS:
            self.clear()
        self[character] = cell = self._style._replace(data=character)
        return cell


class Emulator(pyte.Screen):
    """A terminal's picture. Lines that leave it at the top are kept.

    pyte's own ``HistoryScreen`` takes 0.3 MB/s and its ``Screen`` 1.0; this one takes 3.3, and it
    does not lose the rest of a text after a character without width.

    Args:
        columns, rows: its size.
        reply: takes what the terminal answers to the program's questions.
    """

    def __init__(self, columns: int, rows: int, reply: Callable[[bytes], object]) -> None:
        self._history: deque[Line] = deque(maxlen=HISTORY)
        self._left = 0  # lines at the top, ever
        self._cells: dict[Char, Cells] = {}
        self._reply = reply
        super().__init__(columns, rows)
        self._parser = Parser(self)

    def feed(self, data: bytes) -> None:
        """Show what was printed."""
        self._parser.feed(data)

    def skip(self, count: int) -> None:
        """Say that so many bytes are not shown."""
        self._parser = Parser(self)  # what was left out may have begun or ended a sequence
        self.feed(f"\r\n\x1b[0;7m {count:,} bytes not shown \x1b[0m\r\n".encode())

    def printed(self) -> Printed:
        """All lines kept, without the empty ones at the end."""
        lines = [*self._history, *(_line(self.buffer[y]) for y in range(self.lines))]
        while lines and not lines[-1]:
            lines.pop()
        return Printed(self._left - len(self._history), tuple(lines))

    # What pyte calls

    def write_process_input(self, data: str) -> None:
        """Answer, such as where the cursor is."""
        self._reply(data.encode())

    def index(self) -> None:
        """Move down a line; the topmost leaves the screen if the cursor is on the last."""
        top, bottom = self.margins or (0, self.lines - 1)
        if self.cursor.y == bottom and not top:
            self._history.append(_line(self.buffer[0]))
            self._left += 1
        super().index()

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        """Take another size. What no longer fits above the cursor's line leaves at the top."""
        if lines is None or columns is None:
            return  # the program wants 80 or 132 columns; the width is the pane's
        at, self.cursor.y, self.margins = self.cursor.y, self.lines - 1, None
        for _ in range(at - lines + 1):
            self.index()
        for y in range(lines, self.lines):
            self.buffer.pop(y, None)
        super().resize(self.lines, columns)
        self.lines = lines
        self.cursor.y, self.cursor.x = min(at, lines - 1), min(self.cursor.x, columns)
        self.tabstops.update(range(8, columns, 8))

    def draw(self, data: str) -> None:
        """Write text at the cursor."""
        cells = self._cells.get(self.cursor.attrs)
        if cells is None:
            if len(self._cells) >= MOST_STYLES:
                self._cells.clear()
            cells = self._cells[self.cursor.attrs] = Cells(self.cursor.attrs)
        if modes.IRM in self.mode or not (data.isascii() and data.isprintable()):
            for character in data:
                self._draw_one(character, cells)
            return
        at = 0
        while at < len(data):
            self._make_room(1)
            row, x = self.buffer[self.cursor.y], self.cursor.x
            piece = data[at : at + self.columns - x]
            row.update(zip(itertools.count(x), map(cells.__getitem__, piece)))
            self.cursor.x = x + len(piece)
            at += len(piece)

    def _draw_one(self, character: str, cells: Cells) -> None:
        width = cell_len(character)
        if not width:
            self._combine(character)
            return
        self._make_room(width)
        if modes.IRM in self.mode:
            self.insert_characters(width)
        row, x = self.buffer[self.cursor.y], self.cursor.x
        row[x] = cells[character]
        if width == 2:
            row[x + 1] = cells[""]
        self.cursor.x = min(x + width, self.columns)

    def _make_room(self, width: int) -> None:
        if self.cursor.x + width > self.columns:
            if modes.DECAWM in self.mode:
                self.carriage_return()
                self.linefeed()
            else:
                self.cursor.x = max(0, self.columns - width)

    def _combine(self, character: str) -> None:
        """Add a mark to the letter before it; joiners, selectors and controls are dropped."""
        row, x = self.buffer[self.cursor.y], self.cursor.x - 1
        if x > 0 and not row[x].data:
            x -= 1
        last = row[x].data
        both = unicodedata.normalize("NFC", last + character)
        is_mark = unicodedata.category(character)[0] in "LM"
        if x >= 0 and is_mark and len(both) <= LONGEST_CELL and cell_len(both) == cell_len(last):
            row[x] = row[x]._replace(data=both)


def _line(row: dict[int, Char]) -> Line:
    """A row of cells as pieces of one look each, without the blank end."""
    cells = [row[x] for x in range(max(row, default=-1) + 1)]
    while cells and cells[-1] == BLANK:
        cells.pop()
    if not all(cell.data.isascii() and cell.data for cell in cells):
        _mend(cells)
    return tuple(
        ("".join(cell.data for cell in piece), look)
        for look, piece in itertools.groupby(cells, _look)
    )


def _mend(cells: list[Char]) -> None:
    """Blank the halves of wide characters whose other half was overwritten."""
    wide = False
    for x, cell in enumerate(cells):
        follows = x + 1 < len(cells) and not cells[x + 1].data
        if not (cell.data or wide) or (cell_len(cell.data) == 2 and not follows):
            cells[x] = cell._replace(data=" ")
        wide = cell_len(cell.data) == 2


@lru_cache(MOST_STYLES)
def _style(look: Look) -> Style:
    fg, bg, bold, italic, underline, strike, reverse, blink = look
    return Style(
        color=_colour(fg), bgcolor=_colour(bg), bold=bold or None, italic=italic or None,
        underline=underline or None, strike=strike or None, reverse=reverse or None,
        blink=blink or None,
    )  # fmt: skip


def _colour(name: str) -> Color | None:
    if name == "default":
        return None
    if len(name) == 6 and set(name) <= set("0123456789abcdef"):
        return Color.parse(f"#{name}")
    try:
        return Color.parse(COLOURS.get(name, name))
    except ColorParseError:  # 24-bit colours of more than 24 bits
        return None


class OutputPane(ScrollView, can_focus=True):
    """Shows a program's terminal. Follows the end, until it is scrolled back.

    It must stay mounted while the app runs (hidden is fine): nobody else reads the terminal, and
    a program that cannot print waits.
    """

    DEFAULT_CSS = """
    OutputPane { overflow-x: hidden; overflow-y: scroll; scrollbar-size-vertical: 1; }
    """

    class Changed(Message):
        """Something was printed. A newer one replaces an older one not yet drawn."""

        def can_replace(self, message: Message) -> bool:
            """Only the newest counts."""
            return isinstance(message, OutputPane.Changed)

    class Ended(Message):
        """The program has ended, and what it printed is shown."""

        def __init__(self, code: int) -> None:
            super().__init__()
            self.code = code  #: as of ``Child.poll``

    def __init__(self, child: Child, id: str | None = None) -> None:
        super().__init__(id=id)
        self.border_title = "Output · q leaves the app: then keys go to the program"
        self.following = True
        self._child = child
        self._size_wanted = Size(*os.get_terminal_size(child.fileno()))
        self._newest = self._shown = Printed()
        self._leaving, self._left = threading.Event(), threading.Event()

    def on_mount(self) -> None:
        """Begin to read."""
        self._read_on()

    async def on_unmount(self) -> None:
        """Leave the program's terminal to others; nobody reads there any more after this."""
        self._leaving.set()
        await asyncio.to_thread(self._left.wait, LEAVING_S)

    @work(thread=True, exclusive=True)
    def _read_on(self) -> None:
        worker, child = get_current_worker(), self._child
        emulator = Emulator(*self._size_wanted, child.write)
        try:
            if self._read(emulator):
                self.post_message(self.Ended(child.wait()))
            # What the program left in the background may still print, and must not wait.
            while child.held and not (self._leaving.wait(PERIOD_S) or worker.is_finished):
                self._read(emulator)
        finally:
            self._left.set()

    def _read(self, emulator: Emulator) -> bool:
        """Read until the program ends (True) or the app does, in a thread of its own."""
        child, size = self._child, Size(emulator.columns, emulator.lines)
        pending, skipped = bytearray(), 0
        due, leaving = time.monotonic(), False
        while not leaving:
            new = child.read(max(0.0, due - time.monotonic()) if pending else PERIOD_S)
            pending += new or b""
            if len(pending) > 2 * LIMIT:
                cut = len(pending) - LIMIT
                cut = pending.find(b"\n", cut, cut + LONGEST_LINE) + 1 or cut
                skipped += cut
                del pending[:cut]
            leaving = new == b"" or self._leaving.is_set()
            began = time.monotonic()
            if began < due and not leaving:
                continue
            if self._size_wanted != size:
                size = self._size_wanted
                emulator.resize(columns=size.width, lines=size.height)
                child.resize(size.width, size.height)
            elif not pending:
                continue
            if skipped:
                emulator.skip(skipped)
            emulator.feed(bytes(pending))
            pending, skipped = bytearray(), 0
            self._newest = emulator.printed()
            self.post_message(self.Changed())
            now = time.monotonic()
            due = now + max(PERIOD_S, REST * (now - began))
        return new == b""

    def last_lines(self, n: int) -> list[str]:
        """The last lines as plain text, safe to print; also after the app has left."""
        return ["".join(printable(text) for text, _ in line) for line in self._newest.lines[-n:]]

    # What is drawn

    def on_output_pane_ended(self) -> None:
        """Nobody is there to take keys."""
        self.border_title = "Output"

    def on_output_pane_changed(self) -> None:
        """Draw the newest; what is looked at stays where it is."""
        following = self.following
        old, self._shown = self._shown, self._newest
        self.virtual_size = Size(self.size.width, len(self._shown.lines))
        gone = self._shown.first - old.first
        self._scroll(self.max_scroll_y if following else self.scroll_target_y - gone)
        self.refresh()

    def on_resize(self) -> None:
        """Tell the program, and keep the end in view."""
        size = self.scrollable_content_region.size
        if size.width and size.height:  # not hidden
            self._size_wanted = size
        if self.following:
            self._scroll(self.max_scroll_y)

    def _scroll(self, y: float) -> None:
        # Forced: right after the first lines, Textual does not know yet that there is a scrollbar.
        self.scroll_to(y=y, animate=False, force=True, immediate=True)

    def watch_scroll_target_y(self) -> None:
        """At the end, follow it."""
        self.following = self.scroll_target_y >= self.max_scroll_y

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        width, at = self.scrollable_content_region.width, self.scroll_offset.y + y
        if at >= len(self._shown.lines):
            return Strip.blank(width, self.rich_style)
        pieces = self._shown.lines[at]
        strip = Strip([Segment(printable(text), _style(look)) for text, look in pieces])
        return strip.adjust_cell_length(width).apply_style(self.rich_style)
