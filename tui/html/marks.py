"""The words that HTML and SVG are made of: escaped text, numbers, marks, and the colours' classes.

Every name from a trace goes through ``text``; nothing else of a trace may get onto the page.
"""

from __future__ import annotations

from html import escape

from firetrace.tracer.meta import Meta
from firetrace.tui.colours import DARK, LIGHT, Colours, Palette
from firetrace.tui.format import LONGEST, clip, printable

#: Of the font that drawings are labelled with: 11 px, monospaced, so that widths are known.
CHARACTER = 6.75
#: The classes of what is coloured the same in every run.
ROLES = ("structure", "handler", "error", "warning", "good", "live", "dim", "faint")


def text(name: str, most: int = LONGEST) -> str:
    """A name from a trace as HTML: no markup, no controls, and its direction stays its own."""
    shown = printable(name[:most]) + ("…" if len(name) > most else "")
    return escape(shown) if shown.isascii() else f"<bdi>{escape(shown)}</bdi>"


def label(name: str, characters: int) -> str:
    """A name for a drawing, in at most so many characters. Markup of SVG."""
    shown = clip(name, characters)
    # SVG has no <bdi>; these marks keep a name that runs from right to left apart from its number.
    return escape(shown if shown.isascii() else f"\u2068{shown}\u2069")


def number(x: float) -> str:
    """A coordinate, to a hundredth."""
    return f"{x:.2f}".rstrip("0").rstrip(".")


def rect(
    x: float, y: float, width: float, height: float, look: str, title: str = "", more: str = ""
) -> str:
    """A bar; ``title`` is markup that shows under the mouse."""
    at = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    if not title:
        return f'<rect class="{look}" {at}{more}/>'
    return f'<rect class="{look}" {at}{more}><title>{title}</title></rect>'


def words(x: float, y: float, content: str, look: str = "", anchor: str = "") -> str:
    """A line of text; ``content`` is markup."""
    more = f' class="{look}"' if look else ""
    more += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{number(x)}" y="{number(y)}"{more}>{content}</text>'


def path(points: str, look: str) -> str:
    """A line."""
    return f'<path class="{look}" d="{points}"/>'


def drawing(width: int, height: float, says: str, parts: list[str], look: str = "") -> str:
    """A picture that is as wide as the page; ``says`` (markup) is read aloud instead of it."""
    more = f' class="{look}"' if look else ""
    return (
        f'<svg{more} viewBox="0 0 {width} {number(height)}" role="img" aria-label="{says}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>\n'
    )


class Paint:
    """Gives every colour of the app a class, light and dark, and remembers which were used."""

    def __init__(self, meta: Meta) -> None:
        self._light, self._dark = Palette(meta, LIGHT), Palette(meta, DARK)
        self._classes = {(getattr(LIGHT, role), getattr(DARK, role)): f"c-{role}" for role in ROLES}

    def phase(self, name: str) -> str:
        """The class of a phase."""
        return self._class(self._light.phase(name), self._dark.phase(name))

    def span(self, kind: str, name: str) -> str:
        """The class of a span's bar."""
        return self._class(self._light.span(kind, name), self._dark.span(kind, name))

    def _class(self, light: str, dark: str) -> str:
        return self._classes.setdefault((light, dark), f"c{len(self._classes)}")

    def css(self) -> str:
        """The colours: light ones, dark ones where that is preferred, light ones on paper."""
        pairs = list(self._classes)
        names = list(self._classes.values())
        light = _variables(LIGHT, dict(zip(names, [pair[0] for pair in pairs], strict=True)))
        dark = _variables(DARK, dict(zip(names, [pair[1] for pair in pairs], strict=True)))
        looks = "".join(
            f".{name}{{fill:var(--{name});background:var(--{name})}}"
            f"text.on-{name}{{fill:var(--on-{name})}}.on-{name}{{color:var(--on-{name})}}\n"
            for name in [*names, *(f"heat{i}" for i in range(len(LIGHT.heat)))]
        )
        return (
            f":root{{color-scheme:light dark;{light}}}\n"
            f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{looks}"
        )


def _variables(own: Colours, colours: dict[str, str]) -> str:
    every = {**colours, **{f"heat{i}": colour for i, colour in enumerate(own.heat)}}
    found = [f"--{name}:{own.ground[name]}" for name in ("foreground", "background", "panel")]
    found += [f"--{name}:{colour};--on-{name}:{ink(colour)}" for name, colour in every.items()]
    return ";".join(found)


def ink(ground: str) -> str:
    """Black or white, whichever is read more easily on a ground: at least 4.58 to 1."""
    return "#000" if luminance(ground) > 0.179 else "#fff"


def luminance(colour: str) -> float:
    """How bright ``#rrggbb`` is, 0 to 1, as WCAG 2 reckons it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
