"""Takes in spans as they end and keeps what is shown of them: 7 bytes a span, not 32.

One pass, never a second look: ten million spans take about a second. ``report.py`` turns what is
kept into numbers and words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firetrace.tracer.journal import KINDS, ROW_BYTES, Flag, Rows
from firetrace.tracer.reader import Numbers
from firetrace.tracer.table import Ints, Table, places
from firetrace.tui.model.columns import Column, Spans
from firetrace.tui.model.groups import Groups, by_window
from firetrace.tui.model.outline import (
    EPOCH,
    LOADER,
    RUN,
    STEP,
    UNKNOWN,
    Outline,
    sizes_of,
    spread,
)  # fmt: skip
from firetrace.tui.model.series import Series

SLOWEST = 10
#: What waits for data.
FETCHING = ("get_batch", "loader")
MOST_EXCEPTIONS = 1_000
MOST_OPEN_EPOCHS = 10_000
LookUp = Callable[[int], "np.void | None"]


@dataclass(frozen=True)
class EpochTime:
    """Where an epoch's time went. Times in ns."""

    epoch: int
    number: int  #: of its row
    start_ns: int
    end_ns: int
    iterations: int
    steps: int  #: of which so many were recorded
    steps_ns: int  #: those that were recorded
    wait_ns: int  #: for data, of them
    nested_ns: int  #: other engines that its handlers ran, such as a validation
    loading_ns: int  #: loaders before its first step, part of the waiting

    def between_ns(self, step_ns: float) -> float:
        """What lies between its steps and after them: validations, checkpoints."""
        steps_ns = self.steps_ns if self.steps == self.iterations else step_ns * self.iterations
        return max(0.0, self.end_ns - self.start_ns - steps_ns)


