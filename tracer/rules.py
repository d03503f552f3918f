"""The rules: which event closes and opens which span.

Pure: no clock, no torch, no I/O. An engine's place in its loop is a ``Node``: which spans are open
and which boundary was passed last. An event at a node gives a ``Move``: what to close before the
event's handlers run, what to open, what happens after them, and the next node. Nodes and moves
are made when they are first needed and kept, so a running loop only follows links.

The rules, in the order in which they are tried:

1. ignite's own events follow the table ``CORE``: which spans must be open around the event, which
   it opens, which end with it.
2. ``X_STARTED`` opens a pair ``x``; ``X_COMPLETED`` closes it, if it is open.
3. Inside the process function a lone ``X_COMPLETED`` ends a phase ``x`` that began at the previous
   boundary: the end of the handlers of the event before it.
4. Any other event is a span of its own and nothing else.

Containers (run, epoch, step, iteration, pairs) include the handlers of the events that begin and
end them, as ignite's own times do. Phases (``get_batch``, ``forward``, ...) never include one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from firetrace.tracer.journal import Flag

CUT, ERROR, GUESS, VOID = int(Flag.CUT), int(Flag.ERROR), int(Flag.GUESS), int(Flag.VOID)


class Frame(NamedTuple):
    """A kind of span that is open."""

    kind: str
    name: str


RUN = Frame("run", "run")
EPOCH = Frame("epoch", "epoch")
STEP = Frame("step", "step")
ITERATION = Frame("iteration", "iteration")
GET_BATCH = Frame("phase", "get_batch")
LOADER = Frame("loader", "loader")

#: Rule 3 gets these wrong: (boundary before, event) -> the phase that it closes (None: nothing).
#: MONAI fires MODEL_COMPLETED after the optimizer's step; in an evaluator directly after FORWARD.
PHASES: dict[tuple[str, str], str | None] = {
    ("BACKWARD_COMPLETED", "MODEL_COMPLETED"): "optimizer",
    ("FORWARD_COMPLETED", "MODEL_COMPLETED"): None,
}

#: What ``Node.counts`` and ``Move.counts`` say about the engine's counters.
KEEP, AS_THEY_ARE, ONE_AHEAD = 0, 1, 2

#: What a move finds of the guess: none was made or it stands; it was right; another phase ended;
#: none did.
NO_GUESS, RIGHT, RENAME, DROP = 0, 1, 2, 3

#: Shapes of moves: at most one span ends and one opens after; a container opens; containers close.
OTHER, BOUNDARY, OPENS, CLOSES = 0, 1, 2, 3


@dataclass(frozen=True)
class Rule:
    """What one of ignite's own events does."""

    inside: tuple[Frame, ...] = ()  #: open around the event; what is deeper is closed, cut
    opens: tuple[Frame, ...] = ()  #: opened before its handlers run
    ends: tuple[Frame, ...] = ()  #: closed before its handlers run, at their own end (not cut)
    closes: int = 0  #: how many containers end after its handlers
    then: tuple[Frame, ...] = ()  #: opened after its handlers
    counts: int = KEEP  #: whether the engine's counters have to be read again
    boundary: bool = False  #: a phase may begin after its handlers
    reason: str = ""  #: why what it cuts was cut


NOTHING: tuple[Frame, ...] = ()
_IN_EPOCH = (RUN, EPOCH)
_IN_STEP = (RUN, EPOCH, STEP)
_IN_ITERATION = (RUN, EPOCH, STEP, ITERATION)

