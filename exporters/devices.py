"""What a rank's device journal tells of its phases: attributes of their spans.

Both journals are read side by side. What the device journal says of a phase is remembered until
that phase is asked for, and then forgotten. In a device journal are also the phases of what nobody
asks for, so no more than ``MOST_REMEMBERED`` are kept, of which a block asks for a small part.

Of a training that goes on a phase ends before it is known how long the device takes for it: the
training looks at the device when a step ends. ``DeviceTimes.waiting`` says which phases are worth
waiting for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from firetrace.exporters.told import Told
from firetrace.tracer.aligned import aligned
from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import ROW_BYTES, ROW_DTYPE, Flag, Rows
from firetrace.tracer.meta import Meta
from firetrace.tracer.reader import JournalReader, Numbers
from firetrace.tracer.run import device_journal
from firetrace.tracer.table import Table

#: All attributes that this module tells begin so.
DEVICE = "ignite.device"
DURATION, OFFSET = f"{DEVICE}.duration_ns", f"{DEVICE}.start_offset_ns"
COPIED, UNRESOLVED = f"{DEVICE}.copied_bytes", f"{DEVICE}.unresolved"
#: The scalar that says how much a phase copied.
COPIED_SCALAR = "copied to device"

#: How long a phase is waited for after its end, if the training has looked at the device twice
#: since; else it is in the middle of a long step, and ``LONGEST_WAIT_NS`` is the limit.
WAIT_NS, LONGEST_WAIT_NS = 2 * 10**9, 30 * 10**9
LOOKS = 2
#: By then a phase that has ended has its row, if it gets one.
WRITTEN_NS = 500_000_000
#: A row is written so soon after its phase has ended, and a window begun before its first row.
SLACK_NS = 10**9
MOST_REMEMBERED = 2**19

Mask = npt.NDArray[np.bool_]
NO_SPAN = int(Flag.SCALAR | Flag.VOID)


class DeviceTimes:
    """Tells the attributes of a rank's phases (see ``firetrace.exporters.peers``).

    Args:
        rank: reads the rank's journal.
    """

    def __init__(self, rank: JournalReader) -> None:
        self._rank = rank
        self._reader: JournalReader | None = None
        self._shift_ns = 0  # to be added to times of the device journal
        self._window, self._horizon_ns = -1, 0  # the last window; when it was begun, at least
        self._times, self._copied = _Remembered(), _Remembered()

    def told(self, table: Table) -> dict[int, Told]:
        """The attributes of the phases of a block of which the device journal knows."""
        positions = table.of_kind("phase")
        reader = self._open() if len(positions) else None
        if reader is None:
            return {}
        rows, numbers = table.rows[positions], table.numbers[positions]
        self._read(reader, int(rows["end"].max()))
        at, times = self._times.take(numbers)
        known = is_known(times)
        labels = {id: {DEVICE: reader.meta.lane(id).engine} for id in set(times["lane"].tolist())}
        starts = times["start"] + self._shift_ns
        columns = zip(
            numbers[at].tolist(), times["lane"].tolist(), known.tolist(),
            (times["end"] - times["start"]).tolist(), (starts - rows["start"][at]).tolist(),
            strict=True,
        )  # fmt: skip
        found: dict[int, dict[str, Any]] = {
            number: {**labels[lane], DURATION: took, OFFSET: later}
            if is_known else {**labels[lane], UNRESOLVED: True}
            for number, lane, is_known, took, later in columns
        }  # fmt: skip
        for number, lane in self._not_known_yet(reader, numbers):
            found[number] = {DEVICE: reader.meta.lane(lane).engine, UNRESOLVED: True}
        self._add_copied(reader, numbers, found)
        return {number: Told(attributes=about) for number, about in found.items()}

    def _not_known_yet(self, reader: JournalReader, numbers: Numbers) -> list[tuple[int, int]]:
        """Those of these phases whose rows are open, and their lanes."""
        rows = _device_rows(reader.rows, reader.meta)
        rows = rows[np.isin(rows["epoch"], numbers)]
        return list(zip(rows["epoch"].tolist(), rows["lane"].tolist(), strict=True))

    def _add_copied(
        self, reader: JournalReader, numbers: Numbers, found: dict[int, dict[str, Any]]
    ) -> None:
        at, scalars = self._copied.take(numbers)
        values = scalars["end"].copy().view("<f8").tolist()
        for number, lane, value in zip(
            numbers[at].tolist(), scalars["lane"].tolist(), values, strict=True
        ):
            if math.isfinite(value) and 0 <= value < 2**63:
                about = found.setdefault(number, {DEVICE: reader.meta.lane(lane).engine})
                about[COPIED] = int(value)

    # Waiting

    def waiting(self, rows: Rows, numbers: Numbers) -> Mask:
        """Which of these rows of the rank's journal, as far as they have ended, to wait for."""
        stay = np.zeros(len(rows), bool)
        names = self._rank.meta.names
        phases = [id for id, name in names.items() if name.kind == "phase"]
        now = self._rank.now_ns()
        recent = rows["end"] > now - LONGEST_WAIT_NS
        recent &= np.isin(rows["name"], phases) & (rows["flags"] & NO_SPAN == 0)
        at = np.flatnonzero(recent)
        if not len(at) or self._rank.alive() is False or (reader := self._open()) is None:
            return stay
        self._read(reader, int(rows["end"][at].max()))
        age = now - rows["end"][at]
        opened, looks = _looked_at(_device_rows(reader.rows, reader.meta, reader.numbers))
        order = np.argsort(opened, kind="stable")
        opened, looks = opened[order], looks[order]
        place = np.searchsorted(opened, numbers[at])
        is_open = np.isin(numbers[at], opened)
        looked = np.append(looks, 0)[place]
        waits = (age < WAIT_NS) | (looked < LOOKS)
        missing = ~is_open & ~self._times.has(numbers[at])
        stay[at] = (is_open & waits) | (missing & (age < WRITTEN_NS))
        return stay

    # Reading

    def _open(self) -> JournalReader | None:
        """The device journal's reader; None: there is none yet, or none that can be read."""
        if self._reader is None:
            path = device_journal(self._rank.path)
            try:
                reader = JournalReader(path)
            except JournalError:  # whoever chose the journals has said so
                return None
            self._reader = reader
            self._shift_ns = aligned(reader.header, reader.meta, self._rank.header).offset_ns
        return self._reader

    def _read(self, reader: JournalReader, until_ns: int) -> None:
        """Read what was written of phases that had ended by then, and perhaps a window more."""
        reader.poll(0)
        while True:
            self._note_horizon(reader)
            if not reader.behind or self._horizon_ns > until_ns + SLACK_NS:
                break
            self._take(reader)
            reader.poll(1)
        reader.poll(0)  # what was being settled while it was read
        self._take(reader)

    def _note_horizon(self, reader: JournalReader) -> None:
        """Note when the last window was begun: rows in later ones were written after that."""
        numbers = reader.numbers
        per_window = reader.header.window_bytes // ROW_BYTES
        last = int(numbers.max(initial=0)) // per_window
        if not len(numbers) or last <= self._window:
            return
        self._window = last
        first = int(np.argmin(np.where(numbers >= last * per_window, numbers, 2**32)))
        row = reader.rows[first]
        if row["flags"] & Flag.SCALAR:
            self._horizon_ns = int(row["start"]) + self._shift_ns
            return
        phase = self._rank.row(int(row["epoch"]))
        if phase is not None:
            self._horizon_ns = int(phase["end"])

    def _take(self, reader: JournalReader) -> None:
        rows, _ = reader.take()
        self._times.add(_device_rows(rows, reader.meta))
        names = reader.meta.names.items()
        ids = [id for id, name in names if (name.kind, name.text) == ("scalar", COPIED_SCALAR)]
        is_scalar = (rows["flags"] & Flag.SCALAR) != 0
        self._copied.add(rows[is_scalar & np.isin(rows["name"], ids)])


