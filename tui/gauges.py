"""What the training process uses of the machine: processors, memory, GPUs.

Asked of the operating system (psutil) and, where it is installed, of NVML (``nvidia-ml-py``); a
process on another host, or one that has ended, has no gauges.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from firetrace.tracer.journal import Header, boot_id

#: Looks that are remembered for the sparkline.
REMEMBERED = 60
#: Children (workers of a DataLoader) that are counted in; more would make a look expensive.
MOST_CHILDREN = 128
#: Looks between two searches for new children.
FAMILY_EVERY = 5


@dataclass(frozen=True)
class Usage:
    """One look."""

    cpu: float  #: of one core, 0 to 1 and above; workers included
    memory_bytes: int  #: resident, workers included (what they share counts each time)
    gpu: float | None = None  #: 0 to 1: how long in the last moment a kernel ran
    #: of the processes that are looked at; all that is in use, where it is not told by process
    gpu_memory_bytes: int | None = None


@dataclass
class Gauges:
    """Looks at the process that writes a journal, again and again."""

    header: Header
    cpu: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    memory: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    gpu: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _processes: dict[int, psutil.Process] = field(default_factory=dict)
    _children: list[psutil.Process] = field(default_factory=list)
    _looks: int = 0
    _gpus: Any = None

    def look(self, gpu: str = "") -> Usage | None:
        """What is used now; None if the process is not here or cannot be asked.

        Args:
            gpu: the GPU that it trains on (``hw.id``), where that is known. In a container NVML
                tells no process of it, or other numbers of them than it has itself.
        """
        if not self.header.boot_id or self.header.boot_id != boot_id():
            return None
        try:
            main = self._process(self.header.pid)
            if main.create_time() > self.header.wall_ns / 1e9 + 1:
                return None  # the number is another process's by now
            if not self._looks % FAMILY_EVERY:  # asks for every process of the machine
                self._children = main.children(recursive=True)[:MOST_CHILDREN]
            self._looks += 1
            family = [main, *self._children]
        except (psutil.Error, OSError):
            return None
        cpu = memory = 0.0
        for process in family:
            with contextlib.suppress(psutil.Error, OSError):  # it may end at any time
                known = self._process(process.pid)
                cpu += known.cpu_percent() / 100
                memory += known.memory_info().rss
        pids = {process.pid for process in family}
        self._processes = {pid: known for pid, known in self._processes.items() if pid in pids}
        load, gpu_memory = self._look_at_gpus(pids, gpu)
        self.cpu.append(cpu)
        self.memory.append(memory)
        if load is not None:
            self.gpu.append(load)
        return Usage(cpu, int(memory), load, gpu_memory)

    def _process(self, pid: int) -> psutil.Process:
        """The same object each time: it measures from one look to the next."""
        if pid not in self._processes:
            self._processes[pid] = psutil.Process(pid)
            self._processes[pid].cpu_percent()
        return self._processes[pid]

    def _look_at_gpus(self, pids: set[int], known: str) -> tuple[float | None, int | None]:
        """The load of the busiest GPU that these processes use, and their memory on all.

        Of one that is known to be theirs, though none of them is seen on it, all that is in use.
        """
        if self._gpus is None:
            try:
                nvml = importlib.import_module("pynvml")
                nvml.nvmlInit()
                count = nvml.nvmlDeviceGetCount()
                self._gpus = nvml, [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
            except Exception:  # not installed, no driver, no device: there is no gauge
                self._gpus = None, []
        nvml, handles = self._gpus
        load: float | None = None
        memory: int | None = None
        for handle in handles:
            users = _asked(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
            mine = [user for user in users if user.pid in pids]
            if not mine and not (known and _asked(nvml.nvmlDeviceGetUUID, handle) == known):
                continue
            # One answer may be missing and the other not: a part of a GPU (MIG) has no load.
            rates = _asked(nvml.nvmlDeviceGetUtilizationRates, handle)
            if rates is not None:
                load = max(load or 0.0, rates.gpu / 100)
            used = sum(user.usedGpuMemory or 0 for user in mine)
            if not used and (whole := _asked(nvml.nvmlDeviceGetMemoryInfo, handle)) is not None:
                used = int(whole.used)
            memory = (memory or 0) + used if used else memory
        return load, memory


def _asked(question: Callable[[Any], Any], handle: Any) -> Any:
    """What NVML answers; None where the GPU is lost, or does not know."""
    try:
        answer = question(handle)
    except Exception:
        return None
    return answer.decode() if isinstance(answer, bytes) else answer  # before nvidia-ml-py 12