CORE: dict[str, Rule] = {
    "STARTED": Rule(opens=(RUN,), counts=AS_THEY_ARE),
    "EPOCH_STARTED": Rule((RUN,), opens=(EPOCH,), counts=AS_THEY_ARE),
    # At GET_BATCH_* the engine's counter still has the previous value.
    "GET_BATCH_STARTED": Rule(_IN_EPOCH, opens=(STEP,), then=(GET_BATCH,), counts=ONE_AHEAD),
    "DATALOADER_STOP_ITERATION": Rule(_IN_STEP, ends=(GET_BATCH,), boundary=True),
    "GET_BATCH_COMPLETED": Rule(_IN_STEP, ends=(GET_BATCH,)),
    "ITERATION_STARTED": Rule(_IN_STEP, opens=(ITERATION,), counts=AS_THEY_ARE, boundary=True),
    "ITERATION_COMPLETED": Rule(_IN_ITERATION, closes=2),
    "EPOCH_COMPLETED": Rule(_IN_EPOCH, closes=1, reason="no more data"),
    "COMPLETED": Rule((RUN,), closes=1),
    "TERMINATE": Rule((RUN,), reason="terminate"),
    "TERMINATE_SINGLE_EPOCH": Rule(_IN_EPOCH, reason="terminate_epoch"),
    "EXCEPTION_RAISED": Rule(_IN_EPOCH, reason="exception"),
}

MOST_PAIRS = 32  # open at once; a pair that never ends must not grow without bound


