"""Traces every engine of a process, without a line in its program.

Loads next to nothing before the program has imported ignite: a numpy that is loaded early has
started its threads before the program could say how many.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from firetrace.tracer.startup.sitecustomize import ENGINE, AfterImport

if TYPE_CHECKING:
    from firetrace.tracer.entries import Entries

log = logging.getLogger("firetrace")


def trace_every_engine(
    directory: str | os.PathLike[str] | None = None, name: str | None = None
) -> Callable[[], None]:
    """Record every engine of this process, from its next run on.

    Ignite need not be imported yet, and is not imported by this. A second call changes nothing.

    Args:
        directory: of the run; by default as for ``TraceHandler``.
        name: of the run; by default as for ``TraceHandler``.

    Returns:
        What undoes it: engines and ignite's class are as before, the journal is closed.
    """
    global _everywhere
    if _everywhere is None:
        _everywhere = _Everywhere(None if directory is None else Path(directory), name)
        _everywhere.begin()
    return _everywhere.end


class _Everywhere:
    def __init__(self, directory: Path | None, name: str | None) -> None:
        self._run = directory, name
        self._entries: Entries | None = None
        self._ended = False

    def begin(self) -> None:
        """Replace the entries of a run, now or when ignite is imported."""
        try:
            if ENGINE in sys.modules:
                self._replace(sys.modules[ENGINE])
            else:
                sys.meta_path.insert(0, AfterImport(ENGINE, self._replace))
        except Exception as error:
            log.warning("firetrace traces no engines (%s: %s)", type(error).__name__, error)

    def _replace(self, module: ModuleType) -> None:
        if self._ended:
            return
        try:
            from firetrace.tracer.entries import Entries

            self._entries = self._entries or Entries(*self._run)
            self._entries.replace(module.Engine)
        except Exception as error:
            log.warning("firetrace traces no engines (%s: %s)", type(error).__name__, error)

    def end(self) -> None:
        """Put everything back."""
        global _everywhere
        self._ended = True
        if _everywhere is self:
            _everywhere = None
        try:
            if self._entries is not None:
                self._entries.restore()
        except Exception as error:
            log.warning("firetrace: putting ignite back: %s: %s", type(error).__name__, error)


_everywhere: _Everywhere | None = None
