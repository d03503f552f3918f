"""One traced engine: puts the seams in, takes them out, guards the training from their errors."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from threading import current_thread, get_ident
from typing import Any

from firetrace.tracer.data.seams import DataTracer
from firetrace.tracer.fire import CheckedFire, FireEvent
from firetrace.tracer.hooks import TorchHooks, by_prefix
from firetrace.tracer.moves import CORE
from firetrace.tracer.naming import engine_label
from firetrace.tracer.public import FirePublicEvent, Watcher, ignore, listen
from firetrace.tracer.recorder import Paused, Recorder
from firetrace.tracer.recording import Recording
from firetrace.tracer.scalars import numbers
from firetrace.tracer.seam import (
    CALLS,
    GAN_CALLS,
    Call,
    LegacyRun,
    Loader,
    PublicRun,
    Run,
    Seam,
)

log = logging.getLogger("firetrace")


class EngineTracer:
    """Traces one engine from ``attach`` until ``detach``. Holds the engine weakly.

    Args:
        engine: an ignite engine.
        recording: where its spans go.
        run_ended: called when an outermost run of the engine has ended.
    """

    def __init__(self, engine: Any, recording: Recording, run_ended: Callable[[], None]) -> None:
        self.recording = recording
        self.engine_ref = weakref.ref(engine)
        self.label = engine_label(engine)
        self._run_ended = run_ended
        self._recorders: dict[int, Recorder] = {}
        self._thread = 0  # in which the engine runs now
        self._detached = False
        self._seams: list[Seam] = []
        self._watchers = list[Watcher]()
        self._hooks = TorchHooks(self, {}, {}, {})
        self._output_transform: Callable[[Any], Any] | None = None
        self._leave_context = nothing
        self._data: DataTracer | None = None  # while the engine runs, if that is recorded
        self._paused: Paused | None = None  # where the run was that was interrupted

    def attach(self, engine: Any) -> None:
        """Put the seams in."""
        run = Run if hasattr(engine, Run.name) else PublicRun
        fire: type[Seam] = FireEvent
        if not hasattr(engine, FireEvent.name):
            fire, self._watchers = FirePublicEvent, listen(engine, self)
        elif own_attribute(engine, CheckedFire.name) is None and CheckedFire.fits(engine):
            self._put(engine, CheckedFire)
        for seam in (fire, run, LegacyRun, Loader):
            if hasattr(engine, seam.name):
                self._put(engine, seam)
        self._put_calls(engine)

    def watch(self, model: Any, optimizer: Any, loss_fn: Any, output_transform: Any) -> None:
        """Record more of the engine from its next run on; see ``TraceHandler.attach``."""
        self._hooks.remove()
        self._hooks = TorchHooks(
            self, by_prefix(model), by_prefix(loss_fn), by_prefix(optimizer)
        )  # fmt: skip
        self._output_transform = output_transform

    def _put(self, engine: Any, kind: type[Seam]) -> None:
        self._put_seam(engine, kind(engine, self, own_attribute(engine, kind.name)))

    def _put_seam(self, engine: Any, seam: Seam) -> None:
        self._seams.append(seam)  # first: what is in the engine must be found again
        setattr(engine, seam.name, seam.stands_in)

    def _put_calls(self, engine: Any) -> None:
        """MONAI's engines call functions that they were given; some only after they are made."""
        there = {seam.name for seam in self._seams}
        calls = {name: phase for name, phase in CALLS.items() if name not in there}
        if all(callable(own_attribute(engine, name)) for name in GAN_CALLS):
            calls |= {name: phase for name, phase in GAN_CALLS.items() if name not in there}
        for name, phase in calls.items():
            function = own_attribute(engine, name)
            if callable(function):
                self._put_seam(engine, Call(engine, self, function, name, phase))

    def detach(self) -> None:
        """Put the engine back as it was. A seam that another tool has covered stays, inert."""
        engine = self.engine_ref()
        self.guarded(self._cut_short)
        self._detached = True
        for seam in reversed(self._seams):
            self.guarded(take_out, engine, seam)
        if engine is not None:
            self.guarded(ignore, engine, self._watchers)
        if not self._thread:  # else ``leave`` does this, when the run has ended
            self.guarded(self._forget)

    def _cut_short(self) -> None:
        recorder = self.running()
        if recorder is not None and recorder.awake and not recorder.node.inside_handler:
            recorder.cut_short("detached")  # else when its handlers have returned

    def _forget(self) -> None:
        for recorder in self._recorders.values():
            recorder.end()

    # Failures of firetrace's own

    def give_up(self, error: BaseException) -> int:
        """Stop recording; returns 0, the height of a stack that is not written to."""
        self.recording.give_up(error)
        return 0

    def guarded(self, action: Callable[..., Any], *args: Any) -> Any:
        """Do something for the recording that must not fail into the training."""
        return self.recording.guarded(action, *args)

    # Which recorder

    def now(self) -> int:
        """Unix ns, as the rows have it; 0 before recording has begun."""
        recorder = next(iter(self._recorders.values()), None)
        return recorder.now() if recorder is not None else 0

    def running(self) -> Recorder | None:
        """The recorder, if the engine is being recorded in the calling thread."""
        ident = get_ident()
        recorder = self._recorders.get(ident) if self._thread == ident else None
        return recorder if recorder is not None and recorder.ident else None

    def rebind(self) -> Recorder | None:
        """The recorder for the calling thread; None while the engine runs in another one."""
        if self.recording.ended or self._detached or self._thread not in (0, get_ident()):
            return None
        return self.guarded(self._rebind)  # type: ignore[no-any-return]

    def _rebind(self) -> Recorder | None:
        ident = get_ident()
        recorder = self._recorders.get(ident)
        if recorder is None or recorder.track.thread() is not current_thread():
            recorder = self.recording.recorder(self.label, id(self))
            if recorder is None:
                return None
            self._recorders[ident] = recorder
        for seam in self._seams:
            seam.recorder = recorder
        return recorder

    # Runs and events

    def enter(self, again: bool = False) -> Recorder | None:
        """A run begins. None if it is not to be recorded: it is running already.

        ``again``: this ignite lets an engine run inside its own run.
        """
        recorder = self.running()
        if recorder is not None and again and recorder.awake:
            self.guarded(recorder.restart)
        if self._thread:
            return None
        recorder = self.rebind()
        if recorder is not None:
            self._thread = get_ident()
            engine = self.engine_ref()
            self.guarded(self._begin, engine, recorder)
            self.guarded(self._hold, engine)
        return recorder

    def _hold(self, engine: Any) -> None:
        for seam in self._seams:
            seam.suspended = None
            seam.hold(engine)

    def join(self, recorder: Recorder, event: Any) -> None:
        """An event comes although no run was seen to begin: tracing may have begun in its middle.

        Its end will not be seen either.
        """
        engine = self.engine_ref()
        generator = getattr(engine, "_internal_run_generator", None)
        if self._thread or recorder.is_over is not None:
            return
        is_core = str(getattr(event, "name", event)) in CORE
        if is_core if generator is None else generator.gi_running:
            recorder.begin_run(None, engine)
            recorder.is_over = partial(is_over, self.engine_ref)

    def seen(self, event: Any) -> None:
        """An event was fired; how long its handlers take is not known."""
        recorder, engine = self.running(), self.engine_ref()
        if recorder is not None and engine is not None:
            self.guarded(recorder.event_without_handlers, event, engine)

    def _begin(self, engine: Any, recorder: Recorder) -> None:
        self._put_calls(engine)
        recorder.sampler = self._sample
        samples = {"metrics", "output"} if self._output_transform else {"metrics"}
        watches = self._hooks.install(engine, recorder)
        if self.recording.devices is not None:
            recorder.marks = self.recording.devices.marks(recorder, engine, self._models(engine))
        recorder.rules.configure(watches, frozenset(samples), recorder.marks)
        if recorder.is_over is not None:
            self._paused = recorder.end_run()
            recorder.is_over = None
        if getattr(engine, "_internal_run_generator", self._paused) is None:
            self._paused = None  # it was given up: this run is a new one
        recorder.begin_run(self._paused, engine)
        if recorder.marks is not None:
            recorder.marks.begin_run(recorder)
        if self.recording.data is not None and self._data is None:
            self._data = self.recording.data
            self._data.begin()
        if self.recording.settings.context and "opentelemetry.trace" in sys.modules:
            from firetrace.tracer import context  # the program uses OpenTelemetry

            self._leave_context = context.enter(recorder, self.recording.guarded)

    def _models(self, engine: Any) -> dict[str, Any]:
        """The models that the engine is known to train."""
        network = getattr(engine, "network", None)
        return self._hooks.models or ({} if network is None else {"": network})

    def _sample(self, what: str) -> Iterator[tuple[str, float]]:
        """The numbers of an iteration or an epoch. Reading an output may wait for the device."""
        engine, transform = self.engine_ref(), self._output_transform
        if engine is None:
            return
        if what == "metrics":
            yield from numbers("", engine.state.metrics, may_synchronise=False)
        elif transform is not None:
            try:
                value = transform(engine.state.output)
            except Exception as error:
                self._output_transform = None
                log.warning(
                    "firetrace: output_transform failed and is not used any more (%s: %s)",
                    type(error).__name__, error,
                )  # fmt: skip
                return
            yield from numbers("" if isinstance(value, Mapping) else "output", value, True)

    def leave(self, recorder: Recorder, error: BaseException | None) -> None:
        """A run has returned, or raised ``error``."""
        self._thread = 0
        self.guarded(self._let_go)
        self.guarded(self._hooks.remove)
        self.guarded(self._end_data)
        self.guarded(self._leave_context)
        self._leave_context = nothing
        self.guarded(self._end_run, recorder, error)
        if self._detached:
            self.guarded(self._forget)

    def _end_data(self) -> None:
        if self._data is not None:
            self._data.end()
            self._data = None

    def note_loading(self, recorder: Recorder, engine: Any, begun: int) -> None:
        """``iter(dataloader)`` has returned, which began at this time (Unix ns)."""
        if self._data is not None:
            # Not by ``getattr``: whatever a program iterates over may not like to be asked.
            seed = getattr(engine._dataloader_iter, "__dict__", {}).get("_base_seed")
            recorder.writer.note(
                "loading", time=begun, lane=recorder.lane, iteration=engine.state.iteration,
                seed=seed if isinstance(seed, int) else None,
            )  # fmt: skip

    def _let_go(self) -> None:
        engine = self.engine_ref()
        for seam in self._seams:
            seam.hold(None)
        if getattr(engine, "_internal_run_generator", None) is not None:
            # Suspended. The two keep each other alive, and whoever closes the run needs the engine.
            for seam in self._seams:
                seam.suspended = engine

    def _end_run(self, recorder: Recorder, error: BaseException | None) -> None:
        if recorder.ident:
            self._paused = recorder.end_run(error)
            if recorder.marks is not None:
                recorder.marks.end_run(recorder)
            recorder.sampler = None  # the recording keeps its recorders, but must not keep engines
            if recorder.base == 1:
                self._run_ended()


