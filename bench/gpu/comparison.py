"""Device spans held against what torch's profiler saw of the same steps.

Which kernels are a phase's follows from when they were launched: in the host's time of it. By its
definition a device span begins when the phase has begun on the host *and* all that was launched
before is done, and ends likewise; that is computed from the profiler's kernels, and compared.
Where the device was busy until the phase had launched something, and when the host was out of it,
that is from the start of its first kernel to the end of its last, which is compared as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.gpu.check import PART, SHORT_NS, Check, microseconds, milliseconds
from bench.gpu.recorded import Phase
from bench.gpu.traces import Trace

#: By which the profiler's own placement of the GPU's times is trusted.
PLACED_NS = 25_000


@dataclass(frozen=True)
class Compared:
    """One phase. Times in ns."""

    name: str
    iteration: int
    span: int  #: how long it took on the device, by firetrace
    expected: int  #: by the profiler, from the same boundary to the same boundary
    kernels: int  #: by the profiler, from its first kernel's start to the end of its last; 0: none
    busy: bool  #: the device was, until its first kernel was launched and when the host left it
    inside: int  #: by how much the kernels lie inside the span, at the end that has less


def compare(phases: list[Phase], trace: Trace, skipped: int = 0) -> list[Compared]:
    """Compare all phases that have times on the device, but those of the first steps."""
    stream, whole = trace.stream(), trace.whole_from
    own = [each for each in trace.activities if each.stream == stream and each.launched]
    launched = np.array([each.launched for each in own], np.int64)
    starts = np.array([each.start for each in own], np.int64)
    ends = np.array([each.end for each in own], np.int64)
    done = np.maximum.accumulate(ends)  # all that was launched until then
    found = []
    for each in phases:
        if each.device is None or each.iteration <= skipped or each.begin <= whole:
            continue
        first, last = np.searchsorted(launched, [each.begin, each.end]).tolist()
        before = int(done[first - 1]) if first else 0
        after = int(done[last - 1]) if last else 0
        start, end = each.device
        kernels, inside, busy = 0, 0, False
        if last > first:
            begins, ceases = int(starts[first:last].min()), int(ends[first:last].max())
            kernels, inside = ceases - begins, min(begins - start, end - ceases)
            busy = before > int(launched[first]) and after >= each.end
        expected = max(after, each.end) - max(before, each.begin)
        found.append(
            Compared(each.name, each.iteration, end - start, expected, kernels, busy, inside)
        )
    return found


def judged(what: str, found: list[Compared], trace: Trace, anchor_ns: int) -> Iterator[Check]:
    """The rows of one training."""
    bar = f"{PART:.0%}, or {PART * SHORT_NS / 1e3:.0f} \u00b5s"
    steps = sorted({each.iteration for each in found})
    sums = [
        [sum(getattr(each, way) for each in found if each.iteration == step) for step in steps]
        for way in ("span", "expected")
    ]
    yield held(f"{what}: a step's device spans", sums[0], sums[1], f"{PART:.0%}", short_ns=1)
    for name in dict.fromkeys(each.name for each in found if each.kernels):
        mine = [each for each in found if each.name == name]
        spans, expected = [each.span for each in mine], [each.expected for each in mine]
        yield held(f"{what}: {name}", spans, expected, bar)
    mine = [each for each in found if each.busy and each.kernels]
    name = f"{what}: first to last kernel, phases begun on a busy GPU"
    if mine:
        yield held(name, [each.span for each in mine], [each.kernels for each in mine], bar)
    else:
        yield Check(name, "no phase began on a busy GPU")
    inside = np.array([each.inside for each in found if each.kernels], float)
    may = anchor_ns + trace.error_ns + PLACED_NS
    if len(inside):
        low = float(np.percentile(inside, 5))
        yield Check(
            f"{what}: kernels lie in their phase's span",
            f"by {microseconds(low)} (95%), {microseconds(inside.min())} at worst; clocks compared "
            f"to {microseconds(anchor_ns)}, the profiler's to {microseconds(trace.error_ns)}",
            f"at least {microseconds(-may)}", low >= -may, {"inside_ns": inside.tolist()},
        )  # fmt: skip


def held(
    name: str, spans: list[int], truths: list[int], bar: str, short_ns: int = SHORT_NS
) -> Check:
    """Spans against what they ought to be, in ns; in the median the difference must be small."""
    mine, truth = np.array(spans, float), np.array(truths, float)
    apart = np.abs(mine - truth) / np.maximum(truth, short_ns)
    middle, worst = float(np.median(apart)), float(apart.max())
    usual, wanted = (milliseconds(float(np.median(each))) for each in (mine, truth))
    measured = (
        f"{usual}, profiler {wanted}: off by {middle:.2%}, {worst:.2%} at worst of {len(mine)}"
    )
    samples = {"spans_ns": mine.tolist(), "profiler_ns": truth.tolist()}
    return Check(name, measured, f"at most {bar}", middle <= PART, samples)
