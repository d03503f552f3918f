"""Rows to OpenTelemetry: a journal's spans as the SDK's ``ReadableSpan``.

Feed any SDK exporter from a journal in three lines::

    from firetrace.exporters.spans import batches, journal_spans
    for batch in batches(journal_spans("firetrace-runs/.../rank0.1.rows")):
        exporter.export(batch)

or any span processor, with ``processor.on_end(span)`` for each span. Ids are those of
``firetrace.tracer.ids``; what is a trace, ``firetrace.tracer.traces`` says. A span whose parent is
in another trace is a root there, with a link to it. Links to other journals of the run, and what
these tell of it, are those of ``firetrace.exporters.peers``. Of a data journal a trace is a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.trace.status import Status, StatusCode

from firetrace.exporters.batches import attribute_bytes, batches
from firetrace.exporters.devices import DeviceTimes
from firetrace.exporters.notes import failure_of, plan_of, scalars_of
from firetrace.exporters.peers import peers_of, place_of
from firetrace.exporters.shapes import CHILD, ROOT, Plain, Shapes
from firetrace.exporters.told import SAMPLED, Peers, Told
from firetrace.tracer.ids import span_id, span_ids
from firetrace.tracer.journal import Flag, Header
from firetrace.tracer.meta import Meta
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import is_data
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table
from firetrace.tracer.traces import Lineage, Places, TraceIds, trace_of, traces_of

__all__ = ["SpanMaker", "batches", "close_open", "journal_spans", "maker", "readable_spans"]

MOST_CONTEXTS = 20_000
TOLD = int(Flag.ERROR | Flag.CUT | Flag.SKIPPED)
UNSET = Status(StatusCode.UNSET)
#: Attributes that the rows' epoch and iteration are; in data journals they are others.
NUMBERED, NUMBERED_DATA = ("ignite.epoch", "ignite.iteration"), ("ignite.pass", "ignite.batch")


@lru_cache(maxsize=1)
def scope() -> InstrumentationScope:
    """The instrumentation scope of every span: firetrace and its version."""
    try:
        return InstrumentationScope("firetrace", version("firetrace"))
    except PackageNotFoundError:
        return InstrumentationScope("firetrace")


def resource(meta: Meta) -> Resource:
    """The process's resource; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win."""
    from_environment = OTELResourceDetector().detect().attributes
    service = os.environ.get("OTEL_SERVICE_NAME")
    attributes: dict[str, Any] = {
        "telemetry.sdk.language": "python", **meta.resource, **from_environment,
    }  # fmt: skip
    if service:
        attributes["service.name"] = service
    return Resource(attributes)


