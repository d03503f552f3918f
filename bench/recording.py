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

from typing import Any

import numpy as np

from bench.result import Bar, Row, difference_bound, median, number, ratio_bounds, times
from bench.rounds import Tried, samples
from bench.settings import Progress, Settings

SUBJECT = "recording: CPU time added to an iteration of eight events"


def bare() -> Any:
    """The loop without handlers of the user's."""
    from bench.training import build

    return build(False)


def handled() -> Any:
    """The loop with eight of them."""
    from bench.training import build

    return build(True)


#: The SDK is slow enough to be measured in fewer epochs, but not in fewer than three, before which
#: the collector has not come to its usual pace.
FEWEST = 3
PEERS = {
    "firetrace": Tried("Firetrace", bare, 1, FEWEST),
    "firetrace, no context": Tried("FiretraceWithoutContext", bare, 1, FEWEST),
    "firetrace, events checked": Tried("FiretraceAlone", bare, 1, FEWEST),
    "firetrace, user handlers, events checked": Tried("FiretraceAlone", handled, 1, FEWEST),
    "BasicTimeProfiler": Tried("BasicTimeProfiler", bare, 1, FEWEST),
    "OpenTelemetry SDK": Tried("OpenTelemetrySdk", bare, 2 / 3, FEWEST),
    "nothing": Tried("Peer", bare, 1, FEWEST),
    "eight handlers that do nothing": Tried("NoOpHandlers", bare, 1, FEWEST),
    "HandlersTimeProfiler": Tried("HandlersTimeProfiler", bare, 1, FEWEST),
    "firetrace, user handlers": Tried("Firetrace", handled, 1, FEWEST),
    "HandlersTimeProfiler, user handlers": Tried("HandlersTimeProfiler", handled, 1, FEWEST),
}


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Take all samples."""
    return rows(samples("recording", PEERS, settings, progress))


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
