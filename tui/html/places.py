"""Where labels that hang on lines are put, so that none covers another. Pure geometry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """Lines of text that hang on a line at ``x``."""

    x: float
    width: float
    lines: int = 1


@dataclass(frozen=True)
class Place:
    """The first line of a note, 0 being nearest to the bars, and the side of its line it is on."""

    level: int
    to_left: bool


def places(notes: list[Note], width: float) -> list[Place]:
    """Place notes, whose ``x`` rise from 0 to ``width``.

    Those on the left are written to the right of their lines, as stairs down to the right, and
    the others the other way round: so no line runs through a note. Where they part, which is
    the largest gap in the middle, one may have to.
    """
    middle = _gap([note.x for note in notes], width)
    last = sum(note.x <= middle for note in notes)
    found: dict[int, Place] = {}
    for at in [*range(last - 1, -1, -1), *range(last, len(notes))]:
        found[at] = Place(_level(notes, found, at, at >= last), at >= last)
    return [found[at] for at in range(len(notes))]


def _gap(xs: list[float], width: float) -> float:
    """The middle of the largest gap in the inner half."""
    first, last = width / 4, 3 * width / 4
    points = [first, *(x for x in xs if first < x < last), last]
    at = max(range(len(points) - 1), key=lambda i: points[i + 1] - points[i])
    return (points[at] + points[at + 1]) / 2


def _level(notes: list[Note], found: dict[int, Place], at: int, to_left: bool) -> int:
    begin, end = _box(notes[at], to_left)
    level, taken = 0, []
    for other, place in found.items():
        left, right = _box(notes[other], place.to_left)
        below = place.level + notes[other].lines
        if begin < notes[other].x < end:  # its line would run through this note
            level = max(level, below)
        if left < end and begin < right:
            taken.append((place.level, below))
    for low, high in sorted(taken):
        if low < level + notes[at].lines and level < high:
            level = high
    return level


def _box(note: Note, to_left: bool) -> tuple[float, float]:
    return (note.x - note.width, note.x) if to_left else (note.x, note.x + note.width)


def depth(notes: list[Note], placed: list[Place]) -> int:
    """How many lines notes take."""
    both = zip(notes, placed, strict=True)
    return max((place.level + note.lines for note, place in both), default=0)
