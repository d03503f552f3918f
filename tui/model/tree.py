"""The tree of spans, and which of its lines are visible.

Spans are named by their row *numbers*, which stay the same from poll to poll. What lies outside of
steps comes from the outline, which is in memory; what lies inside a step is read from the file when
it is looked at. So a line costs the same however long the run is.
"""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

import numpy as np

from firetrace.tracer.journal import KINDS, Flag, Lane, Rows
from firetrace.tracer.meta import Meta
from firetrace.tracer.pages import FOREVER, Pages, is_span
from firetrace.tracer.reader import Numbers
from firetrace.tracer.table import UNKNOWN as LOST
from firetrace.tracer.table import Table, places
from firetrace.tui.model.digest import Digest
from firetrace.tui.model.lines import Lines
from firetrace.tui.model.outline import EMPTY, Sizes, sizes_of, spread
from firetrace.tui.model.outline import UNKNOWN as UNTOLD

#: A span that has just been opened is gone before it is seen; one that lasts is worth a look.
SETTLED_NS = 500_000_000
#: What a waterfall may be laid out in, innermost first.
FRAMES = ("step", "epoch", "run")
#: Families that are kept: those of steps that have ended do not change any more.
MOST_FAMILIES, MOST_KNOWN = 512, 20_000
#: As deep as a damaged journal may nest spans before the rest is not looked for.
DEEPEST = 10_000


class Span(NamedTuple):
    """A row, with its name. Times in Unix ns; ``end_ns`` is 0 while it is open."""

    number: int
    parent: int
    kind: str
    text: str  #: raw text of the trace: not safe to print
    lane: int
    flags: int
    epoch: int
    iteration: int
    start_ns: int
    end_ns: int

    def took_ns(self, now_ns: int) -> int:
        """How long it lasted, or has lasted until now."""
        return max(0, (self.end_ns or now_ns) - self.start_ns)


class Family:
    """All spans inside a step."""

    def __init__(self, rows: Rows, numbers: Numbers, sizes: Sizes) -> None:
        self.rows, self.numbers, self._sizes = rows, numbers, sizes
        self._order = np.argsort(rows["parent"], kind="stable")
        self._parents = rows["parent"][self._order]

    def children(self, number: int, least: int) -> Numbers:
        """The numbers of the children of at least this size."""
        begin = int(np.searchsorted(self._parents, number))
        end = int(np.searchsorted(self._parents, number, side="right"))
        found = self._order[begin:end]
        if least != EMPTY:
            found = found[self._sizes[found] >= least]
        return self.numbers[found]


