"""How a journal is split into traces, and where each row stands: in which run, epoch and step.

Backends show a trace of some thousand spans well and break on a million; a short run in three
hundred pieces annoys as much. So a trace is a run, an epoch or a step, the outermost one that
encloses a span:

    run     everything below a run
    epoch   a trace an epoch; the run itself in one of its own
    step    a trace a step; run, epochs and what they do beside their steps in one of their own

What would grow beyond ``MOST_SPANS`` goes on in further traces, cut between steps where it can be.
A trace is named by the row with which it begins and the number of its part, and both follow from
a row's number and those of the rows around it alone. So the training, a relay and every later
export agree without talking to one another. ``auto`` is chosen when the first run starts, from how
far it means to go, and kept in the journal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firetrace.tracer.ids import Row, remote_parent, trace_id
from firetrace.tracer.table import Table

SPLITS = ("run", "epoch", "step")
#: Spans of a trace: rows whose numbers lie this close together, and the rest of their last step.
PART, MOST_SPANS = 4096, 10_000
#: Where every step has a trace, the run and so many of its epochs share one, with what each of
#: them, and the run, has beside its steps within so many rows of its beginning.
PART_EPOCHS, NEAR = 32, 256
FAR = 2**29  # part numbers of what lies further from the run's beginning
#: From here on ``auto`` takes smaller pieces; and what is expected of a step and of an epoch.
FITS, STEP_SPANS, EPOCH_SPANS = 2_000, 20, 30
MOST_REMEMBERED = 20_000

Ints = npt.NDArray[np.int64]


def chosen_split(epochs: int | None, length: int | None, iterations: int | None) -> str:
    """The split that ``auto`` means for a run that means to go so far (None: nobody knows)."""
    total = iterations
    if total is None and epochs is not None and length is not None:
        total = epochs * length
    if total is not None and total * STEP_SPANS + (epochs or 1) * EPOCH_SPANS <= FITS:
        return "run"
    if length is not None and length * STEP_SPANS + EPOCH_SPANS <= FITS:
        return "epoch"
    return "step"


class Place(NamedTuple):
    """Where a row stands. Numbers of rows, 0 where there is none."""

    root: int = 0  #: the outermost row
    epoch: int = 0  #: the outermost epoch
    epoch_number: int = 0  #: as ignite counts
    first_step: int = 0  #: the outermost step
    step: int = 0  #: the innermost step

    def below(self, number: int, kind: str, epoch_number: int) -> Place:
        """The place of a row of this kind whose parent stands here."""
        is_first_epoch = kind == "epoch" and not self.epoch
        is_step = kind == "step"
        return Place(
            self.root or number,
            number if is_first_epoch else self.epoch,
            epoch_number if is_first_epoch else self.epoch_number,
            self.first_step or (number if is_step else 0),
            number if is_step else self.step,
        )


class Places(NamedTuple):
    """The places of a table's rows: arrays, one entry a row."""

    root: Ints
    epoch: Ints
    epoch_number: Ints
    first_step: Ints
    step: Ints


