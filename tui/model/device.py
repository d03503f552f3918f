"""Device time of a rank: what the accelerator took for each phase, and how long it was idle."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firetrace.tracer.aligned import aligned
from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import KINDS, Header, Rows
from firetrace.tracer.meta import Meta
from firetrace.tracer.pages import NO_SPAN, Pages
from firetrace.tracer.reader import JournalReader, Numbers
from firetrace.tracer.run import device_journal
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table
from firetrace.tui.model.device_lanes import (
    COPIED,
    PAGE,
    DeviceLane,
    DeviceMark,
    are_phases,
    have_times,
    kinds_of,
    mark_of,
)
from firetrace.tui.model.distribution import Stats
from firetrace.tui.model.idle import Engine, Idle, is_size
from firetrace.tui.model.series import Series, means_of

__all__ = [
    "DeviceLane", "DeviceMark", "DeviceReport", "DeviceSource", "OutOfMemory", "device_report",
]  # fmt: skip

#: How often it is looked for a journal that is not there yet.
LOOK_S = 1.0
EVENT = KINDS.index("event")
#: The scalars of a device journal.
ALLOCATED, RESERVED, PEAK = "memory allocated", "memory reserved", "memory peak"
ABOUT_MEMORY = "ignite.device.memory."
MAIN_THREAD = "MainThread"
#: Rows that are put beside those of the host at a time.
AT_ONCE = 2**14
#: What is kept, or given, at most.
MOST_OPEN, MOST_OOMS, MOST_POINTS = 2_000, 100, 240


@dataclass(frozen=True)
class OutOfMemory:
    """The device's memory was full."""

    time_ns: int  #: Unix ns of the rank's journal
    iteration: int
    allocated: int | None  #: bytes
    message: str


@dataclass(frozen=True)
class DeviceReport:
    """What the main engine's steps take on its device. Times in ns, sizes in bytes."""

    label: str  #: ``cuda:0``; empty: none of its phases was timed
    model: str  #: of the hardware; empty: unknown
    kind: str  #: ``GPU``, or ``device`` where it is not known to be one
    steps: int  #: that have times
    busy_ns: float | None  #: of a step, at least
    step_ns: float | None  #: what a step takes on the device's timeline
    idle: float  #: share of a step's time, 0 to 1, at most
    idle_in: dict[str, float]  #: the same by phase, ``get_batch``, ``handlers``; largest first
    unknown: float  #: share of a step's time that lies in phases which have no device time
    phases: dict[str, Stats]  #: device time; share: of a step
    copied_bytes: float | None  #: in a step
    allocated: int | None  #: the last value, as of the next two
    reserved: int | None
    peak: int | None
    memory: tuple[float, ...]  #: what was allocated, over the run
    ooms: tuple[OutOfMemory, ...]  #: the last ones
    unresolved: int  #: phases of which the times were never known
    untimed: dict[str, int]  #: phases that have no times, by the reason
    error_ns: int | None  #: by which the device's clock may be off the host's


