"""Stands for ``_fire_event``: where every event passes, and where recording costs its time."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
import weakref
from functools import lru_cache
from logging import DEBUG
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from firetrace.tracer.moves import BOUNDARY, OPENS
from firetrace.tracer.seam import Seam
from firetrace.tracer.shortcuts import GUESSED

if TYPE_CHECKING:
    from firetrace.tracer.engine import EngineTracer
    from firetrace.tracer.recorder import Recorder

#: Digests of the ``_fire_event`` s that ``FireEvent`` replaces faithfully -> whether a handler's
#: first argument is a weak reference to the engine (ignite 0.5.3 to 0.5.5), or the engine itself.
KNOWN_FIRE_EVENT = {"1c7bf60f4829fc8e": True, "19e7685cfef55bbc": False}

#: Digests of ``fire_event`` and ``_assert_allowed_event``, the same in ignite 0.5.0 to 0.5.5.
KNOWN_CHECK = ("d4834478bb1aeff5", "e6961d40e590a1c8")


@lru_cache(maxsize=64)
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


def resolved(engine_ref: weakref.ref[Any]) -> Any:
    """The engine, for a handler that takes it.

    Raises:
        RuntimeError: it is gone.
    """
    engine = engine_ref()
    if engine is None:
        raise RuntimeError("Engine reference not resolved. Cannot execute event handler.")
    return engine


class CheckedFire(Seam):
    """Stands for ``fire_event``, which asks whether the event is among the allowed ones.

    Ignite compares it with each of them, in Python: some 2 us. That the event is in the list where
    it was the last time is proof as well.
    """

    name = "fire_event"

    def __init__(self, engine: Any, tracer: EngineTracer | None, below: Any = None) -> None:
        super().__init__(engine, tracer, below)
        self.places: dict[int, int] = {}  # id of an event -> where it is in the list
        self.running_engine: Any = None

    @classmethod
    def fits(cls, engine: Any) -> bool:
        """Whether the engine's own methods are those that this one stands for."""
        kind = type(engine)
        check = getattr(kind, "_assert_allowed_event", None)
        fire = getattr(kind, cls.name, None)
        return (source_digest(fire), source_digest(check)) == KNOWN_CHECK

    def hold(self, engine: Any) -> None:
        """Hold the engine while it runs."""
        self.running_engine = engine

    def __call__(self, event_name: Any) -> Any:
        """Fire an event, or refuse to."""
        engine = self.running_engine
        if engine is not None:
            try:
                allowed, place = engine._allowed_events, self.places.get(id(event_name), -1)
                is_allowed = 0 <= place < len(allowed) and allowed[place] is event_name
                if not is_allowed:
                    for place, event in enumerate(allowed):
                        if event is event_name:
                            self.places[id(event)] = place
            except Exception:
                is_allowed = False  # perhaps; ignite's own check says
            if is_allowed:
                return engine._fire_event(event_name)
        return self.original(self.engine())(event_name)


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
        if engine is not None and recorder is not None and recorder.awake == get_ident():
            # ignite builds a debug text for every event, which costs more than recording it.
            try:
                quiet = not engine.logger._cache[DEBUG]
            except Exception:  # not asked before, or a logger of another kind
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
        """An event outside of the innermost run, in another thread, with DEBUG on, ..."""
        engine, recorder, tracer = self.engine(), self.recorder, self.tracer
        if recorder is None or recorder.ident != get_ident():
            recorder = tracer.rebind() if tracer is not None else None
        if recorder is None or tracer is None:
            self.original(engine)(event_name, *event_args, **event_kwargs)
            return
        tracer.guarded(tracer.join, recorder, event_name)
        aside = tracer.guarded(recorder.step_aside)
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
            tracer.guarded(recorder.step_back, aside)

    def _run(
        self, engine: Any, recorder: Recorder, event_name: Any, handlers: Any,
        event_args: Any, event_kwargs: Any,
    ) -> None:  # fmt: skip
        """Run an event's handlers as ignite's ``_fire_event`` does, with a span around each."""
        tracer = self.tracer
        if tracer is None:  # detached by another thread, just now
            self.original(engine)(event_name, *event_args, **event_kwargs)
            return
        pen, stack = recorder.pen, recorder.stack
        height = 0  # of the stack above the event's span; 0: this event is not recorded
        func, args, kwargs = handlers[0]
        try:
            try:
                move = recorder.node.by_id[id(event_name)]
            except KeyError:
                move = recorder.find(event_name)
            label = recorder.known_handlers.get(id(func)) or recorder.handler_names(func)
            if event_args:
                recorder.raised(move, event_args[0])
            now = monotonic_ns() + recorder.offset
            row = pen.next_row
            if move.shape != BOUNDARY or row + 2 > pen.last_row or recorder.muted:
                height = move.begin(recorder, move, now, engine, label)
            else:  # most events; in place, because a call would be a tenth of their cost
                if recorder.track.noted:
                    recorder.track.noted = 0
                if move.quick_ends:
                    top = stack.pop()
                    if top >= pen.first:
                        pen.words[top * 4 + pen.end_at] = now
                    else:
                        pen.close(top, now, 0)
                place = recorder.place
                pen.put_oo(
                    pen.target, row * 32 - pen.base,
                    stack[-1], move.label, place, now,
                    row, label, place, now,
                )  # fmt: skip
                pen.next_row = row + 2
                recorder.node = recorder.handler_root
                stack.append(row)
                height = len(stack)
                stack.append(row + 1)
        except Exception as error:
            height = tracer.give_up(error)
        try:
            if (
                len(args) == 1 and self.holds_weakly and isinstance(args[0], weakref.ref)
                and not (kwargs or event_args or event_kwargs)
            ):  # fmt: skip
                itself = args[0]()
                if itself is None:
                    itself = resolved(args[0])  # raises
                func(itself)
            else:
                self._call(engine, handlers[0], event_args, event_kwargs)
            if len(handlers) > 1:
                others = iter(handlers)  # as the loop of ignite's that is at its second turn
                next(others)
                for handler in others:
                    if height:
                        height = tracer.guarded(recorder.next_handler, height, handler[0]) or 0
                    self._call(engine, handler, event_args, event_kwargs)
        except BaseException as error:
            if height:
                tracer.guarded(recorder.event_failed, move, height, error)
            raise
        if self.tracer is None and height:  # detached by one of the handlers
            tracer.guarded(recorder.end_event, move, height)
            tracer.guarded(recorder.cut_short, "detached")
        elif height:
            try:
                row = pen.next_row
                if (
                    move.shape > OPENS or row >= pen.last_row or len(stack) != height + 1
                    or stack[-2] < pen.first or recorder.muted or not recorder.ident
                ):  # fmt: skip
                    move.finish(recorder, move, height)
                    return
                now = monotonic_ns() + recorder.offset
                words, at = pen.words, pen.end_at
                words[stack.pop() * 4 + at] = words[stack.pop() * 4 + at] = now
                recorder.boundary = later = now + 1
                recorder.node = node = move.target
                then = move.quick_then
                if move.is_boundary and node.entry.guess is not None:
                    recorder.node = node.entry
                    then = node.entry.guess | GUESSED
                if then >= 0:
                    pen.put_o(
                        pen.target, row * 32 - pen.base, stack[-1], then, recorder.place, later
                    )
                    pen.next_row = row + 1
                    stack.append(row)
            except Exception as error:
                tracer.give_up(error)

    def _call(self, engine: Any, handler: Any, event_args: Any, event_kwargs: Any) -> None:
        """Call a handler as ignite does."""
        func, args, kwargs = handler
        kwargs.update(event_kwargs)
        if args and self.holds_weakly and isinstance(args[0], weakref.ref):
            func(resolved(args[0]), *event_args, *args[1:], **kwargs)
        elif args and not self.holds_weakly and args[0] == engine:
            func(args[0], *event_args, *args[1:], **kwargs)
        else:
            func(*event_args, *args, **kwargs)

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
            node, top, since = recorder.node, recorder.stack[-1], recorder.boundary
            recorder.before(move, now, engine)
            height = recorder.begin_event(move, now)
            recorder.node = recorder.rules.handler_root
            if recorder.marks is not None:
                recorder.marks.begun(recorder, move, node, top, since)
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
            if recorder.marks is not None:
                tracer.guarded(recorder.marks.ended, recorder, move)


# As ignite's own methods look to ``inspect.signature``: here annotations are texts.
_ANY = {"event_name": Any, "event_args": Any, "event_kwargs": Any, "return": None}
FireEvent.__call__.__annotations__.update(_ANY)
CheckedFire.__call__.__annotations__.update({"event_name": Any, "return": None})
