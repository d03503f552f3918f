"""Carries out events: opens and closes rows as the rules say, for one engine in one thread.

Here is every move, step by step. Those of a running loop have short cuts (``shortcuts``, ``fire``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from firetrace.tracer.journal import Flag
from firetrace.tracer.moves import DROP, ONE_AHEAD, RENAME, STEP, Move, Node
from firetrace.tracer.naming import HandlerNames
from firetrace.tracer.rows import OpenRows, ThreadTrack
from firetrace.tracer.rules import Rules
from firetrace.tracer.shortcuts import ACTIONS
from firetrace.tracer.storage import place_of
from firetrace.tracer.writer import JournalWriter

if TYPE_CHECKING:
    from firetrace.tracer.device.marks import Marks

CUT, ERROR, GUESS = int(Flag.CUT), int(Flag.ERROR), int(Flag.GUESS)
SKIPPED, VOID = int(Flag.SKIPPED), int(Flag.VOID)


def plan_of(engine: Any) -> tuple[int | None, int | None, int | None]:
    """How many epochs, iterations an epoch and iterations in all a run means to do."""
    state = engine.state
    values = state.max_epochs, state.epoch_length, getattr(state, "max_iters", None)
    epochs, length, iterations = (each if isinstance(each, int) else None for each in values)
    return epochs, length, iterations


class Events(OpenRows):
    """Writes the spans of an engine's events, and of what lies between them."""

    __slots__ = (
        "base", "boundary", "handler_names", "handler_root", "known_handlers", "marks", "node",
        "phase_row", "plan", "resumes", "rules", "run_row", "sampler", "step_label", "stepped",
        "steps", "unknown",
    )  # fmt: skip

    def __init__(self, writer: JournalWriter, track: ThreadTrack, engine: str, key: int) -> None:
        super().__init__(writer, track, writer.lane(engine, key))
        self.rules = rules = Rules(self.label)
        self.handler_names = HandlerNames(self.label)
        self.known_handlers = self.handler_names.known
        self.step_label = self.label(*STEP)
        self.unknown = self.label("phase", "unknown")
        self.node: Node = rules.outside
        self.handler_root = rules.handler_root
        self.base = len(track.stack)  # this engine's rows lie above
        self.boundary = 0  # Unix ns at which the next phase begins
        self.steps = 0
        self.stepped = False  # an optimizer was, since a phase of one ended
        self.marks: Marks | None = None  # of the device that the engine trains on
        self.phase_row = 0  # of the last phase that was written when it ended
        self.plan: tuple[Any, ...] = ()  # what the engine last said about how far it means to go
        self.run_row = 0
        self.resumes = 0  # row of the run that was interrupted before
        #: "output" or "metrics" -> numbers to record then, by name
        self.sampler: Callable[[str], Iterable[tuple[str, float]]] | None = None

    def find(self, event: Any) -> Move:
        """The move for an event that the current node has not met yet."""
        name = getattr(event, "name", None)
        move = self.rules.move(self.node, event, name if isinstance(name, str) else str(event))
        move.action, move.begin, move.finish = ACTIONS[move.shape]
        if self.marks is not None:
            self.marks.watch(move, self.node)
        return move

    def event_without_handlers(self, event: Any, engine: Any) -> None:
        """All of an event that has no handlers."""
        move = self.find(event)
        move.action(self, move, self.now(), engine)

    def before(self, move: Move, now: int, engine: Any) -> None:
        """What an event closes and opens before its handlers run."""
        flags = move.guess_flags
        if move.skips:
            flags |= 0 if self.stepped else SKIPPED
            self.stepped = False
        if move.guess:
            self._end_guess(move, now, flags)
        elif move.phase is not None:
            self._write_phase(move.phase, now, flags)
        if move.counts:
            state = engine.state
            self.place = place_of(state.epoch, state.iteration + (move.counts == ONE_AHEAD))
        if move.ended:
            for _ in range(move.ended):
                self.pop(now)
        if move.cut:
            if move.void:
                self.pop(now, VOID)
            for _ in range(move.cut - move.void):
                self._cut(now, move.reason, move.cut_flags)
            if move.ends_step:
                self.muted = False  # the step is over before its event's handlers run
        for label in move.late:
            if label == self.step_label:
                self._begin_step()
            self._opened(self.push(label, now, Flag.RESUMED if self.resumes else Flag.LATE))
        for label in move.opens:
            if label == self.step_label:
                self._begin_step()
            self._opened(self.push(label, now))
        if move.plans:
            self._plan(engine)
        if move.samples == "output":
            self._sample(move.samples, now)

    def after(self, move: Move, now: int) -> None:
        """What follows when the handlers of an event have run."""
        if move.samples == "metrics":
            self._sample(move.samples, now)
        now += 1  # the event took the nanosecond: see ``shortcuts``
        for _ in range(move.closes):
            self.pop(now)
        if move.ends_step:
            self.muted = False
        for label in move.then:
            self.push(label, now)
        self.boundary = now
        self.node = move.target
        if move.is_boundary:
            self.guess(now)

    def instant(self, label: int, now: int) -> None:
        """An event that has no handlers: a span without duration."""
        if not self.muted:
            self.pen.write(self.stack[-1], label, self.place, now, now)

    def begin_event(self, move: Move, now: int) -> int:
        """Open an event's span. Return the stack's height, which is never 0."""
        if move.text != "EXCEPTION_RAISED":
            self.track.noted = 0  # whatever was raised before is not passing any more
        self.push(move.label, now)
        return len(self.stack)

    def begin_handler(self, label: int, now: int) -> None:
        """Open a handler's span."""
        self.node = self.handler_root
        self.push(label, now)

    def next_handler(self, height: int, handler: Any) -> int:
        """A handler has returned, the next one begins. Return ``height``; 0: recording ended."""
        if not self.ident:
            return 0
        now = self.now()
        self._end_handler(height, now)
        self.begin_handler(self.handler_names(handler), now)
        return height

    def _end_handler(self, height: int, now: int) -> None:
        """Close what was opened above an event's span, its handler's span last."""
        self.unwind(height + 1, now)
        if len(self.stack) > height:
            self.pop(now)

    def end_event(self, move: Move, height: int) -> None:
        """Close an event's span, which is at ``height``, and do what follows it."""
        if self.ident:
            self.track.noted = 0  # EXCEPTION_RAISED: its handlers have swallowed the exception
            if len(self.stack) < height:  # the engine was started again inside it
                self.node = self.rules.root
                return
            now = self.now()
            self._end_handler(height, now)
            self.pop(now)
            self.after(move, now)

    def event_failed(self, move: Move, height: int, error: BaseException) -> None:
        """A handler has raised: the event ends here, what encloses it is still open."""
        if self.ident:
            self.failed(error)
            now = self.now()
            self.node = move.held if len(self.stack) >= height else self.rules.root
            self.unwind(height - 1, now, "exception", CUT | ERROR)
            self.boundary = now + 1

    def guess(self, now: int) -> None:
        """Open the phase that followed here the last time."""
        guess = self.node.entry.guess
        if guess is not None:
            self.push(guess, now, GUESS)
            self.node = self.node.entry

    def _end_guess(self, move: Move, now: int, flags: int) -> None:
        """Now it is known which phase it was that has been open, or that it was none."""
        if move.guess == RENAME and move.phase is not None:
            if self.stack[-1]:
                self.pen.rename(self.stack[-1], move.phase)
            self.node.learn(move.phase)
        elif move.guess == DROP and not move.reason:
            self.node.learn(None)
            self.node.base.barren |= self.node.guess == self.unknown
        self.pop(now, flags)

    def _write_phase(self, label: int, now: int, flags: int) -> None:
        """A phase that was not guessed is written when it ends, and guessed from then on."""
        self.node.learn(label)
        self.phase_row = 0
        if not self.muted:
            self.phase_row = self.pen.write(
                self.stack[-1], label | flags << 24, self.place, now, self.boundary
            )

    def _begin_step(self) -> None:
        """Decide whether this step is recorded or thinned out."""
        self.steps += 1
        if self.writer.every > 1 and self.steps % self.writer.every:
            for row in self.stack[self.base :]:
                if row:  # run and epoch still say how far the training is
                    self.pen.reach(row, self.place >> 32)
            self.muted = True

    def _opened(self, row: int) -> None:
        if len(self.stack) == self.base + 1:
            self.run_row = row
            self.plan = ()
            if self.resumes and row:
                self.writer.note("link", row=row, to=self.resumes)

    def _plan(self, engine: Any) -> None:
        """Note how far the run means to go, where that is new: readers count down to it."""
        plan = plan_of(engine)
        if plan != self.plan and self.run_row:
            self.plan = plan
            self.writer.note(
                "run", row=self.run_row, max_epochs=plan[0], epoch_length=plan[1], max_iters=plan[2]
            )

    def _sample(self, what: str, now: int) -> None:
        if self.sampler is not None:
            for name, value in self.sampler(what):
                self.scalar(name, value, now)

    def failed(self, error: BaseException) -> None:
        """Note an exception on the innermost open row, and what the device had no room for."""
        if self.marks is not None and self.track.noted != id(error):
            self.describe(self.unmuted_parent(), self.marks.failed(self, error))
        super().failed(error)

    def raised(self, move: Move, error: Any) -> None:
        """Ignite hands an exception to its EXCEPTION_RAISED handlers, who may swallow it."""
        if move.text == "EXCEPTION_RAISED" and isinstance(error, BaseException):
            self.failed(error)
