"""The app's themes: the colours of ``tui/colours.py``, each with one of Textual's for the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from textual.theme import Theme

from firetrace.tracer.meta import Meta
from firetrace.tui import colours as plain


@dataclass(frozen=True, eq=False)
class Colours(plain.Colours):
    """What the app draws with. As Rich names colours."""

    theme: Theme | None = field(default=None, repr=False)


def _themed(own: plain.Colours) -> Colours:
    rest: dict[str, Any] = dict(own.ground)
    theme = Theme(name=own.name, dark=own.dark, **rest) if rest else None
    return Colours(**vars(own), theme=theme)


THEMES = tuple(map(_themed, plain.THEMES))
DARK, LIGHT, SAFE, ANSI = THEMES


class _Current:
    """The colours of the theme that is on. One app runs in a process."""

    def __init__(self) -> None:
        self.colours = DARK

    def use(self, name: str) -> None:
        """Draw with the theme of this name; with the dark one for a theme that is not ours."""
        self.colours = next((each for each in THEMES if each.name == name), DARK)


current = _Current()


def colours() -> Colours:
    """The colours to draw with."""
    return current.colours


class Palette(plain.Palette):
    """The colours of one run's spans, in the theme that is on."""

    def __init__(self, meta: Meta) -> None:
        super().__init__(meta, colours())
