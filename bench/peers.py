"""Ways to trace an engine: firetrace, ignite's and MONAI's own profilers, the OpenTelemetry SDK.

A peer attaches itself to an engine that has not run yet; ``finish`` makes its data final and
makes sure that it is all there, so that nobody is measured who did not do the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from bench.accelerator import NullAccelerator
from bench.training import SPANS, add_handlers

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span


class Peer:
    """Nothing: what the machine reports for a tracer that costs nothing."""

    records = 0  #: that it keeps of an iteration (of data: of a transform), at least

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def attach(self, engine: Engine) -> None:
        """Begin to trace."""

    def finish(self, turns: int) -> None:
        """Make the data final.

        Raises:
            RuntimeError: it kept too little of so many iterations, or transforms.
        """
        kept = self.close()
        if kept < self.records * turns:
            raise RuntimeError(f"{type(self).__name__} kept {kept} records of {turns} turns")

    def close(self) -> int:
        """Make the data final. Returns the number of records."""
        return 0


class NoOpHandlers(Peer):
    """Handlers that do nothing: what any tracer costs that uses ignite's public API."""

    def attach(self, engine: Engine) -> None:
        """Add one to each event."""
        add_handlers(engine)


class Firetrace(Peer):
    """``TraceHandler`` as it comes."""

    records = SPANS
    context = True

    def attach(self, engine: Engine) -> None:
        """Attach the handler."""
        from firetrace import TraceHandler

        self.handler = TraceHandler(self.directory, context=self.context)
        self.handler.attach(engine)

    def close(self) -> int:
        """Close the journal and count its spans."""
        from firetrace.tracer.run import open_run
        from firetrace.tracer.table import read_table

        self.handler.close()
        return len(read_table(open_run(self.directory).newest))


class FiretraceWithoutContext(Firetrace):
    """The same, leaving OpenTelemetry's current span alone."""

    context = False


class FiretraceAlone(Firetrace):
    """The same, with ignite's own check of every event that a program fires."""

    def attach(self, engine: Engine) -> None:
        """Attach the handler, and put the check back."""
        super().attach(engine)
        del engine.fire_event


class FiretraceNoDevice(Firetrace):
    """The same, with device time off."""

    device: Any = False

    def attach(self, engine: Engine) -> None:
        """Attach the handler."""
        from firetrace import TraceHandler

        self.handler = TraceHandler(self.directory, device=self.device)
        self.handler.attach(engine)


class FiretraceDevice(FiretraceNoDevice):
    """The same, recording device time on a device whose calls cost nothing."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.device = NullAccelerator()

    def finish(self, turns: int) -> None:
        """Close the journals.

        Raises:
            RuntimeError: there are not five phases of each step with times in that of the device.
        """
        from firetrace.tracer.run import device_journal, open_run
        from firetrace.tracer.table import read_table

        super().finish(turns)
        table = read_table(device_journal(open_run(self.directory).newest))
        for kind, each in (("device", 4), ("copy", 1)):
            phases = table.rows[table.of_kind(kind)]
            if int((phases["end"] > 0).sum()) < each * (turns - 1):  # the first step's are unknown
                raise RuntimeError(f"{len(phases)} {kind} spans of {turns} steps")


class FiretraceData(Firetrace):
    """The same, recording how batches are made, which is what it is asked about."""

    records = 1

    def attach(self, engine: Engine) -> None:
        """Attach the handler."""
        from firetrace import TraceHandler

        self.handler = TraceHandler(self.directory, data=True)
        self.handler.attach(engine)

    def close(self) -> int:
        """Close the journals and count the transforms in those of the data."""
        from firetrace.tracer.run import data_journals, open_run
        from firetrace.tracer.table import read_table

        self.handler.close()
        found = 0
        for path in data_journals(open_run(self.directory).newest):
            table = read_table(path)
            ids = [id for id, name in table.names.items() if name.kind == "transform"]
            found += int(np.isin(table.rows["name"], ids).sum())
        return found


class WorkflowProfiler(Peer):
    """MONAI's, as its docstring has it: a context in which the calls of transforms are found."""

    records = 1

    def attach(self, engine: Engine) -> None:
        """Enter the context, in which Python traces every call."""
        from monai.utils.profiling import WorkflowProfiler as Profiler

        self.profiler = Profiler()
        self.profiler.__enter__()

    def close(self) -> int:
        """Leave the context and count its times of transforms."""
        self.profiler.__exit__(None, None, None)
        return sum(len(times) for times in self.profiler.get_results().values())


class BasicTimeProfiler(Peer):
    """ignite's: a time an iteration for the data, the process function and four of the events."""

    records = 1

    def attach(self, engine: Engine) -> None:
        """Attach the profiler."""
        from ignite.handlers.time_profilers import BasicTimeProfiler as Profiler

        self.profiler = Profiler()
        self.profiler.attach(engine)

    def close(self) -> int:
        """Count the iterations that it timed."""
        return int((self.profiler.processing_times > 0).sum())


