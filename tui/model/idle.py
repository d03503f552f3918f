"""How long a device took for the phases of each engine, and where it was idle; block by block.

A phase's span on the device begins when all that was queued before it was done. If the host was
still in the phase then, the device may have had nothing to do until the host was out of it; and
nothing of the phases from the end of one span until the host began the next phase. Both together
are the most that it can have been idle: kernels shorter than the gaps between their launches count
as idle, and so does what handlers queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import LATEST_NS, Flag, Rows
from firetrace.tracer.reader import JournalReader
from firetrace.tui.model.distribution import Distribution, Ints
from firetrace.tui.model.host_rows import PHASE, RUN, STEP, WAIT, Around, HostRows

#: Where a device is idle, besides in phases.
GET_BATCH, HANDLERS = "get_batch", "handlers"
#: A device that begins a phase so much after the host was busy with what came before.
BUSY_NS = 100_000
Where = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(eq=False)
class Engine:
    """What the phases of one engine took on devices. Times in ns, of all steps together."""

    steps: int = 0
    time_ns: float = 0.0  #: of the steps, on the device's timeline
    idle_ns: dict[str, float] = field(default_factory=dict)  #: at most; by place
    unknown_ns: float = 0.0  #: in phases that have no device time
    phases: dict[str, Distribution] = field(default_factory=dict)  #: that came to their end
    unresolved: int = 0  #: phases whose times were never known
    copied: float = 0.0  #: bytes
    copies: int = 0  #: steps in which something was copied
    lanes: dict[int, int] = field(default_factory=dict)  #: spans, by lane of the device journal
    _place: int = -1  # epoch and iteration of the last span
    _copied_in: int = -1

    def idled(self, place: str, ns: Ints) -> None:
        """The device may have been idle for so long."""
        whole = float(ns.sum(dtype=np.float64))
        if whole > 0:
            self.idle_ns[place] = self.idle_ns.get(place, 0.0) + whole

    def went_through(self, host: Rows) -> None:
        """Spans of these phases, in their order."""
        places = host["epoch"].astype(np.int64) << 32 | host["iteration"]
        self.steps += int(np.count_nonzero(np.diff(places, prepend=self._place)))
        self._place = int(places[-1])

    def copied_in(self, iterations: Ints, sizes: Floats) -> None:
        """So many bytes were copied in these iterations."""
        self.copied += float(sizes.sum())
        self.copies += int(np.count_nonzero(np.diff(iterations, prepend=self._copied_in)))
        self._copied_in = int(iterations[-1])


class _Last(NamedTuple):
    """The last span of a lane."""

    end: int = 0
    left: int = 0  #: when the host was out of it
    usable: bool = False  #: whether it has times and a phase
    engine: int = -1  #: lane of the rank's journal
    epoch: int = 0
    iteration: int = 0


class _Spans:
    """Spans of one lane of the device journal, in their order, beside their phases on the host."""

    def __init__(self, rows: Rows, host: Rows, offset_ns: int, before: _Last) -> None:
        self.rows, self.host = rows, host
        self.start, self.end = rows["start"] + offset_ns, rows["end"] + offset_ns
        known = host["start"] > 0
        settled = (rows["flags"] & Flag.CUT == 0) | (rows["end"] > rows["start"])
        for times in (self.start, self.end, host["end"]):
            settled &= (times > 0) & (times < LATEST_NS)
        self.usable = known & settled
        self.unresolved = host["lane"][known & ~settled]
        self.engine, self.epoch, self.iteration = (
            host[name].astype(np.int64) for name in ("lane", "epoch", "iteration")
        )
        columns = (
            self.end, host["end"], self.usable, self.engine, self.epoch, self.iteration,
        )  # fmt: skip
        #: of each the one before: columns as those of ``_Last``
        self.before = [
            np.concatenate([np.array([first], column.dtype), column[:-1]])
            for first, column in zip(before, columns, strict=True)
        ]
        self.last = _Last(*(column[-1].item() for column in columns))


class Idle:
    """Adds up device spans by the engines whose phases they are of.

    Args:
        rank: reader of the rank's journal, open; its meta may grow.
    """

    def __init__(self, rank: JournalReader) -> None:
        self._host = HostRows(rank)
        self.engines: dict[int, Engine] = {}  #: by lane of the rank's journal
        self._last: dict[int, _Last] = {}  # by lane of the device journal

    def engine(self, lane: int) -> Engine:
        """What is known of an engine."""
        return self.engines.setdefault(lane, Engine())

    def add(self, rows: Rows, copies: Rows, texts: dict[int, str], offset_ns: int) -> None:
        """Take in device spans that have been settled or given up, in the order of their rows.

        Args:
            rows: of the device journal.
            copies: scalars: how many bytes were copied to the device.
            texts: of the rows' names.
            offset_ns: to the time of the rank's journal.
        """
        host, around = self._host.at(np.concatenate([rows["epoch"], copies["epoch"]]))
        self._add_copies(copies, host[len(rows) :])
        for lane in np.unique(rows["lane"]).tolist():
            mine = np.flatnonzero(rows["lane"] == lane)
            spans = _Spans(rows[mine], host[mine], offset_ns, self._last.get(lane, _Last()))
            self._last[lane] = spans.last
            for engine, count in zip(*np.unique(spans.unresolved, return_counts=True), strict=True):
                self.engine(int(engine)).unresolved += int(count)
            for engine in np.unique(spans.engine[spans.usable]).tolist():
                self._add(engine, lane, spans, around, texts)

    def count(self, rows: Rows, lane: int) -> int:
        """How many of these device spans are of an engine's phases."""
        host, _ = self._host.at(rows["epoch"])
        return int(np.count_nonzero((host["lane"] == lane) & (host["start"] > 0)))

    def _add_copies(self, copies: Rows, host: Rows) -> None:
        sizes = copies["end"].copy().view(np.float64)
        use = (host["start"] > 0) & is_size(sizes)
        for lane in np.unique(host["lane"][use]).tolist():
            mine = use & (host["lane"] == lane)
            self.engine(lane).copied_in(copies["iteration"][mine].astype(np.int64), sizes[mine])

    def _add(
        self, lane: int, device: int, spans: _Spans, around: Around, texts: dict[int, str]
    ) -> None:
        engine, mine = self.engine(lane), spans.usable & (spans.engine == lane)
        host, names = spans.host[mine], spans.rows["name"][mine]
        engine.lanes[device] = engine.lanes.get(device, 0) + len(host)
        engine.went_through(host)
        start, end = spans.start[mine], spans.end[mine]
        gaps = _gaps(lane, spans, mine, around)
        engine.time_ns += float(gaps.took.sum(dtype=np.float64))
        engine.unknown_ns += float(gaps.unknown.sum(dtype=np.float64))
        engine.idled(GET_BATCH, gaps.waiting)
        engine.idled(HANDLERS, gaps.other)
        inside = np.maximum(np.minimum(host["end"], end) - gaps.start, 0)
        whole = host["flags"] & (Flag.CUT | Flag.SKIPPED) == 0
        for id in np.unique(names).tolist():
            those, text = names == id, texts[id]
            engine.idled(text, inside[those])
            if (those & whole).any():
                times = engine.phases.setdefault(text, Distribution())
                times.add((end - start)[those & whole])


