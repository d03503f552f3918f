"""Stands for ``_fire_event``: where every event passes, and where recording costs its time."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
import weakref
from logging import DEBUG
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from firetrace.tracer.moves import BOUNDARY, CORE, OPENS
from firetrace.tracer.seam import Seam
from firetrace.tracer.shortcuts import GUESSED

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
        """An event outside of the innermost run, in another thread, with DEBUG on, ..."""
        engine, recorder, tracer = self.engine(), self.recorder, self.tracer
        if recorder is None or recorder.ident != get_ident():
            recorder = tracer.rebind() if tracer is not None else None
        if recorder is None or tracer is None:
            self.original(engine)(event_name, *event_args, **event_kwargs)
            return
        tracer.guarded(tracer.join, recorder, str(getattr(event_name, "name", event_name)) in CORE)
        aside = recorder.step_aside()
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
            recorder.step_back(aside)

    def _run(
        self, engine: Any, recorder: Recorder, event_name: Any, handlers: Any,
        event_args: Any, event_kwargs: Any,
    ) -> None:  # fmt: skip
        """Run an event's handlers as ignite's ``_fire_event`` does, with a span around each."""
        tracer = self.tracer
        if tracer is None:  # detached by another thread, just now
            self.original(engine)(event_name, *event_args, **event_kwargs)
            return
        names, pen, stack = recorder.handler_names, recorder.pen, recorder.stack
        height = 0  # of the stack above the event's span; 0: this event is not recorded
        try:
            try:
                move = recorder.node.by_id[id(event_name)]
            except KeyError:
                move = recorder.find(event_name)
            func = handlers[0][0]
            label = names.known.get(id(func)) or names(func)
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
                    if stack[-1] >= pen.first:
                        pen.words[stack[-1] * 4 + pen.end_at] = now
                    else:
                        pen.close(stack[-1], now, 0)
                    stack.pop()
                place = recorder.place
                pen.put_oo(
                    pen.target, row * 32 - pen.base,
                    stack[-1], move.label, place, now,
                    row, label, place, now,
                )  # fmt: skip
                pen.next_row = row + 2
                recorder.node = recorder.handler_root
                height = len(stack) + 1
                stack.append(row)
                stack.append(row + 1)
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
