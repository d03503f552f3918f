"""The report and the list of runs as text (rich): the same numbers as the app's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from firetrace.tracer.run import Run, begun_ns
from firetrace.tui.console import MOST_ROWS, WHOLE, Page, text
from firetrace.tui.device_text import print_device
from firetrace.tui.format import clip, duration, number, printable, share, sparkline
from firetrace.tui.model.distribution import Stats
from firetrace.tui.model.pipeline import DataReport
from firetrace.tui.model.ranks import Skew
from firetrace.tui.model.report import Report
from firetrace.tui.ranks_text import print_ranks

WORDS = {
    "running": "is running", "finished": "has finished", "ended": "was ended before its plan",
    "died": "DIED", "unknown": "may be running (its writer is on another host)",
    "empty": "has recorded nothing",
}  # fmt: skip
ENOUGH = 0.05  # of unexplained time, to say what helps
PART_CELLS = 24  # a part that took longer, with how much: as many are named as have room


def headline(report: Report) -> str:
    """How far the run is and how fast, in a line. May hold raw text of the trace."""
    progress = report.progress
    of = f" of {progress.max_epochs}" if progress.max_epochs else ""
    steps = f"{report.iterations:,} steps"
    if report.steps < report.iterations:
        steps += f" ({report.steps:,} of them recorded)"
    line = f"{steps}, epoch {progress.epoch}{of}, {duration(report.duration_ns)}"
    if progress.steps_per_second:
        line += f", {progress.steps_per_second:,.1f} steps/s lately"
    if progress.eta_ns is not None:
        least = "at least " if progress.eta_is_least else ""
        line += f", ETA {least}{duration(progress.eta_ns)}"
    return f"{line}, {report.spans:,} spans ({report.engine})"


def print_report(report: Report, ranks: Skew | None = None) -> None:
    """Print a report to stdout, and what is to be said of the ranks of the run."""
    console = Page()
    console.print(Text.assemble(("run ", "dim"), (printable(report.run), "bold"), " ",
                                WORDS.get(report.state, report.state)))  # fmt: skip
    if ranks is not None:  # what all of them wait for comes first
        console.print(text(ranks.verdict), style="bold yellow")
    console.print(text(report.verdict), style="bold yellow")
    for more in (report.drift, report.what_if):
        if more:
            console.print(text(more), style="yellow")
    console.print(text(headline(report)))
    if report.step:
        _print_stats(console, "step", {"step": report.step}, "", shares=False)
    _print_stats(console, "phase", report.phases, "of a step")
    if report.unexplained is not None:
        console.print(Text(unexplained(report.unexplained), style="dim"))
    _print_stats(console, "handler", report.handlers, "of the run")
    if report.data is not None:
        _print_data(console, report.data)
    if report.device is not None:
        _print_stats(console, "on the device", report.device.phases, "of a step")
        print_device(console, report.device)
    _print_steps(console, report)
    _print_epochs(console, report)
    _print_scalars(console, report)
    if report.incomplete:
        console.print()
        rows = [
            (f"{span.engine}: {span.name}{'?' if span.guessed else ''}", str(span.epoch),
             f"{span.iteration:,}", duration(span.open_ns))
            for span in report.incomplete
        ]  # fmt: skip
        console.table(("open spans", "epoch", "iteration", "open for"), rows)
    for exception in report.exceptions:
        console.print(Text("exception  " + printable(exception)), style="red")
    for note in report.notes:
        console.print(Text("note  " + printable(note)), style="yellow")
    if ranks is not None:
        print_ranks(console, ranks)
    console.end()


def unexplained(part: float) -> str:
    """What of the steps' time no span accounts for, and what helps."""
    line = f"{part:.1%} of the step time lies in none of these, nor in an event's handlers"
    if part > ENOUGH:
        line += ": name model and optimizer in attach(), or use handler.span()"
    return line


