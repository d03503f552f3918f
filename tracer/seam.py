"""The objects that stand in an engine for its own methods while it is traced.

An instance attribute shadows the method of the class, so every event, run and loader start passes
here. A closure there would change the program: ``copy.deepcopy(engine)`` would fire the original's
handlers, ``pickle`` would fail, and the engine would be freed only by the cycle collector. These
objects hold their engine weakly, and a copied or unpickled engine gets its own method back.

Nothing here may raise anything of its own into the training, or keep it from running.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import re
import textwrap
import weakref
from logging import DEBUG
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firetrace.tracer.engine import EngineTracer
    from firetrace.tracer.recorder import Recorder

#: Digests of the ``_fire_event`` s that ``FireEvent`` replaces faithfully -> whether a handler's
#: first argument is a weak reference to the engine (ignite 0.5.3 to 0.5.5), or the engine itself.
KNOWN_FIRE_EVENT = {"1c7bf60f4829fc8e": True, "19e7685cfef55bbc": False}


def source_digest(function: Any) -> str:
    """A digest of a function's code without docstring, comments and layout ("" if unknown)."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return ""
    doc = (
        ast.get_docstring(definition, clean=False)
        if isinstance(definition, ast.FunctionDef)
        else ""
    )
    if doc:
        source = source.replace(doc, "")
    bare = re.sub(r"\s+", "", re.sub(r"#.*", "", source))
    return hashlib.sha256(bare.encode()).hexdigest()[:16]


def is_quiet(engine: Any) -> bool:
    """Whether the engine's logger takes no debug messages (False: unknown)."""
    try:
        return not engine.logger.isEnabledFor(DEBUG)
    except AttributeError:  # a logger of the user's own making
        return False


