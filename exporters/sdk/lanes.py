"""Where a span goes: lanes in which slices nest as spans do. Pure; knows neither JSON nor the SDK.

A viewer of slices (Perfetto) nests by time alone and drops what overlaps in part. So every span
goes to a lane (a thread to Perfetto) of its group (the thread that it ran in, where that is known)
where it lies beside what is there, inside its parent, or around descendants of its own.

Spans come when they end, children before parents, in batches. A batch is placed parents first, so
that its trees stay together. Of what came before, a lane keeps a short row of blocks: a block is a
time in which the lane is taken, and ``waits``, the spans still to come that may lie around it.
Blocks that wait for the same span become one, and one that waits for nobody swallows all before
it. So a lane has one block for each span that is open in it, however many have ended.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

#: The key of no span: what waits for it lies in nothing.
NOBODY = 0
#: While a group has fewer lanes, a span gets a new one rather than one that another trace uses.
FREE_LANES = 32
#: Spans whose parents are remembered, beyond those of the batch.
REMEMBERED = 8192
#: Blocks a lane, and levels of a block, that are kept apart; parents that never come leave them.
KEPT_BLOCKS, KEPT_LEVELS = 64, 64


class Interval(NamedTuple):
    """A span to place. ``end`` is exclusive."""

    group: Hashable
    start: int
    end: int  #: more than ``start``
    key: int
    parent: int  #: its parent's key, or ``NOBODY``


class Lane:
    """A row of slices; ``id`` counts all lanes from 0, ``number`` those of the group."""

    __slots__ = ("blocks", "group", "id", "number")

    def __init__(self, group: Hashable, number: int, id: int) -> None:
        self.group, self.number, self.id = group, number, id
        self.blocks: list[_Block] = []


class _Block:
    """A time in which a lane is taken: by one span, or (``key`` is NOBODY) by some."""

    __slots__ = ("end", "inner", "key", "lane", "outer", "start", "waits")

    def __init__(self, span: Interval, lane: Lane, outer: bool) -> None:
        self.start, self.end, self.key, self.lane = span.start, span.end, span.key, lane
        self.waits = {span.parent}
        self.inner: list[_Block] = []  #: what lies in it, as far as a late child needs to know
        self.outer = outer  #: whether it lies in no other block


class Layout:
    """The lanes of a file."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, list[Lane]] = {}
        self._count = 0
        self._parents: dict[int, int] = {}  #: of spans that have come
        self._homes: dict[int, Lane] = {}  #: of spans that late children can be put in
        self._waiting: dict[int, dict[_Block, None]] = {}  #: outer blocks, by whom they wait for

    def place(self, spans: Sequence[Interval]) -> list[tuple[int, Lane]]:
        """Find each span's lane. Returns (position in ``spans``, lane), in the order to write.

        That is: by start, parents first.
        """
        new = {span.key: span.parent for span in spans}
        self._parents.update(new)
        children = self._children(new)
        touched: dict[Lane, None] = {}
        placed = []
        for position in self._order(spans):
            span = spans[position]
            lane = self._find(span, children.get(span.key, ()))
            self._homes[span.key] = lane
            touched[lane] = None
            placed.append((position, lane))
        changed = [block for lane in touched for block in lane.blocks]
        changed += [block for key in new for block in self._waiting.get(key, ())]
        for block in changed:
            self._wait(block, {self._top(key) for key in block.waits})
        for lane in touched:
            self._shorten(lane)
        surplus = len(self._parents) - REMEMBERED
        for key in list(islice(self._parents, max(0, surplus))):
            del self._parents[key]
        return placed

    def _order(self, spans: Sequence[Interval]) -> list[int]:
        order = range(len(spans))
        times = [(span.start, -span.end) for span in spans]
        if len(set(times)) == len(times):
            return sorted(order, key=times.__getitem__)
        return sorted(order, key=lambda i: (times[i], sum(1 for _ in self._above(spans[i].key))))

    def _above(self, key: int) -> Iterable[int]:
        """A span's parent, its parent and so on, as far as they have come, and one more."""
        seen = {key}  # ids that go round in a circle are possible, if senseless
        while key in self._parents:
            key = self._parents[key]
            if key in seen:
                return
            seen.add(key)
            yield key

    def _top(self, key: int) -> int:
        """The nearest above (or ``key`` itself) that has not come."""
        *_, top = (key, *self._above(key))
        return NOBODY if top in self._parents else top

    def _children(self, new: dict[int, int]) -> dict[int, list[_Block]]:
        """The blocks that wait for a span of the batch, or for one below it."""
        found: dict[int, list[_Block]] = {}
        for key in new:
            for block in self._waiting.get(key, ()):
                for above in (key, *self._above(key)):
                    if above in new:
                        found.setdefault(above, []).append(block)
        return found

    def _find(self, span: Interval, children: Iterable[_Block]) -> Lane:
        lanes = self._groups.setdefault(span.group, [])
        near: dict[Lane, None] = {}  # with its parent, around its children, beside its siblings
        home = self._homes.get(span.parent)
        if home is not None:
            near[home] = None
        for blocks in (children, self._waiting.get(span.parent, ()) if span.parent else ()):
            found = {block.lane for block in blocks if block.outer}
            near.update(dict.fromkeys(sorted(found, key=lambda lane: lane.id)))
        for lane in near:
            if lane.group == span.group and self._put(span, lane):
                return lane
        for lane in lanes:
            if self._free(span, lane) and self._put(span, lane):
                return lane
        if len(lanes) >= FREE_LANES:
            for lane in lanes:
                if self._put(span, lane):
                    return lane
        lane = Lane(span.group, len(lanes), self._count)
        self._count += 1
        lanes.append(lane)
        lane.blocks.append(_Block(span, lane, True))
        return lane

    def _free(self, span: Interval, lane: Lane) -> bool:
        """Whether nobody of another trace is still expected around the end of this lane."""
        waits = lane.blocks[-1].waits if lane.blocks else ()
        return all(not top or top >> 64 == span.key >> 64 for top in map(self._top, waits))

    def _put(self, span: Interval, lane: Lane) -> bool:
        """Put it there if it nests."""
        row, container = lane.blocks, NOBODY
        while True:
            last = len(row)
            while last and row[last - 1].start >= span.end:
                last -= 1
            first = last
            while first and row[first - 1].start > span.start:
                first -= 1
            within = row[first:last]
            if not all(self._encloses(span, block) for block in within):
                return False
            if not first or row[first - 1].end <= span.start:
                break
            around = row[first - 1]
            if around.end < span.end or not around.key:
                return False
            row, container = around.inner, around.key
        if container and container not in self._above(span.key):
            return False
        new = _Block(span, lane, outer=not container)
        new.inner = within
        for block in within:
            self._wait(block, block.waits, outer=False)
        row[first:last] = [new]
        return True

    def _encloses(self, span: Interval, block: _Block) -> bool:
        return block.end <= span.end and all(
            key == span.key or span.key in self._above(key) for key in block.waits
        )

    def _wait(self, block: _Block, waits: set[int], outer: bool = True) -> None:
        """Say for whom a block waits; one that is not outer is no longer looked for."""
        for key in block.waits:
            others = self._waiting.get(key)
            if others is not None:
                others.pop(block, None)
                if not others:
                    del self._waiting[key]
        block.waits, block.outer = waits, outer
        if outer:
            for key in waits - {NOBODY}:
                self._waiting.setdefault(key, {})[block] = None

    def _shorten(self, lane: Lane) -> None:
        """Keep of a lane what spans to come can meet."""
        lane.blocks = self._merged(lane.blocks)
        row, level = lane.blocks, 0
        while row:
            for block in row[:-1]:
                self._seal(block)
            last = row[-1]
            level += 1
            if level == KEPT_LEVELS:
                self._seal(last)
            elif len(last.inner) > 2:  # only what begins after the last of them fits in yet
                for block in last.inner[:-1]:
                    self._seal(block)
                last.inner[-2].start, last.inner[-2].waits = last.inner[0].start, {NOBODY}
                del last.inner[:-2]
            row = last.inner

    def _merged(self, row: list[_Block]) -> list[_Block]:
        """All but the last, those together that wait for the same."""
        merged: list[_Block] = []
        places: dict[int, int] = {}  # in `merged`, by whom the block there waits for
        for block in row[:-1]:
            at = len(merged)
            if NOBODY in block.waits or at >= KEPT_BLOCKS:
                at = 0
            at = min([at, *(places[key] for key in block.waits if key in places)])
            if at < len(merged):
                whole = merged[at]
                waits = set(block.waits)
                for other in merged[at:]:
                    waits |= other.waits
                if at == 0 and (NOBODY in waits or len(merged) >= KEPT_BLOCKS):
                    waits = {NOBODY}
                for other in (*merged[at + 1 :], block):
                    self._seal(other)
                    self._wait(other, set(), outer=False)
                self._seal(whole)
                whole.end = block.end
                self._wait(whole, waits)
                del merged[at + 1 :]
                places = {key: place for key, place in places.items() if place < at}
                places.update(dict.fromkeys(waits, at))
            else:
                merged.append(block)
                places.update(dict.fromkeys(block.waits, at))
        return merged + row[-1:]

    def _seal(self, block: _Block) -> None:
        """Nothing more goes into it."""
        below = [block]
        while below:
            gone = below.pop()
            if gone.key and self._homes.get(gone.key) is gone.lane:
                del self._homes[gone.key]
            gone.key = NOBODY
            below += gone.inner
            gone.inner = []
