"""Whether anything waits for the GPU that did not before: CUDA's calls counted, torch's alarm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from bench.gpu.check import Check, Settings
from bench.gpu.machine import Machine
from bench.gpu.recorded import Recorded, record
from bench.gpu.traces import Trace
from bench.gpu.trainings import Parts, tiny

#: Calls in which the host waits for the device.
WAITS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
    "cudaMemcpy2D", "cudaMemcpyToSymbol", "cudaMemcpyFromSymbol", "cudaFree",
    "cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize",
)  # fmt: skip
WARM = 20
ALARM_S = 2.5  #: so long that the clocks are compared anew


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """In mixed precision, of which each step waits once by itself; then with torch's alarm on."""
    parts = tiny(machine.device, amp=True)
    parts.steps(WARM).run()
    profiles = []
    for device in (False, None):
        recorded = record(
            machine, settings, parts.steps(settings.steps), device=device, profile=True
        )
        assert recorded.trace is not None
        profiles.append(recorded.trace)
    yield from judged(profiles[0], profiles[1], settings.steps)
    yield from alarmed(tiny(machine.device), machine, settings)


def judged(off: Trace, on: Trace, steps: int) -> Iterator[Check]:
    """The calls of two trainings that are equal but for device time."""
    without, with_it = (Counter(name for name, _ in each.calls) for each in (off, on))
    seen = sum(without[name] for name in WAITS)
    text = "; ".join(
        f"{name} {without[name]} and {with_it[name]}"
        for name in WAITS if without[name] or with_it[name]
    )  # fmt: skip
    same = all(without[name] == with_it[name] for name in WAITS)
    yield Check(
        f"waits for the GPU in {steps} steps, without and with device time", text or "none seen",
        f"equal, and seen ({steps} at least)", same and seen >= steps,
    )  # fmt: skip
    names = sorted(set(without) | set(with_it), key=lambda name: without[name] - with_it[name])
    more = [(name, (with_it[name] - without[name]) / steps) for name in names]
    text = ", ".join(f"{name} {count:+.2f}" for name, count in more if abs(count) >= 0.005)
    yield Check("CUDA's calls that device time adds to a step", text or "none seen")


def alarmed(parts: Parts, machine: Machine, settings: Settings) -> Iterator[Check]:
    """With torch raising an error wherever it waits for the GPU."""
    began = time.monotonic()
    parts.steps(100).run()
    machine.synchronize()
    steps = max(100, round(100 * ALARM_S / (time.monotonic() - began)))
    works = goes_off(lambda: parts.batch["image"].sum().item())
    with alarm():
        parts.steps(WARM).run()  # it must be the training's own affair to come through this
    engine = parts.steps(steps)

    def run() -> None:
        with alarm():
            engine.run()

    yield quiet(record(machine, settings, engine, run), steps, works)


@contextmanager
def alarm() -> Iterator[None]:
    """While this lasts, torch raises an error where it waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def goes_off(waits: Callable[[], object]) -> bool:
    """Whether the alarm goes off where something waits."""
    try:
        with alarm():
            waits()
    except RuntimeError:
        return True
    return False


def quiet(recorded: Recorded, steps: int, works: bool) -> Check:
    """The training came through it, and all of it was recorded; the alarm does work here."""
    problems = recorded.problems()
    if not works:
        problems.append("the alarm does not go off where something waits")
    if len(recorded.of("forward")) != steps:
        problems.append(f"{len(recorded.of('forward'))} forwards of {steps} steps")
    return Check(
        'set_sync_debug_mode("error")', "; ".join(problems) or f"{steps:,} steps, all recorded",
        "no alarm, nothing lost", not problems,
    )  # fmt: skip
