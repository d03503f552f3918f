"""Where the device's clock stands on the host's.

An event that is queued in a stream with nothing in it is reached at once: after the host queued it
and before the host saw that it was done, some 10 us apart. The middle is its time, and half of what
lies between is the error. This is done anew each second, because the two clocks drift apart and
because torch gives the time between two events as a 32-bit float. By how much they drift apart is
known when the errors are small beside the time that has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firetrace.tracer.device.accelerator import Accelerator

EVERY_NS = 10**9
#: Where a comparison fails although there is an older one, it is not tried at every step.
AGAIN_NS = 10**8
#: How often it is asked whether the event is done: 0.5 us each. If it is not, then another time.
ASKED = 64
#: By how much the clocks are trusted to run apart.
DRIFT = 100e-6
#: How well their rates have to be known to be told apart.
GOOD_RATE = 5e-6
MS = 1e6


class Base:
    """An event, when it was on the host's clock, and what a ms of the device's is there, ns."""

    __slots__ = ("error_ns", "event", "scale", "time_ns")

    def __init__(self, event: Any, time_ns: int, error_ns: int, scale: float) -> None:
        self.event, self.time_ns, self.error_ns, self.scale = event, time_ns, error_ns, scale


class DeviceClock:
    """Compares one device's clock with the host's.

    Args:
        accelerator: the device.
        now: the host's clock, ns.
    """

    def __init__(self, accelerator: Accelerator, now: Callable[[], int]) -> None:
        self._accelerator, self._now = accelerator, now
        self.base: Base | None = None
        self._first: Base | None = None  # from which the rate is known
        self.due = 0  #: when they are to be compared the next time
        self._spare: Any = None  # an event that was not reached soon enough

    def compare(self) -> None:
        """Compare the clocks. If it can be done now there is a new base."""
        accelerator, old = self._accelerator, self.base
        event = self._spare or accelerator.event()
        self._spare = event
        if old is None and accelerator.record_aside(event):  # what is made when first used
            accelerator.done(event)
        before = self._now()
        if old is not None:
            self.due = before + AGAIN_NS
        if not accelerator.record_aside(event):
            return
        for _ in range(ASKED):
            if accelerator.done(event):
                break
        else:
            return
        after = self._now()
        self._spare = None
        self.due = after + EVERY_NS
        error, scale = (after - before) // 2 + 1, MS if old is None else old.scale
        new = Base(event, (before + after) // 2, error, scale)
        if old is not None:
            # Later on the device's own clock by this; a bad comparison is no better than that.
            later = round(accelerator.elapsed_ms(old.event, event) * old.scale)
            error = old.error_ns + round(later * DRIFT)
            if error < new.error_ns:
                new.time_ns, new.error_ns = old.time_ns + later, error
            self._rate(new)
        self.base = new
        self._first = self._first or new

    def _rate(self, new: Base) -> None:
        """See how fast the device's clock goes, where that can be told by now."""
        first = self._first
        assert first is not None
        passed = new.time_ns - first.time_ns
        if first.error_ns + new.error_ns < passed * GOOD_RATE:
            new.scale = passed / self._accelerator.elapsed_ms(first.event, new.event)
        elif new.error_ns < first.error_ns // 2:
            self._first = new
