"""Which of several dead ranks died first: that is the one to look at.

When one has died, the launcher kills the others, and those wait for the dead one until then. So the
last that was heard of a rank is no good clock: who waits is not heard of. Ranks that go in step
tell by how far they got: if all others waited in an all-reduce for one that had not come there,
that one died first. Else it cannot be told, and is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firetrace.tui.format import duration
from firetrace.tui.model.rank_reader import STAGES, Place

DEAD = ("died", "failed")
MOST_NAMED = 3


@dataclass(frozen=True)
class Heard:
    """The last that was heard of a rank."""

    rank: int
    state: str
    place: Place | None
    seen_ns: int  #: Unix ns, of the clock that the others' are in, too
    error_ns: int | None  #: of that; None: it cannot be compared
    exception: str


def died_first(ranks: Sequence[Heard]) -> tuple[int | None, str]:
    """The rank that died or failed first, and what to say; (None, "") if all live or finished."""
    dead = [each for each in ranks if each.state in DEAD]
    if not dead:
        return None, ""
    in_step = _in_step(dead)
    first, sure = _first(dead, in_step)
    word = "DIED" if first.state == "died" else "FAILED"
    why = f" ({first.exception})" if first.state == "failed" and first.exception else ""
    said = f"rank {first.rank} {word}{' first' if len(dead) > 1 and sure else ''}{why}"
    said += f", {_where(first.place)}" if first.place is not None else ""
    if not sure:
        others = [each for each in dead if each is not first]
        for each in others[:MOST_NAMED]:
            said += f"; rank {each.rank} {_where(each.place) if each.place is not None else ''}"
        more = len(others) - MOST_NAMED
        said += f"; {more:,} more" * (more > 0) + ": which was first cannot be told"
        return first.rank, said
    rest = [each for each in ranks if each is not first]
    return first.rank, said + _afterwards(first, rest, in_step)


def _in_step(dead: Sequence[Heard]) -> bool:
    """Whether they waited for one another: then none is more than a step ahead."""
    keys = [each.place.key for each in dead if each.place is not None]
    return len(keys) == len(dead) and max(keys) - min(keys) <= 1


def _first(dead: Sequence[Heard], in_step: bool) -> tuple[Heard, bool]:
    """The first of the dead, and whether that is sure."""
    if not in_step:
        return min(dead, key=lambda each: (each.seen_ns, each.rank)), True
    first = min(dead, key=lambda each: (_progress(each), each.seen_ns, each.rank))
    # Only of those who wait for it is known that they lived on; any other may have been killed
    # where it was.
    others = [each for each in dead if each is not first]
    return first, all(_waits(each) and _progress(each) > _progress(first) for each in others)


def _waits(one: Heard) -> bool:
    return one.place is not None and one.place.stage == "backward"


def _progress(one: Heard) -> tuple[int, int]:
    return (one.place.key, STAGES.index(one.place.stage)) if one.place is not None else (0, 0)


def _where(place: Place) -> str:
    return f"in {place.name} of step {place.iteration}"


def _afterwards(first: Heard, rest: Sequence[Heard], in_step: bool) -> str:
    """What became of the others."""
    said = ""
    over = [each for each in rest if each.state in (*DEAD, "ended") and each.error_ns is not None]
    later = [each for each in over if each.seen_ns > first.seen_ns]
    waited = sum(each.state == "died" and _waits(each) for each in rest)
    if waited and in_step:
        said += f"; {_ranks(waited)} died waiting for it in backward"
    elif later and first.error_ns is not None:
        next_one = min(later, key=lambda each: each.seen_ns)
        gap = duration(next_one.seen_ns - first.seen_ns)
        if next_one.state == "died":
            said += f"; rank {next_one.rank} was last heard of {gap} later"
        else:
            said += f"; {gap} later rank {next_one.rank} {next_one.state}"
        said += f", and {len(over) - 1:,} more" if len(over) > 1 else ""
    running = sum(each.state in ("running", "unknown") for each in rest)
    if running:
        said += f"; {_ranks(running)} still run{'s' * (running == 1)}"
    return said


def _ranks(count: int) -> str:
    return "another rank" if count == 1 else f"{count:,} other ranks"