class Tree:
    """The spans of a journal at one moment.

    Args:
        digest: of the spans that have ended.
        pages: of the journal's file.
        open: the spans that are open.
        now_ns: the present, Unix ns.
        before: the tree of a moment before, for what has not changed since.
    """

    def __init__(
        self, digest: Digest, pages: Pages, open: Table, now_ns: int, before: Tree | None = None
    ) -> None:
        self.digest, self.pages, self.open, self.now_ns = digest, pages, open, now_ns
        self.meta: Meta = open.meta
        if before is not None and before.pages is not pages:
            before = None
        #: What steps that have ended are made of, in ns by name; see ``slow.py``.
        self.parts: dict[int, dict[str, int]] = before.parts if before is not None else {}
        self._ended: dict[int, Family] = before._ended if before is not None else {}
        self._known: dict[int, Span] = before._known if before is not None else {}  # have ended
        self._families: dict[int, Family] = {}
        self._spans: dict[int, Span | None] = {}
        self._steps: dict[int, int] = {}
        self._open_numbers = set(open.numbers.tolist())

    def span(self, number: int) -> Span | None:
        """A span; None if there is none (any more) with this number."""
        known = self._known.get(number)
        if known is not None:
            return known
        if number not in self._spans:
            span = self._spans[number] = self._read(number)
            if span is not None and span.end_ns and not self._is_guess(span.parent):
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[number] = span
        return self._spans[number]

    def _is_guess(self, number: int) -> bool:
        """Whether a span may turn out to be none; its children are its parent's then."""
        row = self.pages.row(number)  # not its span, which would ask for its own parent in turn
        return row is not None and not row["end"] and bool(row["flags"] & Flag.GUESS)

    def _read(self, number: int) -> Span | None:
        row = self.pages.row(number)
        if row is None:
            return None
        parent, id, lane, flags, epoch, iteration, end, start = row.tolist()
        if not is_span(number, parent, flags, start, end):
            return None
        name = self.meta.names.get(id, LOST)
        parent = self.pages.real(parent)
        return Span(number, parent, name.kind, name.text, lane, flags, epoch, iteration, start, end)

    def lane(self, span: Span) -> Lane:
        """The engine and thread of a span."""
        return self.meta.lane(span.lane)

    def ancestors(self, number: int) -> list[Span]:
        """The spans around it, innermost first."""
        found: list[Span] = []
        span = self.span(number)
        while span is not None and span.parent and len(found) < DEEPEST:
            span = self.span(span.parent)
            if span is not None:
                found.append(span)
        return found

    def step_of(self, number: int) -> int:
        """The outermost step that a span is in, or is; 0: none."""
        chain: list[Span] = []
        span = self.span(number)
        while span is not None and span.number not in self._steps:
            chain.append(span)
            span = self.span(span.parent)
        step = self._steps[span.number] if span is not None else 0
        for span in reversed(chain):
            if not step and span.kind == "step":
                step = span.number
            self._steps[span.number] = step
        return step

    def children(self, number: int, least: int = EMPTY) -> Numbers:
        """The children of a span (0: the roots) of at least this size, in the order of time."""
        step = self.step_of(number) if number else 0
        if step:
            return self.family(step).children(number, least)
        level = self.digest.outline.levels.get(number)
        ended = level.visible(least) if level is not None else np.empty(0, np.uint32)
        mine = self.open.numbers[self.open.rows["parent"] == number]
        if not len(mine):
            return ended
        if len(ended) and mine[0] <= ended[-1]:
            return np.union1d(ended, mine)
        return np.concatenate([ended, mine])

    def has_children(self, number: int, least: int) -> bool:
        """Whether there is anything to unfold."""
        return bool(len(self.children(number, least)))

    def family(self, step: int) -> Family:
        """What is inside a step that is in no other step."""
        found = self._ended.get(step) or self._families.get(step)
        if found is None:
            span = self.span(step)
            end = span.end_ns if span is not None else 1
            found = self._families[step] = self._gather(step, end or FOREVER)
            if end:
                if len(self._ended) >= MOST_FAMILIES:  # at once: another thread may do the same
                    self._ended.clear()
                self._ended[step] = found
        return found

    def _gather(self, number: int, end_ns: int) -> Family:
        rows, numbers = self.pages.after(number, end_ns)
        above = places(numbers, rows["parent"])
        state = np.full(len(rows), UNTOLD, np.int8)
        state[above < 0] = 0
        state[rows["parent"] == number] = 1
        mine = np.flatnonzero(spread(state, above) == 1)
        with_children = np.zeros(len(rows), bool)
        with_children[above[above >= 0]] = True
        rows = rows[mine]
        names = self.meta.names
        kinds = [KINDS.index(names.get(id, LOST).kind) for id in rows["name"].tolist()]
        sizes = sizes_of(rows, np.array(kinds, np.uint8), with_children[mine])
        return Family(rows, numbers[mine], sizes)

    def lines(self, unfolded: Set[int], least: int) -> Lines:
        """The visible lines when the spans with these row numbers are unfolded."""
        wanted = np.array(sorted(unfolded), np.uint32)
        lines = Lines()
        # A stack and not recursion: a damaged journal may nest deeper than Python calls may.
        stack = [(self.children(0, least), 0)]
        while stack:
            level, depth = stack.pop()
            inner = self._first_of(level, wanted)
            end = len(level) if inner is None else inner + 1
            lines.append(level[:end], depth)
            if inner is not None and depth < DEEPEST:
                stack.append((level[end:], depth))
                stack.append((self.children(int(level[inner]), least), depth + 1))
        return lines

    @staticmethod
    def _first_of(level: Numbers, wanted: Numbers) -> int | None:
        """Where in a level the first of the wanted ones is."""
        if not len(level):
            return None
        near = wanted[
            np.searchsorted(wanted, level[0]) : np.searchsorted(wanted, level[-1], "right")
        ]
        at = np.searchsorted(level, near)
        hits = at[level[at] == near]
        return int(hits[0]) if len(hits) else None

    def newest(self) -> tuple[int, set[int]] | None:
        """What to look at in a run that goes on: a span, and what to unfold.

        The newest step (the one before while it has just begun, so that the picture is calm), or
        what has been open for a while after it: a validation, a checkpoint.
        """
        settled = SETTLED_NS if self.open.alive else 0  # of a dead process all is worth a look
        chain: set[int] = set()
        focus = self._newest_step(settled)
        if focus:
            inside = self.family(focus)
            chain.update(n for n in inside.children(focus, 1).tolist() if self._is(n, "iteration"))
            chain.update([focus, *(span.number for span in self.ancestors(focus))])
        still = self.open.numbers[self.now_ns - self.open.rows["start"] >= settled]
        if len(still):
            innermost = int(still[-1])
            around = [span.number for span in self.ancestors(innermost)]
            chain.update([innermost, *around])
            if innermost > focus and focus not in around:
                focus = innermost
        if not focus:
            roots = self.children(0)
            if not len(roots):
                return None
            focus = int(roots[-1])
        return focus, chain

    def _is(self, number: int, kind: str) -> bool:
        span = self.span(number)
        return span is not None and span.kind == kind

    def _newest_step(self, settled_ns: int) -> int:
        ended = 0
        for steps in list(self.digest.steps.values()):  # the reader may add one meanwhile
            for number in steps.number.values[-1:].tolist():
                ended = max(ended, self.step_of(number))
        running = [n for n in self._open_numbers if self._is(n, "step") and self.step_of(n) == n]
        newest = max(running, default=0)
        if newest < ended:
            return ended
        span, last = self.span(newest), self.span(ended)
        siblings = span is not None and last is not None and span.parent == last.parent
        if siblings and span is not None and span.took_ns(self.now_ns) < settled_ns:
            return ended
        return newest

    def errors(self) -> Numbers:
        """Where exceptions came from: spans with an error of which no child has one."""
        parents = self.digest.failed_parents.values
        failed = np.unique(self.digest.failed.values[: len(parents)])
        found: Numbers = failed[~np.isin(failed, parents)]
        return found

    def frame(self, number: int) -> int:
        """The span whose time a waterfall around a span shows: its step, epoch or run."""
        span = self.span(number)
        around = [*([span] if span is not None else []), *self.ancestors(number)]
        for kind in FRAMES:
            for each in around:
                if each.kind == kind:
                    return each.number
        return around[-1].number if around else 0

    def origin(self, number: int, frame: int) -> int:
        """The time, Unix ns, that stands at the left of a span's line in the frame's waterfall.

        Spans in the frame's epoch (or step) begin where they began in it. Every other step or
        epoch begins at the left: so steps compare, each beginning at its own zero.
        """
        own, of = self.span(number), self.span(frame)
        if own is None or of is None:
            return 0
        kin = [each for each in (own, *self.ancestors(number)) if each.kind == of.kind]
        for each in kin:
            if each.lane == of.lane:
                return each.start_ns
        return kin[0].start_ns if kin else own.start_ns

    def label(self, span: Span) -> str:
        """What a span is called in the tree. Raw text of the trace: not safe to print."""
        if span.kind == "run":
            return f"run {self.lane(span).engine}"
        if span.kind == "epoch":
            return f"epoch {span.epoch}"
        if span.kind == "step":
            return f"step {span.iteration}"
        if span.kind == "event":
            ran = self.children(span.number, 1)
            first = self.span(int(ran[0])) if len(ran) else None
            if first is not None:
                more = f" +{len(ran) - 1}" if len(ran) > 1 else ""
                return f"{span.text} · {first.text}{more}"
        return span.text
