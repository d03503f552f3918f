"""Whether it is said where the GPU is idle: trainings in which that is planted.

The profiler tells how much of the steps nothing ran on the GPU. firetrace knows that as an upper
bound: it is exact where what keeps the host lies before the work of a phase, or between the phases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ignite.engine import Engine, Events

from bench.gpu.check import Check, Settings
from bench.gpu.machine import Machine
from bench.gpu.recorded import Recorded, record
from bench.gpu.trainings import Batches, calling
from firetrace.tui.model.report import Report, read_report

SLEEP_S = 0.01
#: By so much of a step idle time may be off.
POINTS = 0.02
LAUNCHES = 1_000


class Sleeps(Batches):
    """A loader that takes its time."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            time.sleep(SLEEP_S)
            yield batch


class After:
    """A handler of MONAI's kind: calls something after each iteration."""

    def __init__(self, call: Callable[[Engine], Any]) -> None:
        self._call = call

    def attach(self, engine: Engine) -> None:
        """Add it."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._call)


@dataclass(frozen=True)
class Planted:
    """One training."""

    name: str
    within: Callable[[Machine], Any]  #: what its forward does
    verdict: str  #: its first word
    where: str  #: where most of the idle time lies; empty: there is next to none
    exact: bool = True  #: the idle time is known, not only at most
    loader: type[Batches] = Batches
    handler: Callable[[Machine, Any], Any] | None = None
    steps: float = 1.0  #: as a part of the usual number


def _sleeps(*parts: float) -> Callable[[Machine], None]:
    """A forward of work (ms) before and after it sleeps."""

    def within(machine: Machine) -> None:
        for number, ms in enumerate(parts):
            if number:
                time.sleep(SLEEP_S)
            if ms:
                machine.work(ms)

    return within


def _read_loss(machine: Machine, engine: Any) -> None:
    """What a handler that logs the loss does: waits for the GPU."""
    machine.read(engine.state.output["loss"])


TRAININGS = (
    Planted("a sleep in forward, then work", _sleeps(0, 4), "LAUNCH-BOUND", "forward"),
    Planted("a sleep in the middle of forward", _sleeps(3, 3), "LAUNCH-BOUND", "forward", False),
    Planted(
        f"{LAUNCHES:,} tiny kernels in forward", lambda machine: machine.tiny(LAUNCHES),
        "LAUNCH-BOUND", "forward", False, steps=0.25,
    ),
    Planted("a loader that sleeps", _sleeps(4), "DATA-BOUND", "get_batch", loader=Sleeps),
    Planted(
        "a handler that sleeps", _sleeps(4), "HANDLER-BOUND", "handlers",
        handler=lambda machine, engine: time.sleep(SLEEP_S),
    ),
    Planted("work, and the loss is read", _sleeps(20), "DEVICE-BOUND", "", handler=_read_loss),
)  # fmt: skip


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """All of them."""
    for each in TRAININGS:
        yield from judged(each, *tried(each, machine, settings))


def tried(planted: Planted, machine: Machine, settings: Settings) -> tuple[Report, float]:
    """The report of a training, and how much of its steps the GPU was idle."""
    parts = calling(machine.device, lambda: planted.within(machine))
    parts.steps(5).run()
    steps = max(6, round(settings.planted_steps * planted.steps))
    handler = planted.handler
    handlers = [After(lambda engine: handler(machine, engine))] if handler else []
    engine = parts.trainer(planted.loader(parts.batch, steps), handlers)
    recorded = record(machine, settings, engine, profile=True)
    return read_report(recorded.journal), idle(recorded)


def idle(recorded: Recorded) -> float:
    """For which part of the steps nothing ran, by the profiler; the first and the last left out."""
    assert recorded.trace is not None
    recorded.trace.stream()  # raises where the profiler saw nothing
    whole = recorded.trace.whole_from
    begun = [each.begin for each in recorded.of("forward") if each.begin > whole]
    begin, end = begun[1], begun[-1]
    return 1 - recorded.trace.busy_ns(begin, end) / (end - begin)


def judged(planted: Planted, report: Report, truth: float) -> Iterator[Check]:
    """Whether the report says what was planted."""
    device = report.device
    if device is None:
        yield Check(f"{planted.name}: report", "no device time in it", "there is", False)
        return
    where = next(iter(device.idle_in), "") if planted.where else ""
    yield Check(
        f"{planted.name}: verdict", report.verdict,
        f"{planted.verdict}, most in {planted.where}" if planted.where else planted.verdict,
        report.verdict.startswith(planted.verdict) and where == planted.where,
    )  # fmt: skip
    apart = device.idle - truth
    shares = ", ".join(f"{name} {part:.1%}" for name, part in list(device.idle_in.items())[:3])
    yield Check(
        f"{planted.name}: idle",
        f"{device.idle:.1%}, profiler {truth:.1%} ({shares})",
        f"{'within' if planted.exact else 'at least, but for'} {POINTS * 100:g} points",
        abs(apart) <= POINTS if planted.exact else apart >= -POINTS,
        {"idle": [device.idle], "profiler": [truth]},
    )  # fmt: skip
