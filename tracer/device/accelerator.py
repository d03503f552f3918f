"""What firetrace asks of an accelerator. Another one is a file beside ``cuda.py`` and in ``KINDS``.

Times come from events: marks in a stream of work, of which the device notes when it reaches them.
Nothing here may wait for the device, nor wake up one that the program has not begun to use.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from firetrace.tracer.device.cuda import Cuda
from firetrace.tracer.device.memory import Memory


@runtime_checkable
class Accelerator(Protocol):
    """One device, as the training uses it."""

    label: str  #: as torch calls it: ``cuda:0``
    kind: str  #: the ``type`` of its ``torch.device``

    def hardware(self) -> dict[str, Any]:
        """OpenTelemetry resource attributes, ``hw.*``."""

    def event(self) -> Any:
        """A new event that takes the time. Events are used again."""

    def record(self, event: Any) -> int:
        """Queue an event behind the work of the calling thread's current stream.

        Returns which stream that is; less than 0: none that could take it, and nothing was done.
        """

    def record_aside(self, event: Any) -> bool:
        """Queue an event where no work is, so that the device reaches it now; False: it cannot."""

    def done(self, event: Any) -> bool:
        """Whether the device has reached an event. Asks; does not wait. False: not now, or no."""

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """What lay between two events that the device has reached, in ms."""

    def memory(self) -> Memory | None:
        """What torch has allocated on it now; None: that cannot be told."""


#: Accelerators by the ``type`` of their ``torch.device``.
KINDS = {"cuda": Cuda}


class Found(NamedTuple):
    """The accelerator that an engine trains on, or why there is none."""

    accelerator: Accelerator | None
    reason: str = ""


def find(asked: Any, engine: Any, models: Mapping[str, Any]) -> Found:
    """The accelerator of an engine.

    Its device is what its state says (MONAI), else where its model is, else, where the program uses
    CUDA at all, torch's current one.

    Args:
        asked: as ``TraceHandler``'s ``device``: an ``Accelerator`` is taken as it is; another
            device than the engine's is named.
        engine: of ignite.
        models: of the engine, as far as they are known.
    """
    if asked is False:
        return Found(None)
    if isinstance(asked, Accelerator):
        return Found(asked)
    torch = sys.modules.get("torch")
    if torch is None:
        return Found(None, "the program does not use torch")
    device = None if asked is None or asked is True else torch.device(asked)
    stated = getattr(engine.state, "device", None)
    if device is None:
        device = stated if isinstance(stated, torch.device) else device_of(models)
    kind = getattr(device, "type", None)
    if device is None and torch.cuda.is_initialized():
        kind = "cuda"
    if kind is None:
        return Found(None, "the program uses no GPU")
    if kind not in KINDS:
        return Found(None, f"there are no times of a device of type {kind!r}")
    return Found(*KINDS[kind].find(torch, getattr(device, "index", None)))


def device_of(models: Mapping[str, Any]) -> Any:
    """Where the first parameter of the first model is; None: unknown."""
    for model in models.values():
        parameters = getattr(model, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        if first is not None:
            return getattr(first, "device", None)
    return None
