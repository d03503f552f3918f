"""Groups spans into batches that a backend takes: by number and by bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

#: Spans a batch, and bytes: a gRPC server takes 4 MiB unless told otherwise.
BATCH_SPANS, BATCH_BYTES = 1024, 2 * 2**20


def batches(spans: Iterable[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    """Group spans by count and by what they take when encoded, roughly."""
    return sized_batches((span, _bytes(span)) for span in spans)


def sized_batches(spans: Iterable[tuple[ReadableSpan, int]]) -> Iterator[list[ReadableSpan]]:
    """Group spans whose sizes are known, by count and by size."""
    batch: list[ReadableSpan] = []
    size = 0
    for span, own in spans:
        if size + own > BATCH_BYTES and batch:
            yield batch
            batch, size = [], 0
        batch.append(span)
        size += own
        if len(batch) >= BATCH_SPANS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _bytes(span: ReadableSpan) -> int:
    """An upper estimate of a span's encoded size."""
    size = 200 + 4 * len(span.name) + attribute_bytes(span.attributes)
    return size + sum(64 + attribute_bytes(event.attributes) for event in span.events)


def attribute_bytes(attributes: Any) -> int:
    """An upper estimate of what attributes take when encoded."""
    size = 0
    for key, value in (attributes or {}).items():
        size += 24 + len(key)
        if isinstance(value, str):
            size += len(value) if value.isascii() else 4 * len(value)
        elif isinstance(value, (list, tuple)):
            size += sum(24 + (4 * len(each) if isinstance(each, str) else 0) for each in value)
    return size
