"""What the picture of events and handlers shows: a run, a typical epoch, a typical step.

Pure: spans in, scenes out; ``timeline.py`` draws them. A scene is small however long the run is:
steps and epochs that would lie closer than one can see are put together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import Flag
from firetrace.tui.format import count, duration
from firetrace.tui.model.columns import Spans
from firetrace.tui.model.report import Report
from firetrace.tui.model.tree import Span, Tree
from firetrace.tui.model.verdict import open_spans

Ints = npt.NDArray[Any]

#: Steps (or epochs) side by side; of more, neighbours become one bar.
MOST_IN_STRIP = 280
#: Children of a span that are looked at; of more, so many that are evenly spread.
MOST_CHILDREN = 400
MOST_BARS = 1_500
#: Spans inside of spans that are still drawn.
MOST_ROWS = 12
#: Handlers of an event that are listed.
MOST_HANDLERS = 8


@dataclass(frozen=True)
class Bar:
    """A span, or a few neighbours, in a row of the picture. Times in Unix ns."""

    row: int
    start_ns: int
    end_ns: int
    number: int  #: of its row in the journal; of neighbours, the first one's
    kind: str
    text: str  #: raw text of the trace
    count: int = 1
    is_open: bool = False
    failed: bool = False


class Piece(NamedTuple):
    """A bar of a strip: steps, or epochs, side by side. Times in Unix ns."""

    start_ns: int
    end_ns: int
    number: int  #: of the first one's row
    many: int


@dataclass(frozen=True)
class Ran:
    """A handler that ran on an event, or an engine (``is_engine``) that ran in one."""

    number: int
    text: str  #: raw text of the trace
    took_ns: int
    is_engine: bool = False


@dataclass(frozen=True)
class Tick:
    """An event that was fired, and what ran on it."""

    number: int
    text: str  #: raw text of the trace
    at_ns: int
    ran: tuple[Ran, ...] = ()
    more: int = 0  #: so many more handlers ran


@dataclass
class Scene:
    """All that is drawn on one axis of time."""

    span: Span
    title: str  #: may hold raw text of the trace
    start_ns: int
    end_ns: int
    bars: list[Bar] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    zoom: Span | None = None  #: what the next scene shows


def scenes(tree: Tree, report: Report) -> list[Scene]:
    """A run, an epoch, a step; fewer where there is none."""
    run, epoch, step = typical(tree, report)
    found = []
    for span, inner in ((run, epoch or step), (epoch, step), (step, None)):
        if span is not None:
            scene = Scene(
                span, _title(tree, report, span), span.start_ns,
                max(span.start_ns + 1, span.end_ns or tree.now_ns), zoom=inner,
            )  # fmt: skip
            _fill(tree, scene, report.main_lane)
            found.append(scene)
    return found


def typical(tree: Tree, report: Report) -> tuple[Span | None, Span | None, Span | None]:
    """The epoch with the median duration, its step that is nearest to the median, and their run.

    Of a run in which none has ended: what is open.
    """
    lane, digest = report.main_lane, tree.digest
    running = {s.kind: s for s in open_spans(tree) if s.lane == lane}
    epoch = _median(tree, digest.epochs.get(lane, Spans())) or running.get("epoch")
    steps = digest.steps.get(lane, Spans())
    step = None
    if report.step is not None and len(steps):
        inside = slice(0, len(steps))
        if epoch is not None:
            limits = epoch.start_ns, epoch.end_ns or tree.now_ns
            inside = slice(*np.searchsorted(steps.start.values, limits).tolist())
        found = _nearest(steps, inside, report.step.p50_ns)
        if found is None:
            found = _nearest(steps, slice(0, len(steps)), report.step.p50_ns)
        step = tree.span(found) if found is not None else None
    step = step or running.get("step")
    if step is not None:  # none of the typical epoch may have been recorded
        around = tree.ancestors(step.number)
        epoch = next((s for s in around if s.kind == "epoch" and s.lane == lane), None)
    inner = step or epoch
    run = running.get("run")
    if inner is not None:
        around = tree.ancestors(inner.number)
        run = next((s for s in around if s.kind == "run" and s.lane == lane), None)
    elif run is None and len(runs := digest.runs.get(lane, Spans())):
        run = tree.span(int(runs.number.values[-1]))
    return run, epoch, step


def _median(tree: Tree, epochs: Spans) -> Span | None:
    whole = np.flatnonzero(epochs.flags.values & Flag.CUT == 0)
    if not len(whole):
        return None
    took = epochs.end.values[whole] - epochs.start.values[whole]
    middle = np.argsort(took, kind="stable")[(len(whole) - 1) // 2]
    return tree.span(int(epochs.number.values[whole[middle]]))


def _nearest(steps: Spans, inside: slice, usual_ns: int) -> int | None:
    """The number of the step that took most nearly so long."""
    took = steps.end.values[inside] - steps.start.values[inside]
    off = np.abs(took - usual_ns)
    off = off[steps.flags.values[inside] & Flag.CUT == 0]
    numbers = steps.number.values[inside][steps.flags.values[inside] & Flag.CUT == 0]
    return int(numbers[off.argmin()]) if len(off) else None


def _title(tree: Tree, report: Report, span: Span) -> str:
    took = duration(span.took_ns(tree.now_ns))
    took = took if span.end_ns else f"open for {took}"
    if span.kind == "run":
        runs = np.count_nonzero(tree.digest.runs.get(span.lane, Spans()).parent.values == 0)
        several = f", one of {count(int(runs))}" if runs > 1 else ""
        return f"run of {tree.lane(span).engine}: {took}{several}"
    if span.kind == "epoch":
        times = report.epoch_times
        several = f", the median of {count(len(times))}" if len(times) > 2 and span.end_ns else ""
        of = f" of {report.progress.max_epochs}" if report.progress.max_epochs else ""
        return f"epoch {span.epoch}{of}: {took}{several}"
    usual = f", p50 of all is {duration(report.step.p50_ns)}" if report.step else ""
    return f"step {span.iteration}: {took}{usual}"


def _fill(tree: Tree, scene: Scene, main: int) -> None:
    """Put the frame's span and what is in it into a scene, the outer ones first."""
    frame = scene.span
    scene.bars.append(_bar(tree, frame, 0))
    waiting = deque([(frame, 1)])
    while waiting and len(scene.bars) < MOST_BARS:
        above, row = waiting.popleft()
        strip, rest = _children(tree, above, scene)
        scene.bars += [_piece(tree, each, row) for each in strip]
        for span in rest:
            if span.kind == "event":
                if span.lane == frame.lane:
                    scene.ticks.append(_tick(tree, span))
                waiting.append((span, row))  # what ran on it stands beside its neighbours
                continue
            scene.bars.append(_bar(tree, span, row))
            folded = span.kind == "step" or (span.kind == "epoch" and frame.kind == "run")
            if not folded and row + 1 < MOST_ROWS:
                waiting.append((span, row + 1))
    if frame.kind == "run":
        _add_nested(tree, scene, main)
    scene.ticks.sort(key=lambda tick: (tick.at_ns, tick.number))


