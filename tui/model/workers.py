"""Which batches each worker was making at a time, and what in them: lanes below the waterfall."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.journal import Name
from firetrace.tracer.meta import Loading
from firetrace.tracer.pages import Pages
from firetrace.tracer.reader import JournalReader, Position
from firetrace.tracer.run import data_journals
from firetrace.tracer.table import UNKNOWN as LOST
from firetrace.tui.model.columns import Spans

#: Batches of a lane of which the inside is shown; of more it could not be told apart.
MOST_INSIDE = 12
#: Kinds of spans in which batches are made.
MADE = ("transform", "collate")
Times = dict[str, int]
#: Windows at the ends of data journals that tell what is slow lately.
LATELY = 8
MOST_BATCHES, MOST_SPANS, MOST_KEPT = 200, 2_000, 2_000


class Mark(NamedTuple):
    """A span in a lane. Times in Unix ns of the rank's journal; ``end_ns`` is 0 while open."""

    kind: str
    text: str  #: raw text of the trace: not safe to print
    start_ns: int
    end_ns: int


class Part(NamedTuple):
    """What of a worker is in one journal."""

    batches: Spans  #: that have ended
    pages: Pages
    names: dict[int, Name]
    offset_ns: int  #: to the rank's time
    known: dict[int, list[Mark]]  #: what is in batches that have been looked at
    used_by: dict[int, Loading]  #: by pass


@dataclass(frozen=True, eq=False)
class Worker:
    """Who makes batches, by the name of its lane."""

    label: str
    parts: tuple[Part, ...]
    open: tuple[Mark, ...]  #: what it is at now, outermost first

    def between(self, begin_ns: int, end_ns: int) -> list[Mark]:
        """What it did in a time: batches, and where these are few what was in them."""
        found: list[Mark] = []
        for part in self.parts:
            found += _between(part, begin_ns - part.offset_ns, end_ns - part.offset_ns)
        return [*found, *(each for each in self.open if each.start_ns < end_ns)]


def made_for(
    workers: tuple[Worker, ...], lane: int, iteration: int
) -> tuple[Worker, Mark, list[Mark]] | None:
    """Who made the batch that an engine used in an iteration, when, and what took it how long."""
    for worker in workers:
        for part in worker.parts:
            for id, loading in list(part.used_by.items()):
                number = iteration - loading.iteration
                if loading.lane != lane or number < 1:
                    continue
                batches, count = part.batches, len(part.batches)
                found = np.flatnonzero(
                    (batches.epoch.values[:count] == id)
                    & (batches.iteration.values[:count] == number)
                )
                for at in found[:1].tolist():
                    start, end = (int(each.values[at]) for each in (batches.start, batches.end))
                    inside = _inside(part, int(batches.number.values[at]), end)
                    batch = _shifted(Mark("batch", "batch", start, end), part)
                    return worker, batch, [_shifted(each, part) for each in inside]
    return None


def own_times(marks: list[Mark], now_ns: int, begin_ns: int = 0, end_ns: int = 2**63 - 1) -> Times:
    """What each took between two times, less what it called, in ns by name."""
    took: Times = {}
    around: list[tuple[str, int]] = []  # what encloses: name and end
    for mark in marks:
        if mark.kind not in MADE:
            around.clear()
            continue
        mark_end = mark.end_ns or now_ns
        while around and around[-1][1] <= mark.start_ns:
            around.pop()
        inside = max(0, min(mark_end, end_ns) - max(mark.start_ns, begin_ns))
        took[mark.text] = took.get(mark.text, 0) + inside
        if around:
            took[around[-1][0]] -= inside
        around.append((mark.text, mark_end))
    return took


def _between(part: Part, begin_ns: int, end_ns: int) -> list[Mark]:
    count = len(part.batches)
    start, end = part.batches.start.values[:count], part.batches.end.values[:count]
    first = int(np.searchsorted(end, begin_ns))
    last = first + int(np.searchsorted(start[first:], end_ns))
    found: list[Mark] = []
    for at in range(first, min(last, first + MOST_BATCHES)):
        found.append(_shifted(Mark("batch", "batch", int(start[at]), int(end[at])), part))
        if last - first <= MOST_INSIDE:
            number = int(part.batches.number.values[at])
            found += [_shifted(each, part) for each in _inside(part, number, int(end[at]))]
    return found


def _shifted(mark: Mark, part: Part) -> Mark:
    more = part.offset_ns
    return Mark(mark.kind, mark.text, mark.start_ns + more, mark.end_ns + more)


def _inside(part: Part, batch: int, end_ns: int) -> list[Mark]:
    """The transforms and the collate of a batch, what calls others before these."""
    known = part.known.get(batch)
    if known is not None:
        return known
    rows, numbers = part.pages.after(batch, end_ns)
    lane = part.pages.row(batch)
    mine = rows["lane"] == lane["lane"] if lane is not None else np.zeros(len(rows), bool)
    found = []
    for row in rows[mine][np.argsort(numbers[mine])][:MOST_SPANS].tolist():
        name = part.names.get(row[1], LOST)
        if name.kind in MADE and row[6]:
            found.append(Mark(name.kind, name.text, row[7], row[6]))
    if len(part.known) >= MOST_KEPT:
        part.known.clear()
    part.known[batch] = found
    return found


def slowest_lately(journal: Path) -> tuple[str, float] | None:
    """What took most of the time in which a rank's last batches were made, and its share of that.

    Only the ends of its data journals are read. None: there are none, or nothing is in them.
    """
    took: Times = {}
    for path in data_journals(journal):
        try:
            with JournalReader(path) as reader:
                windows = -(-os.fstat(reader.fileno()).st_size // reader.header.window_bytes)
                if windows > LATELY:
                    reader.go_to(Position(windows - LATELY, {}, []))
                reader.poll()
        except (FiretraceError, OSError):
            continue
        rows = reader.rows[reader.rows["end"] > 0]
        for lane in np.unique(rows["lane"]).tolist():
            mine = rows[rows["lane"] == lane]
            marks = [
                Mark(name.kind, name.text, row[7], row[6])
                for row in mine[np.argsort(mine["start"], kind="stable")].tolist()
                if (name := reader.meta.names.get(row[1], LOST))
            ]
            for text, ns in own_times(marks, 0).items():
                took[text] = took.get(text, 0) + ns
    whole = sum(took.values())
    if whole <= 0:
        return None
    slowest = max(took, key=lambda each: took[each])
    return slowest, took[slowest] / whole
