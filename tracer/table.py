"""A journal's rows as columns, ready to be counted, drawn or exported.

``VOID`` rows are gone and their children hang on their parents, scalars are set apart, damaged
rows are counted and left out, and rows stand in the order of their numbers. The arrays of a table
are never changed: a later state of the journal is another table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import KINDS, Flag, Header, Lane, Name, Rows
from firetrace.tracer.meta import Meta
from firetrace.tracer.reader import JournalReader, Numbers

Ints = npt.NDArray[np.int64]
UNKNOWN = Name("span", "(name lost)")


@dataclass(frozen=True)
class Table:
    """The spans of one journal at one moment. All arrays have one entry a span."""

    path: Path
    header: Header
    meta: Meta
    numbers: Numbers  #: row numbers, rising
    rows: Rows  #: dtype ``ROW_DTYPE``
    scalars: Rows
    damaged: int  #: rows that were left out because they make no sense
    alive: bool | None  #: whether the writer lives (None: cannot be told)
    now_ns: int  #: when this was read, Unix ns

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> dict[int, Name]:
        """Name ids to names."""
        return self.meta.names

    def name(self, position: int) -> Name:
        """What the span at ``position`` is."""
        return self.meta.names.get(int(self.rows[position]["name"]), UNKNOWN)

    def lane(self, position: int) -> Lane:
        """The engine and thread of the span at ``position``."""
        return self.lane_of(int(self.rows[position]["lane"]))

    def lane_of(self, lane: int) -> Lane:
        """The engine and thread with this lane id."""
        return self.meta.lane(lane)

    def ids_of(self, kind: str) -> list[int]:
        """The name ids of a kind."""
        return [id for id, name in self.meta.names.items() if name.kind == kind]

    def of_kind(self, kind: str) -> Ints:
        """Positions of the spans of a kind."""
        ids = self.ids_of(kind)
        if len(ids) == 1:
            return np.flatnonzero(self.rows["name"] == ids[0])
        return np.flatnonzero(np.isin(self.rows["name"], ids))

    def kind_codes(self) -> npt.NDArray[np.uint8]:
        """Each span's index in ``KINDS``."""
        codes = np.full(2**16, KINDS.index("span"), np.uint8)
        for id, name in self.meta.names.items():
            codes[id] = KINDS.index(name.kind)
        kinds: npt.NDArray[np.uint8] = codes[self.rows["name"]]
        return kinds

    def parents(self) -> Ints:
        """Positions of the spans' parents; -1 for roots."""
        return places(self.numbers, self.rows["parent"])

    def open_positions(self) -> Ints:
        """Positions of the spans that have no end."""
        return np.flatnonzero(self.rows["end"] == 0)

    def durations(self, positions: Ints) -> Ints:
        """Durations in ns; an open span lasts until ``now_ns`` (or the last thing known)."""
        rows = self.rows[positions]
        end = np.where(rows["end"] == 0, self.last_ns(), rows["end"])
        durations: Ints = np.maximum(end - rows["start"], 0)
        return durations

    def last_ns(self) -> int:
        """The present of a live journal; of a dead one the last time in it."""
        if self.alive:
            return self.now_ns
        return int(max(self.rows["start"].max(), self.rows["end"].max())) if len(self) else 0


def table(reader: JournalReader, final: bool = False) -> Table:
    """What the reader has read so far, as a table.

    ``final``: the reader will not be polled again, so its arrays need no copy.
    """
    return block(reader, reader.rows, reader.numbers, copy=not final)


def block(reader: JournalReader, rows: Rows, numbers: Numbers, copy: bool = False) -> Table:
    """These rows of a journal as a table. Their parents may be elsewhere in the file."""
    if len(numbers) > 1 and not (numbers[1:] > numbers[:-1]).all():
        order = np.argsort(numbers, kind="stable")
        rows, numbers = rows[order], numbers[order]
    flags = rows["flags"]
    special = np.flatnonzero(flags & (Flag.SCALAR | Flag.VOID))
    end = rows["end"]
    damaged = (
        (rows["parent"] >= numbers)
        | (rows["start"] < 0)
        | ((end < rows["start"]) & (end != 0) & (flags & Flag.SCALAR == 0))
    )
    scalars = rows[:0]
    count = int(np.count_nonzero(damaged))
    if len(special) or count:
        scalars = rows[special][rows[special]["flags"] & Flag.SCALAR != 0]
        keep = np.ones(len(rows), bool)
        keep[special] = False
        keep[damaged] = False
        rows, numbers = hoist(rows, numbers, keep)
    elif copy:
        rows, numbers = rows.copy(), numbers.copy()
    return Table(
        reader.path, reader.header, reader.meta, numbers, rows, scalars, count,
        reader.alive(), reader.now_ns(),
    )  # fmt: skip


def places(numbers: Numbers, wanted: Numbers) -> Ints:
    """Where in ``numbers``, which rise, the wanted ones are; -1 for those that are not there."""
    if not len(numbers):
        return np.full(len(wanted), -1)
    first, span = int(numbers[0]), int(numbers[-1]) - int(numbers[0]) + 1
    if span > 4 * len(numbers) + 1024:
        at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        return np.where(numbers[at] == wanted, at, -1)
    table = np.full(span + 1, -1, np.int64)  # the last entry: for what lies outside
    table[numbers - np.uint32(first)] = np.arange(len(numbers))
    offsets = wanted.astype(np.int64) - first
    outside = (offsets < 0) | (offsets >= span)
    offsets[outside] = span
    found: Ints = table[offsets]
    return found


def hoist(rows: Rows, numbers: Numbers, keep: npt.NDArray[np.bool_]) -> tuple[Rows, Numbers]:
    """Leave rows out; their children get the nearest ancestor that stays."""
    gone, up_from = numbers[~keep], rows["parent"][~keep]
    rows, numbers = rows[keep], numbers[keep]
    parents = rows["parent"].copy()
    lost = np.arange(len(parents))
    while True:  # ends: a parent's number is lower than its child's, damaged ones are left out
        place = np.minimum(np.searchsorted(gone, parents[lost]), len(gone) - 1)
        found = gone[place] == parents[lost]
        lost = lost[found]
        if not len(lost):
            break
        up = up_from[place[found]]
        parents[lost] = np.where(up < parents[lost], up, 0)
    rows["parent"] = parents
    return rows, numbers


def read_table(path: Path) -> Table:
    """Read a whole journal.

    Raises:
        JournalError: it cannot be read.
    """
    with JournalReader(path) as reader:
        reader.poll()
        return table(reader, final=True)
