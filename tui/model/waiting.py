"""What to say of how ranks wait for one another, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firetrace.tui.format import duration
from firetrace.tui.model.straggler import CHRONIC, Compared

WORDS = {
    "data": "its data is slow", "forward": "its forward is slow",
    "handlers": "its handlers are slow", "optimizer": "its optimizer is slow",
}  # fmt: skip


@dataclass(frozen=True)
class Straggler:
    """A rank that the others wait for again and again. Times in ns."""

    rank: int
    cause: str  #: handlers, data, forward or optimizer
    name: str  #: of the span that is slow; raw text of the trace; empty: none stands out
    own_ns: int  #: what that takes here, and
    others_ns: int  #: on another rank in the same steps
    steps: int  #: in which it was waited for
    share: float  #: of the time that it was waited for
    often: bool  #: in most steps
    lately: bool  #: of the last steps; not of the whole run
    made_by: str = ""  #: if it is its data: what of making it takes most; raw text of the trace
    made_share: float = 0.0  #: of the time that making takes


@dataclass(frozen=True)
class OneOff:
    """A single step in which one rank was waited for far longer than usual. Times in ns."""

    rank: int
    epoch: int
    iteration: int
    cause: str
    name: str  #: as in ``Straggler``
    cost_ns: int
    step_ns: int


def verdict(found: Compared, stragglers: Sequence[Straggler], one_offs: Sequence[OneOff]) -> str:
    """The one thing to know. May hold raw text of the trace."""
    if not len(found.keys):
        return "ranks cannot be compared: there is no step yet that most of them have"
    if stragglers:
        first = stragglers[0]
        of = "of a step" if first.often else "of the time"
        said = f"STRAGGLER: rank {first.rank} makes the others wait {first.share:.0%} {of}"
        said += f" {'lately' if first.lately else ''}".rstrip() + f"; {WORDS[first.cause]}"
        if first.name:
            own, others = duration(first.own_ns), duration(first.others_ns)
            said += f" ({first.name} {own} against {others})"
        if first.made_by:
            said += f": {first.made_by} is {first.made_share:.0%} of making its batches"
        if len(stragglers) > 1:
            more = ", ".join(str(each.rank) for each in stragglers[1:4])
            left = f" and {len(stragglers) - 4:,} more" if len(stragglers) > 4 else ""
            said += f"; rank{'s' if len(stragglers) > 2 else ''} {more}{left} too"
        return said
    whole = max(float(found.period.sum()), 1.0)
    share = float(found.cost.sum()) / whole
    if one_offs and (share < CHRONIC or sum(each.cost_ns for each in one_offs) > share * whole / 2):
        worst = one_offs[0]
        what = worst.name or worst.cause
        return (
            f"ranks are even but for {len(one_offs)} step{'s' * (len(one_offs) > 1)}: in step "
            f"{worst.iteration} rank {worst.rank} was waited for {duration(worst.cost_ns)} ({what})"
        )
    if share >= CHRONIC:
        by = np.bincount(found.straggler[found.straggler >= 0], found.cost[found.straggler >= 0])
        most = int(by.argmax())
        return (
            f"ranks wait {share:.0%} of a step for one another, now for this one, now for that; "
            f"for rank {found.ranks[most]} most, {by[most] / whole:.0%}"
        )
    if found.waited >= CHRONIC:
        return f"no rank stands out: {found.waited:.0%} of a step is waited for, a little for each"
    return f"ranks are even: at most {max(found.waited, 0.01):.0%} of a step is waited for"
