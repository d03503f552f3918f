"""Watching: the live app in a terminal of 120x40, as the terminal sees it.

From the start of the process to the picture of a finished run, against a Textual app that shows
one line of text; the two alternate. A long run is painted in parts first, so both the first and
the complete picture are timed. Memory is what the process shares with no other once that picture
is complete. Then the same keys at a short and at a long run, in turn: from the write to the
terminal until the timeline's new picture has come out, and until nothing more comes. Last beside a
training that fires events at a steady pace: the share of a core that the app takes (all threads),
and how long after its end a step is on the screen, or one that ended later; and beside a slow one
that makes a span with a name of its own in each step, how long after its end that name is there.
Linux only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.copies import enlarge
from bench.disk import record
from bench.process import SampleError
from bench.result import Bar, Row, difference_bound, median, ratio_bounds, times
from bench.sending import TRAINING
from bench.settings import Progress, Settings
from bench.terminal import Terminal, plain
from firetrace.tracer.journal import Name
from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table

SHORT, LONG, LONGEST = 100_000, 1_000_000, 10_000_000  #: spans
PACE = 10_000  #: spans a second
WARM_S = 5.0
RECORDED = 4_000  #: iterations that are recorded; the long runs are copies of them
PEER = """
from textual.app import App, ComposeResult
from textual.widgets import Static
class Minimal(App[None]):
    def compose(self) -> ComposeResult:
        yield Static("here it is")
Minimal().run()
"""
#: The head of a run that is over, and below it the timeline.
TIMELINE = r"Timeline · \S+ spans"
FIRST = rf"DONE[^\n]*\n[\s\S]*{TIMELINE}"
COMPLETE = rf"DONE(?:(?!reading)[^\n])*\n[\s\S]*{TIMELINE}"
SOON = 0.5  #: seconds after which a picture that is complete at once is taken to be calm

UP, DOWN, PAGE_UP, HOME, END = "\x1b[A", "\x1b[B", "\x1b[5~", "\x1b[H", "\x1b[F"
#: Rows, folds, times, filters; each of them changes the picture.
KEYS = (
    UP, "k", DOWN, PAGE_UP, "l", "j", "h", "h", HOME, "j", END, "k", "s", "+", "]", "-", "0",
    PAGE_UP, "/", "f", "o", "r", "\r", "k", PAGE_UP, "\r", "n", "N", "f", *("c" * 6),
)  # fmt: skip
#: The title of the tree, or of the list of matches: painted anew with it. Neither the box in which
#: ``c`` says what it hides, nor a cursor that blinks, paints that.
ANSWER = r"Timeline · |spans? match"
QUIET_S = 0.1

#: One step after the other, each with a span that says which. They are shorter than half a second:
#: a step that is open for longer is shown before it ends.
TICKING = """
import sys, time
from pathlib import Path
from ignite.engine import Engine
from firetrace import TraceHandler
handler = TraceHandler(Path(sys.argv[1]))
def process(engine, batch):
    time.sleep(0.43)
    with handler.span(f"tick {engine.state.iteration}"):
        pass
engine = Engine(process)
handler.attach(engine)
engine.run(range(int(sys.argv[2])), max_epochs=1)
handler.close()
"""


class Opened(NamedTuple):
    """Seconds from the start of the process to the first and to the complete picture."""

    first: float
    complete: float
    private_mb: float


def app(run: Path | str) -> Terminal:
    """The live app on a run."""
    return Terminal([sys.executable, "-m", "firetrace.tui.cli", "watch", str(run)])


def opened(journal: str) -> Opened:
    """Open a finished run."""
    with app(journal) as terminal:
        return _opened(terminal)


def _opened(terminal: Terminal) -> Opened:
    first = terminal.wait_for(FIRST) - terminal.began
    complete = terminal.wait_for(COMPLETE) - terminal.began
    terminal.settle(SOON, 5)
    return Opened(first, complete, terminal.private_mb())


def minimal() -> float:
    """Seconds from the start of the process to the peer's line."""
    with Terminal([sys.executable, "-c", PEER]) as terminal:
        return terminal.wait_for("here it is") - terminal.began