class Lineage:
    """Finds the places of rows, in whatever order they are asked for.

    Args:
        look_up: the row with a number; None: there is none.
    """

    def __init__(self, look_up: Callable[[int], Row | None]) -> None:
        self._look_up = look_up
        self._known: dict[int, Place] = {}

    def place(self, number: int) -> Place:
        """Where a row stands."""
        path: list[tuple[int, Row]] = []
        place = Place()
        while number:
            found = self._known.get(number)
            if found is not None:
                place = found
                break
            row = self._look_up(number)
            if row is None:
                break
            path.append((number, row))
            number = row.parent if row.parent < number else 0
        if len(self._known) > MOST_REMEMBERED:  # parents are near their children
            self._known.clear()
        for number, row in reversed(path):
            place = self._known[number] = place.below(number, row.kind, row.epoch_number)
        return place

    def places(self, table: Table) -> Places:
        """Where each row of a table stands. Parents need not be in it."""
        rows, numbers = table.rows, table.numbers
        size = len(rows)
        columns = np.zeros((len(Place._fields), size), np.int64)
        if not size:
            return Places(*columns)
        parents = rows["parent"]
        above = np.minimum(np.searchsorted(numbers, parents), size - 1)
        outside = numbers[above] != parents
        for parent in np.unique(parents[outside]).tolist():
            if parent:
                columns[:, outside & (parents == parent)] = np.array(self.place(parent))[:, None]
        is_epoch = np.isin(rows["name"], table.ids_of("epoch"))
        is_step = np.isin(rows["name"], table.ids_of("step"))
        depth = np.zeros(size, np.int64)
        while True:
            deeper = np.where(outside, 0, depth[above] + 1)
            if np.array_equal(deeper, depth):
                break
            depth = deeper
        for level in range(int(depth.max()) + 1):
            at = np.flatnonzero(depth == level)
            here, number = columns[:, above[at] if level else at], numbers[at].astype(np.int64)
            root, epoch, epoch_number, first_step, step = here
            first_epoch = is_epoch[at] & (epoch == 0)
            columns[:, at] = (
                np.where(root, root, number),
                np.where(first_epoch, number, epoch),
                np.where(first_epoch, rows["epoch"][at], epoch_number),
                np.where(first_step, first_step, number * is_step[at]),
                np.where(is_step[at], number, step),
            )
        return Places(*columns)


def trace_of(split: str, number: int, place: Place) -> tuple[int, int]:
    """The trace of a row: the row with which it begins, and its part."""
    begins = {"run": place.root, "epoch": place.epoch, "step": place.first_step}[split]
    if not begins:
        if place.epoch and number - place.epoch >= NEAR:
            return place.epoch, (number - place.epoch) // PART
        if not place.epoch and number - place.root >= NEAR:
            return place.root, FAR + (number - place.root) // PART
        return place.root, place.epoch_number // PART_EPOCHS
    unit = place.step if place.step >= begins else begins
    part = (number - unit) // PART
    return (unit, part) if part else (begins, (unit - begins) // PART)


def traces_of(split: str, numbers: npt.NDArray[np.uint32], at: Places) -> tuple[Ints, Ints]:
    """``trace_of`` many rows."""
    begins = {"run": at.root, "epoch": at.epoch, "step": at.first_step}[split]
    unit = np.where(at.step >= begins, at.step, begins)
    part = (numbers - unit) // PART
    anchor = np.where(part > 0, unit, begins)
    part = np.where(part > 0, part, (unit - begins) // PART)
    # What is outside of these: near to the beginning of its epoch or run, or far from it.
    outer = np.where(at.epoch, at.epoch, at.root)
    far = numbers - outer >= NEAR
    piece = (numbers - outer) // PART + np.where(at.epoch, 0, FAR)
    around = np.where(far, piece, at.epoch_number // PART_EPOCHS)
    return (
        np.where(begins, anchor, np.where(far, outer, at.root)),
        np.where(begins, part, around),
    )


class TraceIds:
    """The trace ids of a journal.

    Args:
        seed: the journal's.
        split: one of ``SPLITS``.
        traceparent: of the program's caller, in whose trace the runs then are.
    """

    def __init__(self, seed: bytes, split: str, traceparent: object = None) -> None:
        self.seed, self.split = seed, split
        self.remote = remote_parent(traceparent)
        self._known: dict[tuple[int, int], int] = {}

    def of(self, trace: tuple[int, int], root: int) -> int:
        """The id of a trace (see ``trace_of``) whose rows are below this root."""
        found = self._known.get(trace)
        if found is None:
            if len(self._known) > MOST_REMEMBERED:
                self._known.clear()
            if self.remote is not None and trace == (root, 0):
                found = self.remote[0]
            else:
                found = trace_id(self.seed, SPLITS.index(self.split) + 1, *trace)
            self._known[trace] = found
        return found
