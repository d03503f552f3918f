"""What a Chrome trace has beside spans and counters: names and order of tracks, arrows, marks.

An arrow (Perfetto's flow) leads from where one engine starts another to the run that it starts. A
mark (an instant) is an exception, or why a run or an epoch ended early. What is remembered from
block to block is bounded: the spans that enclose a lane's last one, and some numbers a lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.exporters.chrome.columns import as_json
from firetrace.exporters.chrome.values import safe, shown
from firetrace.exporters.clocks import Clock
from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import MAX_LANES, MAX_NAMES, Flag, Lane, Name
from firetrace.tracer.meta import Meta
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import is_data, is_device, rank_of
from firetrace.tracer.table import Table

FAILED = int(Flag.ERROR | Flag.CUT)
MAIN = "MainThread"
#: Events of ignite's that end a run or an epoch early, and why that is cut then.
ENDINGS = {"TERMINATE": "terminate", "TERMINATE_SINGLE_EPOCH": "terminate_epoch"}
MARK = "mark"  #: the category of instants, to tell them from spans, which Perfetto calls slices too
#: Perfetto orders threads by their tids and shows these. Those of two ranks are never the same, and
#: none is its process's pid, which would make it the main thread.
TIDS_A_PROCESS = 1000
RUNS_LOOKED_AT = 1000  #: for which engine starts which
MOST_AROUND = 10_000  #: far more than are ever open; for a journal that is not what it should be


class Kinds:
    """What rows are, by name id, as far as tracks want to know."""

    NONE, RUN, EPOCH, STEP, GET_BATCH, ENDING = range(6)

    def __init__(self) -> None:
        self._codes = np.zeros(MAX_NAMES, np.uint8)
        self._count = -1

    def of(self, table: Table) -> npt.NDArray[np.uint8]:
        """One of the codes above for each span."""
        names = table.meta.names
        if len(names) != self._count:
            self._count = len(names)
            for id, name in names.items():
                self._codes[id] = self._code(name)
        codes: npt.NDArray[np.uint8] = self._codes[table.rows["name"]]
        return codes

    def _code(self, name: Name) -> int:
        if name.kind in ("run", "epoch", "step"):
            return (self.RUN, self.EPOCH, self.STEP)[("run", "epoch", "step").index(name.kind)]
        if (name.kind, name.text) == ("phase", "get_batch"):
            return self.GET_BATCH
        ends = name.kind == "event" and name.text in ENDINGS
        return self.ENDING if ends else self.NONE


def line(phase: str, pid: int, at_ns: int | None = None, **fields: Any) -> str:
    """An event, after a comma. A time is ns, written as microseconds with three decimals."""
    time, rest = "", as_json({"pid": pid, **fields})
    if at_ns is not None:
        micro, nano = divmod(at_ns, 1000)
        time = f'"ts":{micro}.{nano:03},'
    return f',\n{{"ph":"{phase}",{time}{rest[1:]}'


def label(lane: Lane) -> str:
    """What a lane's track is called: its engine, and its thread where that is not the main one."""
    return safe(lane.engine if lane.thread == MAIN else f"{lane.engine} ({lane.thread})")


@dataclass(frozen=True)
class Process:
    """Where a journal is shown. Of a trace of one journal that follows from its rank."""

    pid: int
    name: str = ""  #: "": it has been named, as the process of another journal
    order: int = 0  #: from top to bottom
    tid: int = 0  #: of its first thread; the next ones have the next ones
    threads: int = 0  #: that the process has already
    flow: int = 0  #: to be added to row numbers for the ids of arrows
    clock: Clock = field(default_factory=Clock)

    @classmethod
    def alone(cls, table: Table) -> Process:
        """Of a trace of this journal alone."""
        rank = rank_of(table.path) or 0
        pid = rank + 1  # Perfetto takes process 0 for the idle task
        return cls(
            pid, f"rank {rank} {run_of(table.meta, table.path)}", rank, pid * TIDS_A_PROCESS + 1
        )

    def head(self) -> str:
        """Its name and place."""
        if not self.name:
            return ""
        name = line("M", self.pid, tid=0, name="process_name", args={"name": safe(self.name)})
        order = {"sort_index": self.order}
        return name + line("M", self.pid, tid=0, name="process_sort_index", args=order)


def run_of(meta: Meta, path: Path) -> str:
    """What a journal's run is called."""
    return str(meta.resource.get("ignite.run.id") or path.parent.name)


