"""Names what a rank is slow in: the spans of a few of its steps beside another rank's.

Reads these steps from the files; everything else about ranks comes from what is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.pages import Pages
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.table import UNKNOWN
from firetrace.tui.model.rank_reader import RankReader
from firetrace.tui.model.slow import PARTS
from firetrace.tui.model.straggler import Compared, Steps

#: Of the spans that took longer, those that took nearly all of it; the innermost of them is named.
NEARLY = 0.8
#: Between which times of a step each cause lies.
SEGMENTS = {
    "handlers": ("before", "start"), "optimizer": ("before", "start"),
    "data": ("start", "data"), "forward": ("data", "ready"),
}  # fmt: skip
Named = dict[tuple[str, str], int]


@dataclass(frozen=True)
class Culprit:
    """What took longer than on another rank. Times in ns, medians of the steps looked at."""

    cause: str  #: as in ``CAUSES``, corrected by what it is
    name: str  #: raw text of the trace: not safe to print; empty: nothing stands out
    own_ns: int
    others_ns: int


def culprit(
    ranks: dict[int, RankReader], engine: str, found: Compared, rank: int, cause: str,
    places: list[int],
) -> Culprit:  # fmt: skip
    """What a rank is slow in, in the steps at these places of ``found``."""
    own: list[Named] = []
    others: list[Named] = []
    begin, end = SEGMENTS[cause]
    for key in found.keys[places].tolist():
        there = ((each, _at(found.steps[each], key)) for each in found.ranks)
        steps = {each: step for each, step in there if step is not None}
        mine = steps.pop(rank, None)
        if mine is None or not steps:
            continue
        took = {each: int(step[end] - step[begin]) for each, step in steps.items()}
        beside = sorted(took, key=lambda each: took[each])[(len(took) - 1) // 2]
        own.append(_parts(ranks[rank], engine, mine, cause))
        others.append(_parts(ranks[beside], engine, steps[beside], cause))
    names = {name for parts in own for name in parts}
    median = {
        name: tuple(int(np.median([parts.get(name, 0) for parts in of])) for of in (own, others))
        for name in names
    }
    more = {name: mine - theirs for name, (mine, theirs) in median.items()}
    most = max(more.values(), default=0)
    if most <= 0:
        return Culprit(cause, "", 0, 0)
    nearly = [name for name in sorted(more) if more[name] >= NEARLY * most]
    kind, text = min(nearly, key=lambda name: median[name][0])
    if kind == "handler":
        cause = "handlers"
    elif cause in ("handlers", "optimizer"):
        cause = "optimizer" if text == "optimizer" else "handlers"
    mine_ns, theirs_ns = median[kind, text]
    return Culprit(cause, text, mine_ns, theirs_ns)


def _at(steps: Steps, key: int) -> np.void | None:
    at = int(np.searchsorted(steps["key"], key))
    return steps[at] if at < len(steps) and steps["key"][at] == key else None


def _parts(reader: RankReader, engine: str, step: np.void, cause: str) -> Named:
    """What a step's rank did between two times of it: ns by kind and name."""
    begin, end = (int(step[name]) for name in SEGMENTS[cause])
    number, parts = int(step["number"]), Named()
    if cause in ("handlers", "optimizer"):
        number = int(step["previous_number"])
    if not (number and begin and end > begin):
        return parts
    try:
        with JournalReader(reader.path) as journal:
            rows, _ = Pages(journal).after(number, end)
    except (FiretraceError, OSError):  # gone meanwhile: then it has no name
        return parts
    rows = rows[rows["lane"] == reader.lane_of(engine)]
    lasted = np.minimum(np.where(rows["end"] == 0, end, rows["end"]), end)
    lasted = lasted - np.maximum(rows["start"], begin)
    for id, ns in zip(rows["name"].tolist(), lasted.tolist(), strict=True):
        name = reader.meta.names.get(id, UNKNOWN)
        if ns > 0 and name.kind in PARTS:
            parts[name.kind, name.text] = parts.get((name.kind, name.text), 0) + ns
    return parts
