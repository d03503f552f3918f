"""Data: the CPU time that recording the data pipeline adds to a transform, a sample and a batch.

A MONAI data set of a ``Compose`` of eight transforms, a torch loader without workers, an engine
that does nothing with the batches (``bench.loading``). A sample is taken in a forked child: it runs
that bare, then with the tracer, of both the first epoch is left out, and the sample is the
difference of the process's CPU time, of all its threads; of several such turns the median, for
machines change their speed within seconds. Rounds take one sample of everything, in an order that
rotates, in a new warm process every few; the samples of a round are paired.

What a transform adds is what is added to batches of transforms less what is added to batches of
none, a transform: what a tracer does for the batch, the sample, the ``Compose`` around the
transforms and the engine's events is none of it. Transforms that do nothing are the peer's best
case. It is MONAI's WorkflowProfiler as its documentation has it, a context around the run, with its
usual selector of calls: Python traces every call for it, so those by which MONAI calls a transform
cost more, and those inside it. What it adds to transforms of MONAI's own shows that, for scale:
there firetrace, which does not look inside, drowns in the noise, and stands with what it adds to
the others.

A sample (its ``Compose`` included) is told from a batch (its collate included) by batches of one
sample. The loader with two workers is timed by the clock and for scale only: training, workers and
the queues between them share the machine.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.process import forked, fresh
from bench.result import Bar, Row, difference_bound, median, number, ratio_bounds
from bench.settings import Progress, Settings

TRANSFORMS, BATCH, WORKERS = 8, 8, 2
#: name -> the transforms, how many samples a batch has, and an epoch
SHAPES = {
    "idle": ("idle", BATCH, 2_000), "none": ("none", BATCH, 2_000), "one": ("none", 1, 2_000),
    "MONAI's": ("MONAI's", BATCH, 200),
}  # fmt: skip
#: name -> peer's class in ``bench.peers``, what it is measured with, and turns in a sample
TRACERS = {
    "firetrace": ("FiretraceData", ("idle", "none", "one", "MONAI's"), 5),
    "firetrace, no data": ("Firetrace", ("one",), 5),
    "WorkflowProfiler": ("WorkflowProfiler", ("idle", "none", "MONAI's"), 1),
    "nothing": ("Peer", ("idle", "none"), 5),
}
UNTRACED = "untraced"  #: a transform, whoever is measured
ROUNDS_A_PARENT = 3
SUBJECT = "data: CPU time added to the making of batches"
WITH_WORKERS = f"{WORKERS} workers, "


def timed_run(
    peer_name: str, shape: str, workers: int, epochs: int, directory: str,
    clock: Callable[[], float],
) -> float:  # fmt: skip
    """Microseconds a batch, in ``epochs`` epochs under a peer after one that is not timed."""
    from bench import peers
    from bench.loading import build_engine, build_loader

    start = 0.0

    def begin() -> None:
        nonlocal start
        gc.collect()
        start = clock()

    transforms, batch, samples = SHAPES[shape]
    engine, loader = build_engine(), build_loader(transforms, batch, samples, workers, begin)
    peer: peers.Peer = getattr(peers, peer_name)(Path(tempfile.mkdtemp(dir=directory)))
    peer.attach(engine)
    engine.run(loader, max_epochs=epochs + 1)
    used = clock() - start
    peer.finish((epochs + 1) * samples * (TRANSFORMS if transforms != "none" else 0))
    return used / (epochs * samples) * batch * 1e6


def sample(
    peer_name: str, shapes: tuple[str, ...], turns: int, epochs: int, directory: str
) -> dict[str, float]:
    """Microseconds of CPU time that a peer adds to a batch of each shape. For a forked child."""
    clock, taken = time.process_time, dict[str, list[float]]()
    for _ in range(turns):
        for shape in shapes:
            bare = timed_run("Peer", shape, 0, epochs, directory, clock)
            traced = timed_run(peer_name, shape, 0, epochs, directory, clock)
            taken.setdefault(shape, []).append(traced - bare)
            taken.setdefault(f"{UNTRACED} {shape}", []).append(bare)
    return {name: median(values) for name, values in taken.items()}


def with_workers(peer_name: str, epochs: int, directory: str) -> float:
    """Microseconds by the clock that a sample takes with workers. For a forked child."""
    return timed_run(peer_name, "idle", WORKERS, epochs, directory, time.perf_counter) / BATCH


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Take all samples."""
    samples: dict[str, list[float]] = {}
    for first in range(0, settings.data_rounds, ROUNDS_A_PARENT):
        last = min(first + ROUNDS_A_PARENT, settings.data_rounds)
        progress(f"data: rounds {first + 1} to {last} of {settings.data_rounds}")
        for taken in fresh(rounds, settings, first, last):
            for name, value in taken.items():
                samples.setdefault(name, []).append(value)
    return rows(samples)


