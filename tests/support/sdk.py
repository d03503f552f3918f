"""Programs that speak OpenTelemetry, and what the real readers find in the files of their spans."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

from firetrace.exporters.sdk.chrome import ChromeTraceExporter
from firetrace.exporters.sdk.otlp_file import OtlpFileExporter
from tests.support.perfetto import PerfettoTrace

STRANGE = 'a"b\\c\n\x1b[31m\u00e9\u6f22\U0001f600%d\x00'
PROCESSORS = pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
Processor = Callable[[SpanExporter], Any]


class Program:
    """A program's tracing: its spans go to the exporter, and to ``memory`` for comparison."""

    def __init__(self, exporter: SpanExporter, processor: Processor = SimpleSpanProcessor) -> None:
        self.memory = InMemorySpanExporter()
        self.exporter, self.processor = exporter, processor
        self.providers: list[TracerProvider] = []

    def tracer(self, **resource: Any) -> trace.Tracer:
        provider = TracerProvider(resource=Resource(resource), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.memory))
        provider.add_span_processor(self.processor(self.exporter))
        self.providers.append(provider)
        return provider.get_tracer("tests", "1")

    def end(self) -> tuple[ReadableSpan, ...]:
        for provider in self.providers:
            provider.force_flush()
        for provider in self.providers:
            provider.shutdown()
        return self.memory.get_finished_spans()


SLICES = """
    select s.id, s.name, s.dur, s.ts, s.category as cat, p.id as parent, th.name as thread,
        process.name as process, extract_arg(s.arg_set_id, 'args.span_id') as span_id,
        extract_arg(s.arg_set_id, 'args.trace_id') as trace_id,
        extract_arg(p.arg_set_id, 'args.span_id') as around,
        extract_arg(p.arg_set_id, 'args.trace_id') as trace_around
    from slice s left join slice p on s.parent_id = p.id
    left join thread_track on s.track_id = thread_track.id left join thread th using (utid)
    left join process using (upid) order by s.ts, s.id
"""


def slices(path: Path) -> list[dict[str, Any]]:
    """What Perfetto has of a file, instants as well (``cat`` is "event")."""
    with PerfettoTrace(path) as loaded:
        return loaded.sql(SLICES)


def assert_exact(found: list[dict[str, Any]], spans: Sequence[ReadableSpan]) -> None:
    """Every span is there once with its times, in an ancestor of its own or in nothing."""
    found = [row for row in found if row["cat"] != "event"]
    assert Counter(row["span_id"] for row in found) == Counter(map(span_id, spans))
    by_id = {span_id(span): span for span in spans}
    base = {(by_id[row["span_id"]].start_time or 0) - row["ts"] for row in found}
    assert len(base) <= 1
    for row in found:
        span = by_id[row["span_id"]]
        assert row["dur"] == (span.end_time or 0) - (span.start_time or 0)
        if row["around"] is not None:
            assert row["trace_around"] == row["trace_id"]
            assert row["around"] in ancestors(span, by_id)


def span_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def ancestors(span: ReadableSpan, by_id: dict[str, ReadableSpan]) -> Iterator[str]:
    while span.parent is not None:
        id = f"{span.parent.span_id:016x}"
        yield id
        if id not in by_id:
            return
        span = by_id[id]


def in_parent(found: list[dict[str, Any]], spans: Sequence[ReadableSpan]) -> float:
    """The part of the spans with a parent that lie directly in it."""
    parents = {span_id(s): f"{s.parent.span_id:016x}" for s in spans if s.parent is not None}
    inside = {row["span_id"] for row in found if row["around"] == parents.get(row["span_id"], "")}
    return len(inside) / max(1, len(parents))


def span(
    number: int, start: int, end: int, parent: int = 0, of: int = 1, **more: Any
) -> ReadableSpan:
    """A span ``number`` of trace ``of``."""

    def context(number: int) -> SpanContext:
        return SpanContext(of, number, False, TraceFlags(TraceFlags.SAMPLED))

    return ReadableSpan(
        more.pop("name", f"s{number}"), context(number), context(parent) if parent else None,
        start_time=start, end_time=end, resource=Resource({"service.name": "x"}), **more,
    )  # fmt: skip


def hex_to_base64(message: Any) -> Any:
    """What the strict parser of protobuf's JSON wants in place of OTLP's ids."""
    if isinstance(message, list):
        return [hex_to_base64(each) for each in message]
    if not isinstance(message, dict):
        return message
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode()
        if key in ("traceId", "spanId", "parentSpanId")
        else hex_to_base64(value)
        for key, value in message.items()
    }


def parsed(line: bytes) -> TracesData:
    data = TracesData()
    ParseDict(hex_to_base64(json.loads(line)), data, ignore_unknown_fields=False)
    return data


EXPORTERS = pytest.mark.parametrize("exporter", [ChromeTraceExporter, OtlpFileExporter])
Exporter = type[ChromeTraceExporter] | type[OtlpFileExporter]


def count(path: Path) -> int:
    """The spans in a file of either kind, as their readers count them."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".jsonl" in path.name:
        return sum(
            len(scope.spans)
            for line in text.splitlines()
            for resource in parsed(line).resource_spans
            for scope in resource.scope_spans
        )
    return len(slices(path))


def run(folder: Path, program: str, **environment: str) -> int:
    """Run a Python program in this folder; its exit status, which is 0 or that of SIGKILL."""
    (folder / "program.py").write_text(PROLOGUE + program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    assert not done.stderr, done.stderr
    return done.returncode


PROLOGUE = """
import os, resource, signal, subprocess, sys
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from firetrace.exporters.sdk.chrome import ChromeTraceExporter
from firetrace.exporters.sdk.otlp_file import OtlpFileExporter

def begin(exporter, service="shop"):
    provider = TracerProvider(resource=Resource({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("t")
"""
