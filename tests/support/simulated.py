"""A GPU that is none: streams with a clock of their own, behind the host's.

Work that is launched begins when the stream is free, not before, and takes as long as it says. All
of the truth is kept, so a test can tell what a trace should have said. What no program may ask of
a GPU (to wait, a query while a graph is captured, ...) is noted in ``misused``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from firetrace.tracer import fire, rows, shortcuts
from firetrace.tracer.device.memory import Memory

LATENCY_NS = 5_000  #: from a launch to the device
CAPTURING = 7  #: the stream in which graphs are captured


class RealTime:
    """The host's clock."""

    def __call__(self) -> int:
        """Monotonic ns."""
        return time.monotonic_ns()

    def pass_by(self, ns: int) -> None:
        """Let some time go by."""
        time.sleep(ns / 1e9)


class MadeTime:
    """A clock that goes on by a little when it is asked, and as it is told: days take no time."""

    TICK_NS = 100

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._ns = time.monotonic_ns()
        patch.setattr(time, "monotonic_ns", self)
        for module in (fire, rows, shortcuts):
            patch.setattr(module, "monotonic_ns", self)

    def __call__(self) -> int:
        """Monotonic ns."""
        self._ns += self.TICK_NS
        return self._ns

    def pass_by(self, ns: int) -> None:
        """Let some time go by: the host does something else."""
        self._ns += ns


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
    launched: int  #: when the host queued it: ns of its own clock
    what: str = ""  #: whatever the one who launched it wants to know again


@dataclass
class SimulatedGpu:
    """See the module.

    Args:
        offset_ns: of the device's clock.
        rate: how fast it goes.
        depth: so many kernels can be queued; then the host waits in the next launch. 0: any number.
    """

    offset_ns: int = 987_654_321_000
    rate: float = 1.0
    label: str = "sim:0"
    kind: str = "meta"
    depth: int = 0
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
    fails_from: int = 1  #: which call of that name is the first that does
    stuck: bool = False  #: nothing is ever reached
    time: RealTime | MadeTime = field(default_factory=RealTime)
    misused: list[str] = field(default_factory=list)  #: what should never have been asked
    at_call: Callable[[str, int], Any] | None = None  #: told of each call and how often it came
    compared: list[tuple[int, int]] = field(default_factory=list)  #: host ns: queued, seen reached
    _here: threading.local = field(default_factory=threading.local, repr=False, compare=False)
    _guard: Any = field(default_factory=threading.RLock, repr=False, compare=False)
    _captured: int = 0
    _aside: tuple[Event, int] | None = None

    @property
    def stream(self) -> int:
        """The calling thread's current stream."""
        return getattr(self._here, "stream", 0)

    @stream.setter
    def stream(self, number: int) -> None:
        self._here.stream = number

    def clock(self, host_ns: int) -> int:
        """The device's clock at a time of the host's (``time.monotonic_ns``)."""
        return self.offset_ns + round(host_ns * self.rate)

    def host(self, device_ns: int) -> int:
        """The host's clock at a time of the device's."""
        return round((device_ns - self.offset_ns) / self.rate)

    # The training's side

    def launch(self, ns: int, what: str = "") -> None:
        """Queue work in the current stream; in a graph, if one is being captured."""
        if self.capturing and self.stream == CAPTURING:
            self._captured += ns
            return
        if 0 < self.depth <= len(self.kernels):
            self._until(self.kernels[-self.depth].end)
        with self._guard:
            launched = self.time()
            start = max(self.clock(launched + LATENCY_NS), self.busy.get(self.stream, 0))
            self.busy[self.stream] = start + ns
            self.kernels.append(Kernel(self.stream, start, start + ns, launched, what))

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        """``with torch.cuda.stream(...)``."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def captured(self) -> Iterator[Callable[[], None]]:
        """``with torch.cuda.graph(...)``; what comes out replays it."""
        length: list[int] = []
        self._captured = 0
        with self.on(CAPTURING):
            self.capturing = True
            try:
                yield lambda: self.launch(length[0], "graph")
            finally:
                self.capturing = False
                length.append(self._captured)

    def wait_for(self, stream: int) -> None:
        """The current stream goes on when another one is done."""
        with self._guard:
            until = max(self.busy.get(self.stream, 0), self.busy.get(stream, 0))
            self.busy[self.stream] = until
            self.kernels.append(Kernel(self.stream, until, until, self.time(), "wait"))

    def synchronize(self) -> None:
        """Wait until everything is done."""
        self.waits += 1
        self._until(max(self.busy.values(), default=self.clock(0)))

    def _until(self, device_ns: int) -> None:
        while (left := self.host(device_ns) - self.time()) > 0:
            self.time.pass_by(left)

    # The accelerator

    def _called(self, name: str) -> None:
        count = self.calls[name] = self.calls.get(name, 0) + 1
        if self.at_call is not None:
            self.at_call(name, count)
        if name == self.fails and count >= self.fails_from:
            raise RuntimeError(f"{name}: the device has failed")

    def _never(self, what: str, wrong: bool) -> None:
        if wrong:
            self.misused.append(what)
            raise AssertionError(what)

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
        if self.capturing and self.stream in (CAPTURING, 0):
            return -1
        with self._guard:
            event.at = max(self.clock(self.time() + LATENCY_NS), self.busy.get(self.stream, 0))
        return self.stream

    def record_aside(self, event: Event) -> bool:
        """Queue it where nothing is."""
        self._called("record_aside")
        if self.capturing:
            return False
        now = self.time()
        event.at = self.clock(now + LATENCY_NS)
        self._aside = event, now
        return True

    def done(self, event: Event) -> bool:
        """Whether it was reached."""
        self._called("done")
        self._never("an event was asked for that was never queued", event.at is None)
        if self.capturing:
            return False
        now = self.time()
        reached = not self.stuck and now >= self.host(event.at or 0)
        if reached and self._aside is not None and self._aside[0] is event:
            self.compared.append((self._aside[1], now))
            self._aside = None
        return reached

    def elapsed_ms(self, first: Event, last: Event) -> float:
        """What lay between, as CUDA says it."""
        self._called("elapsed_ms")
        self._never("the time of a mark that was never queued", first.at is None or last.at is None)
        assert first.at is not None
        assert last.at is not None
        self._never("the time of a mark while a graph is captured", self.capturing)
        late = self.time() < self.host(max(first.at, last.at)) or self.stuck
        self._never("the time of a mark that was not reached", late)
        self._never("a time between two marks the wrong way round", last.at < first.at)
        return float(np.float32((last.at - first.at) / 1e6))

    def memory(self) -> Memory:
        """What is allocated."""
        self._called("memory")
        return Memory(self.allocated, 2 * self.allocated, self.peak, self.failures)