def rounds(settings: Settings, first: int, last: int) -> list[dict[str, float]]:
    """Take some rounds of samples: one of every tracer. For a new interpreter, which forks."""
    from bench.peers import warm_up

    warm_up()
    order, taken = list(TRACERS), list[dict[str, float]]()
    epochs = settings.data_epochs
    for index in range(first, last):
        turn, values = index % len(order), dict[str, float]()
        for name in order[turn:] + order[:turn]:
            peer, shapes, turns = TRACERS[name]
            with tempfile.TemporaryDirectory(dir=settings.workspace) as directory:
                found = forked(sample, peer, shapes, turns, epochs, directory)
            values |= {f"{name}: {shape}": value for shape, value in found.items()}
        for name, peer in (("firetrace", "FiretraceData"), ("nothing", "Peer")):
            with tempfile.TemporaryDirectory(dir=settings.workspace) as directory:
                values[WITH_WORKERS + name] = forked(with_workers, peer, epochs, directory)
        taken.append(values)
    return taken


def rows(samples: dict[str, list[float]]) -> list[Row]:
    """The table's lines for samples in µs a batch."""
    of = {name: np.array(values) for name, values in samples.items()}
    none = [0.0] * len(samples["nothing: idle"])

    def a_transform(name: str, shape: str = "idle", within: str = "") -> list[float]:
        found = of[f"{name}: {within}{shape}"] - of[f"{name}: {within}none"]
        values: list[float] = (found / (TRANSFORMS * BATCH)).tolist()
        return values

    def compare(what: str, shape: str, bar: Bar | None) -> Row:
        ours, peers = a_transform("firetrace", shape), a_transform("WorkflowProfiler", shape)
        figure, most = difference_bound(ours, none)
        dearest, negative = difference_bound(none, peers)
        least = -negative / max(most, 0.01)  # the clock's own grain
        return Row(
            SUBJECT, what, f"{figure:.2f} \u00b5s (<= {most:.2f})",
            f"WorkflowProfiler: {number(-dearest)} \u00b5s", f"it adds >= {number(least)}x",
            bar, least,
            {"firetrace": ours, "WorkflowProfiler": peers},
        )  # fmt: skip

    def added(what: str, values: list[float], bar: Bar | None = None, peer: str = "") -> Row:
        figure, bound = difference_bound(values, none)
        return Row(
            SUBJECT, what, f"{figure:.2f} \u00b5s", peer, f"<= {bound:.2f} \u00b5s", bar, bound,
            samples if bar else {},
        )  # fmt: skip

    a_sample = (of["firetrace: none"] - of["firetrace: one"]) / (BATCH - 1)
    a_batch = of["firetrace: one"] - of["firetrace, no data: one"] - a_sample
    bare = median(a_transform("nothing", within=f"{UNTRACED} "))
    traced, untraced = samples[WITH_WORKERS + "firetrace"], samples[WITH_WORKERS + "nothing"]
    longer, _, high = ratio_bounds(traced, untraced)
    return [
        added(
            "a transform that does nothing, one span", a_transform("firetrace"),
            Bar(1.5, " \u00b5s"), f"what MONAI takes to call it: {bare:.2f} \u00b5s",
        ),
        compare("a transform of MONAI's", "MONAI's", Bar(50, "x", at_least=True)),
        compare("for scale: a transform that does nothing", "idle", None),
        added("a sample, and the Compose in it", a_sample.tolist()),
        added("a batch, and its collate", a_batch.tolist()),
        Row(
            SUBJECT, "for scale: a transform", "",
            f"nothing: {median(a_transform('nothing')):+.2f} \u00b5s",
        ),
        Row(
            SUBJECT, f"for scale: a sample with {WORKERS} workers, by the clock",
            f"{number(median(traced))} \u00b5s", f"untraced: {number(median(untraced))} \u00b5s",
            f"{longer:.2f}x (<= {high:.2f}x)",
        ),
    ]  # fmt: skip
