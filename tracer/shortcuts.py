"""Short cuts: how a recorder carries out the moves that a running loop makes all the time.

Each writes the rows that the recorder's ``before``, ``begin_event``, ``end_event`` and ``after``
would write, in as few stores as can be: it is what makes recording cheap. An event without handlers
takes one call, ``Move.action``. One with handlers takes two: ``Move.begin`` opens the event's span
and that of the first handler, ``Move.finish`` closes both when the last handler has returned. The
most frequent of these ``FireEvent`` carries out itself.

An event without duration takes the nanosecond in which it fires: what begins after it begins
later, what ends after it ends later, so nesting by time is nesting by parent.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from firetrace.tracer.journal import Flag
from firetrace.tracer.moves import BOUNDARY, CLOSES, OPENS, OTHER, STEPS, Move, in_process_function

if TYPE_CHECKING:
    from firetrace.tracer.recorder import Recorder

GUESSED = int(Flag.GUESS) << 24  # in a label
#: The phase that ends (None: it has no name) and the one that begins; None: there is no boundary.
Passing = tuple[str | None, str] | None

# Events without handlers


def pass_boundary(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """At most one span ends, the event happens, at most one span opens after it."""
    pen, stack = recorder.pen, recorder.stack
    row = pen.next_row
    if row + 2 > pen.last_row or recorder.muted:
        return slowly(recorder, move, now, engine)
    if move.quick_ends:
        top = stack[-1]
        if top >= pen.first:
            pen.words[top * 4 + pen.end_at] = now
        else:
            pen.close(top, now, 0)
        stack.pop()
    recorder.boundary = later = now + 1
    recorder.node = node = move.target.entry if move.is_boundary else move.target
    parent, place, guess = stack[-1], recorder.place, node.guess
    if guess is None or not move.is_boundary:
        pen.put_e(pen.target, row * 32 - pen.base, parent, move.label, place, now, now)
        pen.next_row = row + 1
        return None
    pen.put_eo(
        pen.target, row * 32 - pen.base,
        parent, move.label, place, now, now,
        parent, guess | GUESSED, place, later,
    )  # fmt: skip
    pen.next_row = row + 2
    stack.append(row + 1)
    return None


def pass_optimizer(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """The same where an optimizer's step ends, if there was one."""
    if not recorder.stepped:
        return slowly(recorder, move, now, engine)
    recorder.stepped = False
    return pass_boundary(recorder, move, now, engine)


