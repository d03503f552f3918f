"""From what is kept of the spans to the numbers that are shown.

The report, the live app and the HTML page show the same numbers because all come from here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from firetrace.tracer.journal import Flag
from firetrace.tracer.pages import Pages
from firetrace.tracer.stream import Stream, hoisted
from firetrace.tracer.table import block
from firetrace.tui.model.columns import Spans
from firetrace.tui.model.device import DeviceReport, DeviceSource, device_report
from firetrace.tui.model.digest import Digest, EpochTime
from firetrace.tui.model.distribution import Stats
from firetrace.tui.model.groups import Group, engine_label
from firetrace.tui.model.pipeline import DataReport, DataSources, data_report
from firetrace.tui.model.progress import Progress, count_of, progress
from firetrace.tui.model.series import means_of
from firetrace.tui.model.slow import SlowStep, slow_steps
from firetrace.tui.model.tree import Span, Tree
from firetrace.tui.model.verdict import OpenSpan, open_spans, parts, verdict

#: Values of a scalar and epochs that a report has at most.
MOST_POINTS, MOST_EPOCHS = 240, 1_000


@dataclass(frozen=True)
class Scalar:
    """A loss, a learning rate, a metric."""

    name: str
    count: int
    last: float
    points: tuple[float, ...]  #: over the whole run, each the mean of equally many values


@dataclass(frozen=True)
class Report:
    """Everything that ``firetrace report`` says."""

    run: str
    path: str
    state: str  #: running, finished, ended (cut short, by the program itself), died, unknown
    engine: str  #: the main engine: the one that means to run longest
    main_lane: int  #: its lane in the journal
    spans: int
    steps: int  #: that were recorded
    iterations: int  #: that there were
    epochs: int
    duration_ns: int
    progress: Progress
    verdict: str
    drift: str  #: whether steps got slower lately, in words; empty: no
    what_if: str  #: what a step would take without waiting, in words; empty: hardly less
    step: Stats | None
    unexplained: float | None  #: share of the main engine's step time that lies in no span
    phases: dict[str, Stats]
    handlers: dict[str, Stats]
    slowest_steps: tuple[SlowStep, ...]
    epoch_times: tuple[EpochTime, ...]
    scalars: tuple[Scalar, ...]
    incomplete: tuple[OpenSpan, ...]
    exceptions: tuple[str, ...]
    data: DataReport | None  #: how batches are made, where that was recorded
    device: DeviceReport | None  #: what steps take on the device, where that was recorded
    notes: tuple[str, ...]  #: what was thinned out, could not be read, or stopped the recording

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; None for what is not finite, as in JSON."""
        found: dict[str, Any] = _finite(asdict(self))
        return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a journal and compute everything, in the same memory however long it is.

    Raises:
        JournalError: it cannot be read.
    """
    return read_both(path)[1]


def read_both(path: str | os.PathLike[str]) -> tuple[Tree, Report]:
    """Read a journal and those beside it, and compute everything.

    Raises:
        JournalError: it cannot be read.
    """
    with Stream(path) as stream:
        tree = _tree_of_all(stream)
        sources = DataSources(Path(path), stream.reader.header, stream.reader.meta)
        device = DeviceSource(Path(path), stream.reader)
        try:
            sources.read(math.inf)
            device.read(math.inf)
            return tree, report(tree, sources, device)
        finally:
            sources.close()
            device.close()


def read_tree(path: str | os.PathLike[str]) -> Tree:
    """Read a journal.

    Raises:
        JournalError: it cannot be read.
    """
    with Stream(path) as stream:
        return _tree_of_all(stream)


def _tree_of_all(stream: Stream) -> Tree:
    digest = Digest(stream.reader.row)
    for each in stream.ended():
        digest.add(each)
    return tree_of(digest, stream, Pages(stream.reader))


def tree_of(digest: Digest, stream: Stream, pages: Pages, before: Tree | None = None) -> Tree:
    """The tree of what has been read so far."""
    reader = stream.reader
    running = np.flatnonzero(reader.rows["end"] == 0)
    running = running[reader.rows["flags"][running] & Flag.SCALAR == 0]
    spans = hoisted(block(reader, reader.rows[running], reader.numbers[running]), reader)
    return Tree(digest, pages, spans, stream.last_ns(), before)


def report(
    tree: Tree, sources: DataSources | None = None, device: DeviceSource | None = None
) -> Report:
    """Compute everything.

    Args:
        tree: of the rank's journal.
        sources: its data journals, as far as they have been read.
        device: its device journal, as far as it has been read.
    """
    digest, meta = tree.digest, tree.meta
    main, run_ns, last = _main(tree)
    steps = _stats(digest.groups.of("step", main), 0)
    phases, handlers = _phases(tree, main), _handlers(tree, main, run_ns)
    how_far = progress(tree, main, last)
    on_device = device_report(device, main) if device is not None else None
    data = _data(tree, main, steps, sources, on_device)
    found = parts(tree, main, run_ns, steps, phases, handlers)
    said = verdict(found, how_far, data, on_device)
    return Report(
        run=str(meta.resource.get("ignite.run.id") or tree.open.path.parent.name),
        path=str(tree.open.path.parent),
        state=_state(tree, last),
        engine=meta.lane(main).engine if last is not None else "",
        main_lane=main,
        spans=digest.spans + len(tree.open),
        steps=len(digest.steps.get(main, Spans())) + _open(tree, "step", main),
        iterations=digest.iterations(main) + _open(tree, "step", main),
        epochs=len(digest.epochs.get(main, Spans())) + _open(tree, "epoch", main),
        duration_ns=run_ns,
        progress=how_far,
        verdict=said.text,
        drift=said.drift,
        what_if=said.what_if,
        step=steps,
        unexplained=_unexplained(tree, main),
        phases=phases,
        handlers=handlers,
        slowest_steps=slow_steps(tree, main),
        epoch_times=tuple(digest.epoch_times.get(main, [])[-MOST_EPOCHS:]),
        scalars=_scalars(digest),
        incomplete=_incomplete(tree),
        exceptions=tuple(digest.exceptions.values()),
        data=data,
        device=on_device,
        notes=_notes(tree),
    )


def _data(
    tree: Tree, main: int, step: Stats | None, sources: DataSources | None,
    device: DeviceReport | None,
) -> DataReport | None:  # fmt: skip
    if sources is None or step is None:
        return None
    waited, step_ns = tree.digest.waited_ns(main), step.total_ns
    if device is not None and device.busy_ns is not None:
        # The host does not wait for the device: it may wait for data while that is at work.
        step_ns = max(step_ns, waited + round(device.busy_ns * step.count))
    return data_report(sources, main, step.count, step_ns, waited)


def _main(tree: Tree) -> tuple[int, int, Span | None]:
    """The lane of the main engine, how long it ran in ns, and its last run.

    Of the engines that ran on their own, not in another's handler, it is the one that means to run
    for the most epochs, then iterations, then the one that ran longest: so neither a validation
    before the training nor a test after it is taken for the training.
    """
    found = {lane: _root_runs(tree, lane) for lane in _lanes_with_roots(tree)}
    if not found:
        group = next(iter(tree.digest.groups.all), None)
        return (group.lane if group is not None else 0), 0, None
    main = max(found, key=lambda lane: (*_plan(tree, found[lane][1]), found[lane][0], -lane))
    return main, *found[main]


def _lanes_with_roots(tree: Tree) -> set[int]:
    ended = {lane for lane, runs in tree.digest.runs.items() if (runs.parent.values == 0).any()}
    return ended | {s.lane for s in open_spans(tree) if s.kind == "run" and not s.parent}


def _root_runs(tree: Tree, lane: int) -> tuple[int, Span | None]:
    """How long a lane's runs of its own lasted in all, in ns, and the last of them."""
    running = [s for s in open_spans(tree) if s.kind == "run" and s.lane == lane and not s.parent]
    ended = tree.digest.runs.get(lane, Spans())
    roots = np.flatnonzero(ended.parent.values[: len(ended)] == 0)
    run_ns = int((ended.end.values[roots] - ended.start.values[roots]).sum())
    run_ns += sum(run.took_ns(tree.now_ns) for run in running)
    if running:
        return run_ns, running[-1]
    return run_ns, tree.span(int(ended.number.values[roots[-1]])) if len(roots) else None


