"""Objects as plain values, so that what two runs of a program have made can be compared."""

from __future__ import annotations

import enum
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, GeneratorType, TracebackType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, EventEnum, Events, State

from tests.support.trainings import name_of

#: ignite's events by short names.
SHORT = {
    "STARTED": "S", "EPOCH_STARTED": "ES", "GET_BATCH_STARTED": "GS", "GET_BATCH_COMPLETED": "GC",
    "ITERATION_STARTED": "IS", "ITERATION_COMPLETED": "IC", "EPOCH_COMPLETED": "EC",
    "COMPLETED": "C", "DATALOADER_STOP_ITERATION": "STOP", "TERMINATE_SINGLE_EPOCH": "TSE",
    "EXCEPTION_RAISED": "EXC",
}  # fmt: skip


def described(value: Any) -> Any:
    """A value as one that compares by ``==``: no identities, addresses or times."""
    if isinstance(value, str):
        return re.sub("0x[0-9a-f]+", "<id>", value)
    if value is None or isinstance(value, (bool, int, bytes)):
        return value
    if isinstance(value, (float, complex, np.generic)):
        return repr(value)  # not a number is equal to itself here
    if isinstance(value, torch.Tensor):
        return type(value).__name__, repr(value.detach().tolist())
    if isinstance(value, np.ndarray):
        return "array", repr(value.tolist())
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(described, value)]
    if isinstance(value, Mapping):
        return {described_key(key): described(item) for key, item in value.items()}
    if isinstance(value, State):
        return _state(value)
    if isinstance(value, BaseException):
        return error_story(value)
    if isinstance(value, (type, enum.Enum)) or (callable(value) and hasattr(value, "__qualname__")):
        return str(getattr(value, "__qualname__", value))
    if isinstance(value, Engine):
        return f"an engine: {type(value).__name__}"
    if isinstance(value, weakref.ref):
        return "a reference to", described(value())
    if isinstance(value, GeneratorType):
        return _suspended(value)
    return type(value).__name__


def described_key(key: Any) -> Any:
    """A dictionary's key: events by their names."""
    return f"event {name_of(key)}" if isinstance(key, (Events, EventEnum)) else repr(key)


def described_engine(engine: Any, attributes: bool = True) -> dict[str, Any]:
    """An engine's state and handlers, in order; with ``attributes`` all that it has itself."""
    if attributes:
        found = {
            name: value
            for name, value in sorted(vars(engine).items())
            if name != "_event_handlers" and not _of_class(engine, name, value)
        }
    else:
        found = {"state": engine.state, "last_event_name": name_of(engine.last_event_name)}
    handlers = [
        (name_of(event), [(described(func), *map(described, rest)) for func, *rest in each])
        for event, each in engine._event_handlers.items()
    ]
    return {**{name: described(value) for name, value in found.items()}, "handlers": handlers}


def _of_class(engine: Any, name: str, value: Any) -> bool:
    """Whether an attribute is the method that the engine's class has under this name.

    A tool that wraps a method and puts it back leaves it so; what firetrace leaves where the tool
    had covered it is inert, and the same.
    """
    owner: Any = getattr(value, "__self__", None)
    if type(owner).__module__.startswith("firetrace."):
        value = owner.__wrapped__
    function = getattr(value, "__func__", None)
    return function is not None and function is getattr(type(engine), name, None)


def _state(state: State) -> dict[str, Any]:
    found = dict(vars(state))
    times = found.pop("times", {})
    return {**{name: described(value) for name, value in found.items()}, "times": sorted(times)}


def _suspended(generator: GeneratorType[Any, Any, Any]) -> list[Any]:
    """Where a generator stands: the lines of it and of those that it waits for."""
    lines: list[Any] = []
    inner: Any = generator
    while isinstance(inner, GeneratorType):
        frame = inner.gi_frame
        lines.append((inner.__name__, None if frame is None else frame.f_lineno))
        inner = inner.gi_yieldfrom
    return lines


def error_story(error: BaseException | None, seen: tuple[int, ...] = ()) -> Any:
    """An exception with everything that hangs on it, but without the recorder's own frames."""
    if error is None or id(error) in seen:
        return None
    seen = (*seen, id(error))
    return (
        type(error).__name__,
        [described(value) for value in error.args],
        getattr(error, "__notes__", []),
        _frames(error.__traceback__),
        error_story(error.__cause__, seen),
        error_story(error.__context__, seen),
        error.__suppress_context__,
    )


def is_ours(frame: FrameType) -> bool:
    """Whether it is firetrace that runs there."""
    return str(frame.f_globals.get("__name__", "")).startswith("firetrace.")


def _frames(traceback: TracebackType | None) -> list[tuple[str, str, int]]:
    """Where an exception passed: file, function, line.

    Where firetrace stands for ignite's ``_fire_event``, that frame is one of its own.
    """
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_name != "_fire_event" and not is_ours(traceback.tb_frame):
            frames.append((Path(code.co_filename).name, code.co_name, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames
