"""The words of the rules: which spans can be open, what ignite's own events do, nodes and moves.

Pure data. What an event does is worked out in ``firetrace.tracer.rules``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from firetrace.tracer.journal import Flag

CUT = int(Flag.CUT)


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

SPAN = Frame("span", "")  # whatever its name: nodes must not grow with the names of users

#: What ``Node.counts`` and ``Move.counts`` say about the engine's counters.
KEEP, AS_THEY_ARE, ONE_AHEAD = 0, 1, 2

#: What a move finds of the guess: none was made or it stands; it was right; another phase ended;
#: none did.
NO_GUESS, RIGHT, RENAME, DROP = 0, 1, 2, 3

#: Shapes of moves: at most one span ends and one opens after; a container opens; containers close;
#: a boundary that may end an optimizer's step; anything else.
BOUNDARY, OPENS, CLOSES, STEPS, OTHER = 0, 1, 2, 3, 4


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
IN_EPOCH = (RUN, EPOCH)
IN_STEP = (RUN, EPOCH, STEP)
IN_ITERATION = (RUN, EPOCH, STEP, ITERATION)

CORE: dict[str, Rule] = {
    "STARTED": Rule(opens=(RUN,), counts=AS_THEY_ARE),
    "EPOCH_STARTED": Rule((RUN,), opens=(EPOCH,), counts=AS_THEY_ARE),
    # At GET_BATCH_* the engine's counter still has the previous value.
    "GET_BATCH_STARTED": Rule(IN_EPOCH, opens=(STEP,), then=(GET_BATCH,), counts=ONE_AHEAD),
    "DATALOADER_STOP_ITERATION": Rule(IN_STEP, ends=(GET_BATCH,), boundary=True),
    "GET_BATCH_COMPLETED": Rule(IN_STEP, ends=(GET_BATCH,)),
    "ITERATION_STARTED": Rule(IN_STEP, opens=(ITERATION,), counts=AS_THEY_ARE, boundary=True),
    "ITERATION_COMPLETED": Rule(IN_ITERATION, closes=2),
    "EPOCH_COMPLETED": Rule(IN_EPOCH, closes=1, reason="no more data"),
    "COMPLETED": Rule((RUN,), closes=1),
    "TERMINATE": Rule((RUN,), reason="terminate"),
    "TERMINATE_SINGLE_EPOCH": Rule(IN_EPOCH, reason="terminate_epoch"),
    "EXCEPTION_RAISED": Rule(IN_EPOCH, reason="exception"),
}

#: Why a run ended without COMPLETED, or an epoch without EPOCH_COMPLETED, by the event before.
ENDINGS = {
    "TERMINATE": "terminate", "TERMINATE_SINGLE_EPOCH": "terminate_epoch",
    "EXCEPTION_RAISED": "exception",
}  # fmt: skip
#: What ignite's loop fires while the process function is running or has just returned. Any other of
#: its events comes from the program then.
FROM_ITERATION = frozenset({"ITERATION_COMPLETED", *ENDINGS})

MOST_PAIRS = 64  # open at once; a pair that never ends must not grow without bound


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
    #: The same for boundaries that hooks tell of; None: it is none.
    by_key: dict[tuple[int, str], Move | None] = field(default_factory=dict)
    twins: dict[int, Node] = field(default_factory=dict)
    barren: bool = False  #: no phase has followed here though one was taken for granted

    def __post_init__(self) -> None:
        self.base = self.entry = self

    def twin(self, phase: int) -> Node:
        """The same place with a phase open."""
        base = self.base
        if phase not in base.twins:
            twin = Node(base.frames, base.boundary, base.inside_handler, phase)
            twin.base = base
            base.twins[phase] = twin
        return base.twins[phase]

    def learn(self, phase: int | None) -> None:
        """From now on, guess that this phase follows here (None: no guess)."""
        self.base.entry = self.base if phase is None else self.twin(phase)


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
    void: bool = False  #: the innermost of them never began
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
    phase_since_boundary: bool = False  #: it happened at the boundary before, and is seen now
    skips: bool = False  #: the phase that ends here is an optimizer's, which may not have stepped
    samples: str = ""  #: what to record: the "output" of an iteration, the "metrics" of an epoch
    shape: int = OTHER  #: for the recorder's short cuts: the moves that a running loop makes
    quick_ends: bool = False  #: one span ends before the event
    quick_opens: int = -1  #: the one that opens before it; -1: none
    quick_then: int = -1  #: the one that opens after it; -1: none
    #: Of a boundary that hooks tell of, what the one who marks the device needs.
    marked: tuple[bool, bool, int] | None = None
    #: What the recorder does: at an event without handlers; before and after those of one with.
    action: Any = None
    begin: Any = None
    finish: Any = None


def above_iteration(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The pairs and the user's spans that are open innermost."""
    at = len(frames)
    while at and frames[at - 1].kind in ("pair", "span", "guess"):
        at -= 1
    return frames[at:]


def in_process_function(node: Node) -> bool:
    """Whether the engine is inside its process function (or in a pair inside that)."""
    if node.inside_handler:
        return False
    return ITERATION in node.frames