def _children(tree: Tree, above: Span, scene: Scene) -> tuple[list[Piece], list[Span]]:
    """The steps (or epochs) inside of a span as a strip, and its other children."""
    numbers = tree.children(above.number)
    like = {"run": tree.digest.epochs, "epoch": tree.digest.steps}.get(above.kind, {})
    spans = like.get(above.lane, Spans())
    limits = above.start_ns, above.end_ns or tree.now_ns
    first, last = np.searchsorted(spans.start.values, limits).tolist()
    mine = np.flatnonzero(spans.parent.values[first:last] == above.number) + first
    numbers = numbers[~np.isin(numbers, spans.number.values[mine])]
    if len(numbers) > MOST_CHILDREN:
        numbers = numbers[np.linspace(0, len(numbers) - 1, MOST_CHILDREN).astype(int)]
    found = [tree.span(number) for number in numbers.tolist()]
    return _strip(spans, mine, scene), [span for span in found if span is not None]


def _strip(spans: Spans, mine: Ints, scene: Scene) -> list[Piece]:
    """Some spans side by side; those closer together than one can see are one piece."""
    if not len(mine):
        return []
    start, end, number = (each.values[mine] for each in (spans.start, spans.end, spans.number))
    firsts = np.arange(len(mine))
    if len(mine) > MOST_IN_STRIP:
        cells = (start - scene.start_ns) / (scene.end_ns - scene.start_ns) * MOST_IN_STRIP
        firsts = np.flatnonzero(np.diff(cells.astype(int), prepend=-1))
    counts = np.diff(np.append(firsts, len(mine)))
    columns = (start[firsts], np.maximum.reduceat(end, firsts), number[firsts], counts)
    return [Piece(*each) for each in zip(*(every.tolist() for every in columns), strict=True)]


def _piece(tree: Tree, piece: Piece, row: int) -> Bar:
    span = tree.span(piece.number)
    if span is None:  # the file was cut short since
        return Bar(row, piece.start_ns, piece.end_ns, piece.number, "step", "", piece.many)
    failed = bool(span.flags & Flag.ERROR)
    return Bar(
        row, piece.start_ns, piece.end_ns, piece.number, span.kind, tree.label(span), piece.many,
        failed=failed,
    )  # fmt: skip


def _bar(tree: Tree, span: Span, row: int) -> Bar:
    return Bar(
        row, span.start_ns, max(span.start_ns, span.end_ns or tree.now_ns), span.number, span.kind,
        tree.label(span), is_open=not span.end_ns, failed=bool(span.flags & Flag.ERROR),
    )  # fmt: skip


def _tick(tree: Tree, event: Span) -> Tick:
    numbers = tree.children(event.number)
    spans = [tree.span(number) for number in numbers[:MOST_CHILDREN].tolist()]
    known = [span for span in spans if span is not None]
    # Of many handlers the slowest, as they followed one another.
    slowest = sorted(known, key=lambda span: -span.took_ns(tree.now_ns))[:MOST_HANDLERS]
    ran: list[Ran] = []
    for span in sorted(slowest, key=lambda span: span.number):
        ran.append(_ran(tree, span))
        inner = [tree.span(n) for n in tree.children(span.number)[:MOST_HANDLERS].tolist()]
        ran += [_ran(tree, each) for each in inner if each is not None and each.kind == "run"]
    more = max(0, len(numbers) - MOST_HANDLERS)
    return Tick(event.number, event.text, event.start_ns, tuple(ran), more)


def _ran(tree: Tree, span: Span) -> Ran:
    return Ran(span.number, tree.label(span), span.took_ns(tree.now_ns), span.kind == "run")


def _add_nested(tree: Tree, scene: Scene, main: int) -> None:
    """The runs of other engines that the run's handlers ran, below its epochs."""
    there = [bar.number for bar in scene.bars]
    for lane, runs in tree.digest.runs.items():
        if lane == main:
            continue
        start, end = runs.start.values, runs.end.values
        inside = (runs.parent.values != 0) & (start >= scene.start_ns) & (end <= scene.end_ns)
        mine = np.flatnonzero(inside & ~np.isin(runs.number.values, there))
        scene.bars += [_piece(tree, each, 2) for each in _strip(runs, mine, scene)]
    for span in open_spans(tree):
        if span.kind == "run" and span.lane != main and span.parent and span.number not in there:
            scene.bars.append(_bar(tree, span, 2))
