"""Draws one line of the tree with its bar, and the axis above: segments out, no widget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from firetrace.tracer.journal import Flag
from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, duration
from firetrace.tui.model.tree import Span, Tree
from firetrace.tui.widgets.palette import Palette, colours

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
    """The time that the bars of a screen are laid out in, from a span's beginning."""

    frame: int  #: row number of the span that it is the axis of
    begin_ns: int  #: at the left edge, after the span's beginning
    whole_ns: int  #: from the left edge to the right one

    @classmethod
    def around(cls, snapshot: Snapshot, number: int) -> Axis:
        """The axis of the step, epoch or run around a span."""
        frame = snapshot.tree.frame(number)
        span = snapshot.tree.span(frame)
        if span is None:
            return cls(frame, 0, 1)
        whole = span.took_ns(snapshot.now_ns)
        if not span.end_ns and span.kind == "step" and snapshot.report.step:
            whole = max(whole, snapshot.report.step.p50_ns)  # it will get that far
        return cls(frame, 0, round_up(whole))

    def zoomed(self, factor: float, middle_ns: float) -> Axis:
        """``factor`` times as much time, ``middle_ns`` where it is on the screen."""
        whole = max(100, round(self.whole_ns * factor))
        part = (middle_ns - self.begin_ns) / self.whole_ns
        return Axis(self.frame, max(0, round(middle_ns - part * whole)), whole)

    def moved(self, part: float) -> Axis:
        """To the right by a part of what is seen."""
        return Axis(self.frame, max(0, self.begin_ns + round(part * self.whole_ns)), self.whole_ns)

    def segments(self, columns: Columns, title: str) -> list[Segment]:
        """The line above the bars: four quarters with their times."""
        dim = Style.parse(colours().dim)
        lead = columns.label + DURATION_CELLS + 1
        head = clip(title, lead)
        text = " " * (lead - cell_len(head) + 1)
        for quarter in range(4):
            begin, end = (columns.bar * each // 4 for each in (quarter, quarter + 1))
            at = self.begin_ns + self.whole_ns * quarter // 4
            label = "│" + (duration(at) if at else "0")
            text += label[: end - begin].ljust(end - begin)
        last = duration(self.begin_ns + self.whole_ns)
        room = columns.bar - columns.bar * 3 // 4 - cell_len(last) - 2
        if room > len(duration(self.begin_ns + self.whole_ns * 3 // 4)):
            text = text[: -len(last) - 1] + last + "│"  # as wide as the bars
        return [Segment(head, dim), Segment(text, dim)]


def round_up(ns: int) -> int:
    """The next round number."""
    if ns <= 0:
        return 1
    scale = 10.0 ** math.floor(math.log10(ns))
    return math.ceil(next((r for r in ROUND if r * scale >= ns), 10.0) * scale)


@dataclass(frozen=True)
class Place:
    """How a span stands on its line."""

    depth: int
    unfolded: bool
    folds: bool  #: whether there is anything to unfold
    where: str = ""  #: of a match, which stands alone: what it is in


def line(
    snapshot: Snapshot, palette: Palette, span: Span, place: Place, axis: Axis, columns: Columns
) -> list[Segment]:
    """One span's line: indent, mark, name, duration and bar."""
    tree, own = snapshot.tree, colours()
    is_open, failed, cut = not span.end_ns, span.flags & Flag.ERROR, span.flags & Flag.CUT
    style = Style(color=own.error) if failed else Style()
    if span.kind == "event" and not failed:
        style = Style(color=own.dim)
    elif span.kind == "step" or place.folds:
        style += Style(bold=not cut)
    if cut and not failed:
        style += Style(dim=True)
    mark = (UNFOLDED if place.unfolded else FOLDED) if place.folds else LEAF
    indent = " " * min(2 * place.depth, columns.label // 3) + mark
    took = span.took_ns(snapshot.now_ns)
    note = note_of(snapshot, span) + place.where
    room = columns.label - len(indent)
    label = tree.label(span) + (" ?" if is_open and span.flags & Flag.GUESS else "")
    label = clip(label, max(room - cell_len(note), min(room, 8)))
    note = clip(note, room - cell_len(label))
    running = Style(color=own.live) if is_open else style
    note_colour = own.error if failed else own.live if is_open else own.dim
    segments = [
        Segment(indent, Style(color=own.dim)),
        Segment(label, style),
        Segment(note, Style(color=note_colour)),
        Segment(" " * (room - cell_len(label) - cell_len(note))),
        Segment(f"{duration(took):>{DURATION_CELLS}}  ", running),
    ]
    left = tree.origin(span.number, axis.frame) + axis.begin_ns
    bar = Bar(columns.bar, axis.whole_ns)
    begin = span.start_ns - left
    colour = own.error if failed else palette.span(span.kind, span.text)
    bar.paint(begin, begin + took, colour)
    if span.kind in ("step", "iteration") and not place.unfolded and not failed:
        for part in _parts(tree, span.number):
            start = part.start_ns - left
            end = start + part.took_ns(snapshot.now_ns)
            bar.paint(start, end, palette.span(part.kind, part.text))
    return segments + bar.segments(is_open, Style(dim=bool(cut and not failed)))


def _parts(tree: Tree, number: int) -> list[Span]:
    """What a folded step's bar is painted with: the spans right inside it and its iteration."""
    parts: list[Span] = []
    for child in tree.children(number, 1)[:MOST_PARTS].tolist():
        span = tree.span(child)
        if span is None:
            continue
        if span.kind == "iteration":
            inner = (tree.span(each) for each in tree.children(child, 1)[:MOST_PARTS].tolist())
            parts += [each for each in inner if each is not None]
        else:
            parts.append(span)
    return parts


def note_of(snapshot: Snapshot, span: Span) -> str:
    """What is said behind a span's name: that it is open, failed, or was cut, and why."""
    if not span.end_ns:
        return f" (open {duration(span.took_ns(snapshot.now_ns))})"
    digest = snapshot.tree.digest
    if span.flags & Flag.ERROR and span.number in digest.exceptions:
        return f" {digest.exceptions[span.number]}"
    if span.flags & Flag.CUT:
        return f" (cut: {snapshot.tree.meta.reasons.get(span.number, 'no reason known')})"
    return ""


class Bar:
    """A line of the waterfall: paint spans on it, later ones over earlier ones.

    Exact to half a cell: a cell may have one colour on the left and another on the right. What
    lies beyond the axis is cut, with an arrow where it goes on.
    """

    def __init__(self, cells: int, whole_ns: int) -> None:
        self._whole = max(1, whole_ns)
        self._halves = [""] * (2 * cells if cells > 1 else 0)
        self._hatched = [False] * len(self._halves)
        self._beyond = ""

    def paint(self, begin: int, end: int, colour: str, hatched: bool = False) -> None:
        """Paint a span, in ns from the left edge; the shortest still gets half a cell."""
        room = len(self._halves)
        if not room:
            return
        if end < 0 or begin >= self._whole * (1 + 1 / room):
            self._beyond = colour if begin > 0 else self._beyond
            return  # before the left edge, or beyond the right one
        first = min(room - 1, max(0, begin * room // self._whole))
        last = min(room, max(first + 1, round(end * room / self._whole)))
        self._halves[first:last] = [colour] * (last - first)
        self._hatched[first:last] = [hatched] * (last - first)
        if end > self._whole * (1 + 1 / room):
            self._beyond = colour

    def segments(self, is_open: bool, base: Style) -> list[Segment]:
        """The line; an open span is hatched: all of it, or what was painted so."""
        found = []
        halves = list(zip(self._halves, self._hatched, strict=True))
        for ((left, one), (right, other)), same in groupby(
            zip(halves[::2], halves[1::2], strict=True)
        ):
            cells = len(list(same))
            if left == right:
                full = "▒" if is_open or (one and other) else "█"
                text, style = (full if left else " "), Style(color=left or None)
            elif left:
                text, style = "▌", Style(color=left, bgcolor=right or None)
            else:
                text, style = "▐", Style(color=right)
            if (one or other) and left != right:
                style += Style(dim=True)  # half a cell cannot be hatched
            found.append(Segment(text * cells, base + style))
        if self._beyond and found:
            last = found[-1]
            found[-1] = Segment(last.text[:-1], last.style)
            found.append(Segment(GOES_ON, base + Style(color=self._beyond)))
        return found