def _print_stats(
    console: Page, title: str, groups: dict[str, Stats], of: str, shares: bool = True
) -> None:
    if not groups:
        return
    console.print()
    drifts = any(stats.drift is not None for stats in groups.values())
    lately, shown = ["lately"] if drifts else [], [of] if shares else []
    rows = []
    for name, stats in list(groups.items())[:MOST_ROWS]:
        times = (stats.total_ns, stats.p50_ns, stats.p95_ns, stats.p99_ns, stats.max_ns)
        cells = [name, f"{stats.count:,}", *map(duration, times)]
        if drifts:
            cells.append("" if stats.drift is None else f"{stats.drift:+.0%}")
        rows.append([*cells, *([share(stats.share)] if shares else [])])
    headers = [title, "n", "total", "p50", "p95", "p99", "max", *lately, *shown]
    console.table(headers, rows, drop=["p99", *lately, "total"])
    console.more(len(groups) - MOST_ROWS)


def _print_steps(console: Page, report: Report) -> None:
    if not report.slowest_steps:
        return
    console.print()
    rows = [
        (f"{step.iteration:,}", f"{step.epoch}", duration(step.duration_ns), _because(step.because))
        for step in report.slowest_steps
    ]
    console.table(("slowest steps", "epoch", "duration", "longer than usual"), rows, names=3)


def _print_data(console: Page, data: DataReport) -> None:
    """How batches are made, and the arithmetic of what is advised."""
    made = {f"{name}": each.stats for name, each in data.made.items()}
    of = "of the workers' time" if data.workers else "of making them"
    _print_stats(console, "data", made, of)
    for line in data.why:
        console.print(text(line), style="dim")


def _because(parts: Sequence[tuple[str, int]]) -> Callable[[int], str]:
    """What took longer, of which the names are clipped and the figures are not."""

    def fit(cells: int) -> str:
        whole = ", ".join(f"{printable(name)} +{duration(ns)}" for name, ns in parts)
        if cell_len(whole) <= cells:
            return whole
        fitting = parts[: max(1, cells // PART_CELLS)]
        each = cells // len(fitting) - len(", ")
        figures = [f" +{duration(ns)}" for _, ns in fitting]
        return ", ".join(
            clip(name, each - len(figure)) + figure
            for (name, _), figure in zip(fitting, figures, strict=True)
        )

    return fit


def _print_epochs(console: Page, report: Report) -> None:
    if not report.epoch_times:
        return
    console.print()
    rows = [
        (
            f"{each.epoch:,}", duration(each.end_ns - each.start_ns), duration(each.steps_ns),
            duration(each.wait_ns) if each.wait_ns else "",
            duration(each.nested_ns) if each.nested_ns else "", f"{each.iterations:,}",
        )
        for each in report.epoch_times[-MOST_ROWS:]
    ]  # fmt: skip
    console.table(("epoch", "took", "steps", "waited", "other engines", "iterations"), rows)
    # The report itself has no more than the last thousand of them.
    still = sum((each.kind, each.engine) == ("epoch", report.engine) for each in report.incomplete)
    ended = max(len(report.epoch_times), report.epochs - still)
    console.more(ended - MOST_ROWS, "earlier (--json has more)")


def _print_scalars(console: Page, report: Report) -> None:
    if not report.scalars:
        return
    console.print()
    wide = min(40, console.width // 3)
    rows = [
        (each.name, f"{each.count:,}", number(each.last), sparkline(each.points, wide))
        for each in report.scalars[:MOST_ROWS]
    ]
    columns = ("scalar", "n", "last", "over the run")
    console.table(columns, rows, drop=("n",), left=("over the run",))
    console.more(len(report.scalars) - MOST_ROWS)


def print_runs(runs: Iterable[Run]) -> None:
    """Print the runs, newest last; to a file or a pipe with whole paths, for scripts."""
    import time

    console = Page()
    rows = []
    for run in runs:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun_ns(run) / 1e9))
        state = "alive" if run.alive() else "over"
        size = f"{run.size_bytes() / 2**20:,.1f} MiB"
        rows.append((_end_of(str(run.path)), begun, state, size, str(len(run.journals))))
    columns = ("run", "begun", "state", "size", "journals")
    cells = None if console.is_terminal else WHOLE
    console.table(columns, rows, drop=("journals", "size", "begun"), cells=cells)
    console.end()


def _end_of(path: str) -> Callable[[int], str]:
    """A path, of which the end tells runs apart."""

    def fit(cells: int) -> str:
        shown = printable(path)
        if cell_len(shown) <= cells:
            return shown
        return "…" + set_cell_size(shown[::-1], cells - 1)[::-1]

    return fit
