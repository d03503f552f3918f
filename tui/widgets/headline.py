"""The first two lines: what runs, how far it is, and the one thing to know about it."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, count, duration
from firetrace.tui.widgets.palette import DIM, ERROR, GOOD, LIVE

STATES = {
    "running": ("●", "RUN", LIVE),
    "finished": ("✔", "DONE", GOOD),
    "ended": ("■", "ENDED", "#d8a657"),
    "died": ("✖", "DIED", ERROR),
    "empty": ("○", "EMPTY", DIM),
}
WAIT = ("○", "WAIT", DIM)
UNKNOWN = ("?", "UNKNOWN", DIM)
#: A step open for this long, and this many times the slowest seen, is called hanging.
HANG_NS, HANG_TIMES = 10 * 10**9, 5


class Headline(Widget):
    """Line 1: state, run, progress, ETA, mode. Line 2: the verdict."""

    snapshot: reactive[Snapshot | None] = reactive(None)
    waiting: reactive[str] = reactive("")
    mode: reactive[str] = reactive("FOLLOW")

    def render(self) -> Text:
        """Both lines."""
        width = self.size.width
        if self.snapshot is None:
            symbol, word, colour = WAIT
            first = Text(f"{symbol} {word}", colour)
            second = Text(clip(self.waiting, width), DIM)
        else:
            first, second = self._first(self.snapshot, width), self._second(self.snapshot, width)
        return Text("\n", no_wrap=True, overflow="crop", end="").join([first, second])

    def _first(self, snapshot: Snapshot, width: int) -> Text:
        report = snapshot.report
        symbol, word, colour = STATES.get(report.state, UNKNOWN)
        state = Text(f"{symbol} {word} ", f"bold {colour}")
        mode = Text(self.mode, {"FOLLOW": LIVE, "BROWSE": DIM}.get(self.mode, "#d8a657 bold"))
        rank = Text(f"  rank {snapshot.rank}", DIM)
        if width < 90 and snapshot.rank == "0":
            rank = Text()
        left = width - state.cell_len - rank.cell_len - mode.cell_len - 2
        name = clip(report.run, left)
        room = left - min(cell_len(name), 12 if width < 90 else 40)
        progress = _progress(snapshot, room)
        name = clip(_name(snapshot, left - progress.cell_len), left - progress.cell_len)
        line = Text.assemble(state, (name, "bold"), rank, progress)
        line.append(" " * (width - line.cell_len - mode.cell_len))
        return line + mode

    def _second(self, snapshot: Snapshot, width: int) -> Text:
        report = snapshot.report
        trouble = hanging(snapshot) or next(iter(report.exceptions), "")
        if trouble:
            return Text(clip(f"✖ {trouble}", width), ERROR)
        notes = "".join(f" · {note}" for note in report.notes)
        word, colon, rest = report.verdict.partition(":")
        line = Text.assemble(("▲ " if colon else "  ", "#d8a657"))
        line.append(clip(word + colon, width - 2), "bold #d8a657" if colon else DIM)
        line.append(clip(rest + notes, width - line.cell_len))
        return line


def _name(snapshot: Snapshot, room: int) -> str:
    """The run's id, or its shorter service name where the id does not fit."""
    if cell_len(snapshot.report.run) <= room:
        return snapshot.report.run
    return str(snapshot.table.meta.resource.get("service.name") or snapshot.report.run)


def _progress(snapshot: Snapshot, room: int) -> Text:
    """Epoch, bar, iteration and ETA, in at most ``room`` cells: the bar gives way first."""
    progress, report = snapshot.report.progress, snapshot.report
    if not progress.epoch and not progress.iteration:
        return Text()
    epoch = f"  epoch {progress.epoch}" + (f"/{progress.max_epochs}" if progress.max_epochs else "")
    iteration, whole = progress.iteration, progress.max_iters
    if progress.epoch_length:
        iteration = max(0, iteration - max(0, progress.epoch - 1) * progress.epoch_length)
        whole = progress.epoch_length
    done = f" {count(iteration)}" + (f"/{count(whole)}" if whole else "")
    if report.state == "running":
        # To the second: digits that change at every look are no information.
        eta = None if progress.eta_ns is None else round(progress.eta_ns, -9)
        end = f"  ETA {duration(eta)}" if eta is not None else ""
    else:
        end = f"  took {duration(report.duration_ns)}"
    text = Text(epoch)
    cells = min(24, room - cell_len(epoch + done + end) - 1)
    if whole and cells >= 3:
        halves = min(2 * cells, 2 * cells * iteration // whole)
        text.append(" ")
        text.append("━" * (halves // 2) + "╸" * (halves % 2), LIVE)
        text.append("─" * (cells - (halves + 1) // 2), "#4a5561")
    text.append(done)
    text.append(end, "bold")
    text.truncate(max(0, room))
    return text


def hanging(snapshot: Snapshot) -> str:
    """What to say when a step is open for far too long; empty if none is."""
    report = snapshot.report
    if report.state != "running" or report.step is None:
        return ""
    for span in report.incomplete:
        open_ns = snapshot.now_ns - span.start_ns
        if span.kind == "step" and open_ns > max(HANG_NS, HANG_TIMES * report.step.max_ns):
            innermost = report.incomplete[-1].name
            return (
                f"iteration {span.iteration} open {duration(open_ns)} in {innermost}; "
                f"p99 {duration(report.step.p99_ns)}"
            )
    return ""