class Seam:
    """Stands for the method ``name`` of one engine. Without a tracer it just passes calls on."""

    name = ""

    def __init__(self, engine: Any, tracer: EngineTracer | None, below: Any = None) -> None:
        self.engine_ref = weakref.ref(engine)
        self.tracer = tracer
        self.recorder: Recorder | None = None  # of the thread in which the engine runs
        self.below = below  # what another tool had put there before

    def original(self, engine: Any) -> Any:
        """The method that this object stands for, bound to the engine."""
        if self.below is not None:
            return self.below
        return getattr(type(engine), self.name).__get__(engine)

    def engine(self) -> Any:
        """The engine.

        Raises:
            ReferenceError: it is gone; someone kept the bare method without it.
        """
        engine = self.engine_ref()
        if engine is None:
            raise ReferenceError(f"the engine of this {self.name} no longer exists")
        return engine

    def running(self) -> Recorder | None:
        """The recorder, if the engine is being recorded in the calling thread."""
        recorder = self.recorder
        return recorder if recorder is not None and recorder.ident == get_ident() else None

    def hold(self, engine: Any) -> None:
        """The engine runs (None: not any more)."""

    @property
    def stands_in(self) -> Any:
        """What is put into the engine: a bound method is quicker to call than an object."""
        return self.__call__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return self.original(self.engine())(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        engine = self.engine_ref()
        twin = memo.get(id(engine))
        if twin is None:
            return self  # it was copied without its engine
        return type(self)(twin, None, copy.deepcopy(self.below, memo))

    def __reduce__(self) -> Any:
        return getattr, (self.engine(), self.name)  # unpickles without firetrace

    @property
    def __wrapped__(self) -> Any:
        """The method behind, for ``inspect.signature``."""
        return self.original(self.engine())


class FireEvent(Seam):
    """Stands for ``_fire_event``: every event passes here, whoever fires it."""

    name = "_fire_event"

    def __init__(self, engine: Any, tracer: EngineTracer | None, below: Any = None) -> None:
        super().__init__(engine, tracer, below)
        digest = source_digest(type(engine)._fire_event) if below is None and tracer else ""
        self.replaces = digest in KNOWN_FIRE_EVENT
        self.holds_weakly = KNOWN_FIRE_EVENT.get(digest, True)
        self.running_engine: Any = None  # held while it runs, where its ``_fire_event`` is replaced

    def hold(self, engine: Any) -> None:
        """Hold the engine while it runs, if its ``_fire_event`` can be replaced."""
        self.running_engine = engine if self.replaces else None

    def __call__(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        """Run the handlers of an event exactly as ignite does, and record what runs."""
        # The common case first, and nothing else in this function: its size is part of its cost.
        engine, recorder = self.running_engine, self.recorder
        if engine is not None and recorder is not None and recorder.ident == get_ident():
            # ignite builds a debug text for every event, which costs more than recording it.
            try:
                quiet = not engine.logger._cache[DEBUG]
            except (AttributeError, KeyError):
                quiet = is_quiet(engine)
            if quiet:
                engine.last_event_name = event_name
                handlers = engine._event_handlers[event_name]
                if handlers:
                    self._run(engine, recorder, event_name, handlers, event_args, event_kwargs)
                    return
                try:
                    try:
                        move = recorder.node.by_id[id(event_name)]
                    except KeyError:
                        move = recorder.find(event_name)
                    move.action(recorder, move, monotonic_ns() + recorder.offset, engine)
                except Exception as error:
                    if self.tracer is not None:
                        self.tracer.give_up(error)
                return
        self._otherwise(event_name, event_args, event_kwargs)

    def _otherwise(self, event_name: Any, event_args: Any, event_kwargs: Any) -> None:
        """An event outside of a run, in another thread, with DEBUG on, ..."""
        engine, recorder, tracer = self.engine(), self.recorder, self.tracer
        if recorder is None or recorder.ident != get_ident():
            recorder = tracer.rebind() if tracer is not None else None
        if recorder is None or tracer is None:
            self.original(engine)(event_name, *event_args, **event_kwargs)
            return
        recorder.track.events += 1
        try:
            if not self.replaces:
                self._around(engine, recorder, event_name, event_args, event_kwargs)
                return
            state = engine.state
            engine.logger.debug(
                f"{state.epoch} | {state.iteration}, Firing handlers for event {event_name}"
            )
            engine.last_event_name = event_name
            handlers = engine._event_handlers[event_name]
            if handlers:
                self._run(engine, recorder, event_name, handlers, event_args, event_kwargs)
            else:
                tracer.guarded(recorder.event_without_handlers, event_name, engine)
        finally:
            recorder.track.events -= 1

    def _run(
        self, engine: Any, recorder: Recorder, event_name: Any, handlers: Any,
        event_args: Any, event_kwargs: Any,
    ) -> None:  # fmt: skip
        """Run an event's handlers as ignite's ``_fire_event`` does, with a span around each."""
        tracer = self.tracer
        if tracer is None:  # detached by another thread, just now
            self.original(engine)(event_name, *event_args, **event_kwargs)
            return
        names = recorder.handler_names
        height = 0  # of the stack above the event's span; 0: this event is not recorded
        try:
            try:
                move = recorder.node.by_id[id(event_name)]
            except KeyError:
                move = recorder.find(event_name)
            func = handlers[0][0]
            if event_args:
                recorder.raised(move, event_args[0])
            height = move.begin(
                recorder, move, monotonic_ns() + recorder.offset, engine,
                names.known.get(id(func)) or names(func),
            )  # fmt: skip
        except Exception as error:
            height = tracer.give_up(error)
        opened = True  # the span of the handler that comes next
        try:
            for func, args, kwargs in handlers:
                if opened:
                    opened = False
                elif height:
                    try:
                        height = recorder.next_handler(
                            height, names.known.get(id(func)) or names(func)
                        )
                    except Exception as error:
                        height = tracer.give_up(error)
                if event_kwargs:
                    kwargs.update(event_kwargs)
                if args and self.holds_weakly and isinstance(args[0], weakref.ref):
                    resolved_engine = args[0]()
                    if resolved_engine is None:
                        raise RuntimeError(
                            "Engine reference not resolved. Cannot execute event handler."
                        )
                    if kwargs or event_args or len(args) > 1:
                        func(resolved_engine, *event_args, *args[1:], **kwargs)
                    else:
                        func(resolved_engine)
                elif args and not self.holds_weakly and args[0] == engine:
                    func(args[0], *event_args, *args[1:], **kwargs)
                else:
                    func(*event_args, *args, **kwargs)
        except BaseException as error:
            if height:
                tracer.guarded(recorder.event_failed, move, height, error)
            raise
        if height:
            try:
                move.finish(recorder, move, height)
            except Exception as error:
                tracer.give_up(error)

    def _around(
        self, engine: Any, recorder: Recorder, event_name: Any, event_args: Any, event_kwargs: Any
    ) -> None:
        """Record an event around a ``_fire_event`` that is not known well enough to replace.

        Its handlers are not told apart then.
        """
        tracer, height = self.tracer, 0
        if tracer is None:
            self.original(engine)(event_name, *event_args, **event_kwargs)
            return
        try:
            now = recorder.now()
            move = recorder.node.by_id.get(id(event_name)) or recorder.find(event_name)
            recorder.before(move, now, engine)
            height = recorder.begin_event(move, now)
            recorder.node = recorder.rules.handler_root
        except Exception as error:
            height = tracer.give_up(error)
        try:
            self.original(engine)(event_name, *event_args, **event_kwargs)
        except BaseException as error:
            if height:
                tracer.guarded(recorder.event_failed, move, height, error)
            raise
        if height:
            tracer.guarded(recorder.end_event, move, height)


class Run(Seam):
    """Stands for ``_internal_run``: however a run ends, what it opened is closed.

    Not for ``run``: in ``make_trainer().run()`` only the bound method keeps the engine alive.
    """

    name = "_internal_run"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine."""
        run = self.original(self.engine())
        tracer = self.tracer  # may be taken out while it runs
        recorder = tracer.enter() if tracer is not None else None
        if tracer is None or recorder is None:
            return run(*args, **kwargs)
        try:
            result = run(*args, **kwargs)
        except BaseException as error:
            tracer.leave(recorder, error)
            raise
        tracer.leave(recorder, None)
        return result


class LegacyRun(Run):
    """What ``run`` calls where ``interrupt_resume_enabled`` is off."""

    name = "_internal_run_legacy"


class PublicRun(Run):
    """Stands for ``run`` in an ignite that has no ``_internal_run``."""

    name = "run"


class Loader(Seam):
    """Stands for ``_setup_dataloader_iter``: ``iter(dataloader)`` and starting its workers."""

    name = "_setup_dataloader_iter"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Set up the loader's iterator."""
        engine = self.engine()
        setup = self.original(engine)
        tracer = self.tracer
        recorder = self.running()
        if tracer is None or recorder is None or engine.state.dataloader is None:
            return setup(*args, **kwargs)
        height = tracer.guarded(recorder.begin_loader)
        try:
            result = setup(*args, **kwargs)
        except BaseException as error:
            if height and recorder.ident:
                tracer.guarded(recorder.loader_failed, height, error)
            raise
        if height and recorder.ident:
            tracer.guarded(recorder.end_loader)
        return result


#: Functions that MONAI's engines were given and call, and the phases that the calls are.
CALLS = {"prepare_batch": "prepare_batch"}
#: The same of a ``GanTrainer``, which fires no events inside an iteration.
GAN_CALLS = {
    "g_prepare_batch": "generator_prepare_batch",
    "g_inferer": "generator_forward",
    "d_loss_function": "discriminator_loss",
    "g_loss_function": "generator_loss",
}


class Call(Seam):
    """Stands for a function that an engine was given, such as MONAI's ``prepare_batch``."""

    def __init__(
        self, engine: Any, tracer: EngineTracer, function: Any, name: str, phase: str
    ) -> None:
        super().__init__(engine, tracer, function)
        self.name = name
        self.phase = phase

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        tracer, recorder = self.tracer, self.running()
        if tracer is None or recorder is None:
            return self.below(*args, **kwargs)
        tracer.guarded(recorder.end_phase, None, 0, self.phase)
        result = self.below(*args, **kwargs)
        tracer.guarded(recorder.end_phase, self.phase)
        return result

    @property
    def stands_in(self) -> Any:
        """The object itself: the function may be an object that has attributes."""
        return self

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The function's: a program may ask what kind of inferer it has."""
        return type(self.below)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["below"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.below, memo)

    def __reduce__(self) -> Any:
        return copy.copy, (self.below,)

    @property
    def __wrapped__(self) -> Any:
        """The function behind."""
        return self.below
