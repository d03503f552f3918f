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

Hooks tell of boundaries too (``phase_move``), and of those it is known what begins there. What lies
after the last of them, to the end of the iteration, is the phase ``output``.

Containers (run, epoch, step, iteration, pairs) include the handlers of the events that begin and
end them, as ignite's own times do. Phases (``get_batch``, ``forward``, ...) never include one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from firetrace.tracer.journal import Flag
from firetrace.tracer.moves import (
    BOUNDARY,
    CLOSES,
    CORE,
    DROP,
    ENDINGS,
    EPOCH,
    FROM_ITERATION,
    GET_BATCH,
    IN_STEP,
    MOST_PAIRS,
    NOTHING,
    OPENS,
    RENAME,
    RIGHT,
    RUN,
    SPAN,
    STEP,
    STEPS,
    Frame,
    Move,
    Node,
    Rule,
    above_iteration,
    in_process_function,
)

CUT, ERROR, GUESS, VOID = int(Flag.CUT), int(Flag.ERROR), int(Flag.GUESS), int(Flag.VOID)
SAMPLES = {"ITERATION_COMPLETED": "output", "EPOCH_COMPLETED": "metrics"}

#: Rule 3 gets one event wrong, with MONAI's names before it or without: MODEL_COMPLETED comes after
#: the optimizer's step, in an evaluator directly after FORWARD_COMPLETED.
MODEL, BACKWARD, FORWARD = "MODEL_COMPLETED", "BACKWARD_COMPLETED", "FORWARD_COMPLETED"
OPTIMIZER = "optimizer"
BEGINS = " begins"  # after a phase's name: a boundary that hooks tell of; see ``hooks``
BACKWARD_BEGINS = "backward" + BEGINS
SINCE_BOUNDARY = ""  # in place of a phase's name: what begins has begun at the boundary before


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
        #: Where an engine is that does not run, or whose run has another one inside: its events
        #: open and close nothing, since what is open belongs to others.
        self.outside = Node((), inside_handler=True)
        #: Whether each step of each optimizer is told of: one that is not did not happen.
        self.watches_optimizers = False
        self._marks: object = None
        self.samples: frozenset[str] = frozenset()  # "output", "metrics": what is recorded

    def configure(
        self, watches_optimizers: bool, samples: frozenset[str], marks: object = None
    ) -> None:
        """Set what moves depend on; ``marks``: who else carries them out."""
        new = watches_optimizers, samples, marks
        if new != (self.watches_optimizers, self.samples, self._marks):
            self.watches_optimizers, self.samples, self._marks = new
            for node in (self.outside, *self._nodes.values()):
                for each in (node, *node.twins.values()):
                    each.moves.clear()
                    each.by_id.clear()
                    each.by_key.clear()

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
        unusual = move.cut or move.reason or move.late or move.plans or move.samples
        unusual = unusual or move.guess in (RENAME, DROP)
        if unusual or ends > 1 or (move.phase is not None and move.guess != RIGHT):
            return move
        if not (move.opens or move.closes or move.then or move.counts):
            move.shape, move.quick_ends = STEPS if move.skips else BOUNDARY, bool(ends)
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
        if in_process_function(node) and text not in FROM_ITERATION:
            rule = None
        if rule is not None:
            return self._core(node, event, text, rule)
        if text == "INTERRUPT" and node.frames[-1:] == (GET_BATCH,):  # before it began
            target = self.node(node.frames[:-1], "GET_BATCH_STARTED")
            move = self._plain(node, event, text, target, held=target, cut=1)
            move.void = True
            return move
        if node is self.outside:
            return self._plain(node, event, text, node)
        stem, _, suffix = text.rpartition("_")
        suffix = suffix.upper()
        if suffix == "STARTED" and stem and len(node.frames) < MOST_PAIRS:
            return self._pair_started(node, event, text, Frame("pair", stem.lower()))
        if suffix == "COMPLETED" and stem:
            pair = Frame("pair", stem.lower())
            if pair in above_iteration(node.frames):
                return self._pair_completed(node, event, text, pair)
            if in_process_function(node):
                phase = self._phase(node.boundary, text, stem)
                target = self.node(node.frames, text)
                move = self._plain(node, event, text, target, phase=phase, is_boundary=True)
                move.skips = self.watches_optimizers and text.endswith(MODEL) and phase is not None
                return move
        return self._plain(node, event, text, node)

    @staticmethod
    def _phase(boundary: str, text: str, stem: str) -> str | None:
        """The phase that a lone ``*_COMPLETED`` event closes (None: nothing)."""
        if text.endswith(MODEL):
            whose = text.removesuffix(MODEL)
            if boundary == whose + BACKWARD:
                return whose.lower() + OPTIMIZER
            if boundary == whose + FORWARD or boundary.endswith(OPTIMIZER):
                return None
        return None if boundary == stem.lower() else stem.lower()  # a hook has told of it before

    def _core(self, node: Node, event: object, text: str, rule: Rule) -> Move:
        frames, ended = node.frames, 0
        inside = rule.inside
        if text == "GET_BATCH_STARTED" and frames[-2:] == (STEP, GET_BATCH):
            frames, ended, inside = frames[:-1], 1, IN_STEP  # fired twice: the same step
            opens = NOTHING
        elif text == "GET_BATCH_STARTED" and frames[-1:] == (STEP,) and node.boundary:
            inside, opens = IN_STEP, NOTHING
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
            phase=self._unannounced(node, text),
            cut=cut,
            # They come before the fetch has begun, or after it has ended.
            void=bool(cut)
            and text in ENDINGS
            and text != "EXCEPTION_RAISED"
            and frames[-1:] == (GET_BATCH,),
            cut_flags=CUT | ERROR if text == "EXCEPTION_RAISED" else CUT,
            reason=rule.reason or (ENDINGS.get(node.boundary, "") if cut else ""),
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
            samples=SAMPLES[text] if SAMPLES.get(text) in self.samples else "",
        )

    def _unannounced(self, node: Node, text: str) -> int | None:
        """The phase that one of ignite's own events ends."""
        # After DATALOADER_STOP_ITERATION the batch comes without another GET_BATCH_STARTED.
        if text == "GET_BATCH_COMPLETED" and node.frames[-1:] == (STEP,) and node.boundary:
            return self._intern(*GET_BATCH)
        if text != "ITERATION_COMPLETED":
            return None
        if node.boundary == BACKWARD_BEGINS:
            return self._intern("phase", "backward")  # and no optimizer's step after it
        if node.boundary.endswith(BACKWARD):
            return self._intern("phase", node.boundary.removesuffix(BACKWARD).lower() + OPTIMIZER)
        after_model = self.watches_optimizers and node.boundary.endswith(MODEL)
        if after_model or node.boundary.endswith((OPTIMIZER, "forward")):  # the latter by hooks
            return self._intern("phase", "output")
        return None

    def phase_move(self, node: Node, phase: str | None, begins: str = "") -> Move:
        """A phase ends though no event says so (``prepare_batch`` has returned).

        None: what ends here has no name, but what comes next begins here.
        """
        since, phase = phase == SINCE_BOUNDARY, phase or None
        key = f"\0{phase or ''}\0{begins}"  # no event is called so
        found = node.moves.get(key)
        if found is None:
            boundary = begins + BEGINS if begins else phase or ""
            target = self.node(node.frames, boundary, node.inside_handler)
            found = self._plain(node, None, key, target, phase=phase, is_boundary=True)
            found.phase_since_boundary = since
            node.moves[key] = self._settle(node, found)
        return found

    def inside_span(self, node: Node) -> Node | None:
        """The node inside a span of the user's; None: there are too many, one in another."""
        if len(node.frames) >= MOST_PAIRS:
            return None
        return self.node(self.frames_inside(node), "", node.inside_handler)

    @staticmethod
    def frames_inside(node: Node) -> tuple[Frame, ...]:
        """What is open inside a span of the user's. A phase that was guessed stays around it."""
        if node.guess is None:
            return (*node.frames, SPAN)
        return (*node.frames, Frame("guess", str(node.guess)), SPAN)

    def may_be_in_phase(self, node: Node) -> bool:
        """Whether the event that comes next may say that a phase has been going on."""
        if node.guess is not None or node.barren or node.inside_handler:
            return False
        return in_process_function(node) or bool(node.boundary and node.frames[-1:] == (STEP,))

    def _pair_started(self, node: Node, event: object, text: str, pair: Frame) -> Move:
        frames, cut = node.frames, 0
        if pair in above_iteration(frames):  # it never ended: it ends now
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
