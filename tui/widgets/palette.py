"""The colours: one for each phase, the same in the phase bar, the tables and the waterfall."""

from __future__ import annotations

from functools import lru_cache

from firetrace.tracer.table import Table

#: Phases that everybody has keep their colour in every run.
KNOWN = {
    "get_batch": "#d8a657",
    "loader": "#b08a55",
    "prepare_batch": "#b9b45f",
    "forward": "#6ea8d8",
    "loss": "#a88fc7",
    "backward": "#58b0a2",
    "optimizer": "#8fb573",
    "iteration": "#6b7f94",
}
#: The others take these in turn, in the order in which the run first had them.
OTHERS = ("#d08770", "#7f9bd1", "#c2a86b", "#66b2b8", "#b48ead", "#9cc06b", "#cf8a9a", "#8a9fb5")
STRUCTURE = "#5f7285"  #: runs, epochs, steps
HANDLER = "#c98a9b"
ERROR = "#e06c75"
DIM = "#78828e"
GOOD = "#8fb573"
LIVE = "#58b0a2"
INK = "#14171c"  #: text on a coloured ground


@lru_cache(maxsize=16)
def _assign(unknown: tuple[str, ...]) -> dict[str, str]:
    return {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(unknown)}


class Palette:
    """The colours of one run's phases."""

    def __init__(self, table: Table) -> None:
        unknown = [
            name.text
            for _, name in sorted(table.names.items())
            if name.kind in ("phase", "pair", "span") and name.text not in KNOWN
        ]
        self._colours = KNOWN | _assign(tuple(dict.fromkeys(unknown)))

    def phase(self, name: str) -> str:
        """The colour of a phase; ``engine: phase`` has its phase's."""
        own = self._colours.get(name) or self._colours.get(name.rpartition(": ")[2])
        return own or STRUCTURE

    def span(self, kind: str, name: str) -> str:
        """The colour of a span's bar."""
        if kind in ("handler", "event"):
            return HANDLER
        if kind in ("run", "epoch", "step"):
            return STRUCTURE
        return self.phase(name)
