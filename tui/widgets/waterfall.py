"""Draws one line of the tree with its bar, and the axis above: segments out, no widget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from firetrace.tracer.journal import KINDS, Flag
from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, duration
from firetrace.tui.tree import EVENT, ITERATION, STEP
from firetrace.tui.widgets.palette import DIM, ERROR, LIVE, Palette

FOLDED, UNFOLDED, LEAF = "▸ ", "▾ ", "  "
DURATION_CELLS = 8
GOES_ON = "\u203a"  #: at the right edge: a bar is longer than the axis
#: Parts of a folded step that are painted; more could not be told apart.
MOST_PARTS = 40
#: Ends of an axis that people can divide by four.
ROUND = (1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 4.8, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Columns:
    """Where things stand on a line, in cells."""

    label: int
    bar: int

    @classmethod
    def of(cls, width: int) -> Columns:
        """Two fifths for the names, in reason; the rest for the bars."""
        label = max(18, min(52, width * 2 // 5))
        return cls(label, max(0, width - label - DURATION_CELLS - 2))


@dataclass(frozen=True)
class Axis:
    """The time that the bars of a screen are laid out in."""

    frame: int  #: position of the span that it is the axis of
    whole_ns: int  #: at the right edge

    @classmethod
    def around(cls, snapshot: Snapshot, position: int) -> Axis:
        """The axis of the step, epoch or run around a span."""
        frame = snapshot.tree.frame(position)
        row = snapshot.table.rows[frame]
        whole = int(row["end"] or snapshot.now_ns) - int(row["start"])
        if row["end"] == 0 and snapshot.tree.kinds[frame] == STEP and snapshot.report.step:
            whole = max(whole, snapshot.report.step.p50_ns)  # it will get that far
        return cls(frame, round_up(whole))

    def segments(self, columns: Columns, title: str) -> list[Segment]:
        """The line above the bars: four quarters with their times."""
        dim = Style.parse(DIM)
        lead = columns.label + DURATION_CELLS + 1
        head = clip(title, lead)
        text = " " * (lead - cell_len(head) + 1)
        for quarter in range(4):
            begin, end = (columns.bar * each // 4 for each in (quarter, quarter + 1))
            label = "│" + ("0" if not quarter else duration(self.whole_ns * quarter // 4))
            text += label[: end - begin].ljust(end - begin)
        last = duration(self.whole_ns)
        if columns.bar >= 32:
            text = text[: -len(last) - 1] + last + "│"  # as wide as the bars
        return [Segment(head, dim), Segment(text, dim)]


def round_up(ns: int) -> int:
    """The next round number."""
    if ns <= 0:
        return 1
    scale = 10.0 ** math.floor(math.log10(ns))
    return math.ceil(next((r for r in ROUND if r * scale >= ns), 10.0) * scale)


def line(
    snapshot: Snapshot, palette: Palette, position: int, depth: int, unfolded: bool,
    hide_short: bool, axis: Axis, columns: Columns,
) -> list[Segment]:  # fmt: skip
    """One span's line: indent, mark, name, duration and bar."""
    tree, table = snapshot.tree, snapshot.table
    row = table.rows[position]
    flags = int(row["flags"])
    is_open = row["end"] == 0
    name, kind = table.name(position), int(tree.kinds[position])
    failed = bool(flags & Flag.ERROR)

    style = Style(color=ERROR) if failed else Style()
    if kind == EVENT and not failed:
        style = Style(color=DIM)
    elif kind == STEP or tree.has_children(position, hide_short):
        style += Style(bold=not flags & Flag.CUT)
    if flags & Flag.CUT and not failed:
        style += Style(dim=True)
    mark = LEAF
    if tree.has_children(position, hide_short):
        mark = UNFOLDED if unfolded else FOLDED
    indent = " " * min(2 * depth, columns.label // 2) + mark
    took = max(0, int(row["end"] or snapshot.now_ns) - int(row["start"]))
    note = _note(snapshot, position, flags, is_open, took)
    room = columns.label - len(indent)
    label = tree.label(position) + (" ?" if is_open and flags & Flag.GUESS else "")
    label = clip(label, max(room - cell_len(note), min(room, 8)))
    note = clip(note, room - cell_len(label))
    segments = [
        Segment(indent, Style(color=DIM)),
        Segment(label, style),
        Segment(note, Style(color=ERROR if failed else LIVE if is_open else DIM)),
        Segment(" " * (room - cell_len(label) - cell_len(note))),
        Segment(f"{duration(took):>{DURATION_CELLS}}  ", Style(color=LIVE) if is_open else style),
    ]
    origin = tree.origin(position, axis.frame)
    bar = Bar(columns.bar, axis.whole_ns)
    whole = (int(row["start"]) - origin, int(row["start"]) - origin + took)
    bar.paint(*whole, ERROR if failed else palette.span(KINDS[kind], name.text))
    if kind in (STEP, ITERATION) and not unfolded and not failed:
        for part in _parts(snapshot, position):
            inner, text = table.rows[part], table.name(part)
            begin, end = int(inner["start"]), int(inner["end"] or snapshot.now_ns)
            bar.paint(begin - origin, end - origin, palette.span(text.kind, text.text))
    dim = bool(flags & Flag.CUT) and not failed
    return segments + bar.segments(is_open, Style(dim=dim))


def _parts(snapshot: Snapshot, position: int) -> list[int]:
    """What a folded step's bar is painted with: the spans right inside it and its iteration."""
    tree = snapshot.tree
    parts: list[int] = []
    for child in tree.children(position, True)[:MOST_PARTS].tolist():
        inside = tree.kinds[child] == ITERATION
        parts += tree.children(child, True)[:MOST_PARTS].tolist() if inside else [child]
    return parts


def _note(snapshot: Snapshot, position: int, flags: int, is_open: bool, took: int) -> str:
    if is_open:
        return f" (open {duration(took)})"
    number, meta = snapshot.tree.number(position), snapshot.table.meta
    if flags & Flag.ERROR:
        error = meta.exceptions.get(number)
        if error:
            return f" {error.get('exception.type', '')}: {error.get('exception.message', '')}"
    if flags & Flag.CUT:
        return f" (cut: {meta.reasons.get(number, 'no reason known')})"
    return ""


class Bar:
    """A line of the waterfall: paint spans on it, later ones over earlier ones.

    Exact to half a cell: a cell may have one colour on the left and another on the right. What
    lies beyond the axis is cut, with an arrow where it goes on.
    """

    def __init__(self, cells: int, whole_ns: int) -> None:
        self._whole = max(1, whole_ns)
        self._halves = [""] * (2 * cells if cells > 1 else 0)
        self._beyond = ""

    def paint(self, begin: int, end: int, colour: str) -> None:
        """Paint a span, in ns from the left edge; the shortest still gets half a cell."""
        room = len(self._halves)
        if not room:
            return
        first = min(room - 1, max(0, begin * room // self._whole))
        last = min(room, max(first + 1, round(end * room / self._whole)))
        self._halves[first:last] = [colour] * (last - first)
        if end > self._whole * (1 + 1 / room):
            self._beyond = colour

    def segments(self, is_open: bool, base: Style) -> list[Segment]:
        """The line; an open span is hatched."""
        found = []
        full = "▒" if is_open else "█"
        pairs = zip(self._halves[::2], self._halves[1::2], strict=True)
        for (left, right), same in groupby(pairs):
            cells = len(list(same))
            if left == right:
                text, style = (full if left else " "), Style(color=left or None)
            elif left:
                text, style = "▌", Style(color=left, bgcolor=right or None)
            else:
                text, style = "▐", Style(color=right)
            found.append(Segment(text * cells, base + style))
        if self._beyond and found:
            last = found[-1]
            found[-1] = Segment(last.text[:-1], last.style)
            found.append(Segment(GOES_ON, base + Style(color=self._beyond)))
        return found