def starts(long: str, longest: str, pairs: int, progress: Progress) -> list[Row]:
    """To the first picture, to the complete one, and what that takes in memory."""
    ours, peers, most = list[Opened](), list[float](), list[Opened]()
    for index in range(pairs + 1):
        progress(f"watching: start {index} of {pairs}")
        peers.append(minimal())
        ours.append(opened(long))
        most.append(opened(longest))
    for values in (peers, ours, most):
        del values[0]  # the first of each fills the page cache
    subject = "watching: from the start of the process to the picture"
    seconds = {
        "minimal": peers, "1M": [each.complete for each in ours],
        "10M first": [each.first for each in most], "10M": [each.complete for each in most],
    }  # fmt: skip
    _, over = difference_bound(seconds["1M"], [1.5 * each for each in peers])
    _, whole = difference_bound(seconds["10M"], [0.0] * pairs)
    private = max(each.private_mb for each in most)
    return [
        Row(
            subject, f"{LONG:,} spans", _ms(median(seconds["1M"])),
            f"minimal Textual app: {_ms(median(peers))}", f"1.5x and <= {over * 1e3:.0f} ms",
            Bar(0.3, " s over 1.5x"), over, seconds,
        ),
        Row(
            subject, f"{LONGEST:,} spans, all of it", _ms(median(seconds["10M"])),
            f"first picture: {_ms(median(seconds['10M first']))}", f"<= {whole:.2f} s",
            Bar(3, " s"), whole,
        ),
        Row(subject, f"{LONGEST:,} spans, private memory", f"{private:.0f} MB", "", "",
            Bar(400, " MB"), private, {"private MB": [each.private_mb for each in most]}),
    ]  # fmt: skip


def press(terminal: Terminal, key: str) -> tuple[float, float]:
    """Press a key. Seconds to the new picture, and to the last that came for it."""
    at = terminal.type(key)
    try:
        answered = terminal.wait_for(ANSWER, 10)
    except SampleError as error:
        raise SampleError(f"key {key!r}: {error}") from None
    return answered - at, terminal.settle(QUIET_S, 1) - at


def keys(short: str, longest: str, settings: Settings, progress: Progress) -> list[Row]:
    """What nobody does costs, then each key at both runs in turn."""
    answers: dict[str, list[float]] = {"short": [], "long": []}
    lasts: dict[str, list[float]] = {"short": [], "long": []}
    by_key: dict[str, list[float]] = {}
    with app(short) as at_short, app(longest) as at_long:
        for terminal in (at_short, at_long):
            _opened(terminal)
        seconds = settings.watching_seconds
        progress(f"watching: {seconds} s of nothing")
        before, began = at_long.cpu_seconds(), time.monotonic()
        at_long.watch(seconds)
        idle = (at_long.cpu_seconds() - before) / (time.monotonic() - began)
        for index in range(settings.watching_rounds):
            progress(f"watching: keys, round {index + 1} of {settings.watching_rounds}")
            for key in KEYS:
                for name, terminal in (("short", at_short), ("long", at_long)):
                    answered, last = press(terminal, key)
                    answers[name].append(answered)
                    lasts[name].append(last)
                by_key.setdefault(f"key {key!r}", []).append(answers["long"][-1])
    ratio, _, high = ratio_bounds(answers["long"], answers["short"])
    late, last = (float(np.percentile(each["long"], 95)) for each in (answers, lasts))
    subject = f"watching: {len(answers['long'])} presses of keys"
    return [
        Row(
            "watching: the share of a core", f"a finished run of {LONGEST:,} spans, {seconds} s",
            f"{idle:.2%}", "", "", Bar(0.01, " of a core"), idle,
        ),
        Row(
            subject, f"{LONGEST:,} spans: 95% are answered within", _ms(late),
            f"with all that follows: {_ms(last)}", "", Bar(50, " ms"), late * 1e3,
            {**{f"answer {k}": v for k, v in answers.items()},
             **{f"last {k}": v for k, v in lasts.items()}, **by_key},
        ),
        Row(
            subject, f"{LONGEST:,} spans: median", _ms(median(answers["long"])),
            f"{SHORT:,} spans: {_ms(median(answers['short']))}",
            f"{times(ratio)} (<= {times(high)})", Bar(2), high,
        ),
    ]  # fmt: skip