def _plan(tree: Tree, run: Span | None) -> tuple[int, int]:
    """For how many epochs and iterations a run was meant."""
    plan = tree.meta.runs.get(run.number, {}) if run is not None else {}
    epochs, length = count_of(plan.get("max_epochs")) or 0, count_of(plan.get("epoch_length")) or 0
    return epochs, count_of(plan.get("max_iters")) or epochs * length


def _state(tree: Tree, last: Span | None) -> str:
    """What has become of the run."""
    if last is None:
        return "running" if tree.open.alive else "empty"
    roots = (span for span in open_spans(tree) if span.kind == "run" and not span.parent)
    if not last.end_ns or (tree.open.alive and any(roots)):  # a test after the training, say
        return {True: "running", False: "died", None: "unknown"}[tree.open.alive]
    return "ended" if last.flags & Flag.CUT else "finished"


def _open(tree: Tree, kind: str, lane: int) -> int:
    return sum(span.kind == kind and span.lane == lane for span in open_spans(tree))


def _stats(groups: list[Group], whole_ns: int) -> Stats | None:
    """Of one group; several are only where a journal is damaged."""
    counted = [group for group in groups if group.times.count]
    return (
        max(counted, key=lambda group: group.times.count).times.stats(whole_ns) if counted else None
    )


