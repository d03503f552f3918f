"""The report and the list of runs as text (rich): the same numbers as the app's."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from firetrace.tracer.run import Run, begun_ns
from firetrace.tui.format import duration, number, printable, share, sparkline
from firetrace.tui.model.distribution import Stats
from firetrace.tui.model.report import Report

WORDS = {
    "running": "is running", "finished": "has finished", "ended": "was ended before its plan",
    "died": "DIED", "unknown": "may be running (its writer is on another host)",
    "empty": "has recorded nothing",
}  # fmt: skip
MOST_ROWS = 20
ENOUGH = 0.05  # of unexplained time, to say what helps


def _console() -> Console:
    """A console on stdout; in a file or a pipe wide enough that names are whole."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _text(name: str) -> Text:
    """A name from a trace: text, never markup or escape codes."""
    return Text(printable(name))


def headline(report: Report) -> str:
    """How far the run is and how fast, in a line. May hold raw text of the trace."""
    progress = report.progress
    of = f" of {progress.max_epochs}" if progress.max_epochs else ""
    line = f"{report.steps:,} steps, epoch {progress.epoch}{of}, {duration(report.duration_ns)}"
    if progress.steps_per_second:
        line += f", {progress.steps_per_second:,.1f} steps/s lately"
    if progress.eta_ns is not None:
        least = "at least " if progress.eta_is_least else ""
        line += f", ETA {least}{duration(progress.eta_ns)}"
    return f"{line}, {report.spans:,} spans ({report.engine})"


def print_report(report: Report) -> None:
    """Print a report to stdout."""
    console = _console()
    console.print(Text.assemble(("run ", "dim"), (printable(report.run), "bold"), " ",
                                WORDS.get(report.state, report.state)))  # fmt: skip
    console.print(_text(report.verdict), style="bold yellow")
    for more in (report.drift, report.what_if):
        if more:
            console.print(_text(more), style="yellow")
    console.print(_text(headline(report)))
    if report.step:
        _print_stats(console, "step", {"step": report.step}, "", shares=False)
    _print_stats(console, "phase", report.phases, "of a step")
    if report.unexplained is not None:
        console.print(Text(unexplained(report.unexplained), style="dim"))
    _print_stats(console, "handler", report.handlers, "of the run")
    if report.slowest_steps:
        table = _table("slowest steps", "epoch", "duration", "longer than usual")
        for step in report.slowest_steps:
            parts = ", ".join(f"{printable(name)} +{duration(ns)}" for name, ns in step.because)
            table.add_row(
                f"{step.iteration:,}", f"{step.epoch}", duration(step.duration_ns), Text(parts)
            )
        console.print()
        console.print(table)
    if report.epoch_times:
        table = _table("epoch", "took", "steps", "waited", "other engines", "iterations")
        for each in report.epoch_times[-MOST_ROWS:]:
            table.add_row(
                f"{each.epoch:,}", duration(each.end_ns - each.start_ns), duration(each.steps_ns),
                duration(each.wait_ns) if each.wait_ns else "",
                duration(each.nested_ns) if each.nested_ns else "", f"{each.iterations:,}",
            )  # fmt: skip
        console.print()
        console.print(table)
    if report.scalars:
        table = _table("scalar", "n", "last", "over the run")
        for scalar in report.scalars:
            line = sparkline(scalar.points, 40)
            table.add_row(_text(scalar.name), f"{scalar.count:,}", number(scalar.last), line)
        console.print()
        console.print(table)
    if report.incomplete:
        table = _table("open spans", "epoch", "iteration", "open for")
        for span in report.incomplete:
            name = span.name + ("?" if span.guessed else "")
            table.add_row(
                _text(f"{span.engine}: {name}"), str(span.epoch), f"{span.iteration:,}",
                duration(span.open_ns),
            )  # fmt: skip
        console.print()
        console.print(table)
    for exception in report.exceptions:
        console.print(Text("exception  " + printable(exception)), style="red")
    for note in report.notes:
        console.print(Text("note  " + printable(note)), style="yellow")


def unexplained(part: float) -> str:
    """What of the steps' time no span accounts for, and what helps."""
    line = f"{part:.1%} of the step time lies in none of these, nor in an event's handlers"
    if part > ENOUGH:
        line += ": name model and optimizer in attach(), or use handler.span()"
    return line


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        left = index == 0 or column == "longer than usual"
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    return table


def _print_stats(
    console: Console, title: str, groups: dict[str, Stats], of: str, shares: bool = True
) -> None:
    if not groups:
        return
    console.print()
    drifts = any(stats.drift is not None for stats in groups.values())
    headers = [title, "n", "total", "p50", "p95", "p99", "max", *(["lately"] if drifts else [])]
    table = _table(*headers, *([of] if shares else []))
    for name, stats in list(groups.items())[:MOST_ROWS]:
        times = (stats.total_ns, stats.p50_ns, stats.p95_ns, stats.p99_ns, stats.max_ns)
        cells = [f"{stats.count:,}", *map(duration, times)]
        if drifts:
            cells.append("" if stats.drift is None else f"{stats.drift:+.0%}")
        table.add_row(_text(name), *cells, *([share(stats.share)] if shares else []))
    console.print(table)
    if len(groups) > MOST_ROWS:
        console.print(Text(f"... and {len(groups) - MOST_ROWS} more (--json has all)"), style="dim")


def print_runs(runs: Iterable[Run]) -> None:
    """Print the runs, newest last."""
    import time

    console = _console()
    table = _table("run", "begun", "state", "size", "journals")
    for run in runs:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun_ns(run) / 1e9))
        state = "alive" if run.alive() else "over"
        size = f"{run.size_bytes() / 2**20:,.1f} MiB"
        table.add_row(_text(str(run.path)), begun, state, size, str(len(run.journals)))
    console.print(table)
