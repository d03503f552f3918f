"""Rows to OpenTelemetry: a journal's spans as the SDK's ``ReadableSpan``.

Feed any SDK exporter from a journal in three lines::

    from firetrace.exporters.spans import batches, journal_spans
    for batch in batches(journal_spans("firetrace-runs/.../rank0.1.rows")):
        exporter.export(batch)

Ids are those of ``firetrace.tracer.ids``. Spans come in the order in which they began, parents
before children.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from firetrace.tracer.ids import span_ids, trace_id
from firetrace.tracer.journal import Flag
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.table import Table, read_table
from firetrace.tracer.table import table as as_table

#: Spans a batch, and bytes: a gRPC server takes 4 MiB unless told otherwise.
BATCH_SPANS, BATCH_BYTES = 1024, 2 * 2**20
SAMPLED = TraceFlags(TraceFlags.SAMPLED)


@lru_cache(maxsize=1)
def scope() -> InstrumentationScope:
    """The instrumentation scope of every span: firetrace and its version."""
    try:
        return InstrumentationScope("firetrace", version("firetrace"))
    except PackageNotFoundError:
        return InstrumentationScope("firetrace")


def resource(table: Table) -> Resource:
    """The process's resource; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win."""
    from_environment = OTELResourceDetector().detect().attributes
    service = os.environ.get("OTEL_SERVICE_NAME")
    attributes: dict[str, Any] = {
        "telemetry.sdk.language": "python", **table.meta.resource, **from_environment,
    }  # fmt: skip
    if service:
        attributes["service.name"] = service
    return Resource(attributes)


def readable_spans(
    table: Table, positions: npt.NDArray[np.int64] | None = None
) -> Iterator[ReadableSpan]:
    """The spans of a table, or those at ``positions``, in the order in which they began.

    Open spans have no ``end_time``; SDK exporters want one, so give them closed spans only, or use
    ``close_open``.
    """
    trace, in_scope, of = trace_id(table.header.seed), scope(), resource(table)
    rows, numbers = table.rows, table.numbers
    if positions is None:
        positions = np.argsort(rows["start"], kind="stable")
    scalars, links = _scalars(table), table.meta.links
    run_id = str(table.meta.resource.get("ignite.run.id", ""))
    contexts: dict[int, SpanContext] = {}

    def context(number: int, id: int) -> SpanContext:
        found = contexts.get(number)
        if found is None:
            if len(contexts) > 10_000:  # parents are near their children; old ones are made anew
                contexts.clear()
            found = contexts[number] = SpanContext(trace, id, False, SAMPLED)
        return found

    for first in range(0, len(positions), 4096):
        part = positions[first : first + 4096]
        chunk, chunk_numbers = rows[part], numbers[part]
        ids = span_ids(table.header.seed, chunk_numbers).tolist()
        parent_ids = span_ids(table.header.seed, chunk["parent"]).tolist()
        for row, number, id, parent_id in zip(
            chunk.tolist(), chunk_numbers.tolist(), ids, parent_ids, strict=True
        ):
            parent, name_id, lane_id, flags, epoch, iteration, end, start = row
            name = table.meta.names.get(name_id)
            lane = table.lane_of(lane_id)
            kind, text = (name.kind, name.text) if name else ("span", "(name lost)")
            attributes: dict[str, Any] = {
                "ignite.kind": kind, "ignite.engine": lane.engine, "ignite.epoch": epoch,
                "ignite.iteration": iteration,
            }  # fmt: skip
            if kind == "event":
                attributes["ignite.event"] = text
            elif kind == "handler" and name:
                attributes["ignite.handler"] = text
                attributes.update(name.code)
            if parent == 0:
                attributes["ignite.run.id"] = run_id
            if kind == "run":
                attributes["thread.name"], attributes["thread.id"] = lane.thread, lane.thread_id
                attributes.update(_plan(table, number))
            attributes.update(scalars.get(number, ()))
            attributes.update(table.meta.attributes.get(number, ()))
            if flags & Flag.SKIPPED:
                attributes["ignite.optimizer.skipped"] = True
            if not end:
                attributes["ignite.incomplete"] = True
            if flags & Flag.CUT:
                attributes["ignite.cut"] = table.meta.reasons.get(number, "cut short")
            events, status = _failure(table, number, flags, attributes, end)
            yield ReadableSpan(
                name=text,
                context=context(number, id),
                parent=context(parent, parent_id) if parent else None,
                resource=of,
                attributes=attributes,
                events=events,
                links=_links(table, links.get(number), context),
                kind=SpanKind.INTERNAL,
                status=status,
                start_time=start,
                end_time=end or None,
                instrumentation_scope=in_scope,
            )