@dataclass(eq=False, slots=True)
class Node:
    """A place in the loop: open spans, outermost first, and the last boundary passed.

    ``inside_handler`` nodes describe what an event's handler itself has opened.
    """

    frames: tuple[Frame, ...]
    boundary: str = ""
    inside_handler: bool = False
    #: A phase is named only when it ends. So that one in progress can be seen, the phase that
    #: followed here the last time is opened on the guess that it will again: ``entry`` is then
    #: this node's twin with that phase open, else the node itself.
    guess: int | None = None
    base: Node = field(init=False)  #: of a twin, the node it is the twin of
    entry: Node = field(init=False)
    moves: dict[str, Move] = field(default_factory=dict)
    #: By ``id`` of the event object, for the recorder. A move keeps its event alive, so no other
    #: object can get the same id.
    by_id: dict[int, Move] = field(default_factory=dict)
    twins: dict[int, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = self.entry = self

    def learn(self, phase: int | None) -> None:
        """From now on, guess that this phase follows here (None: no guess)."""
        base = self.base
        base.entry = base
        if phase is not None:
            base.entry = base.twins.setdefault(
                phase, Node(base.frames, base.boundary, base.inside_handler, phase)
            )
            base.entry.base = base


@dataclass(eq=False, slots=True)
class Move:
    """What an event does at a node. Names are labels, as rows hold them."""

    event: object
    label: int  #: of the event's own span
    text: str
    held: Node  #: while its handlers run, and after one of them raised
    target: Node
    phase: int | None = None  #: label of the phase that ends here
    guess: int = NO_GUESS  #: what becomes of the phase that was opened on a guess
    guess_flags: int = 0  #: with which flags it is closed
    cut: int = 0  #: how many of the innermost spans are closed early, with ``cut_flags``
    cut_flags: int = CUT
    reason: str = ""
    ended: int = 0  #: how many are closed then, at their own end
    late: tuple[int, ...] = ()  #: containers whose beginning was missed
    opens: tuple[int, ...] = ()
    closes: int = 0
    then: tuple[int, ...] = ()
    counts: int = KEEP
    plans: bool = False  #: whether to read how far the engine means to go
    is_boundary: bool = False
    begins_step: bool = False
    ends_step: bool = False
    shape: int = OTHER  #: for the recorder's short cuts: the moves that a running loop makes
    quick_ends: bool = False  #: one span ends before the event
    quick_opens: int = -1  #: the one that opens before it; -1: none
    quick_then: int = -1  #: the one that opens after it; -1: none
    #: What the recorder does: at an event without handlers; before and after those of one with.
    action: Any = None
    begin: Any = None
    finish: Any = None


class Rules:
    """Makes nodes and moves; one a recorder, because moves hold labels of its rows.

    Args:
        intern: (kind, text) -> label.
    """

    def __init__(self, intern: Callable[[str, str], int]) -> None:
        self._intern = intern
        self._nodes: dict[tuple[tuple[Frame, ...], str, bool], Node] = {}
        self.root = self.node(())
        self.handler_root = self.node((), inside_handler=True)

    def node(
        self, frames: tuple[Frame, ...], boundary: str = "", inside_handler: bool = False
    ) -> Node:
        """The node for these open frames, always the same object."""
        key = (frames, boundary, inside_handler)
        if key not in self._nodes:
            self._nodes[key] = Node(frames, boundary, inside_handler)
        return self._nodes[key]

    def move(self, node: Node, event: object, text: str) -> Move:
        """What the event named ``text`` does at ``node``."""
        found = node.moves.get(text)
        if found is None:
            found = node.moves[text] = self._settle(node, self._make(node, event, text))
        if len(node.by_id) < 1024 and not isinstance(event, str):
            # Equal names of other enums' events share the move but must be kept alive as well.
            node.by_id[id(event)] = found if found.event is event else _same_move(found, event)
            return node.by_id[id(event)]
        return found

    def _settle(self, node: Node, move: Move) -> Move:
        """Say what a move does to the guess that was open, and which shape it has."""
        if node.guess is not None and (move.is_boundary or move.target is not node):
            if move.phase == node.guess:
                move.guess = RIGHT
            elif move.phase is not None:
                move.guess = RENAME
            else:
                move.guess = DROP
                move.guess_flags = GUESS | (move.cut_flags if move.reason else VOID)
        elif move.target is node:
            move.held = node  # the guess stays open, whatever the event's handlers do
        ends = move.ended + (move.guess == RIGHT)
        unusual = move.cut or move.reason or move.late or move.plans or move.guess in (RENAME, DROP)
        if unusual or ends > 1 or (move.phase is not None and move.guess != RIGHT):
            return move
        if not (move.opens or move.closes or move.then or move.counts):
            move.shape, move.quick_ends = BOUNDARY, bool(ends)
        elif move.closes and not (move.opens or move.then or move.counts or ends):
            move.shape = CLOSES
        elif (
            len(move.opens) == 1 and len(move.then) <= 1 and move.counts and not move.closes + ends
        ):
            move.shape, move.quick_opens = OPENS, move.opens[0]
            move.quick_then = move.then[0] if move.then else -1
        return move

    def _make(self, node: Node, event: object, text: str) -> Move:
        rule = None if node.inside_handler else CORE.get(text)
        if rule is not None:
            return self._core(node, event, text, rule)
        stem, _, suffix = text.rpartition("_")
        suffix = suffix.upper()
        if suffix == "STARTED" and stem and len(node.frames) < MOST_PAIRS:
            return self._pair_started(node, event, text, Frame("pair", stem.lower()))
        if suffix == "COMPLETED" and stem:
            pair = Frame("pair", stem.lower())
            if pair in _above_iteration(node.frames):
                return self._pair_completed(node, event, text, pair)
            if in_process_function(node):
                phase = PHASES.get((node.boundary, text), stem.lower())
                target = self.node(node.frames, text)
                return self._plain(node, event, text, target, phase=phase, is_boundary=True)
        return self._plain(node, event, text, node)

    def _core(self, node: Node, event: object, text: str, rule: Rule) -> Move:
        frames, ended = node.frames, 0
        inside = rule.inside
        if text == "GET_BATCH_STARTED" and frames[-2:] == (STEP, GET_BATCH):
            frames, ended, inside = frames[:-1], 1, _IN_STEP  # fired twice: the same step
            opens = NOTHING
        elif text == "GET_BATCH_STARTED" and frames[-1:] == (STEP,) and node.boundary:
            inside, opens = _IN_STEP, NOTHING
        else:
            opens = rule.opens
        if text == "EXCEPTION_RAISED" and EPOCH not in frames:
            inside = (RUN,)
        kept = 0
        while kept < len(inside) and kept < len(frames) and frames[kept] == inside[kept]:
            kept += 1
        extra = frames[kept:]
        cut = len(extra)
        if rule.ends and extra and extra[-len(rule.ends) :] == rule.ends:
            ended, cut = len(rule.ends), cut - len(rule.ends)
        if cut and ended:  # what is cut is deeper than what ends by itself, never the reverse
            cut, ended = cut + ended, 0
        late = inside[kept:]
        if text == "ITERATION_STARTED" and late == (STEP,):  # data=None: nothing was fetched
            late, opens = NOTHING, (STEP, *opens)
        open_now = inside[: kept + len(late)] + opens
        after = open_now[: len(open_now) - rule.closes] + rule.then
        return Move(
            event,
            self._intern("event", text),
            text,
            held=self.node(open_now),
            target=self.node(after, text if rule.boundary or rule.reason else ""),
            phase=self._fetched(node, text),
            cut=cut,
            cut_flags=CUT | ERROR if text == "EXCEPTION_RAISED" else CUT,
            reason=rule.reason,
            ended=ended,
            late=self._names(late),
            opens=self._names(opens),
            closes=rule.closes,
            then=self._names(rule.then),
            counts=rule.counts,
            plans=RUN in late or text in ("STARTED", "EPOCH_STARTED"),
            # After DATALOADER_STOP_ITERATION the loader starts first, then the fetch.
            is_boundary=rule.boundary and GET_BATCH not in rule.ends,
            begins_step=STEP in late + opens,
            ends_step=STEP in node.frames and STEP not in after,
        )

    def _fetched(self, node: Node, text: str) -> int | None:
        """After DATALOADER_STOP_ITERATION the batch comes without another GET_BATCH_STARTED."""
        if text == "GET_BATCH_COMPLETED" and node.frames[-1:] == (STEP,) and node.boundary:
            return self._intern(*GET_BATCH)
        return None

    def phase_move(self, node: Node, phase: str) -> Move:
        """A phase ends though no event says so (``prepare_batch`` has returned)."""
        found = node.moves.get(phase)
        if found is None:
            target = self.node(node.frames, phase, node.inside_handler)
            found = self._plain(node, None, phase, target, phase=phase, is_boundary=True)
            node.moves[phase] = self._settle(node, found)
        return found

    def _pair_started(self, node: Node, event: object, text: str, pair: Frame) -> Move:
        frames, cut = node.frames, 0
        if pair in _above_iteration(frames):  # it never ended: it ends now
            at = len(frames) - 1 - frames[::-1].index(pair)
            frames, cut = frames[:at], len(frames) - at
        target = self.node((*frames, pair), text, node.inside_handler)
        return self._plain(
            node, event, text, target, cut=cut, opens=self._names((pair,)), is_boundary=True,
            held=target,
        )  # fmt: skip

    def _pair_completed(self, node: Node, event: object, text: str, pair: Frame) -> Move:
        at = len(node.frames) - 1 - node.frames[::-1].index(pair)
        target = self.node(node.frames[:at], text, node.inside_handler)
        held = self.node(node.frames[: at + 1], node.boundary, node.inside_handler)
        cut = len(node.frames) - 1 - at
        return self._plain(
            node, event, text, target, cut=cut, closes=1, is_boundary=True, held=held
        )

    def _plain(
        self,
        node: Node,
        event: object,
        text: str,
        target: Node,
        *,
        phase: str | None = None,
        held: Node | None = None,
        is_boundary: bool = False,
        cut: int = 0,
        opens: tuple[int, ...] = (),
        closes: int = 0,
    ) -> Move:
        return Move(
            event,
            -1 if event is None else self._intern("event", text),
            text,
            held=held or node.base,
            target=target,
            phase=None if phase is None else self._intern("phase", phase),
            is_boundary=is_boundary,
            cut=cut,
            opens=opens,
            closes=closes,
        )

    def _names(self, frames: tuple[Frame, ...]) -> tuple[int, ...]:
        return tuple(self._intern(*frame) for frame in frames)


def _same_move(move: Move, event: object) -> Move:
    """The same move, holding another event object of the same name."""
    return replace(move, event=event)


def _above_iteration(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The pairs that are open innermost."""
    at = len(frames)
    while at and frames[at - 1].kind == "pair":
        at -= 1
    return frames[at:]


def in_process_function(node: Node) -> bool:
    """Whether the engine is inside its process function (or in a pair inside that)."""
    if node.inside_handler:
        return False
    return ITERATION in node.frames
