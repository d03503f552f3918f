"""What a loader's worker runs instead of torch's ``_worker_loop``: that very loop, recorded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from firetrace.tracer.data import fetching, pipeline
from firetrace.tracer.data.classes import Watched
from firetrace.tracer.data.fetching import Work
from firetrace.tracer.data.files import Place
from firetrace.tracer.data.pipeline import Pipeline


class Loop:
    """Stands for ``torch.utils.data._utils.worker._worker_loop`` while an engine runs.

    A process that is forked has this object; one that is spawned makes it anew.

    Args:
        place: where the data of this rank is recorded.
        original: torch's function; by default what stands there.
    """

    def __init__(self, place: Place, original: Callable[..., Any] | None = None) -> None:
        if original is None:
            from torch.utils.data._utils import worker

            original = worker._worker_loop
        self._place, self.original = place, original
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return Loop, (self._place,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Work as a worker, until there is no more to do."""
        if self.pid not in (os.getpid(), os.getppid()):  # of a child of the program's own
            return self.original(*args, **kwargs)
        try:
            given = inspect.getcallargs(self.original, *args, **kwargs)
            work = Work(given["base_seed"], given["worker_id"], given["num_workers"])
            more = {**given, "index_queue": _Queue(given["index_queue"], work)}
        except (TypeError, KeyError, ValueError):  # a torch that does it in another way
            return self.original(*args, **kwargs)
        fetching.here.work = work
        if pipeline.active is not None and pipeline.active.pid == os.getpid():
            try:  # MONAI's workers may be threads of the training
                return self.original(**more)
            finally:
                del fetching.here.work
        own = Pipeline(self._place, work.worker)
        pipeline.activate(own)
        own.guarded(_see_fetchers)
        try:
            return self.original(**more)
        finally:
            own.close()


def _see_fetchers() -> None:
    """In a process that was spawned; one that was forked sees them already."""
    for where, name, ours in fetching.stand_ins(Watched()):
        setattr(where, name, ours)


class _Queue:
    """Stands for the queue by which a worker is told what to fetch next."""

    def __init__(self, queue: Any, work: Work) -> None:
        self._queue, self._work = queue, work

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """What comes next: a batch's number and its samples, a new pass, or the end."""
        found = self._queue.get(*args, **kwargs)
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], int):
            self._work.next = found[0] + 1
        elif found is not None:  # a worker that persists is told of a new pass
            self._work.begins = True
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)