class Tracks:
    """The names of the tracks, and what lies on them that is no span.

    Args:
        process: where they are shown.
        kinds: what rows are.
    """

    def __init__(self, process: Process, kinds: Kinds) -> None:
        self._process, self._pid, self._kinds = process, process.pid, kinds
        self.tids = np.zeros(MAX_LANES, "S10")  #: of each lane that has been named, as text
        self._named: dict[int, int] = {}  # lanes and their tids
        self._around: dict[int, tuple[int, int, int]] = {}  # row: its lane, start and end
        self._last_start: dict[int, int] = {}  # of each lane
        self._marked: dict[tuple[int, str], int] = {}  # by lane and reason: the last run or epoch
        self._last_ns = 0

    @property
    def threads(self) -> int:
        """How many threads the process has by now."""
        return self._process.threads + len(self._named)

    def names(self, table: Table) -> str:
        """The names of the lanes that have come since the last call."""
        used = np.bincount(table.rows["lane"], minlength=1)
        used_by_scalars = np.unique(table.scalars["lane"])
        lanes = {*table.meta.lanes, *np.flatnonzero(used).tolist(), *used_by_scalars.tolist()}
        lines = []
        if not lanes <= self._named.keys():
            for lane in order_of_lanes(table, lanes):
                if lane not in self._named:
                    place = self.threads
                    tid = self._named[lane] = self._process.tid + place
                    self.tids[lane] = b"%d" % tid
                    name, index = {"name": label(table.lane_of(lane))}, {"sort_index": place}
                    for what, args in (("thread_name", name), ("thread_sort_index", index)):
                        lines.append(line("M", self._pid, tid=tid, name=what, args=args))
        return "".join(lines)

    def tail(self, table: Table, base: int) -> str:
        """What is known at the end: what became of the recording."""
        lines, meta = [], table.meta
        what, of_what = "batch" if is_data(table.path) else "step", "firetrace stopped recording"
        if is_device(table.path):
            what, of_what = "step with device time", "no device time is recorded any more"
        for each in meta.thinned:
            time, every = self._process.clock.time(each["time"]), each["every"]
            if base <= time <= self._last_ns:
                name = f"from here on one {what} in {every} is recorded"
                lines.append(self.mark(time - base, 0, name, scope="p"))
        if meta.stopped is not None and self._last_ns:
            name = f"{of_what}: {meta.stopped}"
            lines.append(self.mark(self._last_ns - base, 0, name, scope="p"))
        return "".join(lines)

    def beside(self, table: Table, base: int) -> str:
        """The arrows and marks that belong to a block of spans."""
        rows = table.rows
        if not len(rows):
            return ""
        codes = self._kinds.of(table)
        ended = rows["end"][rows["end"] != 0]
        self._last_ns = max(self._last_ns, int(rows["start"].max()), int(ended.max(initial=0)))
        text = self._arrows(table, np.flatnonzero(codes == Kinds.RUN), base)
        text += self._marks(table, codes, base)
        self._remember(table)
        return text

    def _arrows(self, table: Table, runs: npt.NDArray[np.int64], base: int) -> str:
        lines: list[str] = []
        rows = table.rows
        for number, row in zip(table.numbers[runs].tolist(), rows[runs].tolist(), strict=True):
            parent, _, lane, *_, start = row
            found = self._place_of(table, parent)
            if found is None or found[0] == lane:
                continue
            source = found[0], found[1] - base, found[2]
            lines += self._arrow(number, source, table, lane, start - base)
        return "".join(lines)

    def _place_of(self, table: Table, number: int) -> tuple[int, int, int] | None:
        """The lane, start and end of a row of this block, or of one around its first spans."""
        at = int(np.searchsorted(table.numbers, np.uint32(number)))  # an int would copy them all
        if at < len(table.numbers) and table.numbers[at] == number:
            row = table.rows[at]
            return int(row["lane"]), int(row["start"]), int(row["end"])
        return self._around.get(number)

    def _arrow(
        self, number: int, source: tuple[int, int, int], table: Table, lane: int, start: int
    ) -> Iterator[str]:
        """From a mark in the innermost span there is at a time in one lane to a run in another.

        Perfetto draws an arrow from where a slice ends, so one from the span itself would lead
        back in time. The run's first event may begin with it, and would be what encloses an end
        there. So the arrow is one ns early, and its end looks for the slice that comes next.
        """
        early = source[1] < start and start > 0
        name = {"cat": "run", "name": "starts", "id": number + self._process.flow}
        at, tid = start - early, self._named[source[0]]
        yield self.mark(at, tid, f"starts {table.lane_of(lane).engine}", {"run": number})
        yield line("s", self._pid, at, tid=tid, **name)
        bind = {} if early else {"bp": "e"}
        yield line("f", self._pid, at, tid=self._named[lane], **bind, **name)

    def _marks(self, table: Table, codes: npt.NDArray[np.uint8], base: int) -> str:
        rows, meta, lines = table.rows, table.meta, list[str]()
        outer = (codes == Kinds.RUN) | (codes == Kinds.EPOCH)
        wanted = ((rows["flags"] & FAILED) != 0) | (rows["end"] == 0) | outer
        wanted |= codes == Kinds.ENDING
        positions = np.flatnonzero(wanted)
        exceptions = meta.exceptions.of(table.numbers)
        for number, row, code in zip(
            table.numbers[positions].tolist(), rows[positions].tolist(),
            codes[positions].tolist(), strict=True,
        ):  # fmt: skip
            parent, name, lane, flags, _, _, end, start = row
            exception = exceptions.get(number)
            if exception is not None:
                lines.append(self._exception(exception, number, lane, end or start, base))
            reason, of, when = "", number, end
            if code in (Kinds.RUN, Kinds.EPOCH) and flags & Flag.CUT and end:
                reason = meta.reasons.get(number, "cut short")
                of = parent if code == Kinds.EPOCH and reason != "terminate_epoch" else number
            elif code == Kinds.ENDING:
                reason, of, when = ENDINGS[meta.names[name].text], parent, start
            # It cuts a run and its epoch, and may have an event of its own: one mark for all.
            if not reason or reason == "exception" or self._marked.get((lane, reason)) == of:
                continue
            self._marked[lane, reason] = of
            if when >= base:
                lines.append(self.mark(when - base, self._named[lane], reason))
        return "".join(lines)

    def _exception(
        self, exception: dict[str, Any], number: int, lane: int, otherwise: int, base: int
    ) -> str:
        when = otherwise
        if type(time := exception.get("time")) is int and 0 < time < 2**63:
            when = max(self._process.clock.time(time), 0)
        when = when if base <= when < 2**63 else otherwise
        kind, message = (str(exception.get(f"exception.{key}", "")) for key in ("type", "message"))
        more = {"row": number, "exception.type": kind, "exception.message": message}
        return self.mark(when - base, self._named[lane], kind or "exception", more)

    def mark(
        self, at_ns: int, tid: int, name: str, more: dict[str, Any] | None = None, scope: str = "t"
    ) -> str:  # fmt: skip
        """A mark at a time of the trace, ns, on the track of a thread; of none with scope ``p``."""
        args = {} if more is None else {"args": shown(more)}
        return line("i", self._pid, at_ns, tid=tid, s=scope, cat=MARK, name=safe(name), **args)

    def _remember(self, table: Table) -> None:
        """Keep the spans that later ones may lie in: those that last beyond their lane's last."""
        rows = table.rows
        last = np.zeros(256, np.int64)
        for lane, start in self._last_start.items():
            last[lane] = start
        np.maximum.at(last, rows["lane"], rows["start"])
        for lane in np.unique(rows["lane"]).tolist():
            self._last_start[lane] = int(last[lane])
        stay = np.flatnonzero((rows["end"] == 0) | (rows["end"] >= last[rows["lane"]]))
        kept = {
            number: place
            for number, place in self._around.items()
            if not place[2] or place[2] >= last[place[0]]
        }
        stay = stay[-MOST_AROUND:]
        for number, row in zip(table.numbers[stay].tolist(), rows[stay].tolist(), strict=True):
            kept[number] = row[2], row[7], row[6]
        self._around = dict(islice(kept.items(), max(0, len(kept) - MOST_AROUND), None))


