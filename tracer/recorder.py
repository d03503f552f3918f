"""Carries out what the rules say: opens and closes rows for one engine in one thread.

A recorder knows the time, its pen and which rows are open; it does not know ignite. The stack of
open rows belongs to the thread and is shared by the engines that run in it, so an evaluator that a
trainer's handler runs finds its parent on top. Anything raised here is firetrace's own failure.
"""

from __future__ import annotations

import threading
import traceback
import weakref
from time import monotonic_ns
from typing import Any

from firetrace.tracer.journal import Flag
from firetrace.tracer.naming import HandlerNames
from firetrace.tracer.rules import (
    DROP,
    LOADER,
    ONE_AHEAD,
    RENAME,
    RUN,
    STEP,
    Move,
    Node,
    Rules,
    in_process_function,
)
from firetrace.tracer.shortcuts import ACTIONS
from firetrace.tracer.storage import Pen, label_of, place_of
from firetrace.tracer.writer import JournalWriter

CUT, ERROR, GUESS, VOID = int(Flag.CUT), int(Flag.ERROR), int(Flag.GUESS), int(Flag.VOID)
#: The last core event of a run that returned without COMPLETED -> why.
ENDINGS = {"TERMINATE": "terminate", "EXCEPTION_RAISED": "exception"}


class ThreadTrack:
    """What the engines that run in one thread share: the pen and the stack of open rows."""

    def __init__(self, writer: JournalWriter) -> None:
        self.ident = threading.get_ident()
        self.pen: Pen = writer.pen()
        self.stack: list[int] = [0]  # row numbers, outermost first; 0 at the bottom: no parent
        self.thread = weakref.ref(threading.current_thread())  # idents are used again
        self.running = 0  # runs of engines, one inside the other
        self.events = 0  # events fired outside of a run, one inside the other
        self.noted = 0  # ``id`` of the exception that is passing and has been noted


