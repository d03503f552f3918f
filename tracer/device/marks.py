"""Where the phases of one engine begin and end on the device: what a recorder does beside its rows.

The moves that end or begin a phase, or a step, are carried out as ever and then marked. A move that
has nothing of it stays as it is, and without a device no move knows of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from firetrace.tracer.device.copies import copied_bytes
from firetrace.tracer.device.track import COPY, MOST_MARKS, Step, Track
from firetrace.tracer.moves import OTHER, RENAME, RIGHT, Move, Node, in_process_function

if TYPE_CHECKING:
    from firetrace.tracer.events import Events

ITERATION = 0xFFFFFFFF << 32  #: of a row's place
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
        self._early = -1  # a mark that another thread has queued for the boundary to come
        self._labels: dict[int, int] = {}
        self._copied = 0
        self._copy_label = track.label("copy", COPY)

    # Moves

    def watch(self, move: Move, node: Node) -> None:
        """See to it that a move which ends or begins a phase here is marked."""
        ends = move.guess in (RIGHT, RENAME) or (move.phase is not None and not move.guess)
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
        at, self._early = self._early if early else -1, -1
        if move.phase_since_boundary:  # it was at the boundary before, which has a mark
            guessed = recorder.node.guess is not None
            self._key = recorder.stack[-1] if guessed else -recorder.boundary
            return
        guessed = move.guess in (RIGHT, RENAME)
        ends = guessed or (move.phase is not None and not move.guess)
        row = (top if guessed else recorder.phase_row) if ends else 0
        label = self.ended_label(move, node)
        self.boundary(recorder, row, top if guessed else -before, label, True, at)

    def boundary(
        self, recorder: Events, row: int, key: int, label: int, begins: bool, at: int = -1
    ) -> None:
        """One mark for the phase that ends here (its row; 0: none) and the one that begins.

        All in one place: a call would be a tenth of what this costs.
        """
        track = self.track
        step = track.step
        if step is None:
            self._step = None
            return
        ends = row and key == self._key and step is self._step
        if not ends and not begins:
            return
        try:
            marks = step.marks
            if at < 0 and len(marks) < MOST_MARKS:
                event = track.pool.pop() if track.pool else track.new_event()
                stream = track.record(event)
                if stream >= 0:
                    at = len(marks)
                    marks.append(event)
                    if stream != step.stream:
                        step.mixed, step.stream = bool(at), stream
                else:
                    track.pool.append(event)
            if at < 0:
                track.not_timed("too many phases in a step" if marks else "a graph is captured")
            elif ends and self._first >= 0:
                if step.stream == self._stream:
                    self._write(recorder, row, label, step.spans, at)
                else:
                    track.not_timed("the current stream changed in it")
            if begins:
                self._first, self._step, self._stream = at, step, step.stream
                self._since = recorder.boundary
                guessed = recorder.node.guess is not None
                self._key = recorder.stack[-1] if guessed else -self._since
        except Exception as error:
            self._failed(error)

    def _write(
        self, recorder: Events, row: int, label: int, spans: list[tuple[int, int, int]], at: int
    ) -> None:
        """The phase in this row ended at a mark: write its span, which is open until it is settled.

        Its start is a guess until then: when the phase began on the host.
        """
        own = self._labels.get(label) or self._new_label(label)
        place = row | recorder.place & ITERATION
        start = self._since + self._shift
        pen = self.track.pen
        if self._copied:
            track, now = self.track, recorder.boundary + self._shift
            track.scalar("copied to device", self._copied, place, now)
            own, self._copied = self._copy_label, 0
        new = pen.next_row
        if new < pen.last_row:
            pen.put_o(pen.target, new * 32 - pen.base, 0, own, place, start)
            pen.next_row = new + 1
        else:
            new = pen.write(0, own, place, 0, start)
        spans.append((new, self._first, at))

    def _new_label(self, label: int) -> int:
        found = self._labels[label] = self.track.label("device", self._text(label & 0xFFFF))
        return found

    def begin_step(self, now: int) -> None:
        """A step begins."""
        try:
            self.track.begin_step(now + self._shift)
        except Exception as error:
            self._failed(error)

    def end_run(self, recorder: Events) -> None:
        """A run has ended, perhaps in the middle of a step."""
        if self.on:
            self.end_step(recorder)
            try:
                self.track.settle()
            except Exception as error:
                self._failed(error)

    def end_step(self, recorder: Events) -> None:
        """A step has ended."""
        self._step = None
        try:
            self.track.end_step(recorder.place >> 32, recorder.boundary + self._shift)
        except Exception as error:
            self._failed(error)

    # From elsewhere

    def reached(self) -> None:
        """A thread of autograd's own has come to where a phase begins, and tells of it later."""
        step = self.track.step
        if not self.on or step is None or step is not self._step or self._early >= 0:
            return
        try:
            self._early = self.track.mark(step)
        except Exception as error:
            self._failed(error)

    def prepared(self, recorder: Events, batch: Any, result: Any) -> None:
        """A batch was prepared: see how much of it was copied to the device."""
        if self.on and not recorder.muted:
            try:
                self._copied = copied_bytes(batch, result, self.track.accelerator.kind)
            except Exception as error:
                self._failed(error)

    def failed(self, recorder: Events, error: BaseException) -> dict[str, Any]:
        """An exception passes. Returns what to say of the span, if the device's memory was full."""
        if not self.on or type(error).__name__ != "OutOfMemoryError":
            return {}
        try:
            return self.track.out_of_memory(None, recorder.place >> 32, str(error))
        except Exception as second:
            self._failed(second)
            return {}


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
            marks.begin_step(now)
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
                marks.begin_step(now)
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

    return action, begin, finish
