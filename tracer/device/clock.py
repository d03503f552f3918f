"""Where the device's clock stands on the host's.

An event that is queued in a stream with nothing in it is reached at once: after the host queued it
and before the host saw that it was done, some 10 us apart. The middle is its time, and half of what
lies between is the error. This is done anew each second, because the two clocks drift apart and
because torch gives the time between two events as a 32-bit float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firetrace.tracer.device.accelerator import Accelerator

EVERY_NS = 10**9
#: How often it is asked whether the event is done: 0.5 us each. If it is not, then another time.
ASKED = 64
#: By how much the clocks are trusted to run apart.
DRIFT = 100e-6
UNKNOWN_NS = 2**62


class Base:
    """An event, and when it was on the host's clock."""

    __slots__ = ("error_ns", "event", "time_ns")

    def __init__(self, event: Any, time_ns: int, error_ns: int) -> None:
        self.event, self.time_ns, self.error_ns = event, time_ns, error_ns


class DeviceClock:
    """Compares one device's clock with the host's.

    Args:
        accelerator: the device.
        now: the host's clock, ns.
    """

    def __init__(self, accelerator: Accelerator, now: Callable[[], int]) -> None:
        self._accelerator, self._now = accelerator, now
        self.base: Base | None = None
        self._due = 0
        self._spare: Any = None  # an event that was not reached soon enough

    def look(self, now: int) -> Base | None:
        """Compare the clocks if that is due. Returns the newest base; None: there is none yet."""
        if now >= self._due:
            self._compare()
        return self.base

    def _compare(self) -> None:
        accelerator, old = self._accelerator, self.base
        event = self._spare or accelerator.event()
        self._spare = event
        before = self._now()
        if not accelerator.record_aside(event):
            return
        for _ in range(ASKED):
            if accelerator.done(event):
                break
        else:
            return
        after = self._now()
        self._spare = None
        self._due = after + EVERY_NS
        new = Base(event, (before + after) // 2, (after - before) // 2 + 1)
        if old is not None:
            # Later on the device's own clock by this; a bad comparison is no better than that.
            later = round(accelerator.elapsed_ms(old.event, event) * 1e6)
            error = old.error_ns + round(later * DRIFT)
            if error < new.error_ns:
                new.time_ns, new.error_ns = old.time_ns + later, error
        self.base = new
