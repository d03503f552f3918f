"""Ranks by steps, by colour: who made the others wait, and when."""

from __future__ import annotations

import math

import numpy as np
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import duration
from firetrace.tui.model.deaths import DEAD
from firetrace.tui.model.ranks import RankRow, Skew
from firetrace.tui.widgets.palette import colours

LABEL_CELLS, LATE_CELLS = 12, 12
#: Late by such a part of a step is the last colour.
MUCH = 0.5


class RankStrip(Widget):
    """A line a rank, those that were late most; a cell for equally many steps."""

    snapshot: reactive[Snapshot | None] = reactive(None, layout=True)

    def __init__(self) -> None:
        super().__init__(id="ranks-strip")
        self.border_title = "Ranks"

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """A line for each rank, and one above."""
        skew = self.snapshot.skew if self.snapshot is not None else None
        return 1 + len(skew.rows) if skew is not None else 0

    def render(self) -> Text:
        """The lines that fit."""
        text = Text(no_wrap=True, overflow="crop", end="")
        skew = self.snapshot.skew if self.snapshot is not None else None
        if skew is None or not self.size.height:
            return text
        own, room = colours(), max(1, self.size.height - 1)
        rows = chosen(skew, room)
        cells = max(1, self.size.width - LABEL_CELLS - LATE_CELLS)
        text.append(self._axis(skew, cells), own.dim)
        for row in rows:
            text.append("\n")
            self._line(text, skew, row, cells)
        return text

    def _axis(self, skew: Skew, cells: int) -> str:
        first = f"{skew.buckets[0][0]:,}" if skew.buckets else ""
        last = f"{skew.buckets[-1][1]:,}" if skew.buckets else ""
        line = "ranks, step".ljust(LABEL_CELLS) + first
        line += last.rjust(max(1, cells + LABEL_CELLS - len(line)))
        return line[: LABEL_CELLS + cells] + f"{'late':>{LATE_CELLS - 1}}"

    def _line(self, text: Text, skew: Skew, row: RankRow, cells: int) -> None:
        own = colours()
        dead = row.state in DEAD
        mark = "✖" if dead else "●" if row.state == "running" else " "
        style = own.error if dead else own.live if row.state == "running" else own.dim
        text.append(f"{mark} ", style)
        text.append(f"rank {row.rank}"[: LABEL_CELLS - 2].ljust(LABEL_CELLS - 2),
                    own.error if dead else "")  # fmt: skip
        index = [each.rank for each in skew.rows].index(row.rank)
        for late in spread(skew.heat[index] if len(skew.heat) else np.empty(0), cells):
            if math.isnan(late):
                text.append(" ")
                continue
            part = min(1.0, late / max(1.0, MUCH * skew.step_ns))
            text.append("▀", f"{own.heat[round(part * (len(own.heat) - 1))]}")
        text.append(f"{duration(row.late_ns):>{LATE_CELLS - 1}}", own.error if dead else "")


def chosen(skew: Skew, room: int) -> list[RankRow]:
    """The ranks that are shown: all, or the dead and those that were late most; in their order."""
    worst = sorted(skew.rows, key=lambda row: (row.state not in DEAD, -row.late_ns, row.rank))
    return sorted(worst[:room], key=lambda row: row.rank)


def spread(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], cells: int) -> list[float]:
    """The values over so many cells; of several in one the largest."""
    if not len(values):
        return [math.nan] * cells
    if len(values) <= cells:
        at = np.arange(cells) * len(values) // cells
        return [float(each) for each in values[at]]
    edges = np.arange(cells + 1) * len(values) // cells
    found = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        some = values[first:last]
        known = some[~np.isnan(some)]
        found.append(float(known.max()) if len(known) else math.nan)
    return found
