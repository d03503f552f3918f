"""The entries of a run in ignite's ``Engine`` class, replaced so that each engine gets a handler.

When an engine runs for the first time, the process's one handler is attached to it. Not in the
constructor, where a MONAI engine has neither its ``state`` nor its ``prepare_batch``.
``_fire_event`` stays as it is: ``fire.py`` knows it by its source.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firetrace.tracer.engine import own_attribute, traces
from firetrace.tracer.fire import FireEvent
from firetrace.tracer.handler import TraceHandler
from firetrace.tracer.recording import Recording, Settings, recording
from firetrace.tracer.seam import LegacyRun, PublicRun, Run, Seam

log = logging.getLogger("firetrace")


class Entries:
    """Attaches a handler to every engine that enters a run.

    Args:
        directory: of the run, for the handler.
        name: of the run, for the handler.
    """

    def __init__(self, directory: Path | None, name: str | None) -> None:
        self._settings = Settings(directory, name)
        self._on = True
        self._pid = 0  # whose handler and recording these are
        self._handler: TraceHandler | None = None
        self._recording: Recording | None = None
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # class, name, original, ours

    def replace(self, owner: Any) -> None:
        """Replace the entries in this class, ignite's ``Engine``."""
        names = [name for name in (Run.name, LegacyRun.name) if name in vars(owner)]
        for name in names or [PublicRun.name]:
            original = vars(owner)[name]
            ours = self._entry(name, original)
            self._replaced.append((owner, name, original, ours))
            setattr(owner, name, ours)

    def restore(self) -> None:
        """Put the originals back and release every engine."""
        self._on = False
        for owner, name, original, ours in self._replaced:
            try:
                if vars(owner).get(name) is ours:  # else another tool has covered it: it passes on
                    setattr(owner, name, original)
            except Exception as error:
                log.debug("putting %s back: %s", name, error)
        self._replaced = []
        handler, recording, self._handler, self._recording = (
            self._handler, self._recording, None, None,
        )  # fmt: skip
        if handler is not None and recording is not None:
            handler.close()
            recording.guarded(recording.leave)

    def _entry(self, name: str, original: Any) -> Any:
        @functools.wraps(original)
        def enter(engine: Any, *args: Any, **kwargs: Any) -> Any:
            return self._way(engine, name, original.__get__(engine))(*args, **kwargs)

        return enter

    def _way(self, engine: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """What to call for this run: the engine's method, around it a seam if it had none."""
        try:
            if not self._on or not self._attach(engine):
                return original
            # What was attached stands in front of this call, too late for this one run.
            seam = getattr(getattr(engine, name), "__self__", None)
            return type(seam)(engine, seam.tracer, original) if isinstance(seam, Seam) else original
        except Exception as error:
            self._on = False
            log.warning("firetrace traces no more engines (%s: %s)", type(error).__name__, error)
            return original

    def _attach(self, engine: Any) -> bool:
        """Attach to an engine that is seen for the first time; whether it was."""
        if self._pid != os.getpid():  # in a forked child, its parent's recording has ended
            self._recording = recording(self._settings)
            self._handler = TraceHandler(self._settings.directory, name=self._settings.name)
            self._pid = os.getpid()  # last: another thread may be here, or fork
        assert self._recording is not None
        assert self._handler is not None
        if self._recording.ended or traces(engine, self._recording):
            return False
        _release(engine)
        self._handler.attach(engine)
        return True


def _release(engine: Any) -> None:
    """Take out the seams of recordings that have ended, such as those of a forked child's parent.

    A seam on top of another one could not tell the handlers apart.
    """
    found = own_attribute(engine, FireEvent.name)
    while isinstance(seam := getattr(found, "__self__", None), Seam):
        found = seam.below
        if seam.tracer is not None and seam.tracer.recording.ended:
            seam.tracer.detach()
