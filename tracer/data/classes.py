"""Transforms and data sets are watched by their classes: each call is a span.

The classes of the transforms that a data set holds get another ``__call__``, and those of the data
sets another ``__getitem__``, while an engine runs, or for as long as a worker lives. The objects
themselves stay as they are, and so do their pickles and copies. ``super().__call__`` is no second
span.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from threading import get_ident
from time import monotonic_ns
from types import FunctionType
from typing import Any

from firetrace.tracer.data import pipeline
from firetrace.tracer.data.pipeline import CUT, ERROR

log = logging.getLogger("firetrace")

#: Where objects keep what they call one after the other, or one of.
PARTS = ("transform", "transforms")
#: Where data sets keep the data sets that they are made of.
WITHIN = ("dataset", "datasets", "data")
MOST_LOOKED_AT, MOST_CHILDREN = 10_000, 1_000


class Watched:
    """The classes that are watched, and what they had before."""

    def __init__(self) -> None:
        self._replaced: list[tuple[type, str, Any, Any]] = []  # class, attribute, own or None, ours
        self._known: set[tuple[type, str]] = set()

    def watch(self, dataset: Any) -> None:
        """Watch a data set, those within it, and the transforms of all of them."""
        for item, is_dataset in found_in(dataset):
            if is_dataset:
                if not _is_a(item, "IterableDataset"):
                    self._replace(type(item), "__getitem__", _sample)
            else:
                if pipeline.active is not None:
                    pipeline.active.know(item)
                self._replace(type(item), "__call__", _transform)

    def _replace(self, cls: type, name: str, wrap: Callable[[Any, type], Any]) -> None:
        if (cls, name) in self._known:
            return
        self._known.add((cls, name))
        original = next((vars(each)[name] for each in cls.__mro__ if name in vars(each)), None)
        if not isinstance(original, FunctionType):  # who knows what it is called with
            return
        ours = wrap(original, cls)
        own = vars(cls).get(name)
        self._replaced.append((cls, name, own, ours))  # first: Ctrl-C may come
        try:
            setattr(cls, name, ours)
        except Exception as error:  # of a type that is not Python's own, or does not want to
            log.debug("%s.%s is not watched: %s", cls.__name__, name, error)
            self._replaced.pop()

    def restore(self) -> None:
        """Put back what the classes had, where nobody else has replaced it meanwhile."""
        for cls, name, own, ours in self._replaced:
            if vars(cls).get(name) is not ours:
                continue
            if own is None:
                delattr(cls, name)
            else:
                setattr(cls, name, own)
        self._replaced, self._known = [], set()


def found_in(dataset: Any) -> Iterator[tuple[Any, bool]]:
    """The data sets (True) and transforms (False) that make up a data set, itself included."""
    waiting: list[tuple[Any, bool]] = [(dataset, True)]
    seen: dict[int, Any] = {}
    while waiting and len(seen) < MOST_LOOKED_AT:
        item, is_dataset = waiting.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen[id(item)] = item
        yield item, is_dataset
        held = getattr(item, "__dict__", None)
        if not isinstance(held, dict):
            continue
        for name, value in list(held.items()):
            if is_dataset and name.lstrip("_") in WITHIN:
                waiting += [(each, True) for each in _each(value) if _is_dataset(each)]
            own = name.lstrip("_")
            if own in PARTS or (is_dataset and (own.endswith(PARTS) or _is_transform(value))):
                waiting += [(each, False) for each in _each(value) if _is_called(each)]


def _each(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value[:MOST_CHILDREN])
    if isinstance(value, dict):
        return list(value.values())[:MOST_CHILDREN]
    return [value]


def _is_dataset(item: Any) -> bool:
    return _is_a(item, "Dataset", "IterableDataset")


def _is_a(item: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(item).__mro__)


def _is_transform(item: Any) -> bool:
    """Whether it is one of MONAI's, under whatever name it is kept."""
    return any(
        base.__name__ == "Transform" and base.__module__.startswith("monai.")
        for base in type(item).__mro__
    )


def _is_called(item: Any) -> bool:
    """Whether its calls can be seen: those of an object whose class is a program's."""
    return callable(item) and type(item).__module__ != "builtins"


def _transform(original: Any, cls: type) -> Any:
    text = cls.__name__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        now = pipeline.active
        if now is None or type(self) is not cls:
            return original(self, *args, **kwargs)
        track = now.tracks.get(get_ident())
        if track is None or not track.place or track.muted:
            track = now.outside(self) if track is None or not track.place else None
            if track is None or track.muted:
                return original(self, *args, **kwargs)
        # As ``Track.open`` and ``Track.close`` do it, without the calls: this is the hot path.
        stack, pen = track.stack, track.pen
        height, row = len(stack), pen.next_row
        if row < pen.last_row:
            try:
                pen.put_o(
                    pen.target, row * 32 - pen.base, stack[-1],
                    (now.transforms.get(text) or now.transform(text)) | track.lane, track.place,
                    monotonic_ns() + track.offset,
                )  # fmt: skip
                pen.next_row = row + 1
                stack.append(row)
            except Exception as error:
                now.give_up(error)
        else:
            track.open(now.transforms.get(text) or now.transform(text))
        try:
            result = original(self, *args, **kwargs) if kwargs else original(self, *args)
        except BaseException:
            track.close(height, CUT | ERROR)
            raise
        if stack[-1] == row >= pen.first:
            try:
                pen.words[row * 4 + pen.end_at] = monotonic_ns() + track.offset
                del stack[-1]
            except Exception as error:
                now.give_up(error)
        else:  # it began in another window, or what was in it was left open
            track.close(height)
        return result

    return __call__


def _sample(original: Any, cls: type) -> Any:
    @functools.wraps(original)
    def __getitem__(self: Any, *args: Any, **kwargs: Any) -> Any:
        now = pipeline.active
        track = now.tracks.get(get_ident()) if now is not None and type(self) is cls else None
        if now is None or track is None or not track.place or track.muted or track.sampling:
            return original(self, *args, **kwargs)
        return track.sample(now.samples or now.sample_name(), original, self, *args, **kwargs)

    return __getitem__
