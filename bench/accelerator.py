"""An accelerator that is none: what firetrace itself does for device time, seen without a device.

Its calls cost next to nothing, so what is left is firetrace's own. What CUDA's cost, only a machine
with a GPU can tell (``make gpu-check``).
"""

from __future__ import annotations

import operator
from typing import Any

from firetrace.tracer.device.memory import Memory


class NullAccelerator:
    """See ``firetrace.tracer.device.accelerator.Accelerator``. Everything is reached at once.

    Its times make no sense: to keep any would cost something.
    """

    label, kind = "null:0", "meta"
    _memory = Memory(1, 2, 3)

    def hardware(self) -> dict[str, Any]:
        """It has none."""
        return {}

    #: Always 1, as each event is. A call without a frame, as torch's own is.
    elapsed_ms = staticmethod(operator.truediv)

    def event(self) -> float:
        """A new event."""
        return 1.0

    def record(self, event: float) -> int:
        """In its only stream."""
        return 0

    def record_aside(self, event: float) -> bool:
        """It has no other work."""
        return True

    def done(self, event: float) -> bool:
        """It is."""
        return True

    def memory(self) -> Memory:
        """Bytes."""
        return self._memory