class HandlersTimeProfiler(Peer):
    """ignite's: a list of times of each handler, of the data and of the process function.

    Attach it to an engine only for one run: in a second one it times everything twice.
    """

    records = 2

    def attach(self, engine: Engine) -> None:
        """Attach the profiler."""
        from ignite.handlers.time_profilers import HandlersTimeProfiler as Profiler

        self.profiler = Profiler()
        self.profiler.attach(engine)

    def close(self) -> int:
        """Count its times."""
        profiler = self.profiler
        of_handlers = [
            len(times)
            for event in profiler.event_handlers_times.values()
            for times in event.values()
        ]
        return sum(of_handlers) + len(profiler.processing_times) + len(profiler.dataflow_times)


class TorchProfiler(Peer):
    """torch's, of the CPU: told where the phases are by a ``record_function`` around each.

    For an engine with a ``prepare_batch``, as ``bench.device`` has it. Not counted: what it does
    when it is stopped.
    """

    records = 5

    def attach(self, engine: Engine) -> None:
        """Add a handler where a phase ends and the next begins, and start."""
        from torch.profiler import ProfilerActivity, profile, record_function

        prepare_batch = engine.prepare_batch  # type: ignore[attr-defined]
        open_now: list[Any] = []

        def prepared(batch: Any) -> Any:
            with record_function("prepare_batch"):
                found = prepare_batch(batch)
            begin("forward")
            return found

        def begin(name: str) -> None:
            open_now.append(record_function(name))
            open_now[-1].__enter__()

        def on(event: Any, starts: str) -> None:
            def handler(engine: Engine) -> None:
                open_now.pop().__exit__(None, None, None)
                if starts:
                    begin(starts)

            engine.add_event_handler(event, handler)

        engine.prepare_batch = prepared  # type: ignore[attr-defined]
        on(IterationEvents.FORWARD_COMPLETED, "loss")
        on(IterationEvents.LOSS_COMPLETED, "backward")
        on(IterationEvents.BACKWARD_COMPLETED, "optimizer")
        on(IterationEvents.MODEL_COMPLETED, "")
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.profiler.start()

    def close(self) -> int:
        """Stop it and count what it kept."""
        self.profiler.stop()
        kept: Any = self.profiler.profiler
        return len(kept.kineto_results.events())


class OpenTelemetrySdk(Peer):
    """The handler that one would write first with the SDK, all defaults, exporting to nothing.

    A run span; under it, each iteration, data and iteration; under that forward, loss, backward
    and optimizer: six spans, where firetrace writes fifteen. Only the queue is larger than the
    default, which would drop most spans of a loop as fast as this.
    """

    records = 6

    def attach(self, engine: Engine) -> None:
        """Add a handler to each event."""
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import (
            BatchSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )
        from opentelemetry.trace import set_span_in_context

        class NullExporter(SpanExporter):
            exported = 0

            def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
                self.exported += len(spans)
                return SpanExportResult.SUCCESS

        self.exporter = NullExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter, max_queue_size=2**20))
        start_span = self.provider.get_tracer("bench").start_span
        running: dict[str, Span] = {}
        context: dict[str, Context] = {}

        def on(event: Any, ends: str = "", starts: str = "", under: str = "iteration") -> None:
            def handler(engine: Engine) -> None:
                if ends:
                    running[ends].end()
                if starts:
                    running[starts] = start_span(starts, context[under])

            engine.add_event_handler(event, handler)

        def started(engine: Engine) -> None:
            span = running["run"] = start_span("run")
            context["run"] = set_span_in_context(span)

        def iteration_started(engine: Engine) -> None:
            state = engine.state
            counters = {"epoch": state.epoch, "iteration": state.iteration}
            span = start_span("iteration", context["run"], attributes=counters)
            running["iteration"] = span
            context["iteration"] = set_span_in_context(span)
            running["forward"] = start_span("forward", context["iteration"])

        engine.add_event_handler(Events.STARTED, started)
        on(Events.GET_BATCH_STARTED, starts="data", under="run")
        on(Events.GET_BATCH_COMPLETED, ends="data")
        engine.add_event_handler(Events.ITERATION_STARTED, iteration_started)
        on(IterationEvents.FORWARD_COMPLETED, ends="forward", starts="loss")
        on(IterationEvents.LOSS_COMPLETED, ends="loss", starts="backward")
        on(IterationEvents.BACKWARD_COMPLETED, ends="backward", starts="optimizer")
        on(IterationEvents.MODEL_COMPLETED, ends="optimizer")
        on(Events.ITERATION_COMPLETED, ends="iteration")
        on(Events.COMPLETED, ends="run")

    def close(self) -> int:
        """Flush and count."""
        self.provider.shutdown()
        return self.exporter.exported


def warm_up() -> None:
    """Import what the peers import when they attach, once, before any sample."""
    for module in (
        "ignite.handlers.time_profilers",
        "monai.utils.profiling",
        "opentelemetry.sdk.trace.export",
        "firetrace.tracer.context",
        "firetrace.tracer.data.seams",
        "firetrace.tracer.handler",
        "firetrace.tracer.table",
    ):
        import_module(module)
