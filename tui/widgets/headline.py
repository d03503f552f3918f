"""The first two lines: what runs, how far it is, and the one thing to know about it."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from firetrace.tui.feed import Snapshot
from firetrace.tui.format import clip, count, duration
from firetrace.tui.widgets.palette import Colours, colours

#: A sign, a word, and which of the colours.
STATES = {
    "running": ("●", "RUN", "live"),
    "finished": ("✔", "DONE", "good"),
    "ended": ("■", "ENDED", "warning"),
    "died": ("✖", "DIED", "error"),
    "hanging": ("●", "HANGS", "error"),
    "empty": ("○", "EMPTY", "dim"),
}
WAIT = ("○", "WAIT", "dim")
UNKNOWN = ("?", "UNKNOWN", "dim")


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
            first = Text(f"{symbol} {word}", getattr(colours(), colour))
            second = Text(clip(self.waiting, width), colours().dim)
        else:
            first, second = self._first(self.snapshot, width), self._second(self.snapshot, width)
        return Text("\n", no_wrap=True, overflow="crop", end="").join([first, second])

    def _first(self, snapshot: Snapshot, width: int) -> Text:
        report, own = snapshot.report, colours()
        state = "hanging" if snapshot.hanging else report.state
        symbol, word, colour = STATES.get(state, UNKNOWN)
        line = Text(f"{symbol} {word} ", f"bold {getattr(own, colour)}")
        mode = Text(self.mode, {"FOLLOW": own.live, "BROWSE": own.dim}.get(self.mode, _alert(own)))
        rank = Text()
        if snapshot.ranks > 1:
            rank.append(f"  rank {snapshot.rank} of {snapshot.ranks}", own.live)
        elif width >= 90 or snapshot.rank != "0":
            rank.append(f"  rank {snapshot.rank}", own.dim)
        if snapshot.read < 1:
            rank.append(f"  reading {snapshot.read:.0%}", _alert(own))
        left = width - line.cell_len - rank.cell_len - mode.cell_len - 2
        room = left - min(cell_len(clip(report.run, left)), 12 if width < 90 else 40)
        progress = _progress(snapshot, room)
        name = clip(_name(snapshot, left - progress.cell_len), left - progress.cell_len)
        line = Text.assemble(line, (name, "bold"), rank, progress)
        line.append(" " * (width - line.cell_len - mode.cell_len))
        return line + mode

    def _second(self, snapshot: Snapshot, width: int) -> Text:
        report, own = snapshot.report, colours()
        skew = snapshot.skew
        trouble = snapshot.hanging or snapshot.notice
        if not trouble and skew is not None and skew.first_death is not None:
            trouble = skew.verdict
        if not trouble and report.exceptions and report.state in ("died", "ended", "unknown"):
            trouble = report.exceptions[-1]
        if trouble:
            return Text(clip(f"✖ {trouble}", width), own.error)
        errors = len(report.exceptions)  # which the program caught: it goes on
        caught = f"{errors} error{'s' if errors > 1 else ''} (e)" if errors else ""
        more = [each for each in (caught, report.drift, report.what_if, *report.notes) if each]
        said = report.verdict
        if skew is not None and skew.chronic:  # what all ranks wait for comes first
            said, more = skew.verdict, [said, *more]
        elif skew is not None:
            more.append(skew.verdict)
        word, colon, rest = said.partition(":")
        line = Text.assemble(("▲ " if colon else "  ", own.warning))
        line.append(clip(word + colon, width - 2), _alert(own) if colon else own.dim)
        line.append(clip(" · ".join([rest, *more]), width - line.cell_len))
        return line


def _alert(own: Colours) -> str:
    return f"bold {own.warning}"


def _name(snapshot: Snapshot, room: int) -> str:
    """The run's id, or its shorter service name where the id does not fit."""
    if cell_len(snapshot.report.run) <= room:
        return snapshot.report.run
    return str(snapshot.tree.meta.resource.get("service.name") or snapshot.report.run)


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
    done = f" {count(iteration)}/{count(whole)}" if whole else f"  iteration {count(iteration)}"
    if report.state == "running":
        # To the second: digits that change at every look are no information.
        eta = None if progress.eta_ns is None else round(progress.eta_ns, -9)
        least = "≥" if progress.eta_is_least else ""
        left = duration(eta) if eta else "<1s"
        end = f"  ETA {least}{left}" if eta is not None else ""
    else:
        end = f"  took {duration(report.duration_ns)}"
    if cell_len(epoch + done + end) > room:  # the end of it is what people look for
        done = "" if cell_len(epoch + end) <= room else done
        if done:
            return Text(clip(end, room), "bold")
    text = Text(epoch)
    cells = min(24, room - cell_len(epoch + done + end) - 1)
    if whole and cells >= 3:
        halves = min(2 * cells, 2 * cells * iteration // whole)
        text.append(" ")
        text.append("━" * (halves // 2) + "╸" * (halves % 2), colours().live)
        text.append("─" * (cells - (halves + 1) // 2), colours().faint)
    text.append(done)
    text.append(end, "bold")
    text.truncate(max(0, room))
    return text
