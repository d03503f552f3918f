"""How well the device's clock is placed on the host's, and how fast they run apart."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from bench.gpu.check import Check, Settings, microseconds
from bench.gpu.machine import Machine
from firetrace.tracer.device.clock import DRIFT, DeviceClock

ERROR_NS = 50_000
BUSY_MS = 20.0  #: of work that is queued before each comparison
COMPARED = 40


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """A single comparison, of an idle and of a busy device; then comparisons over time."""
    yield judged("idle GPU", errors(machine, False))
    yield judged("busy GPU", errors(machine, True))
    yield apart(*followed(machine, settings.clock_s))


def errors(machine: Machine, busy: bool) -> list[float]:
    """The error of clocks that were compared once, in ns; infinite where that failed."""
    found = []
    for _ in range(COMPARED):
        machine.synchronize()
        if busy:
            machine.work(BUSY_MS)
        clock = DeviceClock(machine.accelerator(), time.monotonic_ns)
        clock.compare()
        found.append(float("inf") if clock.base is None else float(clock.base.error_ns))
    machine.synchronize()
    return found


def judged(what: str, found: list[float]) -> Check:
    """The 95th percentile: one comparison in twenty may be disturbed, the next one mends it."""
    high = float(np.percentile(found, 95, method="higher"))
    return Check(
        f"clocks compared, {what}",
        f"to {microseconds(float(np.median(found)))}, 95%: {microseconds(high)}, "
        f"the first: {microseconds(found[0])}",
        f"at most {microseconds(ERROR_NS)}", high <= ERROR_NS, {"error_ns": found},
    )  # fmt: skip


def followed(machine: Machine, seconds: float) -> tuple[list[float], list[float], list[float]]:
    """Comparisons over time: on the host's clock, on the device's, and their errors, in ns."""
    accelerator = machine.accelerator()
    first, host, device, error = None, list[float](), list[float](), list[float]()
    machine.synchronize()
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(host) < 3:
        event = accelerator.event()
        before = time.monotonic_ns()
        accelerator.record_aside(event)
        while not accelerator.done(event):
            if time.monotonic_ns() - before > 10**9:
                raise TimeoutError("an event aside was not reached within a second")
        after = time.monotonic_ns()
        first = first or event
        host.append((before + after) / 2)
        device.append(accelerator.elapsed_ms(first, event) * 1e6)
        error.append((after - before) / 2)
        time.sleep(seconds / 100)
    return [each - host[0] for each in host], device, error


def apart(host: list[float], device: list[float], error: list[float]) -> Check:
    """How fast the clocks run apart: a line through the comparisons, the better ones more."""
    weights = 1 / np.maximum(np.array(error), 1_000)
    rate = float(np.polyfit(host, np.array(device) - np.array(host), 1, w=weights)[0])
    return Check(
        f"clocks run apart, over {host[-1] / 1e9:.0f} s", f"{rate * 1e6:+.2f} ppm",
        f"at most {DRIFT * 1e6:g} ppm", abs(rate) <= DRIFT,
        {"host_ns": host, "device_ns": device, "error_ns": error},
    )  # fmt: skip
