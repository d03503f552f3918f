"""OTLP JSON of spans: a line is one ``TracesData``, as a Collector reads it.

The messages are those of OpenTelemetry's own encoder; the JSON is protobuf's, with what OTLP asks
for beside it: ids in hex, enums as numbers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan

_IDS = ("traceId", "spanId", "parentSpanId")


def otlp_json_line(spans: Sequence[ReadableSpan]) -> bytes:
    """A batch as one line of OTLP JSON, UTF-8, with the newline.

    Raises:
        Exception: what OpenTelemetry's encoder raises for a span that protobuf cannot hold.
    """
    return json.dumps(otlp_json(spans), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def otlp_json(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """A batch as the JSON object of an ``ExportTraceServiceRequest``, which is a ``TracesData``."""
    data: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for span in _spans(data):
        _hex_ids(span)
        for link in span.get("links", ()):
            _hex_ids(link)
    return data


def _spans(data: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for resource in data.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())


def _hex_ids(message: dict[str, Any]) -> None:
    for key in _IDS:
        if key in message:
            message[key] = base64.b64decode(message[key]).hex()
