"""All ranks of a distributed run, and what is to be said of them: dead ones, stragglers, figures.

Pure: no Textual. ``rank_reader.py`` reads each, ``straggler.py`` compares their steps.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.tracer.aligned import Alignment
from firetrace.tracer.errors import RunNotFoundError
from firetrace.tracer.run import attempt_of, is_rank, rank_of
from firetrace.tui.model.culprit import culprit
from firetrace.tui.model.deaths import Heard, died_first
from firetrace.tui.model.rank_reader import ITERATION_MASK, Place, RankReader
from firetrace.tui.model.straggler import (
    CAUSES,
    LATELY,
    Blame,
    Compared,
    Steps,
    chronic,
    clocks,
    compare,
    outliers,
)
from firetrace.tui.model.waiting import OneOff, Straggler, verdict
from firetrace.tui.model.workers import slowest_lately

#: Steps that are kept of all ranks together, 72 bytes each; of more every second one is.
MOST_STEPS = 3 * 2**20
#: Steps of a chronic straggler whose spans are looked at.
LOOKED_AT = 5


class Ranks:
    """All ranks of a run, with the newest journal of each.

    Args:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.readers: dict[int, RankReader] = {}  #: by rank, rising
        self._every = 1

    def poll(self) -> bool:
        """Find journals and read what is new in them; return whether anything was.

        Raises:
            RunNotFoundError: the directory cannot be read.
        """
        changed = self._discover()
        for reader in self.readers.values():
            changed |= reader.poll()
        while self.kept() > MOST_STEPS and self._every < 2**31:
            self._every *= 2
            for reader in self.readers.values():
                reader.thin(self._every)
        return changed

    def kept(self) -> int:
        """How many steps are in memory."""
        return sum(
            len(steps.values) for reader in self.readers.values() for steps in reader.lanes.values()
        )

    def _discover(self) -> bool:
        newest: dict[int, Path] = {}
        attempts: dict[int, int] = {}
        try:
            names = os.listdir(self.path)
        except OSError as error:
            raise RunNotFoundError(f"{self.path}: {error.strerror or error}") from error
        for name in names:
            path = self.path / name
            rank = rank_of(path) if name.endswith(".rows") and is_rank(path) else None
            if rank is None:
                continue
            attempts[rank] = attempts.get(rank, 0) + 1
            if rank not in newest or attempt_of(path) > attempt_of(newest[rank]):
                newest[rank] = path
        changed = False
        for rank, path in newest.items():
            if rank not in self.readers or self.readers[rank].path != path:
                self.readers[rank], changed = RankReader(path), True
                self.readers[rank].every = self._every
            self.readers[rank].attempts = attempts[rank]
        self.readers = dict(sorted(self.readers.items()))
        return changed

    @property
    def engine(self) -> str:
        """The main engine: of those that run on their own the one with most steps in all."""
        count: dict[str, int] = {}
        for reader in self.readers.values():
            for lane, steps in reader.lanes.items():
                name = reader.meta.lane(lane).engine
                count[name] = count.get(name, 0) + steps.count
        return max(count, key=lambda name: count[name], default="")


@dataclass(frozen=True)
class RankRow:
    """A rank. Times in ns; those of parts of a step are medians of its own."""

    rank: int
    attempt: int  #: of the journal that is shown
    attempts: int
    host: str  #: raw text of the trace, as all texts here: not safe to print
    pid: int
    #: running, finished, ended (cut short), failed (an exception), died, unknown (it may run on a
    #: host that is out of sight), empty, unreadable
    state: str
    place: Place | None  #: where it is, or was when it died or failed
    seen_ns: int  #: when it was last heard of, Unix ns of the reference rank's journal
    steps: int
    step_ns: int
    data_ns: int
    forward_ns: int  #: from the data to the backward
    optimizer_ns: int
    handlers_ns: int  #: from the backward to the next step, without the optimizer
    late_ns: int  #: by how much it becomes later than the others in a step; the mean
    straggled: int  #: steps in which it was the one that was waited for
    share: float  #: of the time that was waited for it
    error_ns: int | None  #: of its clock against the reference's; None: unknown, not compared
    exception: str  #: type of the last one
    trouble: str  #: why its journal could not be read


