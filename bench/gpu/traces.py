"""What torch's profiler saw of the GPU, on the host's monotonic clock.

The profiler's times are Unix times of a clock of its own. Markers tell where that stands:
``record_function`` around nothing, of which the program notes the monotonic time before and after.
Each of them lies between the two, so all of them together leave only few microseconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MARKERS = 8
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
ON_HOST = ("cuda_runtime", "cuda_driver")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")  #: how such calls begin
Marks = dict[str, tuple[int, int]]
Document = dict[str, Any]


class Activity(NamedTuple):
    """A kernel, a copy, a fill. Times in ns of the host's monotonic clock."""

    launched: int  #: when the call began that launched it; 0: no such call was seen
    start: int
    end: int
    stream: int


@dataclass(frozen=True)
class Trace:
    """One profile. Times as of ``Activity``."""

    activities: list[Activity]  #: in the order of their launches
    calls: list[tuple[str, int]]  #: of CUDA, and when: while what was profiled ran
    begin: int  #: what was profiled began at the earliest,
    end: int  #: and ended at the latest
    error_ns: int  #: by which all of that may be off the monotonic clock
    lost: tuple[int, ...] = ()  #: when kernels were launched that were not seen

    @property
    def whole_from(self) -> int:
        """After that kernels were seen: the CUPTI of CUDA 12.6 to 13.0 may lose the first ones."""
        middle = (self.begin + self.end) // 2
        return max((at for at in self.lost if at < middle), default=0)

    def stream(self) -> int:
        """The one with the most activities.

        Raises:
            ValueError: the profiler saw none.
        """
        if not self.activities:
            raise ValueError("the profiler saw no GPU activity: is CUPTI allowed here?")
        numbers, counts = np.unique([each.stream for each in self.activities], return_counts=True)
        return int(numbers[counts.argmax()])

    def busy_ns(self, begin: int, end: int) -> int:
        """For how long of a time anything ran on the GPU."""
        found, until = 0, begin
        for each in sorted(self.activities, key=lambda each: each.start):
            start, stop = max(each.start, until), min(each.end, end)
            if stop > start:
                found, until = found + stop - start, stop
        return found


def profiled(
    run: Callable[[], Any],
    folder: Path,
    activities: Iterable[Any],
    mend: Callable[[Document], None] = lambda document: None,
) -> Trace:
    """Run something under torch's profiler.

    Args:
        run: what to run.
        folder: where the trace may be written meanwhile.
        activities: of ``torch.profiler.ProfilerActivity``; its CPU is among them.
        mend: may change what the profiler says, before it is read.
    """
    from torch.profiler import profile

    marks: Marks = {}
    with profile(activities=list(activities)) as profiler:
        _mark("before", marks)
        run()
        _mark("after", marks)
    path = folder / "profile.json"
    profiler.export_chrome_trace(str(path))
    document = json.loads(path.read_text(errors="replace"))
    path.unlink()
    mend(document)
    return trace_of(document, marks)


def _mark(when: str, marks: Marks) -> None:
    from torch.profiler import record_function

    for number in range(MARKERS):
        name = f"firetrace {when} {number}"
        before = time.monotonic_ns()
        with record_function(name):
            pass
        marks[name] = before, time.monotonic_ns()


def trace_of(document: Document, marks: Mapping[str, tuple[int, int]]) -> Trace:
    """A profile that was exported as Chrome JSON.

    Args:
        document: as ``export_chrome_trace`` writes it.
        marks: name of each marker -> monotonic ns before and after it.

    Raises:
        ValueError: no marker is in it.
    """
    base = int(document.get("baseTimeNanoseconds", 0))
    whole = [each for each in document["traceEvents"] if each.get("ph") == "X"]

    def start(event: Mapping[str, Any]) -> int:
        return base + round(float(event["ts"]) * 1e3)

    def took(event: Mapping[str, Any]) -> int:
        return round(float(event.get("dur", 0)) * 1e3)

    offset, error = _offset(
        [
            (*marks[each["name"]], start(each), start(each) + took(each))
            for each in whole
            if each["name"] in marks and each.get("cat") == "user_annotation"
        ]
    )
    begin = max(after for name, (_, after) in marks.items() if " before " in name)
    end = min(before for name, (before, _) in marks.items() if " after " in name)
    launches: dict[Any, int] = {}
    unseen: dict[Any, int] = {}
    calls, activities = [], []
    for each in whole:
        if each.get("cat") in ON_HOST:
            at, key = start(each) + offset, each.get("args", {}).get("correlation")
            if begin <= at < end:
                calls.append((str(each["name"]).removesuffix("_ptsz"), at))
                if calls[-1][0].startswith(LAUNCHES):
                    unseen[key] = at
            launches[key] = min(at, launches.get(key, at))
    for each in whole:
        if each.get("cat") in ON_DEVICE:
            about, at = each.get("args", {}), start(each) + offset
            launched = launches.get(about.get("correlation"), 0)
            unseen.pop(about.get("correlation"), None)
            activities.append(Activity(launched, at, at + took(each), int(about.get("stream", 0))))
    return Trace(sorted(activities), calls, begin, end, error, tuple(unseen.values()))


def _offset(seen: list[tuple[int, int, int, int]]) -> tuple[int, int]:
    """What to add to a time of the profiler's, and the error, in ns.

    Args:
        seen: of each marker the monotonic time before and after it, and its start and end.
    """
    if not seen:
        raise ValueError("the profile has none of the markers")
    least = max(before - start for before, _, start, _ in seen)
    most = min(after - end for _, after, _, end in seen)
    return (least + most) // 2, abs(most - least) // 2 + 1