def order_of_lanes(table: Table, lanes: set[int]) -> list[int]:
    """The lanes from top to bottom: an engine, below it those that it starts; then other threads.

    Which engine starts which is looked up in the journal, because a validation may come first and
    be an evaluator's only later; where there is no journal any more, lanes are as they came.
    """
    under = _started_by(table)
    threads: dict[tuple[str, int], int] = {}
    for lane in sorted(lanes):
        found = table.lane_of(lane)
        threads.setdefault((found.thread, found.thread_id), len(threads))

    def place(lane: int) -> tuple[int, int]:
        found = table.lane_of(lane)
        return threads[found.thread, found.thread_id], lane

    below: dict[int, list[int]] = {}
    for lane in sorted(lanes, key=place, reverse=True):
        below.setdefault(under.get(lane, -1), []).append(lane)
    order: dict[int, None] = {}
    waiting = below.get(-1, [])
    while waiting:
        lane = waiting.pop()
        order[lane] = None
        waiting += below.get(lane, [])
    return [*order, *sorted(lanes - order.keys(), key=place)]  # in a circle, or under no lane


def _started_by(table: Table) -> dict[int, int]:
    """Of a lane whose engine is started by one in another lane: that lane."""
    under: dict[int, int] = {}
    try:
        with JournalReader(table.path) as reader:
            if reader.header.seed != table.header.seed:
                return under
            for number in islice(table.meta.runs, RUNS_LOOKED_AT):
                row = reader.row(number)
                parent = None if row is None else reader.row(int(row["parent"]))
                if row is not None and parent is not None and row["lane"] != parent["lane"]:
                    under.setdefault(int(row["lane"]), int(parent["lane"]))
    except (JournalError, OSError):
        return under
    return under
