"""How events are seen where ignite has no ``_fire_event``: by its public API alone.

A handler on each of ignite's events, and a seam on ``fire_event`` for custom ones. Handlers are not
told apart then, and an event is seen when its turn comes among them. Nothing listens to
EXCEPTION_RAISED, because a handler there changes what the program does: the run's seam sees the
exceptions that leave it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from firetrace.tracer.seam import Seam

if TYPE_CHECKING:
    from firetrace.tracer.engine import EngineTracer

CHANGING = frozenset({"EXCEPTION_RAISED"})


class Watcher:
    """A handler of one event that tells the tracer of it. A copied engine's tells nobody."""

    def __init__(self, tracer: EngineTracer | None, event: Any) -> None:
        self.tracer = tracer
        self.event = event

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """The event has been fired."""
        if self.tracer is not None:
            self.tracer.seen(self.event)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watcher:
        return Watcher(None, self.event)

    def __reduce__(self) -> Any:
        return Watcher, (None, self.event)


class FirePublicEvent(Seam):
    """Stands for ``fire_event``, by which custom events are fired."""

    name = "fire_event"

    def __call__(self, event_name: Any) -> Any:
        """Fire the event."""
        result = self.original(self.engine())(event_name)
        if self.tracer is not None and event_name not in core_events():
            self.tracer.seen(event_name)
        return result


def core_events() -> list[Any]:
    """Ignite's own events that can be listened to without changing the program."""
    events = getattr(sys.modules.get("ignite.engine"), "Events", ())
    return [event for event in events if event.name not in CHANGING]


def listen(engine: Any, tracer: EngineTracer) -> list[Watcher]:
    """Add a handler for each event."""
    watchers = [Watcher(tracer, event) for event in core_events()]
    for watcher in watchers:
        engine.add_event_handler(watcher.event, watcher)
    return watchers


def ignore(engine: Any, watchers: list[Watcher]) -> None:
    """Take them out again."""
    for watcher in watchers:
        watcher.tracer = None
        if engine.has_event_handler(watcher, watcher.event):
            engine.remove_event_handler(watcher, watcher.event)
