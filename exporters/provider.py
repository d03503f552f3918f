"""Hands a journal's spans to a program's own OpenTelemetry pipeline, while the training goes on.

Each span is started and ended anew by a tracer of the program's ``TracerProvider``, so its
processors, its resource, its limits and its sampler apply as to any other span; times and ids are
the journal's. This happens in a thread of its own. Making an SDK span takes some 30 us of the
interpreter, which the training then cannot have: the thread takes no more than a share of the time
while the training runs, and does the rest when it has ended.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Tracer
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext

from firetrace.exporters.devices import DeviceTimes
from firetrace.exporters.spans import SpanMaker, close_open, maker, scope
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table

log = logging.getLogger("firetrace")

POLL_S = 0.5
#: Share of the time in which the thread works while the training runs.
SHARE = 0.1
SLICE = 32  # spans between two looks at the clock
FLUSH = 512  # spans that a processor may hold back when nothing slows them down
MOST_TRACES = 10_000


class _Ids(IdGenerator):
    """The ids of the span that is started next. Draws no random number: they are the program's."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 1

    def generate_trace_id(self) -> int:
        """The journal's."""
        return self.trace_id

    def generate_span_id(self) -> int:
        """The journal's."""
        return self.span_id


class ProviderFeed:
    """A thread that hands spans to a provider as they end.

    Args:
        journal: the rows file, which this process is writing.
        provider: the program's; of OpenTelemetry's SDK, or one that wraps it.

    Raises:
        TypeError: it is no such provider.
    """

    def __init__(self, journal: Path, provider: Any) -> None:
        self._journal, self._ids = journal, _Ids()
        self._tracer, self._provider = _sdk_tracer(provider), provider
        self._tracer.id_generator = self._ids
        self._decided: dict[int, bool] = {}
        self._ending = threading.Event()
        self._maker: SpanMaker | None = None
        self._thread = threading.Thread(target=self._work, name="firetrace-provider", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The journal is closed: hand over the rest, and then end."""
        self._ending.set()

    def finish(self, timeout_s: float) -> bool:
        """Wait until everything has been handed over. Returns whether that was done in time."""
        self.end()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            with Stream(self._journal) as stream:
                devices = DeviceTimes(stream.reader)
                stream.hold, ending = devices.waiting, False
                while not ending:
                    ending = self._ending.wait(POLL_S)
                    for block in stream.ended():
                        self._hand_on(stream, block, devices)
                self._hand_on(stream, stream.rest(), devices)
        except Exception as error:  # a processor is the program's, its failure not the training's
            log.warning(
                "firetrace hands no more spans to the tracer provider (%s: %s); "
                "they are in %s", type(error).__name__, error, self._journal,
            )  # fmt: skip

    def _hand_on(self, stream: Stream, block: Table, devices: DeviceTimes) -> None:
        makes = self._maker = self._maker or maker(stream.reader, devices=devices)
        end_ns = stream.last_ns()
        begun = time.thread_time()
        spans = zip(block.numbers.tolist(), makes.spans(block), strict=True)
        for index, (number, span) in enumerate(spans, 1):
            if self._wanted(number, span, makes):
                self._replay(close_open(span, end_ns))
            if self._ending.is_set():
                if index % FLUSH == 0:  # a batch processor drops what is too much for its queue
                    self._provider.force_flush()
            else:
                time.sleep(0)  # the training may be waiting for the interpreter
                if index % SLICE == 0:
                    self._ending.wait((time.thread_time() - begun) * (1 / SHARE - 1))
                    begun = time.thread_time()

    def _wanted(self, number: int, span: ReadableSpan, makes: SpanMaker) -> bool:
        """Ask the sampler once for a trace, as it would be asked when the trace begins."""
        assert span.context is not None
        trace_id = span.context.trace_id
        decision = self._decided.get(trace_id)
        if decision is None:
            if len(self._decided) > MOST_TRACES:
                self._decided.clear()
            name, attributes = makes.root_of(number)
            result = self._tracer.sampler.should_sample(
                None, trace_id, name, trace.SpanKind.INTERNAL, attributes, ()
            )
            decision = self._decided[trace_id] = result.decision is not Decision.DROP
        return decision

    def _replay(self, span: ReadableSpan) -> None:
        assert span.context is not None
        self._ids.trace_id, self._ids.span_id = span.context.trace_id, span.context.span_id
        made = self._tracer.start_span(
            span.name, _around(span.parent), span.kind, span.attributes, span.links,
            span.start_time, record_exception=False, set_status_on_exception=False,
        )  # fmt: skip
        for event in span.events:
            made.add_event(event.name, event.attributes, event.timestamp)
        if not span.status.is_unset:
            made.set_status(span.status)
        made.end(span.end_time)


def _around(parent: SpanContext | None) -> Context:
    """The context in which a span begins. Never the current one: that is the program's."""
    return trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()


def _sdk_tracer(provider: Any) -> Tracer:
    """A new tracer of the SDK's, with the provider's processors, resource and sampler."""
    own = scope()
    for _ in range(4):  # vendors wrap the SDK's provider, or its tracers
        get_tracer = getattr(provider, "get_tracer", None)
        found = get_tracer(own.name, own.version) if get_tracer is not None else None
        for tracer in (found, getattr(found, "tracer", None), getattr(found, "_tracer", None)):
            if isinstance(tracer, Tracer):
                return copy.copy(tracer)  # the SDK hands the same one to everybody
        provider = getattr(provider, "provider", None) or getattr(provider, "_provider", None)
    raise TypeError(
        "tracer_provider is no TracerProvider of OpenTelemetry's SDK; the spans are recorded, "
        "and 'firetrace export --to otlp' sends them"
    )
