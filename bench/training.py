"""The training that is traced: an engine that does nothing but fire its events.

Eight an iteration: GET_BATCH_STARTED and COMPLETED, ITERATION_STARTED and COMPLETED, and the four
that MONAI's trainers fire from their process function. Nothing is computed, so whatever a tracer
adds is seen against almost nothing; a real training only makes it a smaller share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

EPOCH_LENGTH = 1_000
PHASES = (
    IterationEvents.FORWARD_COMPLETED,
    IterationEvents.LOSS_COMPLETED,
    IterationEvents.BACKWARD_COMPLETED,
    IterationEvents.MODEL_COMPLETED,
)
EVENTS = (
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    *PHASES,
    Events.ITERATION_COMPLETED,
)
#: Spans that firetrace writes an iteration: the eight events, and step, get_batch, iteration,
#: forward, loss, backward, optimizer around and between them.
SPANS = len(EVENTS) + 7
SPANS_WITH_HANDLERS = SPANS + len(EVENTS)


class Batches:
    """``EPOCH_LENGTH`` batches an epoch; calls ``second_epoch`` when that begins.

    So a run can be timed without its first epoch and without a handler, which would be traced.
    """

    def __init__(self, second_epoch: Callable[[], None] = lambda: None) -> None:
        self._second_epoch = second_epoch
        self._epochs = 0

    def __len__(self) -> int:
        return EPOCH_LENGTH

    def __iter__(self) -> Iterator[int]:
        self._epochs += 1
        if self._epochs == 2:
            self._second_epoch()
        return iter(range(EPOCH_LENGTH))


def build(handlers: bool) -> Engine:
    """A new engine; ``handlers``: with one that does nothing on each of the eight events."""

    def process(engine: Engine, batch: Any) -> None:
        for event in PHASES:
            engine.fire_event(event)

    engine = Engine(process)
    engine.register_events(*IterationEvents)
    if handlers:
        add_handlers(engine)
    return engine


def add_handlers(engine: Engine) -> None:
    """Add a handler that does nothing to each of the eight events."""

    def nothing(engine: Engine) -> None:
        pass

    for event in EVENTS:
        engine.add_event_handler(event, nothing)