class _Journal:
    """A device journal, as far as it has been read.

    Raises:
        JournalError: it cannot be read.
    """

    def __init__(self, path: Path, rank: Header, idle: Idle) -> None:
        self.stream = Stream(path)
        self._rank, self.idle = rank, idle
        self._pages = Pages(self.stream.reader)
        self.scalars: dict[tuple[str, str], Series] = {}  #: by device and name
        self.ooms: list[tuple[int, int, int]] = []  #: row, time in ns, iteration; the last ones
        self._times: dict[int, dict[int, tuple[int, int]]] = {}  # by lane: as ``DeviceLane`` has it

    @property
    def meta(self) -> Meta:
        """What its meta file says."""
        return self.stream.reader.meta

    @property
    def offset_ns(self) -> int:
        """To the time of the rank's journal."""
        return aligned(self.stream.reader.header, self.meta, self._rank).offset_ns

    @property
    def seen(self) -> tuple[Any, ...]:
        """What is another one when there is something new, besides blocks."""
        numbers = self.stream.reader.numbers
        return self.stream.reader.alive(), len(numbers), int(numbers.max(initial=0))

    def read(self) -> Iterator[bool]:
        """Take in what is new, a block at a time."""
        for block in self.stream.ended():
            self._add(block)
            yield True

    def _add(self, block: Table) -> None:
        phases = are_phases(block.rows, self.meta)
        rows, numbers = block.rows[phases], block.numbers[phases]
        texts = {id: self.meta.names[id].text for id in np.unique(rows["name"]).tolist()}
        copies = self._add_scalars(block.scalars)
        for first in range(0, max(len(rows), len(copies)), AT_ONCE):
            few = slice(first, first + AT_ONCE)
            self.idle.add(rows[few], copies[few], texts, self.offset_ns)
        for lane in np.unique(rows["lane"]).tolist():
            mine = (rows["lane"] == lane) & have_times(rows)
            self._add_times(self._times.setdefault(lane, {}), rows[mine], numbers[mine])
        full = np.flatnonzero(kinds_of(self.meta)[block.rows["name"]] == EVENT)[-MOST_OOMS:]
        found = zip(block.numbers[full].tolist(), block.rows[full].tolist(), strict=True)
        self.ooms += [(number, row[7], row[5]) for number, row in found]
        del self.ooms[:-MOST_OOMS]

    def _add_times(self, known: dict[int, tuple[int, int]], rows: Rows, numbers: Numbers) -> None:
        if not len(rows):
            return
        pages = numbers // PAGE
        edges = np.concatenate([[0], np.flatnonzero(np.diff(pages)) + 1])
        first = np.minimum.reduceat(rows["start"], edges).tolist()
        last = np.maximum.reduceat(rows["end"], edges).tolist()
        for page, start, end in zip(pages[edges].tolist(), first, last, strict=True):
            begun, ended = known.get(page, (start, end))
            known[page] = min(begun, start), max(ended, end)

    def _add_scalars(self, scalars: Rows) -> Rows:
        """Take in what is allocated. Returns those that say how much was copied."""
        values = scalars["end"].copy().view(np.float64)
        use, copies = is_size(values), np.zeros(len(scalars), bool)
        for key in np.unique(scalars["lane"].astype(np.int64) << 16 | scalars["name"]).tolist():
            lane, name = key >> 16, self.meta.names.get(key & 0xFFFF)
            mine = (scalars["lane"] == lane) & (scalars["name"] == key & 0xFFFF) & use
            if name is None or not mine.any():
                continue
            if name.text == COPIED:
                copies |= mine
            elif name.text in (ALLOCATED, RESERVED, PEAK):
                series = self.scalars.setdefault((self.meta.lane(lane).engine, name.text), Series())
                series.add(scalars["start"][mine], values[mine])
        return scalars[copies]

    def open(self) -> Rows:
        """What the device has not reached, as it was queued; some thousands at most."""
        reader = self.stream.reader
        order = np.flatnonzero(reader.rows["end"] == 0)[:MOST_OPEN]
        rows = reader.rows[order[np.argsort(reader.numbers[order])]]
        found: Rows = rows[are_phases(rows, self.meta) & (rows["flags"] & NO_SPAN == 0)]
        return found

    def lanes(self) -> Iterator[DeviceLane]:
        """What each thread did on a device."""
        offset, ahead = self.offset_ns, self.open()
        if self.stream.reader.alive() is False:
            ahead = ahead[:0]
        for lane in sorted({*self._times, *ahead["lane"].tolist()}):
            mine = ahead[ahead["lane"] == lane].tolist()
            yield DeviceLane(
                self._label(lane), lane, dict(self._times.get(lane, {})), self._pages, self.meta,
                offset, tuple(mark_of(self.meta, row, offset) for row in mine),
            )  # fmt: skip

    def _label(self, lane: int) -> str:
        found = self.meta.lane(lane)
        elsewhere = found.thread not in ("", MAIN_THREAD)
        return f"{found.engine} {found.thread}" if elsewhere else found.engine


