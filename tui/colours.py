"""The colours: one for each phase, the same in every view: bars, tables, waterfall, HTML page.

Plain values, without Textual: ``widgets/palette.py`` makes themes of them for the app.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from firetrace.tracer.meta import Meta


@dataclass(frozen=True, eq=False)
class Colours:
    """What is drawn with. As Rich names colours."""

    name: str
    phases: Mapping[str, str]  #: phases that everybody has keep their colour in every run
    others: tuple[str, ...]  #: the others take these in turn, as the run first had them
    structure: str  #: runs, epochs, steps
    handler: str
    error: str
    warning: str
    dim: str
    good: str
    live: str
    faint: str  #: what is still to come of a progress bar
    ink: str  #: text on a coloured ground
    heat: tuple[str, ...]  #: from the fastest to the slowest
    dark: bool = True
    #: What lies around: ``primary``, ``foreground``, ``background``, ...; empty: the terminal's.
    ground: Mapping[str, str] = field(default_factory=dict)


def _phases(
    fetch: str, loader: str, prepare: str, forward: str, loss: str, backward: str, optimizer: str,
    rest: str,
) -> dict[str, str]:  # fmt: skip
    return {
        "get_batch": fetch, "loader": loader, "prepare_batch": prepare, "forward": forward,
        "loss": loss, "backward": backward, "optimizer": optimizer, "iteration": rest,
    }  # fmt: skip


DARK = Colours(
    "firetrace",
    _phases("#d8a657", "#b08a55", "#b9b45f", "#6ea8d8", "#a88fc7", "#58b0a2", "#8fb573", "#6b7f94"),
    ("#d08770", "#7f9bd1", "#c2a86b", "#66b2b8", "#b48ead", "#9cc06b", "#cf8a9a", "#8a9fb5"),
    structure="#5f7285", handler="#c98a9b", error="#e06c75", warning="#d8a657", dim="#78828e",
    good="#8fb573", live="#58b0a2", faint="#4a5561", ink="#14171c",
    heat=("#2b4a5e", "#35678a", "#4f8fa8", "#8fb573", "#d8a657", "#e08a4f", "#e06c75"),
    ground={
        "primary": "#6ea8d8", "secondary": "#58b0a2", "accent": "#6ea8d8",
        "foreground": "#d5dae0", "background": "#14171c", "surface": "#1b1f26",
        "panel": "#20262e", "warning": "#d8a657", "error": "#e06c75", "success": "#8fb573",
    },
)  # fmt: skip
LIGHT = Colours(
    "firetrace-light",
    _phases("#b9770e", "#8a6a3a", "#8a8420", "#2f78b7", "#7d5ba6", "#1f8a7a", "#5b8c3a", "#6b7f94"),
    ("#b5533c", "#4a6fb3", "#967b2f", "#2f8a92", "#8a5a8a", "#6a9430", "#b0566c", "#5a7390"),
    structure="#8a99a8", handler="#b0566c", error="#c0392b", warning="#a8690a", dim="#68727c",
    good="#4c7f2c", live="#14796b", faint="#c3ccd4", ink="#ffffff",
    heat=("#cfe3ee", "#9cc7e0", "#5fa3c7", "#7fb069", "#e0a030", "#e0703a", "#c0392b"),
    dark=False,
    ground={
        "primary": "#2f78b7", "secondary": "#1f8a7a", "accent": "#2f78b7",
        "foreground": "#20262e", "background": "#fbfbf9", "surface": "#f1f1ee",
        "panel": "#e6e8ea", "warning": "#a8690a", "error": "#c0392b", "success": "#4c7f2c",
    },
)  # fmt: skip
#: Okabe and Ito's colours, which people with any colour vision tell apart (jfly.uni-koeln.de).
SAFE = Colours(
    "colour-blind",
    _phases("#e69f00", "#a87400", "#f0e442", "#56b4e9", "#cc79a7", "#009e73", "#0072b2", "#8c8c8c"),
    ("#d55e00", "#999999", "#b3a125", "#7fc7ef", "#8f5576", "#4dbb9d", "#4d9fd0", "#c9c9c9"),
    structure="#6f7a85", handler="#d55e00", error="#ff5f1f", warning="#e69f00", dim="#8a939c",
    good="#56b4e9", live="#56b4e9", faint="#4a5561", ink="#000000",
    heat=("#08306b", "#2171b5", "#6baed6", "#c6dbef", "#fdd49e", "#fc8d59", "#ff5f1f"),
    ground={
        "primary": "#56b4e9", "secondary": "#009e73", "accent": "#56b4e9",
        "foreground": "#e6e6e6", "background": "#101214", "surface": "#181b1e",
        "panel": "#22262a", "warning": "#e69f00", "error": "#ff5f1f", "success": "#56b4e9",
    },
)  # fmt: skip
#: The terminal's own sixteen colours, whatever they are.
ANSI = Colours(
    "ansi-dark",
    _phases("yellow", "bright_yellow", "bright_cyan", "blue", "magenta", "cyan", "green", "white"),
    ("bright_red", "bright_blue", "bright_magenta", "bright_green", "bright_cyan", "red"),
    structure="bright_black", handler="bright_magenta", error="red", warning="yellow",
    dim="bright_black", good="green", live="cyan", faint="bright_black", ink="black",
    heat=("blue", "cyan", "green", "bright_green", "yellow", "bright_red", "red"),
)  # fmt: skip

THEMES = (DARK, LIGHT, SAFE, ANSI)


@lru_cache(maxsize=16)
def _assign(unknown: tuple[str, ...], others: tuple[str, ...]) -> dict[str, str]:
    return {name: others[i % len(others)] for i, name in enumerate(unknown)}


class Palette:
    """The colours of one run's spans, out of these colours."""

    def __init__(self, meta: Meta, own: Colours) -> None:
        self._own = own
        unknown = [
            name.text
            for _, name in sorted(meta.names.items())
            if name.kind in ("phase", "pair", "span") and name.text not in self._own.phases
        ]
        self._others = _assign(tuple(dict.fromkeys(unknown)), self._own.others)

    def phase(self, name: str) -> str:
        """The colour of a phase; ``engine: phase`` has its phase's."""
        for each in (name, name.rpartition(": ")[2]):
            found = self._own.phases.get(each) or self._others.get(each)
            if found:
                return found
        return self._own.structure

    def span(self, kind: str, name: str) -> str:
        """The colour of a span's bar."""
        if kind in ("handler", "event"):
            return self._own.handler
        if kind in ("run", "epoch", "step"):
            return self._own.structure
        return self.phase(name)
