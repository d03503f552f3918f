"""Short cuts: how a recorder carries out the moves that a running loop makes all the time.

They are for events that have no handlers. Each writes the rows that the recorder's ``before``,
``instant`` and ``after`` would write, in one store: it is what makes recording cheap.

An event without duration takes the nanosecond in which it fires: what begins after it begins
later, what ends after it ends later, so nesting by time is nesting by parent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firetrace.tracer.journal import Flag
from firetrace.tracer.rules import BOUNDARY, CLOSES, OPENS, OTHER, Move

if TYPE_CHECKING:
    from firetrace.tracer.recorder import Recorder

GUESS = int(Flag.GUESS)


def pass_boundary(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """At most one span ends, the event happens, at most one span opens after it."""
    pen, stack = recorder.pen, recorder.stack
    row = pen.next_row
    if row + 2 > pen.last_row or recorder.muted:
        return slowly(recorder, move, now, engine)
    target, base = pen.target, pen.base
    if move.quick_ends:
        top = stack[-1]
        if top >= pen.first:
            pen.put_end(target, top * 32 + 16 - base, now)
        else:
            pen.close(top, now, 0)
        stack.pop()
    recorder.boundary = later = now + 1
    recorder.node = node = move.target.entry if move.is_boundary else move.target
    parent, lane, epoch, iteration = stack[-1], recorder.lane, recorder.epoch, recorder.iteration
    guess = node.guess
    if guess is None or not move.is_boundary:
        pen.put1(
            target, row * 32 - base,
            parent, move.name, lane, 0, epoch, iteration, now, now,
        )  # fmt: skip
        pen.next_row = row + 1
        return None
    pen.put2(
        target, row * 32 - base,
        parent, move.name, lane, 0, epoch, iteration, now, now,
        parent, guess, lane, GUESS, epoch, iteration, 0, later,
    )  # fmt: skip
    pen.next_row = row + 2
    stack.append(row + 1)
    return None


def open_container(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """A step or an iteration opens, the event happens, at most one span opens after it."""
    pen, stack = recorder.pen, recorder.stack
    row = pen.next_row
    if row + 3 > pen.last_row or recorder.muted or (move.begins_step and recorder.writer.every > 1):
        return slowly(recorder, move, now, engine)
    state = engine.state
    recorder.epoch = epoch = state.epoch
    recorder.iteration = iteration = state.iteration + 1 if move.begins_step else state.iteration
    if move.begins_step:
        recorder.steps += 1
    recorder.boundary = later = now + 1
    recorder.node = node = move.target.entry if move.is_boundary else move.target
    lane, then, flags = recorder.lane, move.quick_then, 0
    if then < 0 and node.guess is not None:
        then, flags = node.guess, GUESS
    if then < 0:
        pen.put2(
            pen.target, row * 32 - pen.base,
            stack[-1], move.quick_opens, lane, 0, epoch, iteration, 0, now,
            row, move.name, lane, 0, epoch, iteration, now, now,
        )  # fmt: skip
        pen.next_row = row + 2
        stack.append(row)
        return None
    pen.put3(
        pen.target, row * 32 - pen.base,
        stack[-1], move.quick_opens, lane, 0, epoch, iteration, 0, now,
        row, move.name, lane, 0, epoch, iteration, now, now,
        row, then, lane, flags, epoch, iteration, 0, later,
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
    target, base, first, put_end = pen.target, pen.base, pen.first, pen.put_end
    pen.put1(
        target, row * 32 - base,
        stack[-1], move.name, recorder.lane, 0, recorder.epoch, recorder.iteration, now, now,
    )  # fmt: skip
    pen.next_row = row + 1
    recorder.boundary = later = now + 1
    closes = move.closes
    while closes:
        top = stack[-1]
        if top >= first:
            put_end(target, top * 32 + 16 - base, later)
        else:
            pen.close(top, later, 0)
        stack.pop()
        closes -= 1
    recorder.node = move.target
    return None


def slowly(recorder: Recorder, move: Move, now: int, engine: Any) -> None:
    """Any move of an event that has no handlers, step by step."""
    recorder.before(move, now, engine)
    recorder.instant(move.name, now)
    recorder.after(move, now)


#: By a move's shape: how it is carried out.
ACTIONS = {
    BOUNDARY: pass_boundary,
    OPENS: open_container,
    CLOSES: close_containers,
    OTHER: slowly,
}
