"""A GPU that is none: streams with a clock of their own, behind the host's real one.

Work that is launched begins when the stream is free, not before, and takes as long as it says. All
of the truth is kept, so a test can tell what a trace should have said.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firetrace.tracer.device.memory import Memory

LATENCY_NS = 5_000  #: from a launch to the device


class Event:
    """A mark in a stream."""

    def __init__(self) -> None:
        self.at: int | None = None  # ns of the device's clock


@dataclass
class Kernel:
    """What ran. Times in ns of the device's clock."""

    stream: int
    start: int
    end: int


@dataclass
class SimulatedGpu:
    """See the module.

    Args:
        offset_ns: of the device's clock.
        rate: how fast it goes.
    """

    offset_ns: int = 987_654_321_000
    rate: float = 1.0
    label: str = "sim:0"
    kind: str = "meta"
    stream: int = 0  #: the current one
    capturing: bool = False
    busy: dict[int, int] = field(default_factory=dict)  #: until when each stream is
    kernels: list[Kernel] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)  #: how often each was called
    events: int = 0  #: that were made
    waits: int = 0  #: for the device
    allocated: int = 0
    peak: int = 0
    failures: int = 0
    fails: str = ""  #: the call that raises
    stuck: bool = False  #: nothing is ever reached

    def clock(self, host_ns: int) -> int:
        """The device's clock at a time of the host's (``time.monotonic_ns``)."""
        return self.offset_ns + round(host_ns * self.rate)

    def host(self, device_ns: int) -> int:
        """The host's clock at a time of the device's."""
        return round((device_ns - self.offset_ns) / self.rate)

    # The training's side

    def launch(self, ns: int) -> None:
        """Queue work in the current stream."""
        start = max(self._now(), self.busy.get(self.stream, 0))
        self.busy[self.stream] = start + ns
        self.kernels.append(Kernel(self.stream, start, start + ns))

    def wait_for(self, stream: int) -> None:
        """The current stream goes on when another one is done."""
        until = max(self.busy.get(self.stream, 0), self.busy.get(stream, 0))
        self.busy[self.stream] = until

    def synchronize(self) -> None:
        """Wait until everything is done."""
        self.waits += 1
        until = self.host(max(self.busy.values(), default=0))
        while (left := until - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)

    def _now(self) -> int:
        return self.clock(time.monotonic_ns() + LATENCY_NS)

    # The accelerator

    def _called(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if name == self.fails:
            raise RuntimeError(f"{name}: the device has failed")

    def hardware(self) -> dict[str, Any]:
        """Resource attributes."""
        self._called("hardware")
        return {"hw.type": "gpu", "hw.id": "GPU-1", "hw.name": self.label, "hw.model": "Simulated"}

    def event(self) -> Event:
        """A new event."""
        self._called("event")
        self.events += 1
        return Event()

    def record(self, event: Event) -> int:
        """Queue it."""
        self._called("record")
        if self.capturing:
            return -1
        event.at = max(self._now(), self.busy.get(self.stream, 0))
        return self.stream

    def record_aside(self, event: Event) -> bool:
        """Queue it where nothing is."""
        self._called("record_aside")
        if self.capturing:
            return False
        event.at = self._now()
        return True

    def done(self, event: Event) -> bool:
        """Whether it was reached."""
        self._called("done")
        assert event.at is not None, "it was never queued"
        assert not self.capturing, "a query breaks a capture"
        return not self.stuck and time.monotonic_ns() >= self.host(event.at)

    def elapsed_ms(self, first: Event, last: Event) -> float:
        """What lay between, as CUDA says it."""
        self._called("elapsed_ms")
        assert first.at is not None
        assert last.at is not None
        assert time.monotonic_ns() >= self.host(max(first.at, last.at)), "not reached yet"
        assert last.at >= first.at, "the wrong way round"
        return float(np.float32((last.at - first.at) / 1e6))

    def memory(self) -> Memory:
        """What is allocated."""
        self._called("memory")
        return Memory(self.allocated, 2 * self.allocated, self.peak, self.failures)
