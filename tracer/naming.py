"""What a handler is called, and where it is defined (``code.*`` attributes)."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any


def unwrap(handler: Any) -> Any:
    """The function or method behind ignite's event filters and ``functools.partial``."""
    for _ in range(16):  # a chain could be a circle
        parent = getattr(handler, "_parent", None)  # ignite's filter wrapper: a weak reference
        if isinstance(parent, weakref.ref):
            behind = parent()
            if behind is None:
                return handler
            handler = behind
        elif isinstance(handler, functools.partial):
            handler = handler.func
        else:
            return handler
    return handler


def describe(handler: Any) -> tuple[str, dict[str, Any]]:
    """Name and ``code.*`` attributes of a handler, such as ``CheckpointSaver.completed``."""
    target = unwrap(handler)
    owner = getattr(target, "__self__", None)
    function = getattr(target, "__func__", target)
    qualified = getattr(function, "__qualname__", None)
    if (
        owner is not None
        and not isinstance(owner, (type, ModuleType))
        and isinstance(qualified, str)
    ):
        # The class of the object says more than the base class that defines the method.
        name = f"{type(owner).__qualname__}.{qualified.rpartition('.')[2]}"
    elif isinstance(qualified, str):
        outer, *_, inner = qualified.split(".<locals>.") + [""] * (".<locals>." not in qualified)
        # A function made inside another: of MONAI's ``Workflow._register_decollate`` the class.
        name = f"{outer.split('.')[0]}.{inner}" if inner else outer
    else:
        name = type(target).__qualname__
        function = vars(type(target)).get("__call__")
    code: dict[str, Any] = {}
    module = getattr(target, "__module__", None) or getattr(type(target), "__module__", None)
    if isinstance(module, str):
        code["code.function.name"] = f"{module}.{name}"
    source = getattr(function, "__code__", None)
    if source is not None:
        code["code.file.path"] = source.co_filename
        code["code.line.number"] = source.co_firstlineno
    return name, code


class HandlerNames:
    """Name ids of handlers, remembered for as long as the handler lives.

    ``known`` is keyed by ``id``: as ids of temporary lambdas repeat, a handler that goes takes its
    entry with it.
    """

    def __init__(self, intern: Callable[..., int]) -> None:
        self._intern = intern
        self.known: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __call__(self, handler: Any) -> int:
        """The name id of a handler."""
        key = id(handler)
        found = self.known.get(key)
        if found is not None:
            return found
        name, code = describe(handler)
        found = self._intern("handler", name, **code)
        try:
            self._alive[key] = weakref.ref(
                handler, functools.partial(_forget, weakref.ref(self), key)
            )
            self.known[key] = found
        except TypeError:
            pass  # it takes no weak references: it is named anew each time
        return found

    def drop(self, key: int) -> None:
        """Forget a handler that is gone."""
        self.known.pop(key, None)
        self._alive.pop(key, None)


def _forget(names: weakref.ref[HandlerNames], key: int, reference: weakref.ref[Any]) -> None:
    owner = names()
    if owner is not None:
        owner.drop(key)


def engine_label(engine: Any) -> str:
    """What an engine is called: its class, or its process function for ignite's bare Engine."""
    name = type(engine).__name__
    function = getattr(engine, "_process_function", None)
    if name == "Engine" and function is not None:
        name = getattr(function, "__qualname__", name).split(".")[0]
        name = {
            "supervised_training_step": "trainer", "create_supervised_trainer": "trainer",
            "supervised_evaluation_step": "evaluator", "create_supervised_evaluator": "evaluator",
        }.get(name, name)  # fmt: skip
    return name
