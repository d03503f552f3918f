"""Carries out what the rules say: opens and closes rows for one engine in one thread.

A recorder knows the time, its pen and which rows are open; it does not know ignite. Anything
raised here is firetrace's own failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from firetrace.tracer.journal import Flag
from firetrace.tracer.moves import (
    DROP,
    ENDINGS,
    LOADER,
    ONE_AHEAD,
    RENAME,
    RUN,
    STEP,
    Frame,
    Move,
    Node,
)
from firetrace.tracer.naming import HandlerNames
from firetrace.tracer.rows import OpenRows, ThreadTrack
from firetrace.tracer.rules import Rules
from firetrace.tracer.shortcuts import ACTIONS
from firetrace.tracer.storage import place_of
from firetrace.tracer.writer import JournalWriter

CUT, ERROR, GUESS, VOID = int(Flag.CUT), int(Flag.ERROR), int(Flag.GUESS), int(Flag.VOID)
SKIPPED = int(Flag.SKIPPED)


class Paused(NamedTuple):
    """Where a run was when it was interrupted."""

    row: int  #: of its run
    frames: tuple[Frame, ...]  #: what was open
    boundary: str
    place: int
    muted: bool


class Recorder(OpenRows):
    """Writes the spans of one engine in one thread."""

    __slots__ = (
        "awake", "base", "boundary", "handler_names", "handler_root", "is_over", "known_handlers",
        "loading", "node",
        "outer", "plan", "resumes", "rules", "run_row", "sampler", "step_label", "stepped", "steps",
        "unknown",
    )  # fmt: skip

    def __init__(self, writer: JournalWriter, track: ThreadTrack, engine: str, key: int) -> None:
        super().__init__(writer, track, writer.lane(engine, key))
        self.rules = rules = Rules(self.label)
        self.handler_names = HandlerNames(self.label)
        self.known_handlers = self.handler_names.known
        self.step_label = self.label(*STEP)
        self.unknown = self.label("phase", "unknown")
        self.awake = 0  # ``ident`` while this engine is the one that runs innermost
        self.node: Node = rules.outside
        self.handler_root = rules.handler_root
        self.base = len(track.stack)  # this engine's rows lie above
        self.boundary = 0  # Unix ns at which the next phase begins
        self.steps = 0
        self.stepped = False  # an optimizer was, since a phase of one ended
        self.outer: Recorder | None = None  # the engine inside whose run this one runs
        self.plan: tuple[Any, ...] = ()  # what the engine last said about how far it means to go
        self.run_row = 0
        self.loading = self.node  # where the engine is while ``iter(dataloader)`` runs
        self.resumes = 0  # row of the run that was interrupted before
        self.is_over: Callable[[], bool] | None = None  # of a run whose end will not be seen
        #: "output" or "metrics" -> numbers to record then, by name
        self.sampler: Callable[[str], Iterable[tuple[str, float]]] | None = None

    def end(self) -> None:
        """Write nothing from now on."""
        self.ident = self.awake = 0

    # Events

    def find(self, event: Any) -> Move:
        """The move for an event that the current node has not met yet."""
        name = getattr(event, "name", None)
        move = self.rules.move(self.node, event, name if isinstance(name, str) else str(event))
        move.action, move.begin, move.finish = ACTIONS[move.shape]
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
            for _ in range(move.cut):
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

    # What hooks tell of

    def assume(self) -> None:
        """Something else is recorded now, inside what may be a phase: open it, without its name.

        If no event ends it, it was none, and what was inside belongs to what is around it.
        """
        if not self.muted and self.ident and self.rules.may_be_in_phase(self.node):
            parent, label = self.stack[-1], self.unknown | GUESS << 24
            self.stack.append(self.pen.write(parent, label, self.place, 0, self.boundary))
            self.node = self.node.twin(self.unknown)

    def step_aside(self) -> tuple[Node, bool] | None:
        """An event comes while this engine does not run innermost: it opens and closes nothing.

        Return what ``step_back`` needs.
        """
        innermost = self.track.innermost
        if innermost is self:
            return None
        before = self.node, self.muted
        self.node, self.muted = self.rules.outside, False
        if innermost is not None:
            innermost.assume()
            self.muted = innermost.muted
        return before

    def step_back(self, before: tuple[Node, bool] | None) -> None:
        """The event is over."""
        if before is not None:
            self.node, self.muted = before
            if self.track.innermost is not None and self.ident:
                self.track.innermost.boundary = self.now()

    def enter_span(self, label: int) -> tuple[Node, int, int] | None:
        """Open a span of the user's. Return what ``exit_span`` needs; None: it is not recorded."""
        self.assume()
        before = self.node
        inside = self.rules.inside_span(before)
        if inside is None or self.muted:
            return None
        now = self.now()
        row = self.push(label, now)
        self.node, self.boundary = inside, now
        return before, row, len(self.stack)

    def exit_span(self, entered: tuple[Node, int, int], error: BaseException | None) -> None:
        """Close it, unless what encloses it has ended before."""
        before, row, height = entered
        if not self.ident or len(self.stack) < height or self.stack[height - 1] != row:
            return
        now = self.now()
        if self.node.guess is not None and self.node.frames == self.rules.frames_inside(before):
            if self.node.guess == self.unknown:
                self.node.base.barren = True
            self.node.learn(None)
            self.pop(now, GUESS | VOID)
        self.unwind(height, now)
        if error is not None:
            self.failed(error)
        self.pop(now, CUT | ERROR if error is not None else 0)
        self.node, self.boundary = before, now

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
        if not self.muted:
            self.pen.write(self.stack[-1], label | flags << 24, self.place, now, self.boundary)

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
        state = engine.state
        plan = tuple(
            value if isinstance(value, int) else None
            for value in (
                state.max_epochs, state.epoch_length, getattr(state, "max_iters", None)
            )
        )  # fmt: skip
        if plan != self.plan and self.run_row:
            self.plan = plan
            self.writer.note(
                "run", row=self.run_row, max_epochs=plan[0], epoch_length=plan[1], max_iters=plan[2]
            )

    def _sample(self, what: str, now: int) -> None:
        if self.sampler is not None:
            for name, value in self.sampler(what):
                self.scalar(name, value, now)

    def raised(self, move: Move, error: Any) -> None:
        """Ignite hands an exception to its EXCEPTION_RAISED handlers, who may swallow it."""
        if move.text == "EXCEPTION_RAISED" and isinstance(error, BaseException):
            self.failed(error)

    # A whole run

    def begin_loader(self) -> int:
        """``iter(dataloader)`` begins. What was taken for fetching until now was not.

        Return the stack's height, 0 if the loader is not recorded: no run is known to be open.
        """
        if not self.node.frames:
            return 0
        now = self.now()
        if self.node.guess is not None:
            self.pop(now, GUESS | VOID)
        self.push(self.label(*LOADER), now)
        # What the loader fires or runs meanwhile is as inside a handler.
        self.loading, self.node = self.node.base, self.handler_root
        return len(self.stack)

    def end_loader(self, height: int) -> None:
        """``iter(dataloader)`` has returned; in a step, the fetch of its first batch begins."""
        self.boundary = now = self.now()
        self.unwind(height, now)
        self.pop(now)
        self.node = self.loading
        self.guess(now)

    def loader_failed(self, height: int, error: BaseException) -> None:
        """``iter(dataloader)`` has raised: the loader's span ends here."""
        self.failed(error)
        self.unwind(height - 1, self.now(), "exception", CUT | ERROR)
        self.node = self.loading

    def begin_run(self, paused: Paused | None, engine: Any) -> None:
        """``engine.run`` was called: rows of this engine lie above what is open now.

        ``paused``: it goes on where it was interrupted.
        """
        self.track.leave_what_is_over()
        outer = self.outer = self.track.innermost
        if outer is not None:
            outer.assume()
            outer.awake = 0
        self.track.innermost, self.awake = self, self.ident
        self.base = len(self.stack)
        self.node, self.muted, self.resumes = self.rules.root, False, 0
        if paused is not None:
            self._go_on(paused, engine)

    def _go_on(self, paused: Paused, engine: Any) -> None:
        self.resumes, self.place = paused.row, paused.place
        if not paused.frames:
            return  # what is open shows when the next event comes
        now = self.now()
        for frame in paused.frames:
            self.muted = (paused.muted and frame == STEP) or self.muted
            self._opened(self.push(self.label(*frame), now, Flag.RESUMED))
        self._plan(engine)
        self.node = self.rules.node(paused.frames, paused.boundary)
        self.boundary = now
        self.guess(now)

    def restart(self) -> None:
        """The engine is run again inside its own run, which goes on after it."""
        self.unwind(self.base, self.now(), "started again")
        self.node, self.muted = self.rules.root, False

    def cut_short(self, reason: str) -> None:
        """Nothing more will be seen of this run: what is open ends here."""
        self._end_rows(self.now(), reason, None)
        self.node = self.rules.outside

    def _end_rows(self, now: int, reason: str, error: BaseException | None) -> None:
        flags = CUT if error is None else CUT | ERROR
        if self.node.guess is not None and len(self.stack) > self.base:
            self._cut(now, reason, GUESS | flags)
        self.unwind(self.base, now, reason, flags)

    def end_run(self, error: BaseException | None = None) -> Paused | None:
        """``engine.run`` has returned or raised: nothing of it stays open.

        Return where it was, if it was interrupted.
        """
        node = self.node
        # What is still open has not COMPLETED; the last event that cut something says why.
        reason = "exception" if error else ENDINGS.get(node.boundary, "interrupt")
        paused = None
        if RUN in node.frames and reason == "interrupt":
            deepest = next(
                (i for i, f in enumerate(node.frames) if f.kind in ("pair", "span", "guess")), None
            )
            paused = Paused(
                self.run_row, node.frames[:deepest], node.boundary, self.place, self.muted
            )
        if error is not None:
            self.failed(error)
        now = self.now()
        self._end_rows(now, reason, error)
        self.track.innermost, self.awake = self.outer, 0
        if self.outer is not None:
            self.outer.awake, self.outer.boundary = self.outer.ident, now
            self.outer = None
        self.track.noted = 0
        self.muted = False
        self.node = self.rules.outside
        return paused
