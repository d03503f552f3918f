"""The scalars over the whole run, as curves of a few lines each."""

from __future__ import annotations

import math

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import RISING, clip, count, number
from firetrace.tui.model.report import Scalar
from firetrace.tui.widgets.palette import colours

HEIGHT = 5
LABEL = 12


class ScalarsPane(VerticalScroll):
    """All scalars, one below the other."""

    def __init__(self) -> None:
        super().__init__(id="scalars")
        self.border_title = "Scalars"
        self._curves = Curves()

    def compose(self) -> ComposeResult:
        """One widget with all curves."""
        yield self._curves

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        self._curves.scalars = snapshot.report.scalars


class Curves(Widget):
    """Draws them."""

    scalars: reactive[tuple[Scalar, ...]] = reactive((), layout=True)

    def render(self) -> Text:
        """A title and ``HEIGHT`` lines each."""
        own, text = colours(), Text(no_wrap=True, overflow="crop", end="")
        if not self.scalars:
            text.append(
                "no scalars: return them from the process function's output_transform, or put them "
                "in engine.state.metrics", own.dim,
            )  # fmt: skip
        for scalar in self.scalars:
            text.append(clip(scalar.name, 40), "bold")
            text.append(f"  {number(scalar.last)}", own.live)
            text.append(f"  n {count(scalar.count)}\n", own.dim)
            for line in curve(scalar.points, max(1, self.size.width - LABEL), HEIGHT):
                text.append(f"{line[0]:>{LABEL - 1}} ", own.dim)
                text.append(line[1] + "\n", own.handler)
        return text

    def get_content_height(self, *_: object) -> int:
        """As many lines as there are."""
        return max(1, (HEIGHT + 1) * len(self.scalars))


def curve(points: tuple[float, ...], cells: int, height: int) -> list[tuple[str, str]]:
    """Lines of a filled curve, top to bottom, each with its label at the left."""
    finite = [x for x in points if math.isfinite(x)]
    if not finite:
        return [("", "")] * height
    low, high = min(finite), max(finite)
    steps = len(RISING) * height
    columns = []
    for cell in range(min(cells, len(points))):
        begin = cell * len(points) // min(cells, len(points))
        end = max(begin + 1, (cell + 1) * len(points) // min(cells, len(points)))
        known = [x for x in points[begin:end] if math.isfinite(x)]
        part = (sum(known) / len(known) - low) / (high - low) if known and high > low else 0.0
        columns.append(max(1, round(part * steps)) if known else 0)
    lines = []
    for row in range(height - 1, -1, -1):
        filled = (min(len(RISING), max(0, column - row * len(RISING))) for column in columns)
        label = number(high) if row == height - 1 else number(low) if row == 0 else ""
        lines.append((label, "".join((" " + RISING)[each] for each in filled)))
    return lines
