"""OTLP over gRPC or HTTP, through OpenTelemetry's official exporters.

They read the standard variables (``OTEL_EXPORTER_OTLP_*``) for endpoint, headers, certificates and
compression, and retry what the specification says may be retried.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from firetrace.exporters.spans import close_open, readable_spans
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.table import Table

GRPC, HTTP = "grpc", "http/protobuf"
PROTOCOLS = (GRPC, HTTP)
#: Spans a batch, and bytes: a gRPC server takes 4 MiB unless told otherwise.
BATCH_SPANS, BATCH_BYTES = 1024, 2 * 2**20


class ExportError(FiretraceError):
    """The backend did not say that it has taken the spans."""


def make_exporter(protocol: str | None = None, endpoint: str | None = None) -> SpanExporter:
    """The official exporter for a protocol.

    Args:
        protocol: ``grpc`` or ``http/protobuf``; by default the standard variables', or by the
            endpoint's port (4317 is gRPC's), or ``http/protobuf``.
        endpoint: base URL, such as ``http://localhost:4318``; by default the standard variables'.
    """
    protocol = protocol or protocol_for(endpoint)
    if protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        plain = None if endpoint is None else not endpoint.startswith("https:")
        return Grpc(endpoint=endpoint, insecure=plain)
    if protocol == HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        if endpoint is not None and not endpoint.rstrip("/").endswith("/v1/traces"):
            endpoint = endpoint.rstrip("/") + "/v1/traces"
        return Http(endpoint=endpoint)
    raise ExportError(f"protocol {protocol!r} is unknown; use {' or '.join(PROTOCOLS)}")


def protocol_for(endpoint: str | None) -> str:
    """The protocol that the environment or an endpoint's port asks for."""
    said = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    if said:
        return said
    return GRPC if endpoint and endpoint.rstrip("/").endswith(":4317") else HTTP


def export_otlp(
    table: Table, exporter: SpanExporter, progress: Callable[[int, int], None] = lambda d, t: None
) -> int:
    """Send every span of a table. Open ones end now and are marked ``ignite.incomplete``.

    Returns the number of spans that the backend has acknowledged.

    Raises:
        ExportError: it refused a batch, or did not answer; the message says how far it went.
    """
    sent, end_ns = 0, table.last_ns()
    for batch in batches(close_open(span, end_ns) for span in readable_spans(table)):
        try:
            result = exporter.export(batch)
        except Exception as error:
            raise ExportError(
                f"after {sent:,} of {len(table):,} spans: {type(error).__name__}: {error}"
            ) from error
        if result is not SpanExportResult.SUCCESS:
            raise ExportError(
                f"the backend did not take spans {sent + 1:,} to {sent + len(batch):,} of "
                f"{len(table):,} (the lines above say why)"
            )
        sent += len(batch)
        progress(sent, len(table))
    return sent


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
