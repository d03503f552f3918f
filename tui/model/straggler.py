"""Which rank the others wait for, and in what: blamed is only what comes before a barrier.

An all-reduce makes the backward of every rank as long as the slowest rank needs, so durations
blame everybody. Here a rank is blamed for what it has *become* late by since the barrier before:
who waits becomes no later, and who is late without becoming later does not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from firetrace.tracer.aligned import Alignment, aligned
from firetrace.tui.model.rank_reader import ITERATION_MASK, RankReader

#: What a rank can be slow in, between two barriers: what comes after the one before counts, too.
CAUSES = ("handlers", "data", "forward", "optimizer")
#: Lateness of less than this share of a step is noise, and less waiting than this no straggler.
NOISE = CHRONIC = 0.05
#: Less is what ranks differ by who do the same: with two of gloo's on two busy cores, the one that
#: received the model's buffers came 0.6 ms after the one that sent them.
LEAST_NS = 10**6
#: A run that goes on is looked at as a whole, and these last steps of it.
LATELY = 200
#: A single step that costs so many times the usual, and this share of a step.
OUTLIER, OUTLIER_SHARE, RARE, MOST_ONE_OFFS = 5, 0.2, 0.1, 10
FEWEST = 5  #: steps that a chronic straggler was waited for
BUCKETS = 240
CELLS = 2**18  # steps times ranks that are looked at at once
Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.void]
BOUNDARIES = ("before", "gone", "start", "data", "ready")


@dataclass(eq=False)
class Compared:
    """The steps that most ranks have. By step, unless it says otherwise; times in ns."""

    ranks: list[int]  #: whose clocks compare
    keys: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    straggler: npt.NDArray[np.int64]  #: place in ``ranks``; -1: nobody
    cause: npt.NDArray[np.int64]  #: place in ``CAUSES``
    cost: Floats  #: how long the straggler was waited for
    period: Floats  #: what the step took, from the end of the one before
    late: Floats  #: by rank: in all
    heat: Floats  #: by rank and bucket: the mean of its lateness
    buckets: list[tuple[int, int]]  #: numbers of the first and the last step
    waited: float = 0.0  #: share of the time that somebody was waited for, noise included
    steps: dict[int, Steps] = field(default_factory=dict)  #: by rank, their keys rising


def clocks(ranks: Mapping[int, RankReader]) -> dict[int, Alignment]:
    """How the times of each rank become those of one of them, the lowest if that can be."""
    known = {rank: reader for rank, reader in ranks.items() if reader.header is not None}
    hosts: dict[str, list[int]] = {}
    for rank, reader in known.items():
        assert reader.header is not None
        hosts.setdefault(reader.header.boot_id, []).append(rank)
    references = [min(known), max(hosts.values(), key=len)[0]] if known else []
    best: dict[int, Alignment] = {}
    for reference in dict.fromkeys(references):
        header = known[reference].header
        assert header is not None
        found = {
            rank: aligned(reader.header, reader.meta, header)
            for rank, reader in known.items()
            if reader.header is not None
        }
        if not best or _unknown(found) < _unknown(best):
            best = found
    return best


def _unknown(found: Mapping[int, Alignment]) -> int:
    return sum(each.error_ns is None for each in found.values())


def compare(
    ranks: Mapping[int, RankReader], engine: str, shifts: Mapping[int, Alignment]
) -> Compared:
    """Compare the ranks' steps, a piece of the run at a time."""
    steps = {rank: _sorted(ranks[rank].steps(engine).values) for rank in shifts}
    mine = [r for r, s in steps.items() if len(s) and shifts[r].error_ns is not None]
    keys = np.zeros(0, np.int64)
    if len(mine) > 1:
        every = np.concatenate([steps[rank]["key"] for rank in mine])
        keys, have = np.unique(every, return_counts=True)
        keys = keys[2 * have > len(mine)]
    count, size = len(mine), len(keys)
    bucket = np.arange(size) * min(BUCKETS, size) // max(size, 1)
    firsts = np.flatnonzero(np.diff(bucket, prepend=-1))
    lasts = np.append(firsts[1:], size) - 1 if size else firsts
    numbers = keys & ITERATION_MASK
    found = Compared(
        mine, keys, np.zeros(size, np.int64), np.full(size, -1), np.zeros(size, np.int64),
        np.zeros(size), np.zeros(size), np.zeros(count), np.zeros((count, len(firsts))),
        list(zip(numbers[firsts].tolist(), numbers[lasts].tolist(), strict=True)), steps=steps,
    )  # fmt: skip
    if not size:
        return found
    usual = np.median([np.median(steps[r]["end"] - steps[r]["start"]) for r in mine])
    errors = _errors(np.array([shifts[rank].error_ns or 0 for rank in mine]))
    noise = max(LEAST_NS, NOISE * float(usual))
    piece, waited = max(1, CELLS // count), 0.0
    for first in range(0, size, piece):
        part = slice(first, min(first + piece, size))
        waited += _piece(found, part, shifts, errors, noise, bucket[part])
    found.heat /= np.maximum(np.bincount(bucket), 1)
    found.waited = waited / max(float(found.period.sum()), 1.0)
    return found


def _sorted(steps: Steps) -> Steps:
    if len(steps) > 1 and not (np.diff(steps["key"]) > 0).all():  # damaged, or counted anew
        return steps[np.unique(steps["key"], return_index=True)[1]]
    return steps


def _errors(own: npt.NDArray[np.int64]) -> Floats:
    """By how much a rank's lateness may be wrong, ns: its own clock's error and the others'."""
    ordered, at = np.sort(own), (len(own) - 1) // 2
    others = np.where(own <= ordered[at], ordered[min(at + 1, len(own) - 1)], ordered[at])
    return np.asarray(own + others, np.float64)


def _piece(
    found: Compared, part: slice, shifts: Mapping[int, Alignment], errors: Floats, noise: float,
    bucket: npt.NDArray[np.int64],
) -> float:  # fmt: skip
    """Compare some of the steps. Return how long was waited for anybody, ns."""
    keys = found.keys[part]
    times = {name: np.full((len(keys), len(found.ranks)), np.nan) for name in (*BOUNDARIES, "end")}
    previous = np.full((len(keys), len(found.ranks)), -2, np.int64)
    optimizer = np.full((len(keys), len(found.ranks)), np.nan)
    first = found.steps[found.ranks[0]]["start"][0]
    zero = int(shifts[found.ranks[0]].shift(first))  # floats of Unix ns are good to 256 ns
    for place, rank in enumerate(found.ranks):
        all_of = found.steps[rank]
        inside = slice(*np.searchsorted(all_of["key"], (keys[0], keys[-1] + 1)).tolist())
        mine = all_of[inside]
        at = np.searchsorted(keys, mine["key"])
        there = keys[np.minimum(at, len(keys) - 1)] == mine["key"]
        if not there.all():
            mine, at = mine[there], at[there]
        if not len(mine):
            continue
        for name, column in times.items():
            column[at, place] = shifts[rank].shift(mine[name]) - zero
        previous[at, place], optimizer[at, place] = mine["previous"], mine["optimizer"]
        found.epochs[part][at] = mine["epoch"]
    # What came before only compares where it was the same step.
    same = (previous == previous.max(axis=1, keepdims=True)) & (previous >= 0)
    for name in ("before", "gone"):
        times[name][~same] = np.nan
    beside = same & (previous == keys[:, None] - 1)
    base = np.nanmin(times["start"], axis=1, keepdims=True)
    late = [np.nan_to_num(lateness(times[name] - base), nan=-1.0) for name in BOUNDARIES]
    rises = [_rise(*pair) for pair in pairwise(late)]
    rises[1][~beside] = 0  # other steps, not recorded, lie between
    cost, running = np.zeros_like(base * errors), np.zeros_like(base * errors)
    for rise in rises:
        running = np.maximum(running + rise, 0)
        cost = np.maximum(cost, running)
    begin = np.where(beside, times["gone"], times["start"])
    found.period[part] = middle(times["end"] - begin)[:, 0]
    seen = np.where(cost > errors, cost, 0)  # the rest may be the clocks'
    found.late += seen.sum(axis=0)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    found.heat[:, bucket[starts]] += np.add.reduceat(seen, starts, axis=0).T
    blamed = np.where(cost >= np.maximum(errors, noise), cost, 0)
    who, step = blamed.argmax(axis=1), np.arange(len(keys))
    found.cost[part] = blamed[step, who]
    found.straggler[part] = np.where(found.cost[part] > 0, who, -1)
    parts = np.stack([rises[0] + rises[1], rises[2], rises[3]])[:, step, who]
    between = np.where(beside, times["start"], times["gone"]) - times["before"]
    handlers = between - optimizer
    more = (optimizer - middle(optimizer)) > (handlers - middle(handlers))
    causes = parts.argmax(axis=0)
    causes[(causes == 0) & more[step, who]] = CAUSES.index("optimizer")
    found.cause[part] = causes
    return float(seen.max(axis=1).sum())


def _rise(before: Floats, after: Floats) -> Floats:
    """By how much later ranks became; nothing where it is not known, which is -1."""
    return np.where((before >= 0) & (after >= 0), after - before, 0)


def lateness(times: Floats) -> Floats:
    """How much later each was than the median of the others, of rows of times; NaN: not there.

    Not than the first, for the others wait for the last, and one that is early is waited for by
    nobody. Of those that are not later it is 0.
    """
    ordered = np.sort(times, axis=1)
    count = np.count_nonzero(~np.isnan(times), axis=1)
    step = np.arange(len(times))
    median = np.zeros_like(times)
    for at in ((count - 2) // 2, (count - 1) // 2):  # in the order of the others
        at = np.clip(at, 0, max(times.shape[1] - 2, 0))
        low, high = ordered[step, at][:, None], ordered[step, at + 1][:, None]
        median += np.where(times <= low, high, low) / 2
    late: Floats = np.maximum(times - median, 0)
    return late


def middle(values: Floats) -> Floats:
    """The median of each row, NaN left out, as a column. ``np.nanmedian`` takes 50 times longer."""
    ordered = np.sort(values, axis=1)
    count = np.maximum(np.count_nonzero(~np.isnan(values), axis=1), 1)
    step = np.arange(len(values))
    found: Floats = (ordered[step, (count - 1) // 2] + ordered[step, count // 2])[:, None] / 2
    return found


@dataclass(frozen=True)
class Blame:
    """What a rank costs the others in some of the steps."""

    place: int  #: in ``Compared.ranks``
    cause: str
    count: int  #: steps in which it was waited for
    share: float  #: of the time
    often: bool  #: in most of the steps, not only in some


def chronic(found: Compared, since: int = 0) -> list[Blame]:
    """The ranks that are waited for again and again, the worst first; ``since``: a step's place."""
    who, cost, period = found.straggler[since:], found.cost[since:], found.period[since:]
    blamed = np.flatnonzero(who >= 0)
    halves = (slice(0, len(who) // 2), slice(len(who) // 2, None))
    wholes = [max(float(period[half].sum()), 1.0) for half in halves]
    chance = len(blamed) / max(len(found.ranks), 1)
    spread = (chance * (1 - 1 / max(len(found.ranks), 1))) ** 0.5
    result = []
    for place, count in enumerate(np.bincount(who[blamed], minlength=len(found.ranks)).tolist()):
        if count < max(FEWEST, chance + 3 * spread):
            continue
        shares = [
            float(cost[half][who[half] == place].sum()) / whole
            for half, whole in zip(halves, wholes, strict=True)
        ]
        if min(shares) < CHRONIC:
            continue
        mine = who == place
        causes = np.bincount(found.cause[since:][mine], cost[mine], len(CAUSES))
        share = float(cost[mine].sum()) / sum(wholes)
        cause = CAUSES[int(causes.argmax())]
        result.append(Blame(place, cause, count, share, 2 * count > len(who)))
    return sorted(result, key=lambda each: -each.share)


def outliers(found: Compared) -> list[int]:
    """Places of the single steps that cost far more than usual, the worst first."""
    if not len(found.cost):
        return []
    least = max(
        OUTLIER * float(np.median(found.cost)), OUTLIER_SHARE * float(np.median(found.period))
    )
    worst = np.flatnonzero(found.cost > least)
    if len(worst) > max(3, RARE * len(found.cost)):  # then this is how steps are
        return []
    order = np.argsort(-found.cost[worst], kind="stable")[:MOST_ONE_OFFS]
    places: list[int] = worst[order].tolist()
    return places
