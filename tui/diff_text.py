"""Two compared runs as text (rich), in the look of the report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from firetrace.tui.diff import Diff, Difference, Only
from firetrace.tui.format import duration, printable

MOST_ROWS = 20
STYLES = {
    "slower": "red", "more often": "red", "faster": "green", "less often": "green",
    "unclear": "dim", "too few": "dim",
}  # fmt: skip


def print_diff(result: Diff) -> None:
    """Print a comparison to stdout; in a file or a pipe wide enough that names are whole."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    for side, which in ((result.before, "before  "), (result.after, "after   ")):
        steps = f"  {side.steps:,} steps ({printable(side.engine)})"
        console.print(Text.assemble((which, "dim"), (printable(side.run), "bold"), steps))
    console.print(Text(result.verdict), style="bold yellow")
    _print_names(console, result)
    _print_only(console, result, "new", result.new)
    _print_only(console, result, "gone", result.gone)
    for side, which in ((result.before, "before"), (result.after, "after")):
        for note in side.notes:
            console.print(Text(f"note  {which}: {printable(note)}"), style="yellow")


def _print_names(console: Console, result: Diff) -> None:
    table = _table(
        "", "kind", "n", "mean", "changed", "95% interval", "typical", "p", "a step"
    )  # fmt: skip
    for each in result.names[:MOST_ROWS]:
        means = (duration(round(each.before.mean_ns)), duration(round(each.after.mean_ns)))
        table.add_row(
            Text(printable(result.label(each))), each.kind,
            f"{each.before.count:,} -> {each.after.count:,}", " -> ".join(means),
            *_changes(each), _signed(each.per_step_ns), style=STYLES[each.verdict],
        )  # fmt: skip
    if table.row_count:
        console.print()
        console.print(table)
    _print_more(console, len(result.names))


def _changes(each: Difference) -> Sequence[str]:
    mean, typical = each.mean, each.typical
    if mean is None or typical is None:
        return "too few", "", "", ""
    interval = f"{_percent(mean.low)} .. {_percent(mean.high)}"
    chance = min(mean.p, typical.p)
    p = "<0.001" if chance < 0.001 else f"{chance:.3f}"
    return _percent(mean.ratio), interval, _percent(typical.ratio), p


def _print_only(console: Console, result: Diff, which: str, names: tuple[Only, ...]) -> None:
    if not names:
        return
    table = _table(which, "kind", "n", "mean", "a step")
    for each in names[:MOST_ROWS]:
        table.add_row(
            Text(printable(result.label(each))), each.kind, f"{each.part.count:,}",
            duration(round(each.part.mean_ns)), duration(round(each.per_step_ns)),
        )  # fmt: skip
    console.print()
    console.print(table)
    _print_more(console, len(names))


def _print_more(console: Console, names: int) -> None:
    if names > MOST_ROWS:
        console.print(Text(f"... and {names - MOST_ROWS} more (--json has all)"), style="dim")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    return table


def _percent(ratio: float) -> str:
    """A ratio as a change: ``+18%``, ``-0.4%``; from tenfold on as a factor."""
    if ratio >= 10:
        return f"x{ratio:.0f}" if ratio < 1e6 else "x1e6+"
    part = ratio - 1
    return f"{part:+.0%}" if abs(part) >= 0.0995 else f"{part:+.1%}"


def _signed(ns: float) -> str:
    return f"{'+' if ns >= 0 else ''}{duration(round(ns))}"
