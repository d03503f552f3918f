"""Recording: the CPU time that a tracer adds to one iteration of a training loop.

The loop fires eight events an iteration and computes nothing (``bench.training``). Measured is
the process's CPU time, user and system, of all its threads, so the SDK's exporting thread counts.

A sample is taken in a freshly forked child of a process that has torch, ignite, MONAI and every
peer imported. The child runs the loop bare, then a new, equal engine with the peer attached; of
both, the first epoch is left out, the garbage is collected before the rest is timed, and the
collector is on, as in any training (of the SDK's cost it is about half: each span is an object
that lives on in a queue). The sample is the difference, per iteration. So each peer has its own
baseline, seconds old and from the same process. A round takes one sample of every peer, in an
order that rotates; the samples of a round are paired. After a few rounds a new warm process takes
over: addresses and hashes, which every fork inherits, move these figures by more than the noise.
"Nothing" does all this with nothing attached: it is what this machine reports for a tracer that
costs nothing.

Not counted: attaching, the first epoch, and what is owed after the loop (the SDK's flush,
closing the journal: nothing to speak of for firetrace), nor the kernel's own threads, which write
the journal's pages to the disk. Counted in firetrace's favour, because its users get it: it
does not build the debug message that ignite builds for every event while nobody listens, and it
does not search the list of allowed events for one that was found there before: that is more than
recording costs. What is left without the latter is given for scale.
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.process import forked, fresh
from bench.result import Bar, Row, difference_bound, median, number, ratio_bounds, times
from bench.settings import Progress, Settings

SUBJECT = "recording: CPU time added to an iteration of eight events"
#: name -> peer's class in ``bench.peers``, whether there are eight user handlers, and epochs as a
#: part of the full number: the SDK is slow enough to be measured in fewer, but not in fewer than
#: ``FEWEST_EPOCHS``, before which the collector has not come to its usual pace
PEERS = {
    "firetrace": ("Firetrace", False, 1.0),
    "firetrace, no context": ("FiretraceWithoutContext", False, 1.0),
    "firetrace, events checked": ("FiretraceAlone", False, 1.0),
    "firetrace, user handlers, events checked": ("FiretraceAlone", True, 1.0),
    "BasicTimeProfiler": ("BasicTimeProfiler", False, 1.0),
    "OpenTelemetry SDK": ("OpenTelemetrySdk", False, 2 / 3),
    "nothing": ("Peer", False, 1.0),
    "eight handlers that do nothing": ("NoOpHandlers", False, 1.0),
    "HandlersTimeProfiler": ("HandlersTimeProfiler", False, 1.0),
    "firetrace, user handlers": ("Firetrace", True, 1.0),
    "HandlersTimeProfiler, user handlers": ("HandlersTimeProfiler", True, 1.0),
}
FEWEST_EPOCHS = 3
ROUNDS_A_PARENT = 3


def timed_run(peer_name: str, handlers: bool, epochs: int, directory: Path) -> float:
    """CPU seconds of ``epochs`` epochs under a peer, after one that is not timed."""
    from bench import peers
    from bench.training import EPOCH_LENGTH, Batches, build

    start = 0.0

    def begin() -> None:
        nonlocal start
        gc.collect()
        start = time.process_time()

    engine = build(handlers)
    peer: peers.Peer = getattr(peers, peer_name)(directory)
    peer.attach(engine)
    engine.run(Batches(begin), max_epochs=epochs + 1)
    used = time.process_time() - start
    peer.finish((epochs + 1) * EPOCH_LENGTH)
    return used


def sample(peer_name: str, handlers: bool, epochs: int, directory: str) -> float:
    """Microseconds of CPU time that a peer adds to an iteration. For a forked child."""
    from bench.training import EPOCH_LENGTH

    bare = timed_run("Peer", handlers, epochs, Path(directory))
    traced = timed_run(peer_name, handlers, epochs, Path(directory))
    return (traced - bare) / (epochs * EPOCH_LENGTH) * 1e6


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Take all samples."""
    samples: dict[str, list[float]] = {name: [] for name in PEERS}
    for first in range(0, settings.pairs, ROUNDS_A_PARENT):
        last = min(first + ROUNDS_A_PARENT, settings.pairs)
        progress(f"recording: rounds {first + 1} to {last} of {settings.pairs}")
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
        turn = index * 3 % len(order)  # by 3: neighbours in a round are not always the same
        values = {}
        for name in order[turn:] + order[:turn]:
            peer, handlers, part = PEERS[name]
            epochs = max(FEWEST_EPOCHS, round(settings.epochs * part))
            with tempfile.TemporaryDirectory(dir=settings.workspace) as directory:
                values[name] = forked(sample, peer, handlers, epochs, directory)
        taken.append(values)
    return taken


def rows(samples: dict[str, list[float]]) -> list[Row]:
    """The table's lines for samples in µs an iteration."""

    def compare(what: str, ours: str, peer: str, bar: Bar | None) -> Row:
        ratio, _, high = ratio_bounds(samples[ours], samples[peer])
        return Row(
            SUBJECT, what, micro(ours), f"{peer.partition(',')[0]}: {micro(peer)}",
            f"{times(ratio)} (<= {times(high)})", bar, high,
            {ours: samples[ours], peer: samples[peer]},
        )  # fmt: skip

    def micro(name: str) -> str:
        return f"{number(median(samples[name]))} \u00b5s"

    def scale(name: str) -> Row:
        low, high = np.percentile(samples[name], (25, 75))
        figure = f"{micro(name)}, half of them {number(low)} to {number(high)}"
        return Row(SUBJECT, "for scale", "", f"{name}: {figure}", samples={name: samples[name]})

    def context(samples: dict[str, list[float]]) -> Row:
        """What it takes that OpenTelemetry's current span is the innermost open row."""
        without = "firetrace, no context"
        middle, high = difference_bound(samples["firetrace"], samples[without])
        return Row(
            SUBJECT, "OpenTelemetry's context a step", f"{middle:+.2f} \u00b5s", "",
            f"<= {high:.2f} \u00b5s", Bar(1, " \u00b5s"), high, {without: samples[without]},
        )  # fmt: skip

    ours, handlers, checked = "firetrace", ", user handlers", ", events checked"
    return [
        compare("all spans on", ours, "BasicTimeProfiler", Bar(0.35)),
        compare("all spans on", ours, "OpenTelemetry SDK", Bar(1 / 25)),
        compare(
            "with eight user handlers", ours + handlers, "HandlersTimeProfiler" + handlers, Bar(1)
        ),
        context(samples),
        compare("all spans on", ours, "HandlersTimeProfiler", None),
        compare("... events checked as ever", ours + checked, "BasicTimeProfiler", None),
        compare(
            "... with eight user handlers", ours + handlers + checked,
            "HandlersTimeProfiler" + handlers, None,
        ),
        scale("eight handlers that do nothing"),
        scale("nothing"),
    ]  # fmt: skip
