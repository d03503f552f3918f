"""Spans of one name, in one engine and thread: how many, how long, and where in the file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from firetrace.tracer.journal import Lane, Name, Rows
from firetrace.tracer.meta import Meta
from firetrace.tracer.reader import Numbers
from firetrace.tracer.table import UNKNOWN as LOST
from firetrace.tui.model.distribution import Distribution, Ints

#: Events outside of steps: what their handlers take is no part of a step's time.
BETWEEN_STEPS = frozenset(
    ("STARTED", "EPOCH_STARTED", "EPOCH_COMPLETED", "COMPLETED", "TERMINATE", "INTERRUPT",
     "TERMINATE_SINGLE_EPOCH", "EXCEPTION_RAISED")
)  # fmt: skip
NO_CODE = -1


@dataclass(eq=False)
class Group:
    """Spans with the same name and lane. Times in ns."""

    id: int  #: of the name
    name: Name
    lane: int
    times: Distribution = field(default_factory=Distribution)  #: of those that came to their end
    ended: int = 0  #: how many, cut and skipped ones too
    ended_ns: int = 0
    outside_ns: int = 0  #: of those that are in no step
    inside_ns: int = 0  #: what their children took
    windows: dict[int, int] = field(default_factory=dict)  #: how many, by window of the file

    def whole_ns(self, scale: float) -> float:
        """What they took, were all steps recorded and not one in ``scale``."""
        outside = min(self.outside_ns, self.times.total)
        return outside + (self.times.total - outside) * scale


class Groups:
    """All groups of a journal, each with a code: 0, 1, 2, ... in the order of their first spans."""

    def __init__(self) -> None:
        self.all: list[Group] = []
        self._codes: dict[int, Ints] = {}  # by lane: name ids to codes

    def codes(self, rows: Rows, meta: Meta) -> Ints:
        """The group of each row."""
        lanes = np.flatnonzero(np.bincount(rows["lane"])).tolist()
        codes = np.empty(len(rows), np.int64)
        for lane in lanes:
            mine = slice(None) if len(lanes) == 1 else np.flatnonzero(rows["lane"] == lane)
            names = rows["name"][mine]
            known = self._room(lane, int(names.max()))
            found = known[names]
            for id in np.unique(names[found == NO_CODE]).tolist():
                known[id] = len(self.all)
                self.all.append(Group(id, meta.names.get(id, LOST), lane))
            codes[mine] = known[names]
        return codes

    def _room(self, lane: int, most: int) -> Ints:
        known = self._codes.get(lane)
        if known is None or len(known) <= most:
            grown = np.full(max(64, 2 * most), NO_CODE)
            if known is not None:
                grown[: len(known)] = known
            known = self._codes[lane] = grown
        return known

    def code(self, row: np.void, meta: Meta) -> int:
        """The group of one row."""
        return int(self.codes(np.array([row]), meta)[0])

    def of(self, kind: str, lane: int) -> list[Group]:
        """The groups of a kind in a lane."""
        return [each for each in self.all if each.lane == lane and each.name.kind == kind]

    def total_count(self, kind: str, lane: int) -> int:
        """How many spans of a kind in a lane came to their own end."""
        return sum(group.times.count for group in self.of(kind, lane))

    def total_ns(self, kind: str, lane: int) -> int:
        """What the spans of a kind in a lane took that came to their own end."""
        return sum(group.times.total for group in self.of(kind, lane))


def engine_label(main: Lane, lane: Lane, text: str) -> str:
    """A name; of another engine than the main one, with the engine's."""
    return text if lane.engine == main.engine else f"{lane.engine}: {text}"


def by_window(numbers: Numbers, per_window: int) -> dict[int, int]:
    """How many of these rows are in each window of the file."""
    windows = numbers // np.uint32(per_window)
    first, last = int(windows[0]), int(windows[-1])
    if first == last:
        return {first: len(numbers)}
    counts = np.bincount(windows - np.uint32(first))
    return {first + at: int(counts[at]) for at in np.flatnonzero(counts).tolist()}
