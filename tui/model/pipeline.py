"""How batches are made: what takes the workers' time, and how many of them would be enough.

A worker's time goes to its transforms, each less what it calls in turn. If one batch takes a
worker ``make`` and the training ``use``, then ``make / use`` workers make them as fast as they are
used; fewer make it wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firetrace.tracer.aligned import Alignment, aligned
from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import Flag, Header, Name
from firetrace.tracer.meta import Loading, Meta
from firetrace.tracer.pages import Pages
from firetrace.tracer.passes import consumers
from firetrace.tracer.run import data_journals
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import UNKNOWN as LOST
from firetrace.tracer.table import Ints, Table, places
from firetrace.tui.format import duration
from firetrace.tui.model.columns import Spans
from firetrace.tui.model.distribution import Distribution, Stats
from firetrace.tui.model.workers import Mark, Part, Worker

#: How often it is looked for workers that are new.
LOOK_S = 1.0
#: Journals that are read: more workers than any loader has.
MOST_JOURNALS = 256
#: A wait that is a smaller part of a step than this needs no cure.
WORTH_IT = 0.05
MOST_OPEN = 64
UNTOLD = -1  # a pass of which nobody is known to use anything


@dataclass(frozen=True)
class Made:
    """How often something was made, and what that took the workers."""

    kind: str  #: transform, collate, sample or batch
    stats: Stats  #: of whole calls; share: of the workers' time, less what was called in them
    own_ns: int  #: in all, less what was called in them


@dataclass(frozen=True)
class DataReport:
    """How the batches of the main engine are made. Times in ns."""

    workers: int  #: of the loader; 0: the training makes them itself
    processors: int | None  #: that the training may use
    batches: int
    samples: int
    busy_ns: int  #: in all batches
    make_ns: float | None  #: what a batch takes its worker
    use_ns: float | None  #: what a step takes without waiting for one
    wait_ns: float | None  #: what a step waits
    needed: int | None  #: workers that make batches as fast as they are used
    made: dict[str, Made]  #: by name, what takes most first
    advice: str  #: in a few words; empty: there is nothing to win
    why: tuple[str, ...]  #: the arithmetic, a line each

    @property
    def slowest(self) -> tuple[str, float] | None:
        """What takes most of the workers' time, and its share."""
        parts = [(n, m) for n, m in self.made.items() if m.kind in ("transform", "collate")]
        if not parts or not self.busy_ns:
            return None
        name, made = max(parts, key=lambda pair: pair[1].own_ns)
        return name, made.stats.share


@dataclass(eq=False)
class _Sum:
    """Spans of one name that one engine's batches are made of."""

    name: Name
    times: Distribution = field(default_factory=Distribution)
    own_ns: int = 0