def _scalars(table: Table) -> dict[int, dict[str, float]]:
    """The scalars of each row, as attributes."""
    found: dict[int, dict[str, float]] = {}
    values = table.scalars["end"].copy().view("<f8").tolist()
    for row, value in zip(table.scalars.tolist(), values, strict=True):
        name = table.meta.names.get(row[1])
        found.setdefault(row[0], {})[f"ignite.scalar.{name.text if name else row[1]}"] = value
    return found


def _plan(table: Table, number: int) -> dict[str, int]:
    """How far a run means to go."""
    plan = table.meta.runs.get(number, {})
    return {
        f"ignite.{key}": plan[key]
        for key in ("max_epochs", "epoch_length", "max_iters")
        if isinstance(plan.get(key), int)
    }


def _links(table: Table, to: int | None, context: Callable[[int, int], SpanContext]) -> list[Link]:
    """To the run that was interrupted before this one."""
    if to is None:
        return []
    (id,) = span_ids(table.header.seed, np.array([to], np.uint32)).tolist()
    return [Link(context(to, id), {"ignite.link": "resumes"})]


def _failure(
    table: Table, number: int, flags: int, attributes: dict[str, Any], end: int
) -> tuple[tuple[Event, ...], Status]:
    """The exception that ended a span, as OpenTelemetry records exceptions."""
    exception = table.meta.exceptions.get(number)
    if exception is None:
        if flags & Flag.ERROR:
            return (), Status(StatusCode.ERROR)
        return (), Status(StatusCode.UNSET)
    attributes["error.type"] = exception.get("exception.type", "_OTHER")
    recorded = {
        key: value for key, value in exception.items() if key.startswith("exception.") and value
    }
    at = exception.get("time")
    event = Event("exception", recorded, timestamp=at if isinstance(at, int) and at > 0 else end)
    return (event,), Status(StatusCode.ERROR, str(exception.get("exception.message", "")))


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


class EndedSpans:
    """A journal's spans as they end: each call to ``new`` yields those that have ended since."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._reader = JournalReader(path)
        self._taken = np.zeros(0, bool)  # by row number

    def new(self) -> Iterator[ReadableSpan]:
        """The spans that have ended since the last call."""
        self._reader.poll()
        now = as_table(self._reader)
        if not len(now):
            return iter(())
        size = int(now.numbers[-1]) + 1
        taken = np.zeros(size, bool)
        taken[: len(self._taken)] = self._taken[:size]
        fresh = np.flatnonzero((now.rows["end"] != 0) & ~taken[now.numbers])
        taken[now.numbers[fresh]] = True
        self._taken = taken
        order = np.argsort(now.rows["start"][fresh], kind="stable")
        return readable_spans(now, fresh[order])


def journal_spans(path: str | os.PathLike[str]) -> Iterator[ReadableSpan]:
    """The spans that a journal holds now.

    Raises:
        JournalError: it cannot be read.
    """
    return readable_spans(read_table(Path(path)))


def batches(spans: Iterable[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    """Group spans by count and by what they take when encoded, roughly."""
    batch: list[ReadableSpan] = []
    size = 0
    for span in spans:
        batch.append(span)
        size += _bytes(span)
        if len(batch) >= BATCH_SPANS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bytes(span: ReadableSpan) -> int:
    """An upper estimate of a span's encoded size."""
    size = 120 + 4 * len(span.name) + _attribute_bytes(span.attributes)
    return size + sum(64 + _attribute_bytes(event.attributes) for event in span.events)


def _attribute_bytes(attributes: Any) -> int:
    return sum(
        24 + len(key) + (4 * len(value) if isinstance(value, str) else 0)
        for key, value in (attributes or {}).items()
    )
