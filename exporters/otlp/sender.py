"""OTLP over gRPC or HTTP, through OpenTelemetry's official exporters.

They read the standard variables (``OTEL_EXPORTER_OTLP_*``) for endpoint, headers, certificates and
compression, and retry what the specification says may be retried.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from firetrace.exporters.spans import batches, close_open, readable_spans
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.table import Table

GRPC, HTTP = "grpc", "http/protobuf"
PROTOCOLS = (GRPC, HTTP)


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
