"""Two compared runs as text (rich), in the look of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from firetrace.tui.console import MOST_ROWS, Page
from firetrace.tui.diff import Diff, Difference, Only, Side
from firetrace.tui.format import duration, printable

STYLES = {
    "slower": "red", "more often": "red", "faster": "green", "less often": "green",
    "unclear": "dim", "too few": "dim",
}  # fmt: skip


def print_diff(result: Diff) -> None:
    """Print a comparison to stdout."""
    console = Page()
    sides = (result.before, result.after)
    for side, which, run in zip(sides, ("before  ", "after   "), _runs(*sides), strict=True):
        steps = f"  {side.steps:,} steps ({printable(side.engine)})"
        console.print(Text.assemble((which, "dim"), (printable(run), "bold"), steps))
    console.print(Text(result.verdict), style="bold yellow")
    _print_names(console, result)
    _print_only(console, "new", result, result.new)
    _print_only(console, "gone", result, result.gone)
    for side, which in ((result.before, "before"), (result.after, "after")):
        for note in side.notes:
            console.print(Text(f"note  {which}: {printable(note)}"), style="yellow")
    console.end()


def _runs(before: Side, after: Side) -> tuple[str, str]:
    """What to call the two; what has the same name is told apart by its file."""
    if before.run != after.run:
        return before.run, after.run
    paths = Path(before.path), Path(after.path)
    if paths[0].parent == paths[1].parent:
        return f"{before.run} {paths[0].name}", f"{after.run} {paths[1].name}"
    return before.path, after.path


def _print_names(console: Page, result: Diff) -> None:
    rows, styles = [], []
    for each in result.names[:MOST_ROWS]:
        means = (duration(round(each.before.mean_ns)), duration(round(each.after.mean_ns)))
        rows.append((
            result.label(each), each.kind,
            f"{each.before.count:,} -> {each.after.count:,}", " -> ".join(means),
            *_changes(each), _signed(each.per_step_ns),
        ))  # fmt: skip
        styles.append(STYLES[each.verdict])
    if rows:
        console.print()
        console.table(
            ("", "kind", "n", "mean", "changed", "95% interval", "typical", "p", "a step"),
            rows, drop=("typical", "kind", "95% interval", "n", "p"), left=("kind",), styles=styles,
        )  # fmt: skip
    console.more(len(result.names) - MOST_ROWS)


def _changes(each: Difference) -> Sequence[str]:
    mean, typical = each.mean, each.typical
    if mean is None or typical is None:
        return "too few", "", "", ""
    interval = f"{_percent(mean.low)} .. {_percent(mean.high)}"
    chance = min(mean.p, typical.p)
    p = "<0.001" if chance < 0.001 else f"{chance:.3f}"
    return _percent(mean.ratio), interval, _percent(typical.ratio), p


def _print_only(console: Page, which: str, result: Diff, names: tuple[Only, ...]) -> None:
    if not names:
        return
    rows = [
        (
            result.label(each), each.kind, f"{each.part.count:,}",
            duration(round(each.part.mean_ns)), duration(round(each.per_step_ns)),
        )
        for each in names[:MOST_ROWS]
    ]  # fmt: skip
    console.print()
    console.table((which, "kind", "n", "mean", "a step"), rows, drop=("kind",), left=("kind",))
    console.more(len(names) - MOST_ROWS)


def _percent(ratio: float) -> str:
    """A ratio as a change: ``+18%``, ``-0.4%``; from tenfold on as a factor."""
    if ratio >= 10:
        return f"x{ratio:.0f}" if ratio < 1e6 else "x1e6+"
    part = ratio - 1
    return f"{part:+.0%}" if abs(part) >= 0.0995 else f"{part:+.1%}"


def _signed(ns: float) -> str:
    return f"{'+' if ns >= 0 else ''}{duration(round(ns))}"
