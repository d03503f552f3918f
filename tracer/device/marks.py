"""Where the phases of one engine begin and end on the device: what a recorder does beside its rows.

The moves that end or begin a phase, or a step, are carried out as ever and then marked. A move that
has nothing of it stays as it is, and without a device no move knows of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from firetrace.tracer.device.copies import Batches, Look
from firetrace.tracer.device.track import (
    COPIED,
    COPY,
    MOST_MARKS,
    SCALAR,
    UNMARKED,
    Step,
    Track,
    bits_of,
)
from firetrace.tracer.moves import OTHER, RENAME, RIGHT, STEP, Move, Node, in_process_function

if TYPE_CHECKING:
    from firetrace.tracer.events import Events

ITERATION = 0xFFFFFFFF << 32  #: of a row's place
#: In place of a mark's number: it is to be queued; there is none; it could not be queued.
NEW, NONE, MISSED = -1, -2, -3
Actions = tuple[Callable[..., None], Callable[..., int], Callable[..., None]]


class Marks:
    """Marks the phases of one recorder's engine.

    Args:
        track: where the spans go.
        recorder: of the engine.
        failed: is told of a failure of the device's, or of firetrace's own.
    """

    def __init__(self, track: Track, recorder: Events, failed: Callable[[Exception], Any]) -> None:
        self.track, self._text, self._failed = track, recorder.writer.text_of, failed
        # Of two journals of one process the clocks differ by when each was asked what time it is.
        self._shift = track.writer.wall_ns - track.writer.monotonic_ns - recorder.offset
        self.on = True
        self._step: Step | None = None  # in which the open phase began,
        self._first = -1  # its mark there,
        self._stream = 0  # and the stream that was current
        self._key = 0  # which phase that is: its row, or less than 0: when it began
        self._since = 0  # Unix ns, when it began on the host
        self._early = NONE  # a mark that another thread has queued for the boundary to come
        self._began = False  # a step of this engine's goes on
        self._around: Step | None = None  # of the engine in whose step this one runs
        self._labels: dict[int, int] = {}
        self._batches = Batches(track.accelerator.kind)
        #: Where a batch was and what became of it, while the end of its phase is marked.
        self.prepared: tuple[Look, Any] | None = None
        self._copy_label = track.label("copy", COPY)
        self._copied_label = track.label("scalar", COPIED) | SCALAR << 24

    # Moves

    def watch(self, move: Move, node: Node) -> None:
        """See to it that a move which ends or begins a phase here is marked."""
        ends = ends_phase(move, node)
        begins = move.is_boundary and in_process_function(move.target)
        if not (ends or begins or move.begins_step or move.ends_step):
            return
        label = self.ended_label(move, node) if ends else 0
        move.action, move.begin, move.finish = marked(self, move, ends, begins, label)
        move.shape = OTHER  # else the one who fires would carry it out itself

    def ended_label(self, move: Move, node: Node) -> int:
        """The name of the phase that ends with a move, as the recorder's rows have it."""
        label = node.guess if move.guess == RIGHT else move.phase
        return 0 if label is None else label

    def passed(
        self, recorder: Events, move: Move, node: Node, top: int, before: int, early: bool
    ) -> None:
        """A boundary without an event was passed; before that ``top`` was the innermost row.

        ``early``: another thread has come there, and has told of it (``reached``).
        """
        if not self.on:
            return
        at, self._early = self._early if early else NEW, NONE
        if move.phase_since_boundary:  # it was at the boundary before, which has a mark
            guessed = recorder.node.guess is not None
            self._key = recorder.stack[-1] if guessed else -recorder.boundary
            return
        known = move.marked
        if known is None:
            known = move.marked = self._of_move(move, node)
        ends, guessed, label = known
        row = (top if guessed else recorder.phase_row) if ends else 0
        self.boundary(recorder, row, top if guessed else -before, label, True, at)

    def _of_move(self, move: Move, node: Node) -> tuple[bool, bool, int]:
        """Whether a phase ends with a move, whether it had been guessed, and its label."""
        ends = ends_phase(move, node)
        return ends, move.guess in (RIGHT, RENAME), self.ended_label(move, node) if ends else 0

    def assumed(self, since: int, row: int) -> None:
        """The phase that began then (Unix ns) has a row by now."""
        if self._key == -since:
            self._key = row

    def boundary(
        self, recorder: Events, row: int, key: int, label: int, begins: bool, at: int = NEW
    ) -> None:
        """One mark for the phase that ends here (its row; 0: none) and the one that begins.

        All in one place: a call would be a tenth of what this costs.
        """
        track = self.track
        step = track.step
        if step is None:
            self._step = None
            if row and track.refused:
                track.not_timed(track.refused)
            return
        ends = row and key == self._key and step is self._step
        if not ends and not begins:
            if row:
                track.not_timed(UNMARKED)
            return
        try:
            marks = step.marks
            if at == NEW and len(marks) < MOST_MARKS:
                event = track.pool.pop() if track.pool else track.new_event()
                stream = track.record(event)
                if stream >= 0:
                    at = len(marks)
                    marks.append(event)
                    if stream != step.stream:
                        step.mixed, step.stream = bool(at), stream
                else:
                    track.pool.append(event)
            if ends and at >= 0 and self._first >= 0 and step.stream == self._stream:
                # Written open until it is settled. Its start is a guess until then: when the
                # phase began on the host.
                own = self._labels.get(label) or self._new_label(label)
                place, pen = row | recorder.place & ITERATION, track.pen
                if self.prepared is not None:
                    own = self._with_copies(own, place, recorder.boundary + self._shift)
                new = pen.next_row
                if new < pen.last_row:
                    pen.put_o(
                        pen.target, new * 32 - pen.base, 0, own, place, self._since + self._shift
                    )
                    pen.next_row = new + 1
                else:
                    new = pen.write(0, own, place, 0, self._since + self._shift)
                step.spans.append((new, self._first, at))
            elif row:
                track.not_timed(self._reason(step, at) if ends else UNMARKED)
            if begins:
                self._first, self._step, self._stream = at, step, step.stream
                self._since = recorder.boundary
                guessed = recorder.node.guess is not None
                self._key = recorder.stack[-1] if guessed else -self._since
        except Exception as error:
            self._failed(error)

    def _reason(self, step: Step, at: int) -> str:
        """Why the phase that ends has no span, though its beginning was seen."""
        if at >= 0 and self._first >= 0:
            return "the current stream changed in it"
        full = len(step.marks) >= MOST_MARKS
        return "too many phases in a step" if full else "a graph is captured"

    def _with_copies(self, label: int, place: int, now: int) -> int:
        """The label of the phase in which a batch was prepared: another one if it was copied."""
        assert self.prepared is not None
        look, result = self.prepared
        if look is True or look is False:
            return self._copy_label if look else label
        size = self._batches.copied(*look, result)
        if not size:
            return label
        self.track.pen.write(0, self._copied_label, place, bits_of(size), now)
        return self._copy_label

    def _new_label(self, label: int) -> int:
        found = self._labels[label] = self.track.label("device", self._text(label & 0xFFFF))
        return found

    # Steps and runs

    def begin_run(self, recorder: Events) -> None:
        """A run begins, or goes on in the middle of a step."""
        if self.on and STEP in recorder.node.frames and not recorder.muted:
            self.begin_step(recorder, recorder.boundary)
            if in_process_function(recorder.node):
                self.boundary(recorder, 0, 0, 0, True)

    def begin_step(self, recorder: Events, now: int) -> None:
        """A step begins, perhaps inside one of another engine."""
        track = self.track
        if self._began:
            return  # the engine was started again inside its own step
        try:
            if track.step is not None:
                self._around = track.step
                track.put_by()
            self._began = True
            track.begin_step(recorder.steps, now + self._shift)
        except Exception as error:
            self._failed(error)

    def end_run(self, recorder: Events) -> None:
        """A run has ended, perhaps in the middle of a step."""
        if not self.on:
            return
        self.end_step(recorder)
        track, around, self._around = self.track, self._around, None
        try:
            track.settle()
            if around is not None:
                track.step = Step(around.base)  # what follows in the other engine's step
        except Exception as error:
            self._failed(error)

    def end_step(self, recorder: Events) -> None:
        """A step has ended, whether it was recorded or not."""
        began, self._began = self._began, False
        self._step, self._early = None, NONE
        try:
            self.track.end_step(began, recorder.place >> 32, recorder.boundary + self._shift)
        except Exception as error:
            self._failed(error)

    # From elsewhere

    def reached(self) -> None:
        """A thread of autograd's own has come to where a phase begins, and tells of it later."""
        step = self.track.step
        if not self.on or step is None or step is not self._step or self._early != NONE:
            return
        try:
            at = self.track.mark(step)
            self._early = at if at >= 0 else MISSED
        except Exception as error:
            self._failed(error)

    def look(
        self, recorder: Events, phase: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Look | None:
        """A batch is about to be prepared from this: where it is. None: nothing is told of it."""
        if not self.on or self.track.step is None:
            return None
        try:
            return self._batches.look(phase, recorder.steps, recorder.boundary, args, kwargs)
        except Exception as error:
            self._failed(error)
            return None

    def failed(self, recorder: Events, error: BaseException) -> dict[str, Any]:
        """An exception passes. Returns what to say of the span, if the device's memory was full."""
        if not self.on or type(error).__name__ != "OutOfMemoryError":
            return {}
        try:
            return self.track.out_of_memory(None, recorder.place >> 32, str(error))
        except Exception as second:
            self._failed(second)
            return {}

    # Where the tracer stands around an event, without a move's own actions

    def begun(self, recorder: Events, move: Move, node: Node, top: int, before: int) -> None:
        """An event has begun at this node; before that ``top`` was the innermost row."""
        if self.on:
            if move.begins_step and not recorder.muted:
                self.begin_step(recorder, recorder.now())
            ends, guessed, label = self._of_move(move, node)
            if ends:
                row = top if guessed else recorder.phase_row
                self.boundary(recorder, row, top if guessed else -before, label, False)

    def ended(self, recorder: Events, move: Move) -> None:
        """Its handlers have returned."""
        if self.on:
            if move.is_boundary and in_process_function(recorder.node):
                self.boundary(recorder, 0, 0, 0, True)
            if move.ends_step:
                self.end_step(recorder)


def ends_phase(move: Move, node: Node) -> bool:
    """Whether a phase ends with a move at this node; of how a batch is fetched nothing is known."""
    named = move.guess in (RIGHT, RENAME) or (move.phase is not None and not move.guess)
    return named and in_process_function(node)


def marked(marks: Marks, move: Move, ends: bool, begins: bool, label: int) -> Actions:
    """How to carry out a move and mark it. Closures: to look up attributes would cost as much.

    Args:
        marks: of the engine.
        move: whose own actions are carried out, too.
        ends: whether a phase ends before the event.
        begins: whether one may begin after it.
        label: of the one that ends.
    """
    plain_action, plain_begin, plain_finish = move.action, move.begin, move.finish
    guessed = move.guess in (RIGHT, RENAME)
    begins_step, ends_step, boundary = move.begins_step, move.ends_step, marks.boundary

    def action(recorder: Events, move: Move, now: int, engine: Any) -> None:
        """An event without handlers: one mark stands for before it and after it."""
        top, before = recorder.stack[-1], recorder.boundary
        plain_action(recorder, move, now, engine)
        if not marks.on:
            return
        if begins_step and not recorder.muted:
            marks.begin_step(recorder, now)
        if guessed:
            boundary(recorder, top, top, label, begins)
        elif ends or begins:
            boundary(recorder, recorder.phase_row if ends else 0, -before, label, begins)
        if ends_step:
            marks.end_step(recorder)

    def begin(recorder: Events, move: Move, now: int, engine: Any, handler: int) -> int:
        """An event that has handlers begins."""
        top, before = recorder.stack[-1], recorder.boundary
        height: int = plain_begin(recorder, move, now, engine, handler)
        if marks.on:
            if begins_step and not recorder.muted:
                marks.begin_step(recorder, now)
            if ends:
                row, key = (top, top) if guessed else (recorder.phase_row, -before)
                boundary(recorder, row, key, label, False)
        return height

    def finish(recorder: Events, move: Move, height: int) -> None:
        """Its handlers have returned."""
        plain_finish(recorder, move, height)
        if marks.on:
            if begins and not recorder.node.inside_handler:
                boundary(recorder, 0, 0, 0, True)
            if ends_step:
                marks.end_step(recorder)

    def quick_action(recorder: Events, move: Move, now: int, engine: Any) -> None:
        """The same where a phase ends as was guessed, which is what most events do."""
        top = recorder.stack[-1]
        plain_action(recorder, move, now, engine)
        if marks.on:
            boundary(recorder, top, top, label, begins)

    quick = guessed and not begins_step and not ends_step
    return quick_action if quick else action, begin, finish