class SpanMaker:
    """Makes the spans of one journal.

    Args:
        header: of the journal.
        meta: of the journal; may grow.
        row: finds a row by its number, where a table's parents may be elsewhere.
        split: ``run``, ``epoch`` or ``step`` instead of the journal's own; other traces, with other
            ids.
        peers: what tells more of the spans.
        numbered: attributes that the rows' epoch and iteration are.
    """

    def __init__(
        self,
        header: Header,
        meta: Meta,
        row: Callable[[int], np.void | None] | None = None,
        split: str | None = None,
        peers: Peers | None = None,
        numbered: tuple[str, str] = NUMBERED,
    ) -> None:
        self._seed, self._meta, self._row = header.seed, meta, row
        self._ids = TraceIds(header.seed, split or meta.split, meta.traceparent)
        self._lineage = Lineage(place_of(row or (lambda number: None), meta))
        self._peers, self.numbered = peers, numbered
        self._shapes = Shapes()
        self._scope, self._said = scope(), meta.resource
        self.resource = resource(meta)  #: of the spans; another one once more is known
        self._run_id = str(meta.resource.get("ignite.run.id", ""))
        self._templates: dict[tuple[int, int], tuple[str, str, dict[str, Any], int]] = {}
        self._contexts: dict[int, SpanContext] = {}
        self._block: Table | None = None  # of which these are:
        self._places: Places
        self._scalars: dict[int, dict[str, float]]
        self._told: dict[int, Told]

    def places(self, table: Table) -> Places:
        """Where the rows of a block stand."""
        if self._block is not table:
            self._places, self._scalars = self._lineage.places(table), scalars_of(table)
            self._told = self._peers.told(table) if self._peers is not None else {}
            if self._said is not self._meta.resource:
                self._said, self.resource = self._meta.resource, resource(self._meta)
            self._block = table
        return self._places

    def spans(
        self, table: Table, positions: npt.NDArray[np.int64] | None = None
    ) -> Iterator[ReadableSpan]:
        """The spans of a block, or those at ``positions``. Open ones have no ``end_time``."""
        return (span for span, _ in self.sized_spans(table, positions))

    def sized_spans(
        self, table: Table, positions: npt.NDArray[np.int64] | None = None
    ) -> Iterator[tuple[ReadableSpan, int]]:
        """The spans, each with an upper estimate of the bytes that it takes when encoded."""
        if positions is None:
            positions = np.arange(len(table))
        at = self.places(table)
        anchors, parts = traces_of(
            self._ids.split, table.numbers[positions], Places(*(c[positions] for c in at))
        )
        roots, scalars, told = at.root[positions], self._scalars, self._told
        meta, (epochs, iterations) = self._meta, self.numbered
        for first in range(0, len(positions), 4096):
            some = slice(first, first + 4096)
            rows, numbers = table.rows[positions[some]], table.numbers[positions[some]]
            ids = span_ids(self._seed, numbers).tolist()
            noted = {*meta.attributes.of(numbers), *meta.runs.of(numbers), *meta.links.of(numbers)}
            traces = zip(
                anchors[some].tolist(), parts[some].tolist(), roots[some].tolist(), strict=True
            )
            for row, number, id, trace in zip(
                rows.tolist(), numbers.tolist(), ids, traces, strict=True
            ):
                parent, name, lane, flags, epoch, iteration, end, start = row
                template = self._templates.get((name, lane))
                if template is None:
                    template = self._templates[name, lane] = self._template(name, lane)
                text, kind, constant, size = template
                attributes = {**constant, epochs: epoch, iterations: iteration}
                context = self._contexts.get(number)
                if context is None:
                    trace_id = self._ids.of(trace[:2], trace[2])
                    context = self._remember(number, SpanContext(trace_id, id, False, SAMPLED))
                links: list[Link] = []
                above = self._contexts.get(parent) or self._context(parent)
                if above is not None and above.trace_id != context.trace_id:
                    if parent:
                        links.append(Link(above, {"ignite.link": "parent"}))
                    above = None
                if above is None:
                    attributes["ignite.run.id"] = self._run_id
                events: tuple[Event, ...] = ()
                status = UNSET
                if number in told:
                    links += told[number].links
                    attributes.update(told[number].attributes or ())
                    size += 200
                if flags & TOLD or not end or number in scalars or number in noted:
                    links += self._noted(number, attributes, scalars, kind, end, flags)
                    events, status = failure_of(table, number, flags, attributes, end)
                    size += attribute_bytes(attributes) + sum(
                        64 + attribute_bytes(event.attributes) for event in events
                    )
                span = ReadableSpan(
                    name=text,
                    context=context,
                    parent=above,
                    resource=self.resource,
                    attributes=attributes,
                    events=events,
                    links=links,
                    kind=SpanKind.INTERNAL,
                    status=status,
                    start_time=start,
                    end_time=end or None,
                    instrumentation_scope=self._scope,
                )
                yield span, size

    def plain(self, table: Table) -> Plain:
        """What of a block's spans is told by a few columns alone."""
        at = self.places(table)
        rows, numbers, parents = table.rows, table.numbers, table.rows["parent"]
        anchors, parts = traces_of(self._ids.split, numbers, at)
        trace = parts << 32 | anchors
        above = np.minimum(np.searchsorted(numbers, parents), max(len(numbers) - 1, 0))
        inside = numbers[above] == parents
        parent_trace = trace[above]
        for parent in np.unique(parents[~inside]).tolist():
            found = 0
            if parent:
                anchor, part = trace_of(self._ids.split, parent, self._lineage.place(parent))
                found = part << 32 | anchor
            parent_trace[~inside & (parents == parent)] = found
        meta = self._meta
        noted = [notes.among(numbers) for notes in (meta.attributes, meta.runs, meta.links)]
        noted.append(np.array([*self._scalars], np.uint32))
        fine = (
            (rows["flags"] & TOLD == 0) & (rows["end"] != 0) & (parents != 0)
            & ~np.isin(numbers, np.concatenate(noted))
        )  # fmt: skip
        shape = np.where(fine, np.where(trace == parent_trace, CHILD, ROOT), 0)
        peers, told = self._shapes.add(shape, numbers, self._told)
        traces, around = self._trace_ids(trace, at), self._trace_ids(parent_trace, at)
        return Plain(shape, traces, around, peers, told)

    def _trace_ids(self, traces: npt.NDArray[np.int64], at: Places) -> list[int]:
        codes, index = np.unique(traces, return_index=True)
        ids = {
            code: self._ids.of((code & 0xFFFFFFFF, code >> 32), root)
            for code, root in zip(codes.tolist(), at.root[index].tolist(), strict=True)
        }
        return [ids[code] for code in traces.tolist()]

    def root_of(self, number: int) -> tuple[str, dict[str, Any]]:
        """Name and constant attributes of the span with which this one's trace begins."""
        anchor, _ = trace_of(self._ids.split, number, self._lineage.place(number))
        row = self._row(anchor) if self._row is not None else None
        if row is None:
            return "", {}
        name, _, attributes, _ = self._template(int(row["name"]), int(row["lane"]))
        return name, attributes

    def _template(self, name_id: int, lane_id: int) -> tuple[str, str, dict[str, Any], int]:
        """Name, kind, constant attributes and size of the spans of this name in this lane."""
        name, lane = self._meta.names.get(name_id), self._meta.lane(lane_id)
        kind, text = (name.kind, name.text) if name else ("span", "(name lost)")
        attributes: dict[str, Any] = {"ignite.kind": kind, "ignite.engine": lane.engine}
        if kind == "event":
            attributes["ignite.event"] = text
        elif kind == "handler" and name:
            attributes["ignite.handler"] = text
            attributes.update(name.code)
        elif kind == "run":
            attributes["thread.name"], attributes["thread.id"] = lane.thread, lane.thread_id
        size = 400 + 4 * len(text) + 4 * len(self._run_id) + attribute_bytes(attributes)
        return text, kind, attributes, size

    def _context(self, number: int) -> SpanContext | None:
        """The context of a row that is not at hand; of none the caller's, if it had one."""
        if not number:
            if self._ids.remote is None:
                return None
            return SpanContext(*self._ids.remote, True, SAMPLED)
        place = self._lineage.place(number)
        trace_id = self._ids.of(trace_of(self._ids.split, number, place), place.root)
        found = SpanContext(trace_id, span_id(self._seed, number), False, SAMPLED)
        return self._remember(number, found)

    def _remember(self, number: int, context: SpanContext) -> SpanContext:
        if len(self._contexts) > MOST_CONTEXTS:  # parents are near their children
            self._contexts.clear()
        self._contexts[number] = context
        return context

    def _noted(
        self, number: int, attributes: dict[str, Any], scalars: dict[int, dict[str, float]],
        kind: str, end: int, flags: int,
    ) -> list[Link]:  # fmt: skip
        """Add what is known of this span alone."""
        meta = self._meta
        if kind == "run":
            attributes.update(plan_of(meta, number))
        attributes.update(scalars.get(number, ()))
        attributes.update(meta.attributes.get(number, ()))
        if flags & Flag.SKIPPED:
            attributes["ignite.optimizer.skipped"] = True
        if not end:
            attributes["ignite.incomplete"] = True
        if flags & Flag.CUT:
            attributes["ignite.cut"] = meta.reasons.get(number, "cut short")
        resumed = meta.links.get(number)
        above = self._context(resumed) if resumed else None
        return [Link(above, {"ignite.link": "resumes"})] if above else []


