"""Where torch's loaders are seen: put in while an engine runs, taken out when none does."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from firetrace.tracer.data import fetching, pipeline
from firetrace.tracer.data.classes import Watched
from firetrace.tracer.data.files import Place
from firetrace.tracer.data.pipeline import Pipeline
from firetrace.tracer.data.worker import Loop

WORKER = "torch.utils.data._utils.worker"


class DataTracer:
    """Records how batches are made for the engines of one recording.

    Args:
        place: where to.
    """

    def __init__(self, place: Place) -> None:
        self.pipeline = Pipeline(place)
        self._classes = Watched()
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # where, what, original, ours
        self._running = 0
        self._guard = threading.RLock()

    def begin(self) -> None:
        """An engine begins to run."""
        with self._guard:
            self._running += 1
            if self._running == 1:
                self._put_in()

    def end(self) -> None:
        """An engine has ended."""
        with self._guard:
            self._running -= 1
            if not self._running:
                self._take_out()

    def _put_in(self) -> None:
        worker = sys.modules.get(WORKER)
        if worker is None:  # the program has no loader yet, so it imports one later, or never
            return
        original = worker._worker_loop
        if isinstance(original, Loop):
            if original.pid == os.getpid():
                return  # another recording of this process has them
            original = original.original  # this is a forked child, that its parent's
        if pipeline.active is None:
            pipeline.activate(self.pipeline)
        self._replace(worker, "_worker_loop", Loop(self.pipeline.place, original))
        for where, name, ours in fetching.stand_ins(self._classes):
            self._replace(where, name, ours)

    def _replace(self, where: Any, name: str, ours: Any) -> None:
        original = vars(where)[name]
        self._replaced.append((where, name, original, ours))
        setattr(where, name, ours)

    def _take_out(self) -> None:
        for where, name, original, ours in reversed(self._replaced):
            if vars(where).get(name) is ours:  # else another tool has covered it
                setattr(where, name, original)
        self._replaced = []
        self._classes.restore()
        if pipeline.active is self.pipeline:
            pipeline.activate(None)

    def close(self) -> None:
        """End the recording."""
        with self._guard:
            if self._running:
                self._running = 0
                self._take_out()
        self.pipeline.close()
