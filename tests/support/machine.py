"""A machine for ``bench.gpu`` whose GPU is simulated; its trainings and torch's profiler are real.

What the GPU did is added to what the profiler says, as the profiler of a real one has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.gpu.recorded import Phase, Recorded
from bench.gpu.traces import Activity, Document, Trace, profiled
from firetrace.tracer.meta import Anchor, Meta
from tests.support.simulated import Event, SimulatedGpu

US, MS = 10**3, 10**6
TINY_NS = 1_000
STEPS = 12  #: of what is made up


class SimulatedMachine:
    """See ``bench.gpu.machine.Machine``.

    Args:
        folder: for what the profiler writes.
    """

    def __init__(self, folder: Path) -> None:
        self.gpu, self.device, self._folder = SimulatedGpu(), torch.device("cpu"), folder
        self.asked = self.gpu
        self.waited: list[int] = []  #: when the host began to wait for the device, monotonic ns
        self.seen = True  #: whether the profiler sees anything of the GPU

    def accelerator(self) -> SimulatedGpu:
        """The GPU itself."""
        return self.gpu

    def work(self, ms: float) -> None:
        """One kernel."""
        self.gpu.launch(round(ms * 1e6))

    def tiny(self, count: int) -> None:
        """Many short ones."""
        for _ in range(count):
            self.gpu.launch(TINY_NS)

    def synchronize(self) -> None:
        """Wait."""
        self.waited.append(time.monotonic_ns())
        self.gpu.synchronize()

    def profile(self, run: Callable[[], Any]) -> Trace:
        """Profile the host; what the GPU did meanwhile comes from itself."""
        first, waits = len(self.gpu.kernels), len(self.waited)

        def mend(document: Document) -> None:
            if self.seen:
                document["traceEvents"] += self._events(document, first, waits)

        return profiled(run, self._folder, [torch.profiler.ProfilerActivity.CPU], mend)

    def _events(self, document: Document, first: int, waits: int) -> list[dict[str, Any]]:
        unix = unix_of_monotonic_0() - document.get("baseTimeNanoseconds", 0)

        def event(kind: str, name: str, start: int, end: int, **about: int) -> dict[str, Any]:
            ts, dur = (start + unix) / 1e3, (end - start) / 1e3
            return {"ph": "X", "cat": kind, "name": name, "ts": ts, "dur": dur, "args": about}

        found, gpu = list[dict[str, Any]](), self.gpu
        for number in range(first, len(gpu.kernels)):
            kernel = gpu.kernels[number]
            at = kernel.launched
            start, end = gpu.host(kernel.start), gpu.host(kernel.end)
            found += [
                event("cuda_runtime", "cudaLaunchKernel", at, at + 3_000, correlation=number + 1),
                event("kernel", "k", start, end, correlation=number + 1, stream=kernel.stream),
            ]
        for at in self.waited[waits:]:
            found.append(event("cuda_runtime", "cudaStreamSynchronize", at, at + 1_000))
        return found

    def read(self, value: torch.Tensor) -> float:
        """As a copy from a GPU, which waits."""
        self.synchronize()
        return float(value.item())

    def allocated(self) -> int:
        """Bytes: a mebibyte more each time that it is asked for."""
        self.gpu.allocated += 2**20
        return self.gpu.allocated

    def fill(self, kept: list[Any]) -> None:
        """There is nothing left at once."""
        self.gpu.allocated, self.gpu.failures = 10**9, self.gpu.failures + 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def empty(self) -> None:
        """Give everything back."""
        self.gpu.allocated = 0


def unix_of_monotonic_0() -> int:
    """Unix ns: of the two clocks read one after the other, when least time passed between them."""
    found = []
    for _ in range(5):
        before, unix, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        found.append((after - before, unix - before))
    return min(found)[1]


class _Stream:
    def __init__(self, gpu: SimulatedGpu, number: int) -> None:
        self._gpu, self.number = gpu, number

    def wait_stream(self, other: _Stream) -> None:
        with self._gpu.on(self.number):
            self._gpu.wait_for(other.number)


class _Timed:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu, self.event = gpu, Event()

    def record(self, stream: _Stream) -> None:
        with self._gpu.on(stream.number):
            self._gpu.record(self.event)

    def elapsed_time(self, other: _Timed) -> float:
        return self._gpu.elapsed_ms(self.event, other.event)


class _Graph:
    replay: Callable[[], None]


class SimulatedCuda:
    """As much of ``torch.cuda`` as a training with streams and graphs asks for."""

    CUDAGraph = _Graph

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu, self._streams = gpu, 100

    def Stream(self, device: Any) -> _Stream:
        """A new one."""
        self._streams += 1
        return _Stream(self._gpu, self._streams)

    def Event(self, enable_timing: bool) -> _Timed:
        """A new one."""
        return _Timed(self._gpu)

    def current_stream(self, device: Any) -> _Stream:
        """The calling thread's."""
        return _Stream(self._gpu, self._gpu.stream)

    def stream(self, stream: _Stream) -> AbstractContextManager[None]:
        """Make it the current one."""
        return self._gpu.on(stream.number)

    @contextmanager
    def graph(self, graph: _Graph) -> Iterator[None]:
        """Capture what is launched."""
        with self._gpu.captured() as replay:
            graph.replay = replay
            yield

    def make_graphed_callables(self, network: torch.nn.Module, sample: Any) -> torch.nn.Module:
        """The network as it is."""
        return network


def made(work: float = 3.0) -> tuple[list[Phase], Trace]:
    """Spans and kernels as they should be, of a training of so many ms of work a forward."""
    now, free = 10**12, 0
    phases, activities = [], []
    for step in range(1, STEPS + 1):
        for name, ms in (("forward", work), ("backward", 2 * work), ("optimizer", work / 6)):
            begin, before = now, max(now, free)
            for launched in (now + 100 * US, now + 200 * US):
                start = max(launched + 5 * US, free)
                free = start + round(ms * MS / 2)
                activities.append(Activity(launched, start, free, 7))
            now += MS
            phases.append(Phase(name, "Trainer", step, begin, now, (before, max(now, free))))
    return phases, Trace(activities, [], 10**12, now, 2 * US)


def recorded(phases: list[Phase], **more: Any) -> Recorded:
    """As it is read from journals, of which there are none."""
    meta = Meta(Path("none"))
    meta.anchors.append(Anchor(0, 0, 10 * US))
    return Recorded(Path("none"), phases, {}, meta, Meta(Path("none")), **{"events": 9, **more})