class DataSource:
    """One data journal, as far as it has been read.

    Raises:
        JournalError: it cannot be read.
    """

    def __init__(self, path: Path, rank: Header, rank_meta: Meta) -> None:
        self.path = path
        self.stream = Stream(path)
        self._rank, self._rank_meta = rank, rank_meta
        self.sums: dict[tuple[int, int], _Sum] = {}  #: by consuming lane and name
        self.batches: dict[int, Spans] = {}  #: by lane of the journal, for the waterfall
        self.newest_ns = 0
        self._consumers: dict[int, Loading] = {}
        self._known = (-1, -1)  # passes and loadings of which the consumers are known
        self._pages = Pages(self.stream.reader)
        self._inside: dict[int, list[Mark]] = {}

    @property
    def meta(self) -> Meta:
        """What its meta file says."""
        return self.stream.reader.meta

    @property
    def alignment(self) -> Alignment:
        """To the rank's journal."""
        return aligned(self.stream.reader.header, self.meta, self._rank)

    def consumers(self) -> dict[int, Loading]:
        """Who uses the batches of each pass."""
        known = len(self.meta.passes), len(self._rank_meta.loadings)
        if known != self._known:
            self._known = known
            self._consumers = consumers(self._rank_meta, self.meta, self.alignment.offset_ns)
        return self._consumers

    def read(self) -> Iterator[bool]:
        """Take in what is new, a block at a time."""
        for block in self.stream.ended():
            if len(block):
                self._add(block)
            yield True

    def _lanes_of(self, passes: npt.NDArray[np.uint32]) -> Ints:
        found, which = np.unique(passes, return_inverse=True)
        of = self.consumers()
        lanes = [of[each].lane if each in of else UNTOLD for each in found.tolist()]
        return np.array(lanes, np.int64)[which]

    def _add(self, block: Table) -> None:
        rows, numbers = block.rows, block.numbers
        took = rows["end"] - rows["start"]
        self.newest_ns = max(self.newest_ns, int(rows["end"].max()))
        above = places(numbers, rows["parent"])
        here = above >= 0
        inside = np.bincount(above[here], took[here], len(rows)).astype(np.int64)
        lanes = self._lanes_of(rows["epoch"])
        whole = rows["flags"] & Flag.CUT == 0
        keys = (lanes + 1) << 16 | rows["name"]
        for key in np.unique(keys).tolist():
            mine = np.flatnonzero(keys == key)
            found = self._sum(key)
            found.times.add(took[mine[whole[mine]]])
            found.own_ns += int((took[mine] - inside[mine]).sum())
            if found.name.kind == "batch":
                for lane in np.unique(rows["lane"][mine]).tolist():
                    own = mine[rows["lane"][mine] == lane]
                    self.batches.setdefault(lane, Spans()).append(rows[own], numbers[own])
        # What is not in this block ends in a later one, and has its time in full there.
        for at in np.flatnonzero(~here & (rows["parent"] != 0)).tolist():
            parent = self.stream.reader.row(int(rows["parent"][at]))
            if parent is not None:
                lane = int(lanes[at]) + 1
                self._sum(lane << 16 | int(parent["name"])).own_ns -= int(took[at])

    def _sum(self, key: int) -> _Sum:
        lane, id = (key >> 16) - 1, key & 0xFFFF
        found = self.sums.get((lane, id))
        if found is None:
            name = self.meta.names.get(id, LOST)
            found = self.sums[lane, id] = _Sum(name)
        return found

    def parts(self) -> Iterator[tuple[str, Part]]:
        """What it has of each worker, by the names of their lanes."""
        offset, used_by = self.alignment.offset_ns, self.consumers()
        for lane, batches in list(self.batches.items()):
            part = Part(batches, self._pages, self.meta.names, offset, self._inside, used_by)
            yield self.meta.lane(lane).engine, part

    def open(self) -> Iterator[tuple[str, Mark]]:
        """What is open, outermost first, by the names of its lanes."""
        reader, offset = self.stream.reader, self.alignment.offset_ns
        if reader.alive() is False:
            return
        running = np.flatnonzero(reader.rows["end"] == 0)[:MOST_OPEN]
        for row in reader.rows[running][np.argsort(reader.numbers[running])].tolist():
            name = self.meta.names.get(row[1], LOST)
            yield self.meta.lane(row[2]).engine, Mark(name.kind, name.text, row[7] + offset, 0)

    def close(self) -> None:
        """Close the file."""
        self.stream.close()


class DataSources:
    """All data journals of a rank's.

    Args:
        journal: the rank's.
        header: of the rank's journal.
        meta: of the rank's journal; may grow.
    """

    def __init__(self, journal: Path, header: Header, meta: Meta) -> None:
        self._journal, self._header, self.meta = journal, header, meta
        self.all: dict[Path, DataSource] = {}
        self._looked = -LOOK_S
        self._at_work: Iterator[bool] | None = None
        self._alive: list[bool | None] = []  # of each, whether its writer lives

    def read(self, until: float) -> bool:
        """Take in what is new, until a moment of ``time.monotonic``. Whether anything changed."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._find()
        changed = self._at_work is not None
        alive = [source.stream.reader.alive() for source in self.all.values()]
        if alive != self._alive:  # what a worker had open when it died is not open any more
            self._alive, changed = alive, True
        if self._at_work is None:
            self._at_work = self._blocks()
        for _ in self._at_work:
            changed = True
            if time.monotonic() > until:
                return True
        self._at_work = None
        return changed

    @property
    def behind(self) -> bool:
        """Whether there is more that was not read for want of time."""
        return self._at_work is not None

    def workers(self) -> tuple[Worker, ...]:
        """Everyone who makes batches; those of a loader's first."""
        parts: dict[str, list[Part]] = {}
        at_work: dict[str, list[Mark]] = {}
        for source in list(self.all.values()):
            for label, part in source.parts():
                parts.setdefault(label, []).append(part)
            for label, mark in source.open():
                at_work.setdefault(label, []).append(mark)
        labels = sorted({*parts, *at_work}, key=lambda label: (-len(label.split()), label))
        return tuple(
            Worker(label, tuple(parts.get(label, ())), tuple(at_work.get(label, ())))
            for label in labels
        )

    def _blocks(self) -> Iterator[bool]:
        for source in list(self.all.values()):
            yield from source.read()

    def _find(self) -> None:
        for path in data_journals(self._journal)[:MOST_JOURNALS]:
            if path not in self.all:
                try:
                    self.all[path] = DataSource(path, self._header, self.meta)
                except JournalError:  # being made, or damaged
                    continue

    def close(self) -> None:
        """Close the files."""
        for source in self.all.values():
            source.close()
        self.all = {}