def readable_spans(
    table: Table, positions: npt.NDArray[np.int64] | None = None, split: str | None = None
) -> Iterator[ReadableSpan]:
    """The spans of a whole table, or those at ``positions``, parents before their children.

    Open spans have no ``end_time``; SDK exporters want one, so give them closed spans only, or use
    ``close_open``.
    """
    return SpanMaker(table.header, table.meta, None, split).spans(table, positions)


def close_open(span: ReadableSpan, end_ns: int) -> ReadableSpan:
    """A span that has an end: its own, or for an open one ``end_ns``, marked as incomplete."""
    if span.end_time is not None:
        return span
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=max(end_ns, span.start_time or 0),
        instrumentation_scope=span.instrumentation_scope,
    )


def maker(
    reader: JournalReader, split: str | None = None, devices: DeviceTimes | None = None
) -> SpanMaker:
    """A maker of the spans that a reader of a journal hands out.

    It looks for other journals in the same folder, to link to them and for device time; who has
    ``devices`` already may lend them.
    """
    peers = peers_of(reader, split, devices)
    if is_data(reader.path):
        return SpanMaker(reader.header, reader.meta, reader.row, "run", peers, NUMBERED_DATA)
    return SpanMaker(reader.header, reader.meta, reader.row, split, peers)


def journal_spans(path: str | os.PathLike[str], split: str | None = None) -> Iterator[ReadableSpan]:
    """The spans that a journal holds now, in memory that does not grow with it.

    First those that have ended, then the open ones, without ``end_time``.

    Raises:
        JournalError: it cannot be read.
    """
    with Stream(path) as stream:
        makes = None
        for block in stream.ended():
            makes = makes or maker(stream.reader, split)
            yield from makes.spans(block)
        rest = stream.rest()
        yield from (makes or maker(stream.reader, split)).spans(rest)