def ends_of(table: Table, wanted: Callable[[Name], bool]) -> dict[int, float]:
    """When the spans with such names ended, by iteration, in seconds since the epoch."""
    names = [id for id, name in table.names.items() if wanted(name)]
    rows = table.rows[np.isin(table.rows["name"], names) & (table.rows["end"] != 0)]
    return dict(zip(rows["iteration"].tolist(), (rows["end"] / 1e9).tolist(), strict=True))


def recorded(training: subprocess.Popen[bytes], folder: Path) -> Table:
    """Wait for a training and read what it recorded."""
    if training.wait():
        raise SampleError("the training failed")
    return read_table(open_run(folder).newest)


def lags(terminal: Terminal, ends: dict[int, float], what: str, since: float) -> list[float]:
    """For each that ended: seconds until it, or a later one, had been painted."""
    found, newest = list[float](), 0
    for paint in terminal.painted:
        numbers = re.findall(rf"{what} ([\d,]+)(?=[^\d,])", plain(paint.data))
        shown = max((int(each.replace(",", "")) for each in numbers), default=0)
        for number in range(newest + 1, shown + 1):
            if ends.get(number, 0.0) > since:
                found.append(paint.at - ends[number])
        newest = max(newest, shown)
    return found


def tailing(folder: Path, settings: Settings, progress: Progress) -> list[Row]:
    """Beside a training at a steady pace."""
    seconds = settings.watching_seconds
    progress(f"watching: {seconds} s beside a training")
    words = [sys.executable, "-c", TRAINING, str(folder), str(PACE), str(WARM_S + seconds + 3)]
    with subprocess.Popen(words) as training:
        while not folder.is_dir():  # it imports torch first
            time.sleep(0.05)
        with app(folder) as terminal:
            terminal.wait_for("RUN")
            terminal.watch(WARM_S)
            terminal.forget()
            before, began = terminal.cpu_seconds(), time.time()
            terminal.watch(seconds)
            ended = time.time()
            share = (terminal.cpu_seconds() - before) / (ended - began)
        table = recorded(training, folder)
    ends = table.rows["end"] / 1e9
    spans = np.count_nonzero((ends > began) & (ends <= ended))
    pace = f"{spans / (ended - began):,.0f} spans a second, {seconds} s"
    late = lags(terminal, ends_of(table, lambda name: name.kind == "step"), "step", began)
    return [
        Row("watching: the share of a core", pace, f"{share:.1%}", "", "",
            Bar(0.15, " of a core"), share),
        _lag_row(pace, late),
    ]  # fmt: skip


def ticking(folder: Path, settings: Settings, progress: Progress) -> list[Row]:
    """Beside a training of slow steps."""
    progress(f"watching: {settings.watching_steps} slow steps")
    steps = settings.watching_steps + 4
    with subprocess.Popen([sys.executable, "-c", TICKING, str(folder), str(steps)]) as training:
        while not folder.is_dir():
            time.sleep(0.05)
        with app(folder) as terminal:
            terminal.wait_for("tick 3")
            began = time.time()
            terminal.wait_for(rf"tick {steps - 1}\D", steps)
        ends = ends_of(recorded(training, folder), lambda name: name.text.startswith("tick "))
    late = lags(terminal, ends, "tick", began)
    return [_lag_row(f"{len(late)} steps of 0.43 s", late)]


def _lag_row(what: str, late: Sequence[float]) -> Row:
    if not late:
        raise SampleError(f"{what}: nothing was painted")
    worst = float(np.percentile(late, 95))
    return Row(
        "watching: from a span's end to the screen", what, f"95% within {worst:.2f} s",
        f"median {median(late):.2f} s, at most {max(late):.2f} s", "", Bar(0.5, " s"), worst,
        {"lags": list(late)},
    )  # fmt: skip


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Make the runs, open them, press keys; then watch two trainings."""
    from bench.process import fresh

    with tempfile.TemporaryDirectory(dir=settings.workspace) as name:
        folder = Path(name)
        progress("watching: recording")
        pattern, _ = fresh(record, str(folder / "recorded"), RECORDED)
        short, long, longest = (
            enlarge(pattern, folder / f"{spans}" / "rank0.1", spans)
            for spans in (SHORT, LONG, LONGEST)
        )
        rows = starts(long, longest, settings.watching_starts, progress)
        rows += keys(short, longest, settings, progress)
        rows += tailing(folder / "steady", settings, progress)
        rows += ticking(folder / "slow", settings, progress)
    return sorted(rows, key=lambda row: row.subject)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"
