"""Device: the CPU time that recording device time adds to a step of five phases.

A loop of the events that MONAI's trainers fire. Its ``prepare_batch`` hands over two tensors of
MONAI's on the device for two that are not there. Of five phases each gets a mark
where it begins or ends, and its times when the device has passed that. The device is one whose
calls cost nothing (``bench.accelerator``): this is what firetrace does itself. What CUDA takes for
the same calls is not in it, and ``make gpu-check`` measures both on a real one.

Samples are taken as of the recording: a forked child runs the loop bare, then with the tracer, and
hands over the difference. What device time adds is the difference of two of them of one round,
with device time and without. The peers are what tells of phases otherwise: torch's profiler, which
must be told by ``record_function`` where they are (its CPU activities only: without a device it has
no others), and ignite's HandlersTimeProfiler, which adds up the whole process function.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.result import Bar, Row, difference_bound, median, number, ratio_bounds, times
from bench.rounds import Tried, samples
from bench.settings import Progress, Settings

SUBJECT = "device time: CPU time added to a step of five phases"
OURS, WITHOUT = "firetrace, device time", "firetrace"
ADDED = Bar(15, " \u00b5s")


def build() -> Any:
    """An engine that does nothing but say what MONAI's trainers say, of batches such as theirs."""
    import torch
    from ignite.engine import Engine
    from monai.data import MetaTensor
    from monai.engines.utils import IterationEvents

    from bench.accelerator import NullAccelerator
    from bench.training import PHASES

    batch = {name: MetaTensor(torch.zeros(2)) for name in ("image", "label")}
    there = tuple(each.to(NullAccelerator.kind) for each in batch.values())

    def process(engine: Any, number: int) -> None:
        engine.prepare_batch(batch)
        for event in PHASES:
            engine.fire_event(event)

    engine: Any = Engine(process)
    engine.register_events(*IterationEvents)
    engine.prepare_batch = lambda batch: there
    return engine


#: torch's profiler keeps every event in memory until it is stopped.
PEERS = {
    OURS: Tried("FiretraceDevice", build, 1, 2),
    WITHOUT: Tried("FiretraceNoDevice", build, 1, 2),
    "torch.profiler": Tried("TorchProfiler", build, 1 / 5, 2),
    "HandlersTimeProfiler": Tried("HandlersTimeProfiler", build, 1, 2),
    "nothing": Tried("Peer", build, 1, 2),
}


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Take all samples."""
    return rows(samples("device", PEERS, settings, progress))


def rows(samples: dict[str, list[float]]) -> list[Row]:
    """The table's lines for samples in microseconds a step."""
    added = (np.array(samples[OURS]) - np.array(samples[WITHOUT])).tolist()
    middle, high = difference_bound(samples[OURS], samples[WITHOUT])
    ours = f"{number(middle)} \u00b5s"

    def compare(peer: str, what: str, bar: Bar | None) -> Row:
        ratio, _, most = ratio_bounds(added, samples[peer])
        return Row(
            SUBJECT, "added by device time", ours,
            f"{peer}{what}: {number(median(samples[peer]))} \u00b5s",
            f"{times(ratio)} (<= {times(most)})", bar, most, {peer: samples[peer]},
        )  # fmt: skip

    low, up = (number(each) for each in np.percentile(samples["nothing"], (25, 75)))
    return [
        Row(
            SUBJECT, "added by device time", ours, "", f"<= {number(high)} \u00b5s", ADDED, high,
            {OURS: samples[OURS], WITHOUT: samples[WITHOUT]},
        ),
        compare("torch.profiler", ", a record_function a phase", Bar(1)),
        compare("HandlersTimeProfiler", ", totals only", None),
        Row(
            SUBJECT, "for scale", "",
            f"nothing: {number(median(samples['nothing']))} \u00b5s, half of them {low} to {up}",
            samples={"nothing": samples["nothing"]},
        ),
    ]  # fmt: skip
