"""Whether the device spans are right: a UNet under torch's profiler and firetrace at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.gpu.check import Check, Settings, microseconds
from bench.gpu.clocks import ERROR_NS
from bench.gpu.comparison import compare, judged
from bench.gpu.machine import Machine
from bench.gpu.recorded import Recorded, record
from bench.gpu.trainings import Parts, unet

#: Steps before anything is recorded, and recorded ones that are left out: the profiler's first.
WARM, SKIPPED = 20, 5


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """With the batch on the GPU, in 32 bits; and copied in each step, in mixed precision."""
    device = machine.device
    yield from training("UNet", lambda: unet(device), machine, settings)
    yield from training(
        "UNet, AMP, copied batches", lambda: unet(device, amp=True, on_device=False), machine,
        settings,
    )  # fmt: skip


def training(
    what: str, make: Callable[[], Parts], machine: Machine, settings: Settings
) -> Iterator[Check]:
    """One of them."""
    parts = make()
    parts.steps(WARM).run()
    recorded = record(machine, settings, parts.steps(settings.steps), profile=True)
    yield whole(f"{what}: phases have times", recorded, settings.steps)
    trace = recorded.trace
    assert trace is not None
    launched = sum(each.launched > 0 for each in trace.activities)
    seen = f"{launched:,} of {len(trace.activities):,}"
    if trace.lost:
        seen = f"{seen}; {len(trace.lost):,} launches without a kernel"
    yield Check(
        f"{what}: kernels of which the launch was seen", seen, "at least 99%",
        0 < len(trace.activities) * 0.99 <= launched,
    )  # fmt: skip
    yield anchored(f"{what}: clocks compared, as recorded", recorded)
    found = compare(recorded.phases, trace, SKIPPED)
    yield from judged(what, found, trace, recorded.anchor_ns)


def anchored(name: str, recorded: Recorded) -> Check:
    """What the journal says of how well the device's clock was placed."""
    said = len(recorded.meta.anchors)
    measured = f"to {microseconds(recorded.anchor_ns)}" if said else "nothing is said"
    bar = f"at most {microseconds(ERROR_NS)}"
    return Check(name, measured, bar, recorded.anchor_ns <= ERROR_NS)


def whole(name: str, recorded: Recorded, steps: int) -> Check:
    """Whether all phases of all steps have times on the device."""
    problems = recorded.problems()
    forwards = len(recorded.of("forward"))
    if forwards != steps:
        problems.append(f"{forwards} forwards of {steps} steps")
    return Check(name, "; ".join(problems) or f"{steps} steps", "all", not problems)