@dataclass(frozen=True, eq=False)
class Skew:
    """What is to be said of the ranks of a run."""

    verdict: str
    engine: str
    world_size: int  #: as the ranks say; at least as many as there are journals
    rows: tuple[RankRow, ...]  #: by rank
    first_death: int | None  #: the rank that died or failed first
    chronic: tuple[Straggler, ...]  #: who is waited for again and again, the worst first
    one_offs: tuple[OneOff, ...]  #: single steps, the worst first
    compared: int  #: steps that most ranks have
    step_ns: int  #: median, from step to step
    waited: float  #: share of the time in which somebody was waited for
    #: Lateness that each rank created, ns, the mean of a bucket's steps: float64, a line for each
    #: of ``rows``, a column for each of ``buckets``.
    heat: npt.NDArray[np.float64]
    buckets: tuple[tuple[int, int], ...]  #: first and last iteration of each
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("rows", "chronic", "one_offs"):
            found[name] = [asdict(each) for each in found[name]]
        found["heat"] = self.heat.round().astype(np.int64).tolist()
        found["buckets"] = [list(each) for each in self.buckets]
        found["notes"] = list(self.notes)
        return found


def skew(ranks: Ranks) -> Skew:
    """Compare what the ranks have been read of. Never changes ``ranks``."""
    engine, shifts = ranks.engine, clocks(ranks.readers)
    found = compare(ranks.readers, engine, shifts)
    rows = tuple(_row(reader, engine, found, shifts) for reader in ranks.readers.values())
    states = [row.state for row in rows]
    blames, lately = chronic(found), False
    if not blames and "running" in states and len(found.keys) > LATELY:
        since = len(found.keys) - LATELY
        blames, lately = chronic(found, since), True
    stragglers = tuple(_straggler(ranks, engine, found, each, lately) for each in blames)
    one_offs = tuple(_one_off(ranks, engine, found, at) for at in outliers(found))
    heard = [
        Heard(row.rank, row.state, row.place, row.seen_ns, row.error_ns, row.exception)
        for row in rows
    ]
    first, death = died_first(heard)
    heat = np.zeros((len(rows), len(found.buckets)))
    at = {row.rank: place for place, row in enumerate(rows)}
    heat[[at[rank] for rank in found.ranks]] = found.heat
    sizes = [_whole(each.meta.resource.get("ignite.world_size")) for each in ranks.readers.values()]
    return Skew(
        verdict=death or verdict(found, stragglers, one_offs),
        engine=engine,
        world_size=max([len(rows), *sizes]),
        rows=rows,
        first_death=first,
        chronic=stragglers,
        one_offs=one_offs,
        compared=len(found.keys),
        step_ns=int(np.median(found.period)) if len(found.keys) else 0,
        waited=found.waited,
        heat=heat,
        buckets=tuple(found.buckets),
        notes=tuple(_notes(ranks, rows, max([len(rows), *sizes]))),
    )


def _whole(value: object) -> int:
    """A number that a journal may say anything in the place of."""
    try:
        found = int(str(value))
    except ValueError:
        return 0
    return found if 0 <= found < 2**31 else 0


