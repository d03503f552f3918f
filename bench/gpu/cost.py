"""What device time costs: trainings with and without it in turn, and each call by itself."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bench.gpu.check import Check, Settings, microseconds
from bench.gpu.machine import Machine
from bench.gpu.trainings import Batches, Parts, tiny, unet
from bench.result import RESAMPLES, difference_bound, median
from firetrace.tracer import TraceHandler

WARM = 30
ADDED_US = 15.0  #: a step, at most
#: A training may take so much longer, in percent; and so much is noise that hides everything.
LONGER, NOISE = 0.5, 3.0


@dataclass
class Times:
    """Of trainings in turn, with and without: microseconds a step."""

    cpu_on: list[float]
    cpu_off: list[float]
    wall_on: list[float]
    wall_off: list[float]


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """A network that is all launches, then one that keeps the GPU busy."""
    parts = tiny(machine.device)
    yield from added("tiny network", measure(parts, machine, settings, settings.tiny_steps))
    parts = unet(machine.device)
    yield longer("UNet", measure(parts, machine, settings, settings.unet_steps))


def measure(parts: Parts, machine: Machine, settings: Settings, steps: int) -> Times:
    """Time pairs of trainings; the order changes from pair to pair."""
    parts.steps(WARM).run()
    found = Times([], [], [], [])
    for number in range(settings.pairs):
        for on in (True, False) if number % 2 else (False, True):
            cpu, wall = once(parts, machine, settings, steps, on)
            (found.cpu_on if on else found.cpu_off).append(cpu)
            (found.wall_on if on else found.wall_off).append(wall)
    return found


def once(
    parts: Parts, machine: Machine, settings: Settings, steps: int, on: bool
) -> tuple[float, float]:
    """CPU time of this thread and wall time, in microseconds a step, after a few more."""
    cpu = wall = 0

    def begin() -> None:
        nonlocal cpu, wall
        gc.collect()
        machine.synchronize()
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()

    engine = parts.trainer(Batches(parts.batch, WARM + steps, WARM, begin))
    handler = TraceHandler(settings.folder() / "run", device=machine.asked if on else False)
    handler.attach(engine)
    try:
        engine.run()
        used = time.thread_time_ns() - cpu
        machine.synchronize()
        took = time.perf_counter_ns() - wall
    finally:
        handler.close()
    return used / steps / 1e3, took / steps / 1e3


def added(what: str, times: Times) -> Iterator[Check]:
    """Microseconds that device time adds to a step; the 95% bound is held against the bar."""
    for kind, on, off in (
        ("CPU time of the main thread", times.cpu_on, times.cpu_off),
        ("wall time", times.wall_on, times.wall_off),
    ):
        middle, high = difference_bound(on, off)
        yield Check(
            f"{what}: {kind} that device time adds to a step",
            f"{middle:+.1f} \u00b5s (<= {high:.1f}) to {median(off):.0f} \u00b5s, {len(on)} pairs",
            f"at most {ADDED_US:g} \u00b5s", high <= ADDED_US, {"on_us": on, "off_us": off},
        )  # fmt: skip


def longer(what: str, times: Times) -> Check:
    """By how many percent a training takes longer, of pairs, with its 95% interval."""
    apart = (np.array(times.wall_on) / np.array(times.wall_off) - 1) * 100
    picks = np.random.default_rng(0).integers(0, len(apart), (RESAMPLES, len(apart)))
    low, high = np.percentile(np.median(apart[picks], axis=1), (2.5, 97.5)).tolist()
    return Check(
        f"{what}: training time",
        f"{np.median(apart):+.2f}% ({low:+.2f} to {high:+.2f}) of {median(times.wall_off):,.0f} "
        f"\u00b5s a step, {len(apart)} pairs",
        f"unchanged (interval has 0), or at most {LONGER:g}%; known to {NOISE:g}%",
        (low <= 0 or high <= LONGER) and high <= NOISE,
        {"on_us": times.wall_on, "off_us": times.wall_off},
    )  # fmt: skip


def calls(machine: Machine, settings: Settings) -> Iterator[Check]:
    """Each call of the accelerator by itself, for information."""
    accelerator, count = machine.accelerator(), settings.calls
    made = [accelerator.event() for _ in range(count)]
    first = made[0]
    accelerator.record(first)
    machine.synchronize()
    turns: dict[str, Callable[[int], object]] = {
        "a new event": lambda at: accelerator.event(),
        "record, the first time": lambda at: accelerator.record(made[at]),
        "record, again": lambda at: accelerator.record(made[at]),
        "record aside": lambda at: accelerator.record_aside(made[at]),
        "done": lambda at: accelerator.done(made[at]),
        "elapsed_ms": lambda at: accelerator.elapsed_ms(first, made[at]),
        "memory": lambda at: accelerator.memory(),
    }
    for name, call in turns.items():
        if name == "record aside":
            accelerator.record(first)  # lies before what follows
        machine.synchronize()
        took = []
        for at in range(1, count):
            before = time.perf_counter_ns()
            call(at)
            took.append(time.perf_counter_ns() - before)
        middle, high = np.percentile(took, (50, 99)).tolist()
        yield Check(f"a call: {name}", f"{microseconds(middle)}, 99%: {microseconds(high)}")
