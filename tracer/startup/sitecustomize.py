"""Python runs this at its start where this folder is on ``PYTHONPATH``, to trace every engine.

It waits for the program to import ignite, and imports only what Python has loaded by now: a process
without ignite must not feel it. The program sees ``sys.path`` as it would be without this folder,
and the ``sitecustomize`` that this one hides is run. Nothing here may fail into the program.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own would load typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

ENGINE = "ignite.engine.engine"


class AfterImport:
    """A finder for ``sys.meta_path`` that calls ``action`` when a module has been imported.

    It stays there: to take it out of the list could make another thread's import skip a finder.
    """

    def __init__(self, name: str, action: "Callable[[ModuleType], None]") -> None:
        self.name = name
        self.action = action

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":
        """What the finders behind this one find, for the module that is waited for."""
        finders = iter(tuple(sys.meta_path))
        if name != self.name or self not in finders:  # goes through the finders up to this one
            return None
        for finder in finders:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self.action)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Stands for a module's loader until the module is executed, and tells of that."""

    def __init__(self, loader: "Any", action: "Callable[[ModuleType], None]") -> None:
        self.loader = loader
        self.action = action

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        """Execute the module, as its own loader does."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.action(module)


def _say(error: Exception) -> None:
    reason = str(error) or type(error).__name__
    try:
        sys.stderr.write(f"firetrace: {sys.executable} is not traced ({reason})\n")
    except Exception:  # there is no stderr, or it is closed
        return


def _trace(engine_module: "ModuleType") -> None:
    try:
        from firetrace.tracer.everywhere import trace_every_engine

        trace_every_engine()
    except Exception as error:  # this Python may have another firetrace, or none
        _say(error)


def _start() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.path_importer_cache.pop(here, None)
    if not os.environ.get("FIRETRACE_RUN"):
        return
    if ENGINE in sys.modules:
        _trace(sys.modules[ENGINE])
    else:
        sys.meta_path.insert(0, AfterImport(ENGINE, _trace))


if __name__ == "sitecustomize":  # else it is imported for what it defines
    try:
        _start()
    except Exception as error:
        _say(error)
    # The one that this file hides. If there is none, site expects just this import's error.
    sys.modules.pop("sitecustomize", None)
    __import__("sitecustomize")