def _row(reader: RankReader, engine: str, found: Compared, shifts: dict[int, Alignment]) -> RankRow:
    steps, resource, shift = reader.steps(engine), reader.meta.resource, shifts.get(reader.rank)
    own = _own_times(found.steps.get(reader.rank, steps.values))
    place = found.ranks.index(reader.rank) if reader.rank in found.ranks else -1
    mine = found.straggler == place if place >= 0 else np.zeros(len(found.keys), bool)
    header = reader.header
    pid = _whole(resource.get("process.pid")) or (header.pid if header is not None else 0)
    host = str(resource.get("host.name") or (header.host if header is not None else ""))
    return RankRow(
        reader.rank, reader.attempt, reader.attempts, host, pid, reader.state(engine),
        reader.place(engine), int(shift.shift(reader.last_ns)) if shift is not None else 0,
        steps.count, *own,
        late_ns=int(found.late[place] / len(found.keys)) if place >= 0 and len(found.keys) else 0,
        straggled=int(np.count_nonzero(mine)),
        share=float(found.cost[mine].sum() / max(found.period.sum(), 1.0)),
        error_ns=shift.error_ns if shift is not None else None,
        exception=reader.exception, trouble=reader.trouble,
    )  # fmt: skip


def _own_times(steps: Steps) -> tuple[int, int, int, int, int]:
    """Medians of the step, and of its data, forward, optimizer and handlers."""
    after = steps[(steps["previous"] >= 0) & (steps["previous"] == steps["key"] - 1)]
    times = (
        steps["end"] - steps["start"], steps["data"] - steps["start"],
        steps["ready"] - steps["data"], after["optimizer"],
        after["start"] - after["before"] - after["optimizer"].astype(np.int64),
    )  # fmt: skip
    found = (int(np.median(each)) if len(each) else 0 for each in times)
    step, data, forward, optimizer, handlers = found
    return step, data, forward, optimizer, max(handlers, 0)


def _straggler(ranks: Ranks, engine: str, found: Compared, blame: Blame, lately: bool) -> Straggler:
    """With its figures, from steps in which it cost what it usually does."""
    rank = found.ranks[blame.place]
    since = len(found.keys) - LATELY if lately else 0
    mine = np.flatnonzero(
        (found.straggler == blame.place) & (found.cause == CAUSES.index(blame.cause))
    )
    mine = mine[mine >= since]
    order = mine[np.argsort(found.cost[mine], kind="stable")]
    begin = max(0, (len(order) - LOOKED_AT) // 2)
    usual = order[begin : begin + LOOKED_AT].tolist()
    named = culprit(ranks.readers, engine, found, rank, blame.cause, usual)
    slowest = slowest_lately(ranks.readers[rank].path) if named.cause == "data" else None
    return Straggler(
        rank, named.cause, named.name, named.own_ns, named.others_ns, blame.count, blame.share,
        blame.often, lately, *(slowest or ()),
    )  # fmt: skip


def _one_off(ranks: Ranks, engine: str, found: Compared, at: int) -> OneOff:
    rank = found.ranks[int(found.straggler[at])]
    cause = CAUSES[int(found.cause[at])]
    named = culprit(ranks.readers, engine, found, rank, cause, [at])
    return OneOff(
        rank, int(found.epochs[at]), int(found.keys[at] & ITERATION_MASK), named.cause, named.name,
        int(found.cost[at]), int(found.period[at]),
    )  # fmt: skip


def _notes(ranks: Ranks, rows: tuple[RankRow, ...], world_size: int) -> list[str]:
    notes = []
    if len(rows) < world_size:
        notes.append(f"only {len(rows):,} of {world_size:,} ranks have a journal here")
    unknown = [row for row in rows if row.error_ns is None and row.state != "unreadable"]
    if unknown:
        some = f"rank {unknown[0].rank}" + (f" and {len(unknown) - 1:,} more" * (len(unknown) > 1))
        notes.append(f"{some} not compared: how far the clocks are apart was not measured")
    broken = [row for row in rows if row.trouble]
    if broken:
        more = f" ({len(broken) - 1:,} more like this)" if len(broken) > 1 else ""
        notes.append(f"rank {broken[0].rank}: {broken[0].trouble}{more}")
    every = max((each.every for each in ranks.readers.values()), default=1)
    if every > 1:
        notes.append(f"of so many steps every {every:,}th is compared")
    return notes
