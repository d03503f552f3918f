"""A program that has its own OpenTelemetry pipeline gets the spans there as well."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased

from firetrace import TraceHandler
from tests.support.otlp_server import OtlpHttpServer

ROOT = Path(__file__).parents[1]


def pipeline(sampler: Sampler | None = None) -> tuple[TracerProvider, InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "mine"}), sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return provider, memory


def train(provider: Any, epochs: int = 2, steps: int = 40) -> dict[int, ReadableSpan]:
    """Record a training whose spans go to a provider. What was recorded, by span id."""
    handler = TraceHandler(tracer_provider=provider)
    engine = Engine(lambda engine, batch: time.sleep(0.0005))

    @engine.on(Events.ITERATION_COMPLETED(once=5))
    def fails(engine: Engine) -> None:
        try:
            with handler.span("mine", cases=3):
                raise ValueError("swallowed")
        except ValueError:
            return

    handler.attach(engine)
    engine.run(range(steps), max_epochs=epochs)
    recorded = {span.context.span_id: span for span in handler.spans() if span.context}
    handler.close()
    return recorded


def essence(span: ReadableSpan) -> Any:
    """All that a backend sees of a span, but its resource."""
    return (
        span.name, span.context, span.parent, span.start_time, span.end_time, span.kind,
        dict(span.attributes or {}), span.status.status_code,
        [(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events],
        [(link.context, dict(link.attributes or {})) for link in span.links],
    )  # fmt: skip


def test_processors_get_every_span_as_recorded() -> None:
    """With the journal's ids and times, the provider's resource, in parents and links alike."""
    provider, memory = pipeline()
    recorded = train(provider)
    got = {span.context.span_id: span for span in memory.get_finished_spans() if span.context}
    assert got.keys() == recorded.keys()
    for id, span in got.items():
        assert essence(span) == essence(recorded[id])
        assert span.resource.attributes["service.name"] == "mine"
        assert span.instrumentation_scope
        assert span.instrumentation_scope.name == "firetrace"


def test_processors_see_spans_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """``on_start`` before ``on_end``, never in the training's thread."""
    import threading

    seen: list[tuple[str, int, str]] = []

    class Noting(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.append(("start", span.context.span_id, threading.current_thread().name))

        def on_end(self, span: ReadableSpan) -> None:
            assert span.context
            seen.append(("end", span.context.span_id, threading.current_thread().name))

    provider, _ = pipeline()
    provider.add_span_processor(Noting())
    recorded = train(provider)
    assert len(seen) == 2 * len(recorded)
    assert all(a[1] == b[1] for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert {name for _, _, name in seen} == {"firetrace-provider"}


def test_the_sampler_decides_by_trace() -> None:
    """A trace is there with all of its spans or not at all; nothing if nothing is wanted."""
    provider, memory = pipeline(ParentBased(TraceIdRatioBased(0.4)))
    recorded = train(provider, epochs=3, steps=150)
    got = {span.context.span_id for span in memory.get_finished_spans() if span.context}
    traces: dict[int, set[bool]] = {}
    for id, span in recorded.items():
        assert span.context
        traces.setdefault(span.context.trace_id, set()).add(id in got)
    assert all(len(answers) == 1 for answers in traces.values())
    kept = sum(answers == {True} for answers in traces.values())
    assert 0.2 < kept / len(traces) < 0.6
    provider, memory = pipeline(ALWAYS_OFF)
    train(provider)
    assert not memory.get_finished_spans()


def test_no_random_number_is_drawn() -> None:
    """The SDK's own ids come from the program's random stream; these do not."""
    provider, memory = pipeline()
    random.seed(1)
    before = random.getstate()
    train(provider)
    assert random.getstate() == before
    assert memory.get_finished_spans()


def test_no_provider_of_the_sdk(caplog: pytest.LogCaptureFixture) -> None:
    """One warning that says what to do instead; the training is recorded."""
    recorded = train(object())
    assert recorded
    assert "tracer_provider" in caplog.text


def test_a_processor_that_fails_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """One warning; the training ends as it would."""

    class Broken(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise OSError("broken")

    provider = TracerProvider()
    provider.add_span_processor(Broken())
    assert train(provider)
    assert "broken" in caplog.text


def test_a_wrapped_provider_is_unwrapped() -> None:
    """Vendors wrap the SDK's provider in their own."""

    class Wrapper:
        def __init__(self, provider: TracerProvider) -> None:
            self.provider = provider

        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            return object()

        def force_flush(self) -> bool:
            return self.provider.force_flush()

    provider, memory = pipeline()
    recorded = train(Wrapper(provider))
    assert len(memory.get_finished_spans()) == len(recorded)


PROGRAM = """
import sys
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from ignite.engine import Engine
from firetrace import TraceHandler
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(sys.argv[1])))
handler = TraceHandler(tracer_provider=provider)
engine = Engine(lambda engine, batch: None)
handler.attach(engine)
engine.run(range(30), max_epochs=1)
print(len(list(handler.spans())))
"""


def test_nothing_is_missing_when_the_program_just_ends() -> None:
    """At exit what is left is handed over before the provider shuts down."""
    with OtlpHttpServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.endpoint], cwd=ROOT, capture_output=True,
            text=True, timeout=60, check=True,
        )  # fmt: skip
        names = [item.span.name for item in server.spans()]
    assert len(names) == int(done.stdout)
    assert names.count("run") == 1


def test_a_batch_processor_keeps_up() -> None:
    """The usual processor, which drops what is too much for its queue, gets everything here."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(memory))
    recorded = train(provider, epochs=3, steps=200)
    assert len(recorded) > 4000
    provider.force_flush()
    assert len(memory.get_finished_spans()) == len(recorded)


def test_two_recordings_share_a_provider(tmp_path: Path) -> None:
    """Each feed has its own ids, and the provider's tracers keep theirs."""
    provider, memory = pipeline()
    handlers = [TraceHandler(tmp_path / name, tracer_provider=provider) for name in "ab"]
    engines = [Engine(lambda engine, batch: time.sleep(0.001)) for _ in handlers]
    expected = set()
    for handler, engine in zip(handlers, engines, strict=True):
        handler.attach(engine)
        engine.run(range(40))
    for handler in handlers:
        expected |= {span.context.span_id for span in handler.spans() if span.context}
        handler.close()
    got = [span.context.span_id for span in memory.get_finished_spans() if span.context]
    assert sorted(got) == sorted(expected)
    tracer = provider.get_tracer("firetrace", "0.1.0")
    assert tracer.start_span("a").get_span_context() != tracer.start_span("b").get_span_context()


TRIALS = """
import sys
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from ignite.engine import Engine
from firetrace import TraceHandler
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(sys.argv[1])))
ids = set()
def trial():
    handler, engine = TraceHandler(tracer_provider=provider), Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run(range(60))
    ids.update(span.context.span_id for span in handler.spans())
for _ in range(3):
    trial()
print(len(ids))
"""


def test_handlers_that_are_dropped_lose_nothing() -> None:
    """A trial after the other, each with a handler that nobody closes."""
    with OtlpHttpServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", TRIALS, server.endpoint], cwd=ROOT, capture_output=True,
            text=True, timeout=60, check=True,
        )  # fmt: skip
        ids = [item.span.span_id for item in server.spans()]
    assert len(ids) == len(set(ids)) == int(done.stdout)
    assert "Error" not in done.stderr


def test_who_joins_is_told_whose_settings_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A second handler of the same directory cannot add a provider; it is not silent about it."""
    provider, _ = pipeline()
    first = TraceHandler(tmp_path / "run")
    TraceHandler(tmp_path / "run")
    assert "whose settings stay" not in caplog.text
    TraceHandler(tmp_path / "run", tracer_provider=provider)
    assert "whose settings stay" in caplog.text
    first.close()