def _phases(tree: Tree, main: int) -> dict[str, Stats]:
    """Of the phases, pairs, loaders and the user's spans; share: of their engine's step time."""
    groups = tree.digest.groups
    step_ns = {lane: groups.total_ns("step", lane) for lane in {each.lane for each in groups.all}}
    wanted = ("loader", "phase", "pair", "span")
    mine = [group for group in groups.all if group.name.kind in wanted]
    return _named(tree, main, mine, lambda group: step_ns[group.lane])


def _handlers(tree: Tree, main: int, run_ns: int) -> dict[str, Stats]:
    """Of the handlers; share: of the main engine's run."""
    mine = [group for group in tree.digest.groups.all if group.name.kind == "handler"]
    return _named(tree, main, mine, lambda group: run_ns, of_run=True)


def _named(
    tree: Tree, main: int, groups: list[Group], whole_ns: Callable[[Group], int],
    of_run: bool = False,
) -> dict[str, Stats]:  # fmt: skip
    """By label, the longest in all first; engines of one name are told apart by their threads."""
    found: dict[str, Stats] = {}
    for group in sorted(groups, key=lambda group: -group.times.total):
        if not group.times.count:
            continue
        lane = tree.meta.lane(group.lane)
        label = engine_label(tree.meta.lane(main), lane, group.name.text)
        if label in found:
            label = f"{label} ({lane.thread}, lane {group.lane}, {group.name.kind})"
        stats, whole = group.times.stats(whole_ns(group)), whole_ns(group)
        if of_run and whole:  # of steps that were not recorded, too
            of_all = group.whole_ns(tree.digest.scale(group.lane)) / whole
            stats = replace(stats, share=min(1.0, of_all))
        found[label] = stats
    return found


def _unexplained(tree: Tree, main: int) -> float | None:
    """What of the main engine's steps and iterations no span under them covers."""
    groups = tree.digest.groups
    whole = sum(group.ended_ns for group in groups.of("step", main))
    both = groups.of("step", main) + groups.of("iteration", main)
    outside = sum(group.ended_ns - group.inside_ns for group in both)
    return max(0.0, outside / whole) if whole else None


def _scalars(digest: Digest) -> tuple[Scalar, ...]:
    found = []
    for name, series in list(digest.scalars.items()):
        points = series.points()
        each = -(-len(points) // MOST_POINTS)
        if each > 1:
            points = means_of(points[: len(points) // each * each], each)
        found.append(Scalar(name, series.count, series.last, tuple(points.tolist())))
    return tuple(found)


def _incomplete(tree: Tree) -> tuple[OpenSpan, ...]:
    groups = {(each.lane, each.name.kind, each.name.text): each for each in tree.digest.groups.all}
    found = []
    for span in open_spans(tree):
        like = groups.get((span.lane, span.kind, span.text))
        known = like is not None and like.times.count > 0
        found.append(
            OpenSpan(
                span.number, span.kind, span.text, tree.lane(span).engine, span.epoch,
                span.iteration, span.start_ns, span.took_ns(tree.now_ns),
                bool(span.flags & Flag.GUESS),
                like.times.percentiles(99)[0] if known and like is not None else None,
                like.times.largest if known and like is not None else None,
            )
        )  # fmt: skip
    return tuple(found)


def _notes(tree: Tree) -> tuple[str, ...]:
    notes, meta = [], tree.meta
    if meta.thinned:
        when = "at the end" if meta.thinned[-1]["every"] == meta.sparsest else "for a time"
        notes.append(
            f"only every {meta.sparsest:,}th step was recorded {when} (disk budget or every=N)"
        )
    if meta.stopped:
        notes.append(f"recording stopped before the training did: {meta.stopped}")
    if tree.digest.damaged or meta.damaged:
        notes.append(
            f"{tree.digest.damaged:,} damaged rows and {meta.damaged:,} damaged lines left out"
        )
    return tuple(notes)
