"""The GPU that is checked, as far as the checks need to know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from bench.gpu.check import Settings
from bench.gpu.traces import Trace, profiled
from firetrace.tracer.device.cuda import Cuda

cuda: Any = torch.cuda  # of which not all is typed
SPUN = 10_000_000  #: cycles, to see how long they take


class CountingCuda(Cuda):
    """CUDA as ever, counting its events."""

    events = 0

    def event(self) -> Any:
        """A new event."""
        self.events += 1
        return super().event()


class Machine(Protocol):
    """Where the trainings run. The tests have one whose GPU is simulated."""

    device: torch.device
    asked: Any  #: what ``TraceHandler`` is given as ``device``

    def accelerator(self) -> Any:
        """The device as firetrace sees it; counts its ``events``."""

    def work(self, ms: float) -> None:
        """Launch one kernel that takes so long."""

    def tiny(self, count: int) -> None:
        """Launch so many kernels that take next to nothing."""

    def synchronize(self) -> None:
        """Wait until the device has done everything."""

    def profile(self, run: Callable[[], Any]) -> Trace:
        """Run something under torch's profiler."""

    def read(self, value: torch.Tensor) -> float:
        """A number that the device has computed, once it has."""

    def allocated(self) -> int:
        """Bytes that tensors take on the device now."""

    def fill(self, kept: list[Any]) -> None:
        """Allocate until there is nothing left: raises ``torch.OutOfMemoryError``."""

    def empty(self) -> None:
        """Give back what was allocated and is not used any more."""


class Gpu:
    """A real one: torch's current CUDA device, which firetrace has to find by itself."""

    asked = True

    def __init__(self, settings: Settings) -> None:
        cuda.init()
        self.index = torch.cuda.current_device()
        self.device = torch.device("cuda", self.index)
        self._settings = settings
        self._little = torch.zeros(1, device=self.device)
        self._cycles_a_ms = self._spin()

    def _spin(self) -> float:
        """Cycles of ``torch.cuda._sleep`` in 1 ms, once the GPU's clock has gone up."""
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(20):
            first.record()
            cuda._sleep(SPUN)
            last.record()
        torch.cuda.synchronize()
        return SPUN / float(first.elapsed_time(last))

    def accelerator(self) -> CountingCuda:
        """CUDA, counting."""
        return CountingCuda(torch, self.index)

    def work(self, ms: float) -> None:
        """A kernel that spins."""
        cuda._sleep(int(ms * self._cycles_a_ms))

    def tiny(self, count: int) -> None:
        """Additions to one number."""
        little = self._little
        for _ in range(count):
            little.add_(1)

    def synchronize(self) -> None:
        """Wait."""
        torch.cuda.synchronize()

    def profile(self, run: Callable[[], Any]) -> Trace:
        """With what it sees of the host as well: of CUDA's calls, and the markers."""
        from torch.profiler import ProfilerActivity as Kind

        return profiled(run, self._settings.folder(), [Kind.CPU, Kind.CUDA])

    def read(self, value: torch.Tensor) -> float:
        """Wait for it."""
        return float(value.item())

    def allocated(self) -> int:
        """Bytes."""
        return torch.cuda.memory_allocated(self.device)

    def fill(self, kept: list[Any]) -> None:
        """In pieces of an eighth of what there is."""
        piece = torch.cuda.get_device_properties(self.device).total_memory // 8
        for _ in range(64):
            kept.append(torch.empty(piece, dtype=torch.uint8, device=self.device))

    def empty(self) -> None:
        """Also what torch keeps for later."""
        torch.cuda.empty_cache()
