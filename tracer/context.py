"""The context bridge: the user's own OpenTelemetry spans become children of the open row.

While an engine runs, OpenTelemetry's current span is an object that knows the thread's stack of
open rows: whoever asks it for its context gets the ids of the innermost one. So nothing is done at
an event. It takes effect where the program has imported the OpenTelemetry API before its run.

This file alone of the recording side imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace

from firetrace.tracer.ids import span_id
from firetrace.tracer.journal import Flag
from firetrace.tracer.traces import Lineage, TraceIds, trace_of

if TYPE_CHECKING:
    from firetrace.tracer.rows import OpenRows

SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)


class CurrentRow(trace.NonRecordingSpan):
    """OpenTelemetry's current span while an engine runs: the innermost open row, whichever it is.

    It is ended by the engine's events alone, and records nothing that it is told.

    Args:
        rows: that are open.
        guarded: calls what must not fail into the training.
    """

    def __init__(self, rows: OpenRows, guarded: Callable[..., Any]) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self._rows = rows
        self._guarded = guarded
        writer = rows.writer
        self._lineage = Lineage(writer.look_up)
        self._ids = TraceIds(writer.seed, writer.split or "run", writer.traceparent)
        self._last = 0, trace.INVALID_SPAN_CONTEXT

    def get_span_context(self) -> trace.SpanContext:
        """The ids of the row that is open innermost now."""
        found: trace.SpanContext | None = self._guarded(self._innermost)
        return found or trace.INVALID_SPAN_CONTEXT

    def _innermost(self) -> trace.SpanContext:
        rows = self._rows
        number = rows.unmuted_parent() if rows.ident else 0
        if not number:
            return trace.INVALID_SPAN_CONTEXT
        last, found = self._last
        if last != number:
            certain, ids = self._certain(number), self._ids
            place = self._lineage.place(certain)
            trace_id = ids.of(trace_of(ids.split, certain, place), place.root)
            found = trace.SpanContext(trace_id, span_id(ids.seed, certain), False, SAMPLED)
            self._last = number, found
        return found

    def _certain(self, number: int) -> int:
        """The innermost row that is more than a guess: another one may turn out to be no span."""
        while (row := self._rows.writer.look_up(number)) is not None:
            if not row.flags & Flag.GUESS or not row.parent:
                break
            number = row.parent
        return number

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_span_context()!r})"


def enter(rows: OpenRows, guarded: Callable[..., Any]) -> Callable[[], None]:
    """Make the open rows the current span. Returns what puts things back as they would be."""
    before = trace.get_current_span()
    span = CurrentRow(rows, guarded)
    own = trace.set_span_in_context(span)
    token = context.attach(own)

    def leave() -> None:
        now = context.get_current()
        if now is own:
            context.detach(token)
        elif trace.get_current_span(now) is span:
            # Something else was attached meanwhile and is there to stay, as without a trace.
            context.attach(trace.set_span_in_context(before, now))

    return leave
