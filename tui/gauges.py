"""What the training process uses of the machine: processors, memory, GPUs.

Asked of the operating system (psutil) and, where it is installed, of NVML (``nvidia-ml-py``); a
process on another host, or one that has ended, has no gauges.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import deque
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
    gpu_memory_bytes: int | None = None  #: of the processes that are looked at


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

    def look(self) -> Usage | None:
        """What is used now; None if the process is not here or cannot be asked."""
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
        gpu, gpu_memory = self._look_at_gpus(pids)
        self.cpu.append(cpu)
        self.memory.append(memory)
        if gpu is not None:
            self.gpu.append(gpu)
        return Usage(cpu, int(memory), gpu, gpu_memory)

    def _process(self, pid: int) -> psutil.Process:
        """The same object each time: it measures from one look to the next."""
        if pid not in self._processes:
            self._processes[pid] = psutil.Process(pid)
            self._processes[pid].cpu_percent()
        return self._processes[pid]

    def _look_at_gpus(self, pids: set[int]) -> tuple[float | None, int | None]:
        """The load of the busiest GPU that these processes use, and their memory on all."""
        if self._gpus is None:
            try:
                nvml = importlib.import_module("pynvml")
                nvml.nvmlInit()
                count = nvml.nvmlDeviceGetCount()
                self._gpus = nvml, [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
            except Exception:  # not installed, no driver, no device: there is no gauge
                self._gpus = None, []
        nvml, handles = self._gpus
        load, memory = None, 0
        for handle in handles:
            try:
                users = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                mine = [user for user in users if user.pid in pids]
                if mine:
                    busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                    load = max(load or 0.0, busy)
                    memory += sum(user.usedGpuMemory or 0 for user in mine)
            except Exception:  # lost or not supported
                continue
        return load, (memory if load is not None else None)
