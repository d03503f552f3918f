"""What a device was doing at a time: lanes below the waterfall, read as they are looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import FIRST_ROW, KINDS, ROW_DTYPE, Flag, Rows
from firetrace.tracer.meta import Meta
from firetrace.tracer.pages import NO_SPAN, Pages
from firetrace.tracer.table import UNKNOWN as LOST
from firetrace.tui.model.idle import is_size

DEVICE, COPY = KINDS.index("device"), KINDS.index("copy")
#: Rows of the journal that are found, and read, together.
PAGE = 8192
#: What is given of a lane at most: pages that are read, and marks.
MOST_PAGES, MOST_MARKS = 8, 4_000
#: The scalar that says how much a phase copied there, in bytes.
COPIED = "copied to device"


@dataclass(frozen=True)
class DeviceMark:
    """A phase on the device's timeline. Times in Unix ns of the rank's journal."""

    kind: str  #: device or copy
    text: str  #: the phase's name; raw text of the trace: not safe to print
    start_ns: int
    end_ns: int  #: 0: not yet reached
    host_row: int  #: number of the phase's row in the rank's journal


@dataclass(frozen=True, eq=False)
class DeviceLane:
    """What the phases of one thread did on one device."""

    label: str  #: ``cuda:0``; of another thread than the main one with its name
    _lane: int  # of the device journal
    _times: dict[int, tuple[int, int]]  # by page of it: first start and last end
    _pages: Pages
    _meta: Meta
    _offset_ns: int  # to the rank's time
    _open: tuple[DeviceMark, ...]

    def between(self, begin_ns: int, end_ns: int) -> list[DeviceMark]:
        """What it did in a time, Unix ns of the rank's journal, as it came; thousands at most.

        Of a time in which there is more the longest, of some parts of it.
        """
        begin, end = begin_ns - self._offset_ns, end_ns - self._offset_ns
        there = sorted(
            page for page, (first, last) in self._times.items() if first < end and last > begin
        )
        if len(there) > MOST_PAGES:
            there = [there[at * len(there) // MOST_PAGES] for at in range(MOST_PAGES)]
        parts = [np.empty(0, ROW_DTYPE)]
        for page in there:
            first = max(page * PAGE, FIRST_ROW)
            rows = self._pages.rows(first, (page + 1) * PAGE - first)
            use = (rows["start"] < end) & (rows["end"] > begin) & (rows["lane"] == self._lane)
            parts.append(rows[use & are_phases(rows, self._meta) & have_times(rows)])
        found = np.concatenate(parts)
        if len(found) > MOST_MARKS:
            found = found[np.argpartition(found["start"] - found["end"], MOST_MARKS)[:MOST_MARKS]]
        found = found[np.argsort(found["start"], kind="stable")]
        marks = [mark_of(self._meta, row, self._offset_ns) for row in found.tolist()]
        return [*marks, *(each for each in self._open if each.start_ns < end_ns)]

    def copied_bytes(self, mark: DeviceMark) -> int | None:
        """How much a copy that is over was; None: that is not known."""
        start, end = mark.start_ns - self._offset_ns, mark.end_ns - self._offset_ns
        ids = [id for id, name in list(self._meta.names.items()) if name.text == COPIED]
        for page, (begun, ended) in self._times.items():
            if begun <= start and end <= ended:
                first = max(page * PAGE, FIRST_ROW)
                rows = self._pages.rows(first, (page + 1) * PAGE - first)
                mine = (rows["epoch"] == mark.host_row) & (rows["flags"] & Flag.SCALAR != 0)
                sizes = rows["end"][mine & np.isin(rows["name"], ids)].copy().view(np.float64)
                for size in sizes[is_size(sizes)].tolist():
                    return int(size)
        return None


def are_phases(rows: Rows, meta: Meta) -> npt.NDArray[np.bool_]:
    """Which rows are phases, and not scalars or moments."""
    kinds = kinds_of(meta)[rows["name"]]
    found: npt.NDArray[np.bool_] = (kinds == DEVICE) | (kinds == COPY)
    return found


def kinds_of(meta: Meta) -> npt.NDArray[np.uint8]:
    """By name id the index in ``KINDS``."""
    found = np.full(2**16, KINDS.index("span"), np.uint8)
    for id, name in list(meta.names.items()):
        found[id] = KINDS.index(name.kind)
    return found


def have_times(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which spans the device has reached, and it is known when."""
    lasted = (rows["end"] > rows["start"]) | (
        (rows["end"] == rows["start"]) & (rows["flags"] & Flag.CUT == 0)
    )
    found: npt.NDArray[np.bool_] = lasted & (rows["start"] > 0) & (rows["flags"] & NO_SPAN == 0)
    return found


def mark_of(meta: Meta, row: tuple[int, ...], offset_ns: int) -> DeviceMark:
    """A row of the device journal; ``offset_ns``: to the rank's time."""
    name = meta.names.get(row[1], LOST)
    end = row[6] + offset_ns if row[6] else 0
    return DeviceMark(name.kind, name.text, row[7] + offset_ns, end, row[4])
