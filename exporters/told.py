"""What other journals tell of a journal's spans."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from opentelemetry.trace import Link, SpanContext, TraceFlags

from firetrace.tracer.table import Table

SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Told(NamedTuple):
    """What another journal tells of a span: a link to one of its own, attributes, or both."""

    trace_id: int = 0
    span_id: int = 0
    kind: str = ""  #: the link's ``ignite.link``; "": there is none
    attributes: dict[str, Any] | None = None

    @property
    def links(self) -> tuple[Link, ...]:
        """The link, if there is one."""
        if not self.kind:
            return ()
        context = SpanContext(self.trace_id, self.span_id, False, SAMPLED)
        return (Link(context, {"ignite.link": self.kind}),)


class Peers(Protocol):
    """Tells what other journals know of a journal's spans."""

    def told(self, table: Table) -> dict[int, Told]:
        """Of the spans of a block, by row number, those of which something is known."""