def open_container(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """A step or an iteration opens, the event happens, at most one span opens after it."""
    pen, stack = recorder.pen, recorder.stack
    row = pen.next_row
    if row + 3 > pen.last_row or recorder.muted or (move.begins_step and recorder.writer.every > 1):
        return slowly(recorder, move, now, engine)
    state = engine.state
    if move.begins_step:
        recorder.steps += 1
        recorder.place = place = state.epoch | state.iteration + 1 << 32
    else:
        recorder.place = place = state.epoch | state.iteration << 32
    recorder.boundary = later = now + 1
    recorder.node = node = move.target.entry if move.is_boundary else move.target
    then = move.quick_then
    if then < 0 and node.guess is not None:
        then = node.guess | GUESSED
    if then < 0:
        pen.put_oe(
            pen.target, row * 32 - pen.base,
            stack[-1], move.quick_opens, place, now,
            row, move.label, place, now, now,
        )  # fmt: skip
        pen.next_row = row + 2
        stack.append(row)
        return None
    pen.put_oeo(
        pen.target, row * 32 - pen.base,
        stack[-1], move.quick_opens, place, now,
        row, move.label, place, now, now,
        row, then, place, later,
    )  # fmt: skip
    pen.next_row = row + 3
    stack += (row, row + 2)
    return None


def close_containers(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """The event happens, then one or more containers end."""
    pen, stack = recorder.pen, recorder.stack
    row = pen.next_row
    if row >= pen.last_row or recorder.muted:
        return slowly(recorder, move, now, engine)
    pen.put_e(pen.target, row * 32 - pen.base, stack[-1], move.label, recorder.place, now, now)
    pen.next_row = row + 1
    _close(recorder, move, now)
    return None


def slowly(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """Any move of an event that has no handlers, step by step."""
    recorder.before(move, now, engine)
    recorder.instant(move.label, now)
    recorder.after(move, now)


# Boundaries without an event


def pass_phase(
    recorder: Recorder, key: tuple[int, str], says: Callable[[str, str], Passing], now: int = 0
) -> None:
    """A boundary that no event tells of, such as the end of ``prepare_batch``.

    Args:
        recorder: of the engine, which runs innermost.
        key: what tells of it; its second part goes to ``says``.
        says: what ends there and begins, by the boundary before. Asked once a place.
        now: Unix ns; 0: now.
    """
    node = recorder.node
    if node.inside_handler:
        return
    try:
        move = node.by_key[key]
    except KeyError:
        if not in_process_function(node):
            return
        passing = says(node.boundary, key[1])
        move = node.by_key[key] = (
            None if passing is None else recorder.rules.phase_move(node, *passing)
        )
    if move is None:
        return
    early = now > 0
    if move.phase_since_boundary:
        now = recorder.boundary
    elif not now or now < recorder.boundary:
        now = max(monotonic_ns() + recorder.offset, recorder.boundary)
    pen, stack = recorder.pen, recorder.stack
    row, top, since = pen.next_row, stack[-1], recorder.boundary
    if move.shape != BOUNDARY or recorder.muted or row >= pen.last_row or top < pen.first:
        recorder.before(move, now, None)
        recorder.after(move, now)
    else:
        if move.quick_ends:
            pen.words[top * 4 + pen.end_at] = now
            stack.pop()
        recorder.boundary = later = now + 1
        recorder.node = after = move.target.entry
        if after.guess is not None:
            pen.put_o(
                pen.target, row * 32 - pen.base,
                stack[-1], after.guess | GUESSED, recorder.place, later,
            )  # fmt: skip
            pen.next_row = row + 1
            stack.append(row)
    if recorder.marks is not None:
        recorder.marks.passed(recorder, move, node, top, since, early)


# Events with handlers. To begin one returns the stack's height above its row, which is never 0.


def begin_event(recorder: Recorder, move: Move, now: int, engine: Any, handler: int) -> int:
    """The event and its first handler begin."""
    pen, stack = recorder.pen, recorder.stack
    row = pen.next_row
    if row + 2 > pen.last_row or recorder.muted:
        return begin_slowly(recorder, move, now, engine, handler)
    if recorder.track.noted:
        recorder.track.noted = 0
    place = recorder.place
    pen.put_oo(
        pen.target, row * 32 - pen.base,
        stack[-1], move.label, place, now,
        row, handler, place, now,
    )  # fmt: skip
    pen.next_row = row + 2
    recorder.node = recorder.handler_root
    height = len(stack) + 1
    stack += (row, row + 1)
    return height


def begin_in_container(recorder: Recorder, move: Move, now: int, engine: Any, handler: int) -> int:
    """A step or an iteration opens, in it begin the event and its first handler."""
    pen, stack = recorder.pen, recorder.stack
    row = pen.next_row
    if row + 3 > pen.last_row or recorder.muted or (move.begins_step and recorder.writer.every > 1):
        return begin_slowly(recorder, move, now, engine, handler)
    if recorder.track.noted:
        recorder.track.noted = 0
    state = engine.state
    if move.begins_step:
        recorder.steps += 1
        recorder.place = place = state.epoch | state.iteration + 1 << 32
    else:
        recorder.place = place = state.epoch | state.iteration << 32
    pen.put_ooo(
        pen.target, row * 32 - pen.base,
        stack[-1], move.quick_opens, place, now,
        row, move.label, place, now,
        row + 1, handler, place, now,
    )  # fmt: skip
    pen.next_row = row + 3
    recorder.node = recorder.handler_root
    height = len(stack) + 2
    stack += (row, row + 1, row + 2)
    return height


def begin_slowly(recorder: Recorder, move: Move, now: int, engine: Any, handler: int) -> int:
    """Any event and its first handler, step by step."""
    recorder.before(move, now, engine)
    height = recorder.begin_event(move, now)
    recorder.begin_handler(handler, now)
    return height


def finish_and_close(recorder: Recorder, move: Move, height: int) -> None:
    """The last handler and its event end, then one or more containers."""
    now = monotonic_ns() + recorder.offset
    pen, stack = recorder.pen, recorder.stack
    if (
        len(stack) != height + 1 or stack[-2] < pen.first or recorder.muted or not recorder.ident
    ):  # fmt: skip
        return recorder.end_event(move, height)
    words, at = pen.words, pen.end_at
    words[stack[-1] * 4 + at] = words[stack[-2] * 4 + at] = now
    del stack[-2:]
    _close(recorder, move, now)
    return None


def finish_slowly(recorder: Recorder, move: Move, height: int) -> None:
    """Any event's end."""
    recorder.end_event(move, height)


def _close(recorder: Recorder, move: Move, now: int) -> None:
    pen, stack = recorder.pen, recorder.stack
    recorder.boundary = later = now + 1
    closes = move.closes
    while closes:
        top = stack[-1]
        if top >= pen.first:
            pen.words[top * 4 + pen.end_at] = later
        else:
            pen.close(top, later, 0)
        stack.pop()
        closes -= 1
    recorder.node = move.target
    if move.is_boundary:
        recorder.guess(later)


#: By a move's shape: what to do at an event without handlers; before and after one that has some.
#: What ``FireEvent`` does itself comes here only where it is unusual.
ACTIONS = {
    BOUNDARY: (pass_boundary, begin_slowly, finish_slowly),
    OPENS: (open_container, begin_in_container, finish_slowly),
    CLOSES: (close_containers, begin_event, finish_and_close),
    STEPS: (pass_optimizer, begin_slowly, finish_slowly),
    OTHER: (slowly, begin_slowly, finish_slowly),
}
