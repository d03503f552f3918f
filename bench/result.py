"""What a measurement hands over: rows of one table, each with its bar where there is one.

Also the little statistics that they share. A ratio that is held against a bar is never the best
guess but its 95% bound on the unfavourable side, from a bootstrap over pairs: a lucky run must not
reach a bar that the program misses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.table import markdown

RESAMPLES = 10_000


@dataclass(frozen=True)
class Bar:
    """What a figure is held against."""

    limit: float
    unit: str = "x"
    at_least: bool = False

    def __str__(self) -> str:
        if not self.limit:
            return "none"
        side = "at least" if self.at_least else "at most"
        return f"{side} {self.limit:g}{self.unit}"

    def reached(self, figure: float) -> bool:
        """Whether a figure meets the bar."""
        return figure >= self.limit if self.at_least else figure <= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the table: firetrace, the peer, how they compare."""

    subject: str
    what: str
    ours: str = ""
    peer: str = ""
    ratio: str = ""
    bar: Bar | None = None
    figure: float = 0.0  #: what is held against the bar
    samples: dict[str, list[float]] = field(default_factory=dict)  #: as measured, for ``--json``

    @property
    def verdict(self) -> str:
        """Whether the bar is reached, in a word or two."""
        if self.bar is None:
            return ""
        return "reached" if self.bar.reached(self.figure) else "MISSED"

    @property
    def failed(self) -> bool:
        """Whether this line fails the run."""
        return self.bar is not None and not self.bar.reached(self.figure)


def ratio_bounds(ours: Sequence[float], peers: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the medians of paired samples, with its lower and upper 95% bound.

    Each bound is one-sided. Pairs are drawn together, so noise that hits both members of a pair
    cancels; the seed is fixed, so the same samples give the same bounds.
    """
    pairs = np.array([ours, peers], float)
    picks = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))
    resampled = np.median(pairs[:, picks], axis=2)
    middle = np.median(pairs, axis=1)
    low, high = np.percentile(resampled[0] / resampled[1], (5, 95))
    return float(middle[0] / middle[1]), float(low), float(high)


def difference_bound(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The median of the differences of paired samples, with its upper 95% bound."""
    apart = np.array(ours, float) - np.array(others, float)
    picks = np.random.default_rng(0).integers(0, len(apart), (RESAMPLES, len(apart)))
    return float(np.median(apart)), float(np.percentile(np.median(apart[picks], axis=1), 95))


def median(values: Sequence[float]) -> float:
    """The median, as a plain float."""
    return float(np.median(values))


def number(value: float) -> str:
    """About three significant digits, without exponents."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.3f}x" if abs(value) < 1 else f"{number(value)}x"


def render(rows: Iterable[Row]) -> str:
    """The table, as text that is also Markdown."""
    head = ("", "firetrace", "peer", "ratio (95% bound)", "bar", "")
    lines, last = [head], ""
    for row in rows:
        if row.subject != last:
            lines.append((f"**{row.subject}**", "", "", "", "", ""))
            last = row.subject
        bar = str(row.bar) if row.bar else ""
        lines.append((row.what, row.ours, row.peer, row.ratio, bar, row.verdict))
    return markdown(lines)
