"""How far a run is, how fast, and how long it will still take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from firetrace.tui.model.columns import Spans
from firetrace.tui.model.digest import Digest
from firetrace.tui.model.tree import Span, Tree

#: Steps that "lately" means.
LATELY = 200
#: Epochs whose validations and checkpoints are expected to come again.
EPOCHS = 5
#: The throughput's sparkline: so many points, and at least so much time.
RATE_POINTS, RATE_NS = 40, 60 * 10**9
#: A point of it stands for no more, whatever a damaged journal says: 13 days.
LONGEST_NS = 2**50


@dataclass(frozen=True)
class Progress:
    """How far the main engine is. None where that is not known."""

    epoch: int
    max_epochs: int | None
    iteration: int  #: in all
    epoch_length: int | None
    max_iters: int | None
    fraction: float | None
    eta_ns: int | None  #: counts the validations and checkpoints of the epochs to come
    #: No epoch has ended yet, so what comes at its end is not known: at least ``eta_ns``.
    eta_is_least: bool
    eta_without_wait_ns: int | None  #: if no step had to wait for data
    steps_per_second: float | None  #: over the last steps
    rates: tuple[float, ...] = ()  #: steps a second, of equal times up to now


def progress(tree: Tree, main: int, run: Span | None) -> Progress:
    """How far the main lane's last run is."""
    digest = tree.digest
    plan: dict[str, Any] = tree.meta.runs.get(run.number, {}) if run is not None else {}
    limits = {key: count_of(plan.get(key)) for key in ("max_epochs", "epoch_length", "max_iters")}
    steps, epochs = digest.steps.get(main, Spans()), digest.epochs.get(main, Spans())
    began = run.start_ns if run is not None else 0
    first = int(np.searchsorted(steps.start.values, began))
    at, epoch = _reached(tree, main, steps, epochs, began)
    completed = int(steps.iteration.values[-1]) if len(steps) > first else 0
    planned = limits["max_iters"]
    if planned is None and limits["max_epochs"] and limits["epoch_length"]:
        planned = limits["max_epochs"] * limits["epoch_length"]
    ended = run is not None and bool(run.end_ns)
    completed = max(completed, at if ended else at - 1)  # steps that were not recorded
    fraction = min(1.0, completed / planned) if planned else None
    eta, without, least = None, None, False
    if planned and run is not None and not run.end_ns and tree.open.alive and len(steps) > first:
        left = max(0, planned - completed)
        eta, least = _eta(tree, main, run, steps, first, limits, left)
        without = max(0, eta - left * _wait_ns(digest, main))
    return Progress(
        epoch, limits["max_epochs"], at, limits["epoch_length"], limits["max_iters"], fraction,
        eta, least, without, _rate(steps, first), _rates(steps, first, tree.now_ns),
    )  # fmt: skip


def count_of(value: Any) -> int | None:
    """How many; None of what can be no number of steps, in a damaged journal."""
    return value if type(value) is int and 0 < value < 2**40 else None


def _reached(tree: Tree, main: int, steps: Spans, epochs: Spans, began: int) -> tuple[int, int]:
    """The iteration and the epoch that were reached, in spans that have ended and open ones."""
    iteration = epoch = 0
    for spans in (steps, epochs):
        if len(spans) and spans.start.values[-1] >= began:
            iteration = max(iteration, int(spans.iteration.values[-1]))
            epoch = max(epoch, int(spans.epoch.values[-1]))
    rows = tree.open.rows
    for row in rows[(rows["lane"] == main) & (rows["start"] >= began)]:
        name = tree.meta.names.get(int(row["name"]))
        if name is not None and name.kind in ("step", "epoch"):  # thinned steps: the epoch has it
            iteration = max(iteration, int(row["iteration"]))
            epoch = max(epoch, int(row["epoch"]))
    return iteration, epoch


def _wait_ns(digest: Digest, main: int) -> int:
    """What a step waits for data, on average."""
    steps = digest.groups.total_count("step", main)
    return digest.waited_ns(main) // steps if steps else 0


def _eta(
    tree: Tree, main: int, run: Span, steps: Spans, first: int,
    limits: dict[str, int | None], left: int,
) -> tuple[int, bool]:  # fmt: skip
    """Steps to come at the pace of the last ones, and what comes at the end of each epoch."""
    length = limits["epoch_length"] or 0
    recent = slice(max(first, len(steps) - max(LATELY, length)), None)
    lasted = steps.end.values[recent] - steps.start.values[recent]
    step_ns = float(lasted.mean())
    eta = step_ns * left
    past = [each for each in tree.digest.epoch_times.get(main, []) if each.start_ns >= run.start_ns]
    epochs_left = -(-left // length) if length else 0
    in_between = tree.now_ns - int(steps.end.values[-1])
    if tree.digest.thinned:  # since then there were others
        in_between = 0
    at_end = length and (int(steps.iteration.values[-1]) % length == 0)
    if not past:
        return round(max(0.0, eta - min(in_between, step_ns))), bool(epochs_left)
    # A loader that starts before the first step does not do so again: later ones are in steps.
    ends = [max(0.0, each.between_ns(step_ns) - each.loading_ns) for each in past[-EPOCHS:]]
    between = float(np.mean(ends))
    ended = past[-1].end_ns >= int(steps.end.values[-1])
    eta += between * epochs_left
    if at_end and not ended:  # the end of this epoch is under way
        eta += max(0.0, between - in_between)
    else:
        eta -= min(in_between, step_ns)
    return round(max(0.0, eta)), False


def _rate(steps: Spans, first: int) -> float | None:
    last = slice(max(first, len(steps) - LATELY), None)
    ends, numbers = steps.end.values[last], steps.iteration.values[last]
    if len(ends) < 2:
        return None
    # Thinned steps count too: the numbers of the recorded ones tell of them.
    done = max(len(ends) - 1, int(numbers[-1]) - int(numbers[0]))
    return done / max(1e-9, int(ends[-1] - ends[0]) / 1e9)


def _rates(steps: Spans, first: int, now_ns: int) -> tuple[float, ...]:
    """Steps a second over the last minute, or longer where steps are slow."""
    ends = steps.end.values[first:]
    if len(ends) < 2:
        return ()
    now_ns = min(now_ns, int(ends[-1]) + RATE_NS)
    lately = ends[-LATELY:]
    usual = int(lately[-1] - lately[0]) // (len(lately) - 1)
    each = max(RATE_NS // RATE_POINTS, min(2 * usual, LONGEST_NS))
    begin = int(steps.start.values[first])
    points = min(RATE_POINTS, max(1, (now_ns - begin) // each))
    edges = now_ns - each * np.arange(points, -1, -1)
    counts = np.diff(np.searchsorted(ends, edges))
    return tuple((counts / (each / 1e9)).tolist())
