"""The ranks of a run as text (rich): the section of the report, the same figures as the app's."""

from __future__ import annotations

from rich.text import Text

from firetrace.tui.console import Page
from firetrace.tui.format import duration, printable, share
from firetrace.tui.model.deaths import DEAD
from firetrace.tui.model.ranks import RankRow, Skew

MOST_RANKS = 16
MOST_DEAD = 8


def print_ranks(console: Page, skew: Skew) -> None:
    """Print what is to be said of the ranks."""
    console.print()
    dead = [row for row in skew.rows if row.state in DEAD]
    for row in sorted(dead, key=lambda row: (row.rank != skew.first_death, row.seen_ns))[
        :MOST_DEAD
    ]:
        console.print(Text(printable(_death(row))), style="red")
    console.more(len(dead) - MOST_DEAD, "dead ranks (--json has all)")
    worst = sorted(skew.rows, key=lambda row: (-row.late_ns, row.rank))
    several = len({row.host for row in skew.rows}) > 1
    columns = ("rank", "host", "state", "steps", "step", "data", "forward", "optimizer",
               "handlers", "late", "waited for", "clock")  # fmt: skip
    console.print()
    console.table(
        columns, [_cells(row) for row in worst[:MOST_RANKS]], names=1,
        drop=("optimizer", *(() if several else ("clock",)), "steps", "forward"),
        left=("state",), styles=["red" if row.state in DEAD else "" for row in worst[:MOST_RANKS]],
    )  # fmt: skip
    console.more(len(worst) - MOST_RANKS, "ranks that were less late (--json has all)")
    if skew.one_offs:
        console.print()
        rows = [
            (f"{each.iteration:,}", str(each.rank), each.name or each.cause,
             duration(each.cost_ns), duration(each.step_ns))
            for each in skew.one_offs
        ]  # fmt: skip
        console.table(("waited once, in step", "for rank", "in", "waited", "step"), rows, names=2)
    for note in skew.notes:
        console.print(Text("note  " + printable(note)), style="yellow")


def _death(row: RankRow) -> str:
    attempt = f" (attempt {row.attempt})" if row.attempts > 1 else ""
    said = f"rank {row.rank}{attempt} {row.state} on {row.host}, process {row.pid}"
    if row.place is not None:
        said += f", in {row.place.name} of step {row.place.iteration}, epoch {row.place.epoch}"
    return f"{said}: {row.exception}" if row.exception else said


def _cells(row: RankRow) -> tuple[str, ...]:
    clock = {None: "unknown", 0: "exact"}.get(row.error_ns)
    times = (row.step_ns, row.data_ns, row.forward_ns, row.optimizer_ns, row.handlers_ns)
    return (
        str(row.rank), row.host, row.state, f"{row.steps:,}", *map(duration, times),
        duration(row.late_ns), share(row.share), clock or f"±{duration(row.error_ns or 0)}",
    )  # fmt: skip
