"""``TraceHandler``: what a user attaches to an engine."""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firetrace.tracer.engine import EngineTracer, traces
from firetrace.tracer.recording import Settings, recording
from firetrace.tracer.span import UserSpan
from firetrace.tracer.writer import MAX_BYTES

if TYPE_CHECKING:
    import torch
    from ignite.engine import Engine
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from firetrace.exporters.spans import SpanMaker
    from firetrace.tracer.device.accelerator import Accelerator
    from firetrace.tracer.recording import Feed
    from firetrace.tracer.stream import Stream

log = logging.getLogger("firetrace")


class _Feeds:
    """Makes what hands a journal to a provider; equal for the same provider."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def __call__(self, journal: Path) -> Feed:
        from firetrace.exporters.provider import ProviderFeed

        return ProviderFeed(journal, self._provider)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Feeds) and other._provider is self._provider

    def __hash__(self) -> int:
        return hash(type(self))


class TraceHandler:
    """Records every event of the engines that it is attached to as a span.

    >>> handler = TraceHandler()          # doctest: +SKIP
    >>> handler.attach(trainer)           # doctest: +SKIP

    In a MONAI bundle's config, ``{"_target_": "firetrace.tracer.TraceHandler"}`` among the handlers
    does the same. All handlers of a process record into one run, unless they name different
    directories. The journal is made when the first event fires. If firetrace itself fails, one
    warning is logged, recording stops and the training goes on.

    Args:
        directory: of the run; by default ``$FIRETRACE_DIR`` or ``./firetrace-runs``, in it one
            folder a run, named after time and script. A second program in it is a new attempt.
        exporters: OpenTelemetry SDK ``SpanExporter`` s that get the run's spans when it ends. To
            shut them down is the caller's affair.
        name: of the run, and its ``service.name``; by default the script's.
        max_bytes: disk budget of a process's journal. Half of it takes every step; then every 2nd
            is recorded, every 4th, and so on, each level for twice as long as the one before.
            Runs, epochs and errors are always recorded, and the report says what was thinned.
        min_free_bytes: space on the file system that is left for the training's own files; by
            default 1 GiB, or 5% of a small one. Recording stops there.
        every: record only every Nth step from the start.
        output_transform: for every engine; see ``attach``.
        context: whether spans that the program makes with the OpenTelemetry API become children of
            the innermost span of the step that they are made in, and log records carry its ids.
        otlp: whether a process of its own sends the spans by OTLP as they end, to where the
            standard variables say (``OTEL_EXPORTER_OTLP_ENDPOINT``, ...); by default if
            ``FIRETRACE_OTLP=1``. It survives the training and sends the rest.
        otlp_wait_s: seconds for which the end of the training waits for it; by default
            ``FIRETRACE_OTLP_WAIT``, or 5.
        data: whether the making of batches is recorded as well: each batch, sample, transform and
            collate, in this process and in the workers of loaders, which write journals of their
            own beside this one's; by default if ``FIRETRACE_DATA=1``.
        device: whether each phase's time on the GPU is recorded as well, and what is allocated on
            it, without ever waiting for it; by default where the engine's device is CUDA, unless
            ``FIRETRACE_DEVICE=0``. True warns where that cannot be; ``"cuda:1"`` names another one
            than the engine's. Any other kind of accelerator is given as a
            ``firetrace.tracer.device.accelerator.Accelerator``.
        tracer_provider: the program's own ``TracerProvider``, of OpenTelemetry's SDK. Its
            processors get the spans as they end, with its resource and sampler, from a thread that
            takes up to a tenth of the interpreter's time while the training runs and does the rest
            at its end.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        exporters: Sequence[SpanExporter] = (),
        name: str | None = None,
        max_bytes: int = MAX_BYTES,
        min_free_bytes: int | None = None,
        every: int = 1,
        output_transform: Callable[[Any], Any] | None = None,
        context: bool = True,
        otlp: bool | None = None,
        otlp_wait_s: float | None = None,
        data: bool | None = None,
        device: bool | str | torch.device | Accelerator | None = None,
        tracer_provider: Any = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if max_bytes < 2**16:
            raise ValueError(f"max_bytes must be at least 65536, not {max_bytes}")
        path = None if directory is None else Path(directory)
        feed = None if tracer_provider is None else _Feeds(tracer_provider)
        self._settings = Settings(
            path,
            name,
            max_bytes,
            min_free_bytes,
            every,
            None,
            context,
            otlp,
            otlp_wait_s,
            data,
            device,
            feed,
        )
        self._recording = recording(self._settings)
        self._exporters = tuple(exporters)
        self._output_transform = output_transform
        self._stream: Stream | None = None  # what has not been exported yet
        self._maker: SpanMaker | None = None
        # An engine holds its tracer and that this handler; the other way only weakly. So a handler
        # lives as long as an engine that it traces, and nothing is freed by the collector alone.
        self._tracers: weakref.WeakKeyDictionary[Any, weakref.ref[EngineTracer]]
        self._tracers = weakref.WeakKeyDictionary()
        self._leave = weakref.finalize(self, self._recording.leave)
        self._guard = threading.RLock()  # a signal handler may call close()
        _handlers.add(self)

    @property
    def directory(self) -> Path | None:
        """Where the run is recorded; None before its first event."""
        return self._recording.directory

    def attach(
        self,
        engine: Engine,
        *,
        model: Any = None,
        optimizer: Any = None,
        loss_fn: Any = None,
        output_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        """Record this engine from now on. Attaching twice to the same run changes nothing.

        MONAI's trainers say themselves what they do in an iteration. For other engines, name what
        their process function uses; of several, give a dict, whose keys go before the names of the
        phases (``generator_forward``), or a list.

        Args:
            engine: of ignite or MONAI.
            model: torch module(s); each call is a ``forward`` span. Where a gradient comes back to
                its output, ``backward`` begins.
            optimizer: torch optimizer(s); each step is an ``optimizer`` span.
            loss_fn: torch module(s); each call is a ``loss`` span. Of a plain function nothing can
                be told: then ``loss`` is what lies between forward and backward.
            output_transform: from ``engine.state.output`` to a number, or to a dict of numbers by
                name; recorded as scalars in every iteration. Reading a tensor on a GPU waits for
                the GPU. By default the handler's own.
        """
        if not callable(getattr(engine, "run", None)):
            raise TypeError(f"not an engine: {type(engine).__name__}")
        more = (model, optimizer, loss_fn, output_transform or self._output_transform)
        with self._guard:
            self._recording.guarded(self._attach, engine, more)

    def _attach(self, engine: Any, more: tuple[Any, ...]) -> None:
        if traces(engine, self._recording):
            return
        if "opentelemetry.trace" in sys.modules:  # before the run, which has better to do
            import firetrace.tracer.context  # noqa: F401
        tracer = EngineTracer(engine, self._recording, self._run_ended)
        try:
            tracer.watch(*more)
            tracer.attach(engine)
            self._tracers[engine] = weakref.ref(tracer)
        except Exception:
            tracer.detach()
            raise

    def span(self, name: str, /, **attributes: Any) -> UserSpan:
        """Record a span of your own: ``with handler.span("augment", cases=4): ...``.

        Inside a process function or a handler of an engine that is recorded; elsewhere nothing is.
        Attributes are numbers, texts, booleans, or lists of one of them.
        """
        return UserSpan(self._recording, name, attributes)

    def detach(self, engine: Engine | None = None) -> None:
        """Put an engine (None: every one) back exactly as it was before ``attach``."""
        with self._guard:
            self._recording.guarded(self._detach, engine)

    def _detach(self, engine: Engine | None) -> None:
        engines = list(self._tracers) if engine is None else [engine]
        for each in engines:
            held = self._tracers.pop(each, None)
            tracer = held() if held is not None else None
            if tracer is not None:
                tracer.detach()

    def close(self) -> None:
        """Detach, and close the journal unless another handler still uses it.

        This happens by itself when handler and engines are gone, and at the process's end. Where a
        ``tracer_provider`` gets the spans, it waits up to ``otlp_wait_s`` for that.
        """
        self.detach()
        self._recording.guarded(self._leave)
        if self._recording.ended:
            self._recording.finish_feed()

    def spans(self) -> Iterator[ReadableSpan]:
        """What has been recorded so far, by this process, as OpenTelemetry spans.

        Spans that are still open have no end time.
        """
        from firetrace.exporters.spans import journal_spans

        writer = self._recording.writer
        if writer is None:
            return iter(())
        return journal_spans(writer.path)

    def _export_new(self) -> None:
        from firetrace.exporters.spans import batches, maker
        from firetrace.tracer.stream import Stream

        writer = self._recording.writer
        if writer is None:
            return
        if self._stream is None:
            self._stream = Stream(writer.path)
        for block in self._stream.ended():
            if self._maker is None:
                self._maker = maker(self._stream.reader)
            for batch in batches(self._maker.spans(block)):
                for exporter in self._exporters:
                    exporter.export(batch)
        for exporter in self._exporters:
            exporter.force_flush()

    def _run_ended(self) -> None:
        """Hand the spans that have ended since the last time to the exporters."""
        if not self._exporters:
            return
        try:
            with self._guard:
                self._export_new()
        except Exception as error:  # an exporter is the user's, its failure not the training's
            log.warning("firetrace: an exporter failed (%s: %s)", type(error).__name__, error)

    def _renew_guard(self) -> None:
        """In a forked child: who held it when that was forked is not there."""
        self._guard = threading.RLock()


_handlers: weakref.WeakSet[TraceHandler] = weakref.WeakSet()


def _renew_guards() -> None:
    for handler in list(_handlers):
        handler._renew_guard()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guards)