class Recorder:
    """Writes the spans of one engine in one thread."""

    __slots__ = (
        "base", "boundary", "handler_names", "handler_root", "ident", "lane", "muted", "node",
        "offset", "pen", "place", "plan", "resuming", "rules", "run_row", "stack", "step_label",
        "steps", "track", "writer",
    )  # fmt: skip

    def __init__(self, writer: JournalWriter, track: ThreadTrack, engine: str, key: int) -> None:
        self.writer = writer
        self.lane = writer.lane(engine, key)
        self.rules = rules = Rules(self.label)
        self.handler_names = HandlerNames(self.label)
        self.track = track
        self.ident = track.ident  # of the thread; 0 once recording has ended
        self.pen = track.pen
        self.stack = track.stack
        self.step_label = self.label(*STEP)
        self.offset = writer.wall_ns - writer.monotonic_ns
        self.node: Node = rules.root
        self.handler_root = rules.handler_root
        self.place = 0  # epoch and iteration, as a row holds them
        self.base = len(track.stack)  # this engine's rows lie above
        self.boundary = 0  # Unix ns at which the next phase begins
        self.muted = False  # in a step that is thinned out: spans are not written
        self.steps = 0
        self.resuming = False  # the run before was interrupted
        self.plan: tuple[Any, ...] = ()  # what the engine last said about how far it means to go
        self.run_row = 0

    def now(self) -> int:
        """Unix ns: the journal's anchor plus the monotonic time since."""
        return monotonic_ns() + self.offset

    def label(self, kind: str, text: str, **code: Any) -> int:
        """A name as the rows of this engine hold it, with their lane."""
        return label_of(self.writer.name(kind, text, **code), self.lane)

    # Rows. In a muted step nothing is written and the stack holds 0 in a row's place.

    def push(self, label: int, now: int, flags: int = 0) -> int:
        """Open a row under the innermost one."""
        stack = self.stack
        if self.muted:
            stack.append(0)
            return 0
        parent = stack[-1] or self.unmuted_parent()
        row = self.pen.write(parent, label | flags << 24, self.place, 0, now)
        stack.append(row)
        return row

    def pop(self, now: int, flags: int = 0) -> None:
        """Close the innermost row."""
        row = self.stack[-1]
        if row:
            self.pen.close(row, now, flags)
        self.stack.pop()

    def unmuted_parent(self) -> int:
        """The innermost open row that is really written."""
        return next((row for row in reversed(self.stack) if row), 0)

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
        if move.guess:
            self._end_guess(move, now)
        elif move.phase is not None:
            self._write_phase(move.phase, now)
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
            self._opened(self.push(label, now, Flag.RESUMED if self.resuming else Flag.LATE))
        for label in move.opens:
            if label == self.step_label:
                self._begin_step()
            self._opened(self.push(label, now))
        if move.plans:
            self._plan(engine)

    def after(self, move: Move, now: int) -> None:
        """What follows when the handlers of an event have run."""
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

    def next_handler(self, height: int, label: int) -> int:
        """A handler has returned, the next one begins. Return ``height``; 0: recording ended."""
        if not self.ident:
            return 0
        now = self.now()
        self._end_handler(height, now)
        self.begin_handler(label, now)
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
            now = self.now()
            self._end_handler(height, now)
            self.pop(now)
            self.after(move, now)

    def event_failed(self, move: Move, height: int, error: BaseException) -> None:
        """A handler has raised: the event ends here, what encloses it is still open."""
        if self.ident:
            self.failed(error)
            now = self.now()
            self.unwind(height - 1, now, "exception", CUT | ERROR)
            self.boundary = now + 1
            self.node = move.held

    def end_phase(self, name: str) -> None:
        """A phase ended that no event tells of, such as ``prepare_batch``."""
        if in_process_function(self.node):
            now = self.now()
            move = self.rules.phase_move(self.node, name)
            self.before(move, now, None)
            self.after(move, now)

    def guess(self, now: int) -> None:
        """Open the phase that followed here the last time."""
        guess = self.node.entry.guess
        if guess is not None:
            self.push(guess, now, GUESS)
            self.node = self.node.entry

    def _end_guess(self, move: Move, now: int) -> None:
        """Now it is known which phase it was that has been open, or that it was none."""
        if move.guess == RENAME and move.phase is not None:
            if self.stack[-1]:
                self.pen.rename(self.stack[-1], move.phase)
            self.node.learn(move.phase)
        elif move.guess == DROP and not move.reason:
            self.node.learn(None)
        self.pop(now, move.guess_flags)

    def _write_phase(self, label: int, now: int) -> None:
        """A phase that was not guessed is written when it ends, and guessed from then on."""
        self.node.learn(label)
        if not self.muted:
            self.pen.write(self.stack[-1], label, self.place, now, self.boundary)

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

    def _cut(self, now: int, reason: str, flags: int) -> None:
        row = self.stack[-1]
        if row and reason and self.writer.text_room():
            self.writer.note("end_reason", row=row, reason=reason)
        self.pop(now, flags)

    # Handlers and what they leave behind

    def unwind(self, depth: int, now: int, reason: str = "", flags: int = CUT) -> None:
        """Close what is open above ``depth``."""
        while len(self.stack) > depth:
            self._cut(now, reason, flags)

    def raised(self, move: Move, error: Any) -> None:
        """Ignite hands an exception to its EXCEPTION_RAISED handlers, who may swallow it."""
        if move.text == "EXCEPTION_RAISED" and isinstance(error, BaseException):
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Note an exception on the innermost open row, once, as OpenTelemetry's conventions say."""
        row = self.unmuted_parent()
        if not row or self.track.noted == id(error):
            return
        self.track.noted = id(error)
        kind = type(error)
        module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
        try:
            message = str(error)
        except Exception:
            message = "<its __str__ failed>"
        stack = "".join(traceback.format_exception(kind, error, error.__traceback__))
        room = self.writer.text_room()  # exceptions are always counted, their texts have a budget
        if not room:
            return
        self.writer.note(
            "exception", row=row, time=self.now(),
            **{
                "exception.type": module + kind.__qualname__,
                "exception.message": message[:room],
                "exception.stacktrace": stack[-room:],
            },
        )  # fmt: skip

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
            self.node = self.node.base
        self.push(self.label(*LOADER), now)
        return len(self.stack)

    def end_loader(self) -> None:
        """``iter(dataloader)`` has returned; in a step, the fetch of its first batch begins."""
        self.boundary = now = self.now()
        self.pop(now)
        self.guess(now)

    def loader_failed(self, height: int, error: BaseException) -> None:
        """``iter(dataloader)`` has raised: the loader's span ends here."""
        self.failed(error)
        self.unwind(height - 1, self.now(), "exception", CUT | ERROR)

    def begin_run(self) -> None:
        """``engine.run`` was called: rows of this engine lie above what is open now."""
        if not self.track.running and not self.track.events:
            self.unwind(1, self.now())  # it was begun outside of a run, and never ended
        self.track.running += 1
        self.base = len(self.stack)
        self.node = self.rules.root
        self.muted = False

    def end_run(self, error: BaseException | None) -> None:
        """``engine.run`` has returned or raised: nothing of it stays open."""
        now = self.now()
        # What is still open has not COMPLETED; the last event that cut something says why.
        reason = "exception" if error else ENDINGS.get(self.node.boundary, "interrupt")
        interrupted = error is None and RUN in self.node.frames and reason == "interrupt"
        if error is not None:
            self.failed(error)
        if self.node.guess is not None and len(self.stack) > self.base:
            self._cut(now, reason, GUESS | CUT | (ERROR if error is not None else 0))
        if error is not None:
            self.unwind(self.base, now, "exception", CUT | ERROR)
        else:
            self.unwind(self.base, now, reason)
        self.track.running -= 1
        self.track.noted = 0
        self.resuming = interrupted
        self.muted = False
        self.node = self.rules.root
