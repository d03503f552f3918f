"""The device journal of a rank in a trace: what the device did of each phase, and when.

A lane is a thread below the engines', a phase that was timed a slice of it, and an arrow leads
there from the phase itself. What is allocated, and what was copied, are counters; a moment in which
the memory was full is a mark. A phase whose times are not known is no slice: how many there are,
and why, is said by a mark at the end.

An arrow begins with the phase, and ends with the slice, or where that began first (the clocks are
compared to some us), just after the phase began: see ``firetrace.exporters.chrome.arrows``. A slice
that is over by then, or in which nothing was done, has none. Perfetto (v52) takes one without
duration for the last to begin, also before a longer one that begins together with it; to that the
arrow ends a nanosecond early, and looks for the slice that comes next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.exporters.chrome.arrows import Rank
from firetrace.exporters.chrome.columns import CHUNK, NUMBERED_DEVICE, encoded
from firetrace.exporters.chrome.journal import JournalEvents
from firetrace.exporters.chrome.tracks import Process
from firetrace.exporters.devices import NO_SPAN, is_known
from firetrace.exporters.selection import Kept
from firetrace.tracer.aligned import aligned
from firetrace.tracer.journal import MAX_LANES, Lane, Rows
from firetrace.tracer.stream import blocks
from firetrace.tracer.table import Table

Ints = npt.NDArray[np.int64]
MOST_TRACKS = 4  #: of a lane whose slices overlap
ENDED, NOT_YET = "the process ended before", "not known yet"


class DeviceEvents:
    """Makes the events of one device journal.

    Args:
        path: of the journal.
        process: where it is shown.
        rank: whose phases these are.
        kept: what a selection has kept of the rank's journal; None: all.
    """

    def __init__(self, path: Path, process: Process, rank: Rank, kept: Kept | None) -> None:
        self._path, self._process, self._rank, self._kept = path, process, rank, kept
        self._events = JournalEvents(process, NUMBERED_DEVICE)
        #: by lane: those in which it is shown, each with the end of its last slice
        self._tracks: dict[int, list[list[int]]] = {}
        self._empty: dict[int, int] = {}  #: by lane: the last slice without duration
        self._latest = np.zeros(MAX_LANES, np.int64)  # by lane: the last time of any row
        self._missing: dict[int, Counter[str]] = {}  # by lane and reason: phases without times
        if kept is not None:
            kept.settle()

    @property
    def count(self) -> int:
        """Slices so far."""
        return self._events.count

    @property
    def threads(self) -> int:
        """How many threads the process has by now."""
        return self._events.tracks.threads

    def texts(self, base: int) -> Iterator[bytes]:
        """The events, each after a comma; ``base``: Unix ns, of the trace.

        Raises:
            JournalError: the journal cannot be read.
        """
        for block in blocks(self._path):
            chosen = self._chosen(block)
            kinds = {id: name.kind for id, name in block.names.items()}
            phases, moments = (
                np.isin(chosen.rows["name"], [id for id in kinds if kinds[id] in wanted])
                for wanted in (("device", "copy"), ("event",))
            )
            timed = phases & is_known(chosen.rows)
            self._count(chosen, np.flatnonzero(phases & ~timed))
            slices = self._apart(_part(chosen, np.flatnonzero(timed)))
            yield from self._events.of(slices, base)
            for first in range(0, len(slices), CHUNK):
                yield encoded(self._arrows(_part(slices, slice(first, first + CHUNK)), base))
            yield encoded(self._marks(_part(chosen, np.flatnonzero(moments)), base))
        yield from self._events.rest(block, base)
        yield encoded(self._not_timed(block, base))

    def _chosen(self, block: Table) -> Table:
        """What of a block is to be shown."""
        if self._kept is None:
            return block
        rank = self._rank.reader.header
        shift_ns = aligned(block.header, block.meta, rank).offset_ns
        chosen = _part(block, np.flatnonzero(self._kept.rows(block.rows, shift_ns)))
        return replace(chosen, scalars=block.scalars[self._kept.rows(block.scalars, shift_ns)])

    def _apart(self, table: Table) -> Table:
        """The slices, those that overlap in a lane in lanes of their own.

        Steps in several streams do; Perfetto would take them for nested, or not at all.
        """
        rows = table.rows.copy()
        for lane in np.unique(rows["lane"]).tolist():
            here = np.flatnonzero(rows["lane"] == lane)
            tracks = self._tracks.setdefault(lane, [[lane, 0]])
            starts, ends = rows["start"][here], rows["end"][here]
            before = np.maximum.accumulate(np.append(tracks[0][1], ends))
            if (starts >= before[:-1]).all():
                tracks[0][1] = int(before[-1])
                continue
            for at, start, end in zip(here.tolist(), starts.tolist(), ends.tolist(), strict=True):
                free = [each for each in tracks if each[1] <= start]
                track = max(free, key=lambda each: each[1], default=None)
                track = track or self._another(table, lane, tracks)
                begin = max(start, track[1])  # later than it was where there are too many
                track[1] = max(begin, end)
                rows[at]["lane"], rows[at]["start"], rows[at]["end"] = track[0], begin, track[1]
        np.maximum.at(self._latest, rows["lane"], rows["end"])
        return replace(table, rows=rows)

    def _another(self, table: Table, lane: int, tracks: list[list[int]]) -> list[int]:
        """One more lane for what overlaps: from the last number down, which no device has."""
        own = MAX_LANES - 1 - sum(len(each) - 1 for each in self._tracks.values())
        lanes = table.meta.lanes
        if len(tracks) == MOST_TRACKS or own in lanes:
            return min(tracks, key=lambda each: each[1])
        found = table.lane_of(lane)
        lanes[own] = Lane(f"{found.engine} #{len(tracks) + 1}", found.thread, found.thread_id)
        tracks.append([own, 0])
        return tracks[-1]

    def _arrows(self, slices: Table, base: int) -> str:
        """From each phase to its slice."""
        hosts, which = np.unique(slices.rows["epoch"], return_inverse=True)
        phases, there = self._rank.reader.rows_at(hosts)
        there &= self._are_phases(phases, hosts)
        clock, tids, process = self._process.clock, self._rank.tids, self._process
        begins = self._rank.clock.times(phases["start"])[which]
        starts, ends = clock.times(slices.rows["start"]), clock.times(slices.rows["end"])
        at = np.maximum(starts, begins + 1)
        early = self._with_empty(slices.rows)
        at[early] = starts[early] - 1
        shown = there[which] & (begins >= base) & (starts > base) & (at < ends) & (at > begins)
        shown &= starts < ends
        lanes, own = phases["lane"][which], self._events.tracks.tids
        lines = []
        for number, begin, end, lane, to, is_early in zip(
            (slices.numbers[shown] + np.int64(process.flow)).tolist(),
            (begins[shown] - base).tolist(), (at[shown] - base).tolist(),
            tids[lanes[shown]].tolist(), own[slices.rows["lane"][shown]].tolist(),
            early[shown].tolist(), strict=True,
        ):  # fmt: skip
            if not lane:  # of no engine that is shown
                continue
            rest = f'"cat":"device","name":"on the device","id":{number}}}'
            for phase, time, tid in (("s", begin, lane), ("f", end, to)):
                micro, nano = divmod(time, 1000)
                bind = '"bp":"e",' if phase == "f" and not is_early else ""
                lines.append(
                    f',\n{{"ph":"{phase}","ts":{micro}.{nano:03},"pid":{process.pid},'
                    f'"tid":{tid.decode()},{bind}{rest}'
                )
        return "".join(lines)

    def _with_empty(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which slices begin together with one that has no duration."""
        empty = rows["start"] == rows["end"]
        found = np.zeros(len(rows), bool)
        for lane in np.unique(rows["lane"]).tolist():
            here = rows["lane"] == lane
            starts = np.append(rows["start"][here & empty], self._empty.get(lane, -1))
            found |= here & ~empty & np.isin(rows["start"], starts)
            self._empty[lane] = int(starts.max())
        return found

    def _are_phases(self, rows: Rows, numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which rows of the rank's journal are phases that are shown."""
        names = self._rank.reader.meta.names
        ids = [id for id, name in names.items() if name.kind == "phase"]
        fine = np.isin(rows["name"], ids) & (rows["flags"] & NO_SPAN == 0)
        fine &= (rows["start"] > 0) & (rows["parent"] < numbers)
        mask: npt.NDArray[np.bool_] = fine & ((rows["end"] == 0) | (rows["end"] >= rows["start"]))
        return mask

    def _marks(self, moments: Table, base: int) -> str:
        """The moments in which something happened, with what was noted of them."""
        tracks, lines = self._events.tracks, []
        times = self._process.clock.times(moments.rows["start"])
        noted = moments.meta.attributes.of(moments.numbers)
        for index in np.flatnonzero(times >= base).tolist():
            row, number = moments.rows[index], int(moments.numbers[index])
            more: dict[str, Any] = {"row": number, "iteration": int(row["iteration"])}
            more |= noted.get(number, {})
            tid = int(tracks.tids[row["lane"]])
            name = moments.name(index).text
            lines.append(tracks.mark(int(times[index]) - base, tid, name, more))
        return "".join(lines)

    def _count(self, table: Table, positions: Ints) -> None:
        """Take note of the phases whose times are not known."""
        reasons = table.meta.reasons.of(table.numbers)
        otherwise = NOT_YET if table.alive else ENDED
        for at in positions.tolist():
            row = table.rows[at]
            reason = reasons.get(int(table.numbers[at]), otherwise)
            self._missing.setdefault(int(row["lane"]), Counter())[reason] += 1
            self._latest[row["lane"]] = max(self._latest[row["lane"]], row["start"])

    def _not_timed(self, block: Table, base: int) -> str:
        """Of each lane how many phases have no slice."""
        if self._kept is None:
            for (lane, reason), count in block.meta.untimed.items():
                self._missing.setdefault(lane, Counter())[reason] += count
        tracks, lines = self._events.tracks, []
        times = self._process.clock.times(self._latest)
        for lane, reasons in sorted(self._missing.items()):
            count, tid = reasons.total(), tracks.tids[lane]
            if tid and times[lane] >= base:
                name = f"{count:,} phase{'s' * (count > 1)} without device time"
                lines.append(tracks.mark(int(times[lane]) - base, int(tid), name, {**reasons}))
        return "".join(lines)


def _part(table: Table, at: Ints | slice) -> Table:
    """The spans of a table at some places; of the scalars all."""
    return replace(table, rows=table.rows[at], numbers=table.numbers[at])
