"""The upper part of the tree, down to the steps: which spans are inside which, by row number.

Millions of spans lie inside steps; these are read from the file when somebody looks at them (see
``tree.py``). What lies outside of steps (runs, epochs, steps, the events of epochs, validations)
is kept here, five bytes a span.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import KINDS, Flag, Rows
from firetrace.tracer.reader import Numbers
from firetrace.tui.model.columns import Column

Ints = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.uint8]

RUN, EPOCH, STEP, EVENT, LOADER = (
    KINDS.index(kind) for kind in ("run", "epoch", "step", "event", "loader")
)

#: Sizes of spans, by which short ones are hidden: an event on which nothing ran, a span of a
#: duration of so many decimal digits in ns, and what is never hidden.
EMPTY, ALWAYS = 0, 255
_DECADES = 10 ** np.arange(19, dtype=np.int64)


def sizes_of(
    rows: Rows, kinds: npt.NDArray[np.uint8], with_children: npt.NDArray[np.bool_]
) -> Sizes:
    """How large each span is, for hiding the short ones."""
    lasted = rows["end"] - rows["start"]
    digits = np.searchsorted(_DECADES, lasted, side="right")
    sizes: Sizes = (digits + 1).astype(np.uint8)
    empty = (kinds == EVENT) & ~with_children
    sizes[empty] = EMPTY
    always = (kinds == RUN) | (kinds == EPOCH) | (kinds == STEP) | (rows["end"] == 0)
    always |= rows["flags"] & (Flag.ERROR | Flag.CUT) != 0
    sizes[always] = ALWAYS
    return sizes


class Level:
    """The children of one span, in the order of their row numbers."""

    def __init__(self) -> None:
        self._numbers = Column(np.uint32)
        self._sizes = Column(np.uint8)
        self._visible: dict[int, tuple[int, Numbers]] = {}

    def append(self, numbers: Numbers, sizes: Sizes) -> None:
        """Take in children that have ended."""
        last = self._numbers.values[-1:]
        self._numbers.append(numbers)
        self._sizes.append(sizes)
        if len(last) and numbers[0] < last[0]:  # of two threads, or one ended after the next began
            self._sort()

    def _sort(self) -> None:
        count = len(self._sizes)
        order = np.argsort(self._numbers.values[:count], kind="stable")
        numbers, sizes = Column(np.uint32), Column(np.uint8)
        numbers.append(self._numbers.values[order])
        sizes.append(self._sizes.values[order])
        self._visible = {}
        self._numbers, self._sizes = numbers, sizes

    def visible(self, least: int) -> Numbers:
        """The numbers of the children of at least this size."""
        sizes = self._sizes.values
        numbers: Numbers = self._numbers.values[: len(sizes)]
        if least == EMPTY:
            return numbers
        known, found = self._visible.get(least, (0, numbers[:0]))
        if known < len(sizes):
            new = numbers[known:][sizes[known:] >= least]
            found = np.concatenate([found, new]) if len(found) else new
            self._visible[least] = len(sizes), found
        return found


class Outline:
    """The children of every span that is not inside a step."""

    def __init__(self) -> None:
        self.levels: dict[int, Level] = {}  #: by the parent's row number; 0: the roots

    def add(self, numbers: Numbers, parents: Numbers, sizes: Sizes) -> None:
        """Take in spans that have ended, rising numbers."""
        if not len(numbers):
            return
        order = np.argsort(parents, kind="stable")
        edges = np.flatnonzero(np.diff(parents[order])) + 1
        for part in np.split(order, edges):
            self._level(int(parents[part[0]])).append(numbers[part], sizes[part])

    def _level(self, parent: int) -> Level:
        level = self.levels.get(parent)
        if level is None:
            level = self.levels[parent] = Level()
        return level


UNKNOWN = -1


def spread(state: npt.NDArray[np.int8], parents: Ints) -> npt.NDArray[np.int8]:
    """Give every row whose state is ``UNKNOWN`` its nearest ancestor's that has one.

    ``parents`` are positions; a row without a parent among these rows must have a state. The way
    to go up doubles at each turn, so a chain of any depth takes few.
    """
    up = parents.copy()
    unknown = np.flatnonzero(state == UNKNOWN)
    while len(unknown):
        above = up[unknown]
        found = state[above]
        state[unknown] = found
        up[unknown] = up[above]
        unknown = unknown[found == UNKNOWN]
    return state