class _Remembered:
    """Rows of a device journal, by the phase to which they belong."""

    def __init__(self) -> None:
        self._rows = np.empty(0, ROW_DTYPE)  # in the order of the phases; of equals the last counts

    def add(self, rows: Rows) -> None:
        """Remember rows, and forget the oldest where these are too many."""
        rows = rows[rows["epoch"] != 0]
        if len(rows):
            both = np.concatenate([self._rows, rows])
            order = np.argsort(both["epoch"], kind="stable")
            self._rows = both[order[-MOST_REMEMBERED:]]

    def _places(self, numbers: Numbers) -> tuple[npt.NDArray[np.int64], Mask]:
        phases = self._rows["epoch"]
        at = np.searchsorted(phases, numbers, side="right") - 1
        return at, (at >= 0) & (phases[at] == numbers) if len(phases) else np.zeros(len(at), bool)

    def has(self, numbers: Numbers) -> Mask:
        """Of which of these phases there is a row."""
        return self._places(numbers)[1]

    def take(self, numbers: Numbers) -> tuple[npt.NDArray[np.int64], Rows]:
        """Which of these phases have a row, by their places, and these rows, which are forgotten.

        The numbers rise.
        """
        at, there = self._places(numbers)
        found = self._rows[at[there]]
        if len(found):
            self._rows = self._rows[~np.isin(self._rows["epoch"], found["epoch"])]
        return np.flatnonzero(there), found


def _device_rows(rows: Rows, meta: Meta, numbers: Numbers | None = None) -> Rows:
    """The rows that stand for phases; where numbers are given, in their order."""
    ids = [id for id, name in meta.names.items() if name.kind in ("device", "copy")]
    fine = np.isin(rows["name"], ids) & (rows["flags"] & NO_SPAN == 0)
    fine &= (rows["end"] == 0) | (rows["end"] >= rows["start"])
    at = np.flatnonzero(fine)
    return rows[at if numbers is None else at[np.argsort(numbers[at], kind="stable")]]


def is_known(rows: Rows) -> Mask:
    """Which of these rows have their times."""
    known: Mask = (rows["end"] != 0) & (rows["flags"] & Flag.CUT == 0)
    return known


def _looked_at(rows: Rows) -> tuple[Numbers, npt.NDArray[np.int64]]:
    """The phases of open rows, and how often the training has looked at the device since.

    That is at the end of each step. Rows are settled in their order, so what lies behind an open
    one is open as well.
    """
    looks = np.zeros(len(rows), np.int64)
    for lane in np.unique(rows["lane"]).tolist():
        here = np.flatnonzero(rows["lane"] == lane)
        iterations = rows["iteration"][here]
        steps = np.cumsum(np.append(False, iterations[1:] != iterations[:-1]))
        looks[here] = steps[-1] - steps
    return rows["epoch"], looks