class _Gaps(NamedTuple):
    """What lies before each of an engine's spans: in it nothing of its phases was on the device."""

    start: Ints  #: of the spans, none of them before the end of the one before
    took: Ints  #: the spans, with what lies before them, in ns; also the three that follow
    waiting: Ints  #: the host waited for data
    unknown: Ints  #: it was in phases that have no device time
    other: Ints


def _gaps(lane: int, spans: _Spans, mine: Where, around: Around) -> _Gaps:
    before, left, usable, engines, epochs, iterations = (each[mine] for each in spans.before)
    start, end, begun = spans.start[mine], spans.end[mine], spans.host["start"][mine]
    waits, phases, runs, whole = (around.of(lane, code) for code in (WAIT, PHASE, RUN, STEP))

    def divided(since: Ints, until: Ints) -> tuple[Ints, Ints, Ints]:
        """A time without device work: waiting, unknown, other."""
        idle = np.maximum(until - since, 0)
        until = since + idle
        waiting = np.minimum(waits.within(since, until), idle)
        unknown = np.minimum(phases.within(since, until), idle - waiting)
        return waiting, unknown, idle - waiting - unknown

    steps = spans.iteration[mine] - iterations
    # With another engine's run in between the device was at work for that.
    own = usable & (engines == lane) & (runs.within(left, np.maximum(left, begun)) == 0)
    inside = (engines == lane) & (spans.epoch[mine] == epochs) & (steps == 0)
    follows = own & (spans.epoch[mine] == epochs) & ((steps == 0) | (steps == 1)) & (end >= before)
    start = np.where(follows, np.maximum(start, before), start)
    until = np.minimum(begun, start)
    # Where it does not follow, a step begins with its wait: if the device had nothing to do after
    # that, then in it neither. And the one before ends with what came after its last phase.
    first = ~follows & ~inside & (start <= begun + BUSY_NS)
    opened, _ = whole.of(until, spans.iteration[mine])
    opened = np.where(usable, np.maximum(opened, before), opened)
    gap = divided(np.where(follows, before, np.where(first, opened, until)), until)
    _, ended = whole.of(before, iterations)
    tail = divided(before, np.where(own & ~follows & ~inside, ended, before))
    both = [one + other for one, other in zip(gap, tail, strict=True)]
    # Between the host's beginning and its own the device was at what handlers had queued.
    queued = np.where(follows, start - np.maximum(until, before), 0)
    return _Gaps(start, end - start + sum(both) + queued, *both)


def is_size(values: Floats) -> Where:
    """Which values can be a number of bytes."""
    with np.errstate(invalid="ignore"):
        return (values >= 0) & (values < 2.0**62)