def data_report(
    sources: DataSources, lane: int, steps: int, step_ns: int, wait_ns: int
) -> DataReport | None:
    """What there is to say; None if nothing was recorded.

    Args:
        sources: as far as they have been read.
        lane: of the main engine, in the rank's journal.
        steps: how many it has completed.
        step_ns: what they took in all.
        wait_ns: and waited for data, of that.
    """
    found = list(sources.all.values())
    if not found:
        return None
    names: dict[str, tuple[str, list[_Sum]]] = {}
    for source in found:
        for (used_by, _), each in list(source.sums.items()):
            if used_by == lane:
                names.setdefault(each.name.text, (each.name.kind, []))[1].append(each)
    batch = names.get("batch", ("", []))[1]
    busy = sum(each.times.total for each in batch)
    batches = sum(each.times.count for each in batch)
    made = {}
    for text, (kind, sums) in names.items():
        times = Distribution.merged([each.times for each in sums])
        if times.count:
            own = sum(each.own_ns for each in sums)
            share = min(1.0, max(0.0, own / busy)) if busy else 0.0
            made[text] = Made(kind, _with_share(times, share), own)
    made = dict(sorted(made.items(), key=lambda pair: -pair[1].own_ns))
    passes = [
        each for source in found for each in list(source.meta.passes.values())
        if (of := source.consumers().get(each.id)) is not None and of.lane == lane
    ]  # fmt: skip
    workers = max(passes, key=lambda each: each.time_ns).workers if passes else 0
    processors = sources.meta.resource.get("process.cpu.count")
    samples = sum(each.times.count for each in names.get("sample", ("", []))[1])
    return _advised(
        DataReport(
            workers, processors if isinstance(processors, int) else None, batches, samples, busy,
            busy / batches if batches else None,
            (step_ns - wait_ns) / steps if steps else None,
            wait_ns / steps if steps else None, None, made, "", (),
        )
    )  # fmt: skip


def _with_share(times: Distribution, share: float) -> Stats:
    found = times.stats(0)
    return Stats(
        found.count, found.total_ns, found.p50_ns, found.p95_ns, found.p99_ns, found.max_ns,
        share, found.drift,
    )  # fmt: skip


def _advised(found: DataReport) -> DataReport:
    """With what to do, and the arithmetic of it."""
    make, use, wait = found.make_ns, found.use_ns, found.wait_ns
    if make is None or use is None or wait is None:
        return found
    now = found.workers
    needed = max(1, math.ceil(make / use)) if use > 0 else 1
    why = [
        f"a batch takes {_who(now)} {_short(make)}: {found.batches:,} batches in "
        f"{duration(found.busy_ns)} of work",
        f"a step takes {_short(use)} without waiting, and waits {_short(wait)}",
    ]
    if now:
        why.append(f"{now} workers make a batch every {_short(make / now)}")
    why.append(
        f"to make one every {_short(use)} takes {_short(make)} / {_short(use)} = "
        f"{make / use if use > 0 else math.inf:.1f}, so {needed} {_workers(needed)}"
    )
    advice = ""
    if wait >= WORTH_IT * (use + wait):
        if not now:
            advice = f"num_workers={needed} would hide it"
        elif needed > now:
            advice = f"{needed} workers instead of {now} would hide it"
        else:
            advice = f"{now} workers are enough on average"
            why.append(
                "what is waited for all the same is workers that start (persistent_workers=True "
                "keeps them) or batches that take much longer than others (prefetch_factor)"
            )
        if found.processors is not None and needed > max(now, found.processors):
            more = f"the training may use {found.processors} processors: more workers than that"
            why.append(f"{more} help only where they wait themselves, for a disk for example")
            advice += f", but there are {found.processors} processors"
    return DataReport(**{**vars(found), "needed": needed, "advice": advice, "why": tuple(why)})


def _who(workers: int) -> str:
    return "a worker" if workers else "the training itself"


def _workers(count: int) -> str:
    return "worker" if count == 1 else "workers"


def _short(ns: float) -> str:
    return duration(round(ns))
