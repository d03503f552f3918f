"""Device: the CPU time that recording device time adds to a step of five phases.

A loop of the events that MONAI's trainers fire, with a ``prepare_batch``: five phases, of which
each gets a mark where it begins or ends, and its times when the device has passed that. The device
is one whose calls cost nothing (``bench.accelerator``), so this is what firetrace does itself; what
CUDA takes for the same calls is not in it, and ``make gpu-check`` measures both on a real one.

Samples are taken as of the recording: a forked child runs the loop bare, then with the tracer, and
hands over the difference. What device time adds is the difference of two of them of one round,
with device time and without. The peers are what tells of phases otherwise: torch's profiler, which
must be told by ``record_function`` where they are (its CPU activities only: without a device it has
no others), and ignite's HandlersTimeProfiler, which adds up the whole process function.
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.process import forked, fresh
from bench.result import Bar, Row, difference_bound, median, number, ratio_bounds, times
from bench.settings import Progress, Settings

SUBJECT = "device time: CPU time added to a step of five phases"
OURS, WITHOUT = "firetrace, device time", "firetrace"
#: name -> peer's class in ``bench.peers``, and epochs as a part of the full number: torch's
#: profiler keeps every event in memory until it is stopped
PEERS = {
    OURS: ("FiretraceDevice", 1.0),
    WITHOUT: ("FiretraceNoDevice", 1.0),
    "torch.profiler": ("TorchProfiler", 1 / 5),
    "HandlersTimeProfiler": ("HandlersTimeProfiler", 1.0),
    "nothing": ("Peer", 1.0),
}
FEWEST_EPOCHS = 2
ROUNDS_A_PARENT = 3
ADDED = Bar(15, " \u00b5s")


def build() -> Any:
    """An engine that does nothing but say what MONAI's trainers say."""
    from ignite.engine import Engine
    from monai.engines.utils import IterationEvents

    from bench.training import PHASES

    def process(engine: Any, batch: Any) -> None:
        engine.prepare_batch(batch)
        for event in PHASES:
            engine.fire_event(event)

    engine: Any = Engine(process)
    engine.register_events(*IterationEvents)
    engine.prepare_batch = lambda batch: batch
    return engine


def timed_run(peer_name: str, epochs: int, directory: Path) -> float:
    """CPU seconds of ``epochs`` epochs under a peer, after one that is not timed."""
    from bench import peers
    from bench.training import EPOCH_LENGTH, Batches

    start = 0.0

    def begin() -> None:
        nonlocal start
        gc.collect()
        start = time.process_time()

    engine = build()
    peer: peers.Peer = getattr(peers, peer_name)(directory)
    peer.attach(engine)
    engine.run(Batches(begin), max_epochs=epochs + 1)
    used = time.process_time() - start
    peer.finish((epochs + 1) * EPOCH_LENGTH)
    return used


def sample(peer_name: str, epochs: int, directory: str) -> float:
    """Microseconds of CPU time that a peer adds to a step. For a forked child."""
    from bench.training import EPOCH_LENGTH

    bare = timed_run("Peer", epochs, Path(directory))
    traced = timed_run(peer_name, epochs, Path(directory))
    return (traced - bare) / (epochs * EPOCH_LENGTH) * 1e6


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Take all samples."""
    samples: dict[str, list[float]] = {name: [] for name in PEERS}
    for first in range(0, settings.pairs, ROUNDS_A_PARENT):
        last = min(first + ROUNDS_A_PARENT, settings.pairs)
        progress(f"device: rounds {first + 1} to {last} of {settings.pairs}")
        for taken in fresh(rounds, settings, first, last):
            for name, value in taken.items():
                samples[name].append(value)
    return rows(samples)


def rounds(settings: Settings, first: int, last: int) -> list[dict[str, float]]:
    """Take some rounds of samples: one of every peer. For a new interpreter, which forks."""
    from bench.peers import warm_up

    warm_up()
    order, taken = list(PEERS), list[dict[str, float]]()
    for index in range(first, last):
        turn = index * 3 % len(order)
        values = {}
        for name in order[turn:] + order[:turn]:
            peer, part = PEERS[name]
            epochs = max(FEWEST_EPOCHS, round(settings.epochs * part))
            with tempfile.TemporaryDirectory(dir=settings.workspace) as directory:
                values[name] = forked(sample, peer, epochs, directory)
        taken.append(values)
    return taken


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