@dataclass(eq=False)
class Digest:
    """What is kept of the spans that have ended.

    Args:
        look_up: a row by its number, for parents that are still open.
    """

    look_up: LookUp
    groups: Groups = field(default_factory=Groups)
    outline: Outline = field(default_factory=Outline)
    runs: dict[int, Spans] = field(default_factory=dict)  #: by lane
    epochs: dict[int, Spans] = field(default_factory=dict)
    steps: dict[int, Spans] = field(default_factory=dict)
    slowest: dict[int, tuple[Rows, Numbers]] = field(default_factory=dict)  #: steps, by lane
    epoch_times: dict[int, list[EpochTime]] = field(default_factory=dict)  #: by lane
    loading: dict[int, int] = field(default_factory=dict)  #: loaders outside of steps, ns by lane
    scalars: dict[str, Series] = field(default_factory=dict)
    failed: Column = field(default_factory=lambda: Column(np.uint32))  #: spans with an error
    failed_parents: Column = field(default_factory=lambda: Column(np.uint32))
    exceptions: dict[int, str] = field(default_factory=dict)  #: type and message, by row number
    _noted_bytes: int = 0  #: of the meta file, up to where exceptions have been looked for
    spans: int = 0
    thinned: bool = False  #: not all steps were recorded
    damaged: int = 0
    last_ns: int = 0  #: the last end, Unix ns
    _parents: dict[int, tuple[int, bool]] = field(default_factory=dict)
    _reached: dict[int, int] = field(default_factory=dict)  # iteration, by lane
    #: Of epochs that have not ended, by lane, epoch and how many runs of the lane ended before:
    #: steps, their ns, ns of waiting, and ns of loaders before the first step.
    _in_epochs: dict[tuple[int, int, int], list[int]] = field(default_factory=dict)

    def add(self, block: Table) -> None:
        """Take in a block of spans that have ended, each of them once, children before parents.

        A parent that is not in the block is looked up.
        """
        rows, numbers = block.rows, block.numbers
        self.damaged += block.damaged
        self._keep_exceptions(block)
        self._add_scalars(block)
        if not len(rows):
            return
        self.spans += len(rows)
        lasted: Ints = rows["end"] - rows["start"]
        self.last_ns = max(self.last_ns, int(rows["end"].max()))
        codes = self.groups.codes(rows, block.meta)
        kinds = np.array([KINDS.index(each.name.kind) for each in self.groups.all], np.uint8)[codes]
        above = places(numbers, rows["parent"])
        elsewhere = np.flatnonzero((above < 0) & (rows["parent"] != 0))
        self._add_groups(block, codes, lasted)
        self.thinned |= bool(block.meta.thinned)
        outside = self._add_outline(block, kinds, above, elsewhere)
        took = np.bincount(codes[outside], lasted[outside])
        for code in np.flatnonzero(took).tolist():
            self.groups.all[code].outside_ns += int(took[code])
        self._add_children(rows, codes, lasted, above, elsewhere)
        self._end_epochs(rows[kinds == EPOCH], numbers[kinds == EPOCH])
        wrong = np.flatnonzero(rows["flags"] & Flag.ERROR)
        self.failed.append(numbers[wrong])
        self.failed_parents.append(rows["parent"][wrong])

    def waited_ns(self, lane: int) -> int:
        """What the steps of a lane waited for data; what came before the first is not theirs."""
        both = self.groups.of("phase", lane) + self.groups.of("loader", lane)
        waited = sum(group.times.total for group in both if group.name.text in FETCHING)
        return max(0, waited - self.loading.get(lane, 0))

    def _parent(self, number: int, block: Table) -> tuple[int, bool]:
        """Of a span elsewhere: its group's code (-1: none), and whether children lie in a step."""
        known = self._parents.get(number)
        if known is None:
            if len(self._parents) > 100_000:
                self._parents.clear()
            row = self.look_up(number)
            if row is None:
                return -1, False
            code = self.groups.code(row, block.meta)
            inside = self.groups.all[code].name.kind == "step"
            up = int(row["parent"])
            if not inside and 0 < up < number:
                inside = self._in_step(up, block)
            known = self._parents[number] = code, inside
        return known

    def _in_step(self, number: int, block: Table) -> bool:
        while number:
            known = self._parents.get(number)
            if known is not None:
                return known[1]
            row = self.look_up(number)
            if row is None:
                return False
            name = block.meta.names.get(int(row["name"]))
            if name is not None and name.kind == "step" and not row["flags"] & Flag.VOID:
                return True
            up = int(row["parent"])
            number = up if up < number else 0
        return False

    def _add_outline(
        self, block: Table, kinds: np.ndarray[Any, Any], above: Ints, elsewhere: Ints
    ) -> Ints:
        """Keep what lies in no step. Return where in the block that is."""
        rows, numbers = block.rows, block.numbers
        state = np.full(len(rows), UNKNOWN, np.int8)
        inside = kinds[above] == STEP
        state[inside & (above >= 0)] = 1
        state[rows["parent"] == 0] = 0
        if len(elsewhere):
            parents, which = np.unique(rows["parent"][elsewhere], return_inverse=True)
            in_step = [self._parent(each, block)[1] for each in parents.tolist()]
            state[elsewhere] = np.array(in_step, np.int8)[which]
        outside = np.flatnonzero(spread(state, above) == 0)
        if not len(outside):
            return outside
        with_children = np.zeros(len(rows), bool)
        with_children[above[above >= 0]] = True
        for number in self._parents.keys() & set(numbers[outside].tolist()):
            with_children[np.searchsorted(numbers, number)] = True
            del self._parents[number]  # it has ended: nobody will ask again
        found = rows[outside]
        for row in found[kinds[outside] == LOADER]:
            took, lane = int(row["end"] - row["start"]), int(row["lane"])
            self.loading[lane] = self.loading.get(lane, 0) + took
            self._epoch_of(row)[3] += took
        sizes = sizes_of(found, kinds[outside], with_children[outside])
        self.outline.add(numbers[outside], found["parent"], sizes)
        return outside

    def _add_groups(self, block: Table, codes: Ints, lasted: Ints) -> None:
        rows, numbers = block.rows, block.numbers
        # A stable sort of 16-bit numbers is a radix sort.
        few = len(self.groups.all) < 2**16
        order = np.argsort(codes.astype(np.uint16) if few else codes, kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(codes))])
        whole = rows["flags"] & (Flag.CUT | Flag.SKIPPED) == 0
        all_whole = bool(whole.all())
        per_window = block.header.window_bytes // ROW_BYTES
        found: list[int] = np.flatnonzero(np.diff(edges)).tolist()
        # Runs first: the epochs of one run are told from those of the next by its end.
        for code in sorted(found, key=lambda code: self.groups.all[code].name.kind != "run"):
            group = self.groups.all[code]
            mine = order[edges[code] : edges[code + 1]]
            took = lasted[mine]
            group.ended += len(mine)
            group.ended_ns += int(took.sum())
            if all_whole or whole[mine].all():
                group.times.add(took)
            else:
                group.times.add(took[whole[mine]])
            for window, count in by_window(numbers[mine], per_window).items():
                group.windows[window] = group.windows.get(window, 0) + count
            kind = KINDS.index(group.name.kind)
            if kind in (RUN, EPOCH, STEP):
                self._add_spans(kind, group.lane, rows[mine], numbers[mine])
            if kind == STEP:
                self._add_to_epochs(group.lane, rows[mine], took, 1)
            elif group.name.text in FETCHING and group.name.kind in ("phase", "loader"):
                self._add_to_epochs(group.lane, rows[mine], took, 2)

    def _add_spans(self, kind: int, lane: int, rows: Rows, numbers: Numbers) -> None:
        of_kind = {RUN: self.runs, EPOCH: self.epochs, STEP: self.steps}[kind]
        of_kind.setdefault(lane, Spans()).append(rows, numbers)
        if kind == STEP:
            whole = rows["flags"] & Flag.CUT == 0
            old, old_numbers = self.slowest.get(lane, (rows[:0], numbers[:0]))
            rows = np.concatenate([old, rows[whole]])
            lasted = rows["end"] - rows["start"]
            top = np.argsort(-lasted, kind="stable")[:SLOWEST] if len(rows) < 64 else _top(lasted)
            self.slowest[lane] = rows[top], np.concatenate([old_numbers, numbers[whole]])[top]

    def _add_to_epochs(self, lane: int, rows: Rows, took: Ints, what: int) -> None:
        keys = self._runs_before(lane, rows["start"]) << 32 | rows["epoch"]
        for key in np.unique(keys).tolist():
            epoch = lane, key & 0xFFFFFFFF, key >> 32
            sums = self._in_epochs.setdefault(epoch, [0, 0, 0, 0])
            mine = took[keys == key]
            sums[what] += int(mine.sum())
            if what == 1:
                sums[0] += len(mine)
        while len(self._in_epochs) > MOST_OPEN_EPOCHS:  # a damaged journal: theirs never end
            del self._in_epochs[next(iter(self._in_epochs))]

    def _runs_before(self, lane: int, start_ns: Ints) -> Ints:
        """How many runs of a lane had ended when something began."""
        runs = self.runs.get(lane)
        ends = runs.end.values if runs is not None else np.empty(0, np.int64)
        return np.searchsorted(ends, start_ns, side="right")

    def _key_of(self, row: np.void) -> tuple[int, int, int]:
        lane = int(row["lane"])
        return lane, int(row["epoch"]), int(self._runs_before(lane, row["start"]))

    def _epoch_of(self, row: np.void) -> list[int]:
        return self._in_epochs.setdefault(self._key_of(row), [0, 0, 0, 0])

    def _end_epochs(self, rows: Rows, numbers: Numbers) -> None:
        for row, number in zip(rows, numbers.tolist(), strict=True):
            lane, epoch = int(row["lane"]), int(row["epoch"])
            start, end = int(row["start"]), int(row["end"])
            steps, steps_ns, wait_ns, loading_ns = self._epoch_of(row)
            del self._in_epochs[self._key_of(row)]
            nested = [runs.nested_ns(start, end) for i, runs in self.runs.items() if i != lane]
            past = self.epoch_times.setdefault(lane, [])
            iterations = max(steps, self._iterations(lane, row))
            past.append(
                EpochTime(epoch, number, start, end, iterations, steps, steps_ns, wait_ns,
                          sum(nested), loading_ns)
            )  # fmt: skip

    def _iterations(self, lane: int, epoch: np.void) -> int:
        """How many iterations an epoch had, by the numbers that it and its steps reached."""
        steps = self.steps.get(lane, Spans())
        first, last = np.searchsorted(steps.start.values, (epoch["start"], epoch["end"])).tolist()
        numbers = steps.iteration.values[first:last].tolist()
        reached = int(epoch["iteration"]) if self.thinned else 0
        reached = max([reached, *numbers[-1:]])
        before = self._reached.get(lane, numbers[0] - 1 if numbers else reached)
        if epoch["epoch"] == 1 or reached < before:  # of another run
            before = 0
        self._reached[lane] = reached
        return int(reached - before)

    def iterations(self, lane: int) -> int:
        """How many iterations there were, whether their steps were recorded or not."""
        recorded = len(self.steps.get(lane, ()))
        if not self.thinned:
            return recorded
        past = self.epoch_times.get(lane, [])
        later = 0
        if recorded:
            steps = self.steps[lane]
            since = past[-1].end_ns if past else 0
            if steps.start.values[-1] >= since:
                later = int(steps.iteration.values[-1]) - self._reached.get(lane, 0)
        return max(recorded, sum(each.iterations for each in past) + max(0, later))

    def scale(self, lane: int) -> float:
        """One in so many steps was recorded."""
        recorded = len(self.steps.get(lane, ()))
        return self.iterations(lane) / recorded if recorded else 1.0

    def _add_children(
        self, rows: Rows, codes: Ints, lasted: Ints, above: Ints, elsewhere: Ints
    ) -> None:
        """What spans took is part of their parents' time."""
        here = above >= 0
        took = np.bincount(codes[above[here]], lasted[here], len(self.groups.all))
        for number, ns in zip(*_sums(rows["parent"][elsewhere], lasted[elsewhere]), strict=True):
            code = self._parents.get(number, (-1, False))[0]
            if code >= 0:
                took[code] += ns
        for code in np.flatnonzero(took).tolist():
            self.groups.all[code].inside_ns += int(took[code])

    def _add_scalars(self, block: Table) -> None:
        scalars = block.scalars
        for id in np.unique(scalars["name"]).tolist():
            found = scalars[scalars["name"] == id]
            name = block.names.get(id)
            if name is not None:
                series = self.scalars.setdefault(name.text, Series())
                series.add(found["start"], found["end"].copy().view(np.float64))

    def _keep_exceptions(self, block: Table) -> None:
        meta = block.meta
        if self._noted_bytes == meta.read_bytes:
            return
        for number in meta.exceptions.since(self._noted_bytes):
            if len(self.exceptions) == MOST_EXCEPTIONS:
                break
            line = meta.exceptions.get(number)
            if line is not None:
                self.exceptions[number] = _in_short(line)
        self._noted_bytes = meta.read_bytes


def _in_short(exception: dict[str, Any]) -> str:
    kind, message = exception.get("exception.type", "?"), exception.get("exception.message", "")
    return (f"{kind}: {message}" if message else f"{kind}")[:500]


def _top(lasted: Ints) -> Ints:
    """Positions of the longest, the longest first."""
    top = np.argpartition(lasted, len(lasted) - SLOWEST)[-SLOWEST:]
    top.sort()  # of equals the first one first
    return top[np.argsort(-lasted[top], kind="stable")]


def _sums(keys: Numbers, values: Ints) -> tuple[list[int], list[float]]:
    if not len(keys):
        return [], []
    found, which = np.unique(keys, return_inverse=True)
    return found.tolist(), np.bincount(which, values).tolist()