class DeviceSource:
    """The device journal of a rank, as far as it has been read; perhaps there is none (yet).

    Args:
        journal: the rank's.
        rank: its reader, open; its meta may grow.
    """

    def __init__(self, journal: Path, rank: JournalReader) -> None:
        self._path = device_journal(journal)
        self._rank = rank.header
        self._idle = Idle(rank)
        self._looked = -math.inf
        self._at_work: Iterator[bool] | None = None
        self._seen: tuple[Any, ...] = ()
        self.journal: _Journal | None = None  #: None: there is none

    def read(self, until: float) -> bool:
        """Take in what is new, until a moment of ``time.monotonic``. Whether anything changed."""
        journal = self.journal or self._find()
        if journal is None:
            return False
        changed = self._at_work is not None
        if self._at_work is None:
            self._at_work = journal.read()
        for _ in self._at_work:
            changed = True
            if time.monotonic() > until:
                return True
        self._at_work = None
        before, self._seen = self._seen, journal.seen
        return changed or self._seen != before

    def _find(self) -> _Journal | None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            try:
                self.journal = _Journal(self._path, self._rank, self._idle)
            except JournalError:  # not there, being made, or damaged
                return None
        return self.journal

    @property
    def behind(self) -> bool:
        """Whether there is more that was not read for want of time."""
        return self._at_work is not None

    def lanes(self) -> tuple[DeviceLane, ...]:
        """What each thread did on a device."""
        return tuple(self.journal.lanes()) if self.journal is not None else ()

    def close(self) -> None:
        """Close the journal; its lanes stay readable."""
        if self.journal is not None:
            self.journal.stream.close()


def device_report(source: DeviceSource, lane: int) -> DeviceReport | None:
    """What there is to say; None if nothing was recorded.

    Args:
        source: as far as it has been read.
        lane: of the main engine, in the rank's journal.
    """
    journal = source.journal
    if journal is None:
        return None
    engine, meta = journal.idle.engines.get(lane, Engine()), journal.meta
    lanes = sorted(engine.lanes, key=lambda each: -engine.lanes[each]) or list(meta.lanes)
    label = meta.lane(lanes[0]).engine if lanes else ""
    on_it = {id for id, each in list(meta.lanes.items()) if each.engine == label}
    given_up = 0
    if journal.stream.reader.alive() is False:
        given_up = journal.idle.count(journal.open(), lane)
    steps, whole = engine.steps, engine.time_ns
    idle_in = {
        place: min(1.0, ns / whole)
        for place, ns in sorted(engine.idle_ns.items(), key=lambda pair: -pair[1])
        if whole > 0
    }
    idle = min(1.0, sum(idle_in.values(), 0.0))
    unknown = min(1.0 - idle, engine.unknown_ns / whole) if whole > 0 else 0.0
    phases = sorted(engine.phases.items(), key=lambda pair: -pair[1].total)
    model = meta.resource.get("hw.model")
    untimed: dict[str, int] = {}
    for (at, reason), count in meta.untimed.items():
        if at in on_it:
            untimed[reason] = untimed.get(reason, 0) + count
    course = journal.scalars.get((label, ALLOCATED))
    return DeviceReport(
        label=label,
        model=model if isinstance(model, str) else "",
        kind="GPU" if meta.resource.get("hw.type") == "gpu" else "device",
        steps=steps,
        busy_ns=max(0.0, 1 - idle - unknown) * whole / steps if steps else None,
        step_ns=whole / steps if steps else None,
        idle=idle,
        idle_in=idle_in,
        unknown=unknown,
        phases={text: times.stats(round(whole)) for text, times in phases},
        copied_bytes=engine.copied / engine.copies if engine.copies else None,
        allocated=_last(course),
        reserved=_last(journal.scalars.get((label, RESERVED))),
        peak=_last(journal.scalars.get((label, PEAK))),
        memory=_points(course),
        ooms=tuple(_out_of_memory(journal, *each) for each in journal.ooms),
        unresolved=engine.unresolved + given_up,
        untimed=untimed,
        error_ns=max((each.error_ns for each in meta.anchors if each.lane in on_it), default=None),
    )


def _last(series: Series | None) -> int | None:
    return int(series.last) if series is not None else None


def _points(series: Series | None) -> tuple[float, ...]:
    """The course of what is allocated, for a line."""
    if series is None:
        return ()
    points = series.points()
    each = -(-len(points) // MOST_POINTS)
    if each > 1:
        points = means_of(points[: len(points) // each * each], each)
    return tuple(points.tolist())


def _out_of_memory(journal: _Journal, row: int, time_ns: int, iteration: int) -> OutOfMemory:
    about = journal.meta.attributes.get(row) or {}
    allocated, message = (about.get(f"{ABOUT_MEMORY}{key}") for key in ("allocated", "message"))
    return OutOfMemory(
        time_ns + journal.offset_ns, iteration,
        allocated if type(allocated) is int and allocated >= 0 else None,
        message if isinstance(message, str) else "",
    )  # fmt: skip