def take_out(engine: Any, seam: Seam) -> None:
    """Take a seam out of an engine, if it lies on top."""
    try:
        on_top = engine is not None and own_attribute(engine, seam.name) == seam.stands_in
    finally:
        seam.tracer = seam.recorder = None
        seam.hold(None)
    if not on_top:
        return
    if seam.below is None:
        delattr(engine, seam.name)
    else:
        setattr(engine, seam.name, seam.below)


def is_over(engine_ref: weakref.ref[Any]) -> bool:
    """Whether an engine does not run (False where this ignite cannot tell)."""
    engine = engine_ref()
    if engine is None:
        return True
    running = getattr(getattr(engine, "_internal_run_generator", None), "gi_running", None)
    if running is None:
        return bool(getattr(engine, "interrupt_resume_enabled", False))
    return not running


def nothing() -> None:
    """Do nothing."""


def own_attribute(engine: Any, name: str) -> Any:
    """What the engine itself, rather than its class, has under this name; None for nothing.

    Without ``vars``: asking for it makes CPython give up its faster layout of the attributes,
    which costs every later access of the training's own (3.11: 0.1 us an event).
    """
    found = getattr(engine, name, None)
    function = getattr(found, "__func__", None)
    of_class = getattr(type(engine), name, None)
    if function is not None and function is of_class:
        return None
    behind = getattr(found, "__self__", None)
    if isinstance(behind, Seam) and behind.tracer is None:
        return behind.below  # an inert seam of ours, in a copy of a traced engine
    if function is None and getattr(behind, "__func__", None) is of_class is not None:
        return None  # the same in an engine that was unpickled
    return found


def traces(engine: Any, recording: Recording) -> bool:
    """Whether the engine is already recorded there, by whichever handler."""
    found = own_attribute(engine, FireEvent.name)
    while isinstance(seam := getattr(found, "__self__", None), Seam):
        if seam.tracer is not None and seam.tracer.recording is recording:
            return True
        found = seam.below
    return False
