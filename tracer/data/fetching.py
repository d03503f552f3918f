"""Sees batches being fetched, by the objects with which torch's loaders do that.

A loader's iterator, or its worker, makes one fetcher, which belongs to torch alone: what is
replaced in it is seen by no program. Data set, sampler and collate function stay as they are.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from firetrace.tracer.data import pipeline
from firetrace.tracer.data.classes import Watched
from firetrace.tracer.data.pipeline import CUT, ERROR, VOID, Pipeline, Track

#: Where MONAI does what lazy transforms have put off.
LAZY, PENDING = "monai.transforms.lazy.functional", "apply_pending"


class Work:
    """Who makes the batches, and which comes next.

    Args:
        seed: the iterator's, if it is known.
        worker: its number.
        workers: how many the iterator has; 0: it makes the batches itself.
    """

    def __init__(self, seed: int | None = None, worker: int = 0, workers: int = 0) -> None:
        self.seed, self.worker, self.workers = seed, worker, workers
        self.lane = f"worker {worker}" if workers else "loader"
        self.next = 1  #: number of the batch, from 1
        self.begins = True  #: whether a pass begins with it
        self._pass = 0
        self._of: Pipeline | None = None  # whose pass that is

    def begin(self, dataset: Any) -> tuple[Track, int, int] | None:
        """The next batch is fetched; None if it is not recorded."""
        now = pipeline.active
        if now is None:
            return None
        if self.begins or self._of is not now:
            name = type(dataset).__name__
            self._pass = now.begin_pass(self.seed, self.worker, self.workers, name)
            self.begins, self._of = False, now
        begun: tuple[Track, int, int] | None = now.guarded(
            now.begin_batch, self._pass, self.next, self.lane
        )
        self.next += 1
        return begun


class _Here(threading.local):
    """Of each thread: for which worker's work it makes a fetcher."""

    work: Work | None = None


here = _Here()


class Watching:
    """Stands for ``_DatasetKind.create_fetcher``, whose fetchers are seen at work.

    Args:
        create: torch's function.
        classes: watches the classes of data sets and transforms.
    """

    def __init__(self, create: Callable[..., Any], classes: Watched) -> None:
        self._create, self._classes = create, classes

    def __call__(self, kind: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a fetcher."""
        now = pipeline.active
        if now is not None:
            now.guarded(self._classes.watch, dataset)
        fetcher = self._create(kind, dataset, *args, **kwargs)
        if now is not None:
            now.guarded(_watch, fetcher, dataset, here.work or Work())
        return fetcher


def stand_ins(classes: Watched) -> Iterator[tuple[Any, str, Any]]:
    """What to put where, and under which name, to see fetchers and what MONAI does lazily."""
    from torch.utils.data import _DatasetKind

    create = _DatasetKind.create_fetcher
    if not isinstance(create, Watching):
        yield _DatasetKind, "create_fetcher", Watching(create, classes)
    lazy = sys.modules.get(LAZY)
    apply = getattr(lazy, PENDING, None)
    if apply is not None and not hasattr(apply, "__wrapped__"):
        yield lazy, PENDING, as_transform(apply, PENDING)


def as_transform(function: Callable[..., Any], text: str) -> Callable[..., Any]:
    """A function each call of which is a span, inside a sample or what else is being made."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        now = pipeline.active
        track = now.track() if now is not None else None
        if now is None or track is None or len(track.stack) == 1:
            return function(*args, **kwargs)
        name = now.transforms.get(text) or now.transform(text)
        return track.during(name, function, *args, **kwargs)

    return call


def _watch(fetcher: Any, dataset: Any, work: Work) -> None:
    if callable(getattr(fetcher, "collate_fn", None)):
        fetcher.collate_fn = _Collate(fetcher.collate_fn)
    if hasattr(fetcher, "dataset_iter"):
        fetcher.dataset_iter = _Samples(fetcher.dataset_iter)
    fetcher.fetch = _Fetch(fetcher.fetch, dataset, work)


class _Fetch:
    """Stands for a fetcher's ``fetch``."""

    def __init__(self, fetch: Callable[..., Any], dataset: Any, work: Work) -> None:
        self._fetch, self._dataset, self._work = fetch, dataset, work

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begun = self._work.begin(self._dataset)
        if begun is None:
            return self._fetch(*args, **kwargs)
        track, height, outer = begun
        try:
            result = self._fetch(*args, **kwargs)
        except StopIteration:  # an iterable data set has no more: there is no such batch
            track.end(height, outer, CUT | VOID)
            raise
        except BaseException:
            track.end(height, outer, CUT | ERROR)
            raise
        track.end(height, outer)
        return result


class _Collate:
    """Stands for a ``collate_fn``."""

    def __init__(self, collate: Callable[..., Any]) -> None:
        self._collate = collate
        self._name = str(getattr(collate, "__name__", type(collate).__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = pipeline.active
        track = now.track() if now is not None else None
        if now is None or track is None or not track.place:
            return self._collate(*args, **kwargs)
        name = now.name("collate", self._name)
        return track.during(name, self._collate, *args, **kwargs)


class _Samples:
    """Stands for an iterable data set's iterator."""

    def __init__(self, samples: Iterator[Any]) -> None:
        self._samples = samples

    def __iter__(self) -> _Samples:
        return self

    def __next__(self) -> Any:
        now = pipeline.active
        track = now.track() if now is not None else None
        if now is None or track is None or not track.place:
            return next(self._samples)
        return track.sample(now.samples or now.sample_name(), next, self._samples)
