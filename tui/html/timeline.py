"""Draws events and handlers over time, as ignite's documentation does by hand, from a real run.

Above the bars stand the events' names, each with a line to when it was fired; below them the
handlers that ran on it; between them the spans. Then the same for a part of it, seen closer.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from rich.cells import cell_len

from firetrace.tui.format import count, duration
from firetrace.tui.html.marks import CHARACTER, Paint, drawing, label, number, path, rect, words
from firetrace.tui.html.places import Note, Place, depth, places
from firetrace.tui.html.scenes import Bar, Scene, Tick

WIDTH = 1100
#: Left and right of the axis.
MARGIN = 12
LINE, BAR, TITLE, AXIS, GAP = 15, 22, 28, 26, 36
#: A span that is shorter can be seen still.
NARROWEST = 0.8
#: An event that was fired more often in a scene is named once, with how often.
MOST_OFTEN = 3
MOST_NAMED = 40
LONGEST_NAME = 34  # so that a note fits into a quarter of the width
HATCH = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect class="gap" width="3" height="6"/></pattern></defs>'
)


@dataclass(frozen=True)
class Scale:
    """Where times, in Unix ns, are on an axis."""

    start_ns: int
    end_ns: int

    def x(self, ns: int) -> float:
        """A place from ``MARGIN`` to ``WIDTH - MARGIN``."""
        part = (ns - self.start_ns) / (self.end_ns - self.start_ns)
        return MARGIN + min(1.0, max(0.0, part)) * (WIDTH - 2 * MARGIN)


@dataclass(frozen=True)
class Beam:
    """What of a scene the next one shows."""

    left: float
    right: float
    top: float

    def outline(self) -> str:
        """A mark around the bar that the next scene shows."""
        return rect(self.left, self.top, self.right - self.left, BAR - 3, "chosen")

    def draw(self, bottom: float) -> str:
        """From a part of one axis to the whole of the next, which begins at ``bottom``."""
        top, down = number(self.top + BAR - 3), number(bottom - GAP)
        return path(
            f"M{number(self.left)} {top}V{down}L{MARGIN} {number(bottom)}"
            f"H{WIDTH - MARGIN}L{number(self.right)} {down}V{top}Z",
            "beam",
        )


def timeline(scenes: list[Scene], paint: Paint) -> str:
    """The picture; empty if there is nothing to show."""
    parts, y = [HATCH], 0.0
    for scene in scenes:
        drawn = _Drawn(scene, paint)
        y = drawn.draw(y, parts)
        if drawn.beam is not None:
            y += GAP
            parts.append(drawn.beam.draw(y))
    says = "; ".join(label(scene.title, 200) for scene in scenes)
    if not scenes:
        return ""
    return drawing(WIDTH, math.ceil(y), f"events and handlers over time: {says}", parts, "timeline")


class _Drawn:
    """One scene: its title, names, bars, axis and handlers, from top to bottom."""

    def __init__(self, scene: Scene, paint: Paint) -> None:
        self._scene, self._paint = scene, paint
        self._scale = Scale(scene.start_ns, scene.end_ns)
        self.beam: Beam | None = None

    def draw(self, top: float, parts: list[str]) -> float:
        """Draw it from ``top`` on; where it ends."""
        scale, named = self._scale, _named(self._scene.ticks)
        xs = [scale.x(tick.at_ns) for tick, _ in named]
        names = [_name(tick, times) for tick, times in named]
        notes = [Note(x, _width([name])) for x, name in zip(xs, names, strict=True)]
        above = places(notes, WIDTH)
        ran = [(x, _handlers(tick)) for x, (tick, _) in zip(xs, named, strict=True) if tick.ran]
        blocks = [Note(x, _width(lines), len(lines)) for x, lines in ran]
        below = places(blocks, WIDTH)

        first = top + TITLE + depth(notes, above) * LINE + 5
        last = first + (max(bar.row for bar in self._scene.bars) + 1) * BAR
        under = last + AXIS
        bottom = under + depth(blocks, below) * LINE + 8
        parts.append(f'<g data-scene="{self._scene.span.number}">')
        self._lines(first, last, parts)
        for bar in self._scene.bars:
            self._bar(bar, first, parts)
        if self.beam is not None:
            parts.append(self.beam.outline())
        self._axis(last, parts)
        for (_, lines), note, place in zip(ran, blocks, below, strict=True):
            _hang(note.x, last, under + place.level * LINE, lines, place, parts)
        for (tick, _), name, note, place in zip(named, names, notes, above, strict=True):
            y = first - 5 - place.level * LINE
            parts.append(path(f"M{number(note.x)} {number(y - 9)}V{number(last)}", "event"))
            at, anchor = (note.x - 4, "end") if place.to_left else (note.x + 4, "")
            look = "name ran" if tick.ran else "name"
            parts.append(words(at, y - 2, name, look, anchor))
        title = f"<tspan>{label(self._scene.title, 120)}</tspan>"
        parts.append(words(MARGIN, top + 17, title, "title") + "</g>")
        return bottom

    def _lines(self, first: float, last: float, parts: list[str]) -> None:
        """A tick for every event, at its time; of those too near to one another, one."""
        drawn = -1.0
        for tick in self._scene.ticks:
            x = self._scale.x(tick.at_ns)
            if x - drawn < NARROWEST and not tick.ran:
                continue
            drawn = x
            title = f"{label(tick.text, 80)} at {self._since(tick.at_ns)}"
            parts.append(
                rect(x - 0.75, first - 4, 1.5, 4, "tick", title, f' data-row="{tick.number}"')
            )

    def _since(self, ns: int) -> str:
        return duration(max(0, ns - self._scene.start_ns))

    def _bar(self, bar: Bar, first: float, parts: list[str]) -> None:
        left, right = self._scale.x(bar.start_ns), self._scale.x(bar.end_ns)
        width, top = max(NARROWEST, right - left), first + bar.row * BAR
        took = duration(bar.end_ns - bar.start_ns)
        title = f"{label(bar.text, 80)}: {took}, from {self._since(bar.start_ns)}"
        if bar.count > 1:
            title = f"{bar.count} {bar.kind}s from {label(bar.text, 80)} on: {took}"
        look = "c-error" if bar.failed else self._paint.span(bar.kind, bar.text)
        more = f' data-row="{bar.number}"' if bar.count == 1 else ""
        apart = " apart" if width > 3 and bar.count == 1 else ""  # from its neighbours
        parts.append(rect(left, top, width, BAR - 3, look + apart, title, more))
        if bar.is_open:
            parts.append(rect(left, top, width, BAR - 3, "open"))
        room = int((width - 8) / CHARACTER)
        if room >= min(5, cell_len(bar.text)) and bar.count == 1:
            text = bar.text if room < cell_len(f"{bar.text} {took}") else f"{bar.text} {took}"
            parts.append(words(left + 4, top + 13, label(text, room), f"in on-{look}"))
        zoom = self._scene.zoom
        # Of several steps that are one bar, a part.
        shown = zoom is not None and bar.row == 1 and zoom.kind == bar.kind
        if zoom is not None and shown and bar.start_ns <= zoom.start_ns < bar.end_ns:
            left = self._scale.x(zoom.start_ns)
            right = max(left + NARROWEST, self._scale.x(zoom.end_ns or bar.end_ns))
            self.beam = Beam(left, right, top)

    def _axis(self, y: float, parts: list[str]) -> None:
        line = path(f"M{MARGIN} {number(y + 3)}H{WIDTH - MARGIN}", "axis")
        parts.append(line)
        whole = self._scene.end_ns - self._scene.start_ns
        for ns in round_times(whole):
            x = self._scale.x(self._scene.start_ns + ns)
            parts.append(path(f"M{number(x)} {number(y + 3)}v4", "axis"))
            near = x > WIDTH - MARGIN - 30
            anchor = "" if not ns else "end" if near else "middle"
            parts.append(
                words(x if ns else x + 4, y + 17, duration(ns) if ns else "0", "time", anchor)
            )


def _hang(x: float, top: float, y: float, lines: list[str], place: Place, parts: list[str]) -> None:
    """Handlers on the line of their event, one below the other."""
    side = -1 if place.to_left else 1
    middle = [y + (i + 0.5) * LINE for i in range(len(lines))]
    stubs = "".join(f"M{number(x)} {number(each)}h{4 * side}" for each in middle)
    parts.append(path(f"M{number(x)} {number(top)}V{number(middle[-1])}{stubs}", "hang"))
    for line, at in zip(lines, middle, strict=True):
        anchor = "end" if place.to_left else ""
        parts.append(words(x + 7 * side, at + 4, line, "handler", anchor))


def _named(ticks: list[Tick]) -> list[tuple[Tick, int]]:
    """The events that are named, and how often they were fired."""
    often = Counter(tick.text for tick in ticks)
    chosen: dict[str, Tick] = {}
    for tick in ticks:
        if tick.text not in chosen or (tick.ran and not chosen[tick.text].ran):
            chosen[tick.text] = tick
    named = [
        (tick, often[tick.text])
        for tick in ticks
        if often[tick.text] <= MOST_OFTEN or chosen[tick.text] is tick
    ]
    return named[:MOST_NAMED]


def _name(tick: Tick, times: int) -> str:
    """An event's name; markup."""
    return label(tick.text, LONGEST_NAME) + (
        f", {count(times)} times" if times > MOST_OFTEN else ""
    )


def _handlers(tick: Tick) -> list[str]:
    """What ran on an event: names and durations, markup."""
    lines = [
        f"{'└ ' if each.is_engine else ''}{label(each.text, LONGEST_NAME)} {duration(each.took_ns)}"
        for each in tick.ran
    ]
    return lines + ([f"and {tick.more} more"] if tick.more else [])


def _width(lines: list[str]) -> float:
    """Of lines of markup, which is at least as long as what is seen of it."""
    return (max(cell_len(line) for line in lines) + 2) * CHARACTER


def round_times(whole_ns: int, most: int = 8) -> list[int]:
    """Round times from 0 up to ``whole_ns``, as ticks of an axis."""
    each = max(1, whole_ns / most)
    scale = 10 ** math.floor(math.log10(each))
    step = next(int(n * scale) for n in (1, 2, 5, 10) if n * scale >= each)
    return list(range(0, whole_ns + 1, max(1, step)))
