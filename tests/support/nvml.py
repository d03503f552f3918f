"""What stands in for NVML where there is no GPU: a module that answers as its documents say.

In containers and on parts of a GPU, too; and it fails as it does without a driver.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

GIB = 2**30
NVML = """
import os
from types import SimpleNamespace

BROKEN = set({broken!r})
PIDS, USED = {pids!r}, {used!r}

def answer(name, value):
    if name in BROKEN:
        raise RuntimeError(name)
    return value

def nvmlInit(): answer("nvmlInit", None)
def nvmlDeviceGetCount(): return answer("nvmlDeviceGetCount", 2)
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(handle): return answer("nvmlDeviceGetUUID", f"GPU-{{handle}}")
def nvmlDeviceGetComputeRunningProcesses(handle):
    pids = [os.getpid() if pid == "own" else pid for pid in (PIDS if handle else [])]
    users = [SimpleNamespace(pid=pid, usedGpuMemory=USED) for pid in pids]
    return answer("nvmlDeviceGetComputeRunningProcesses", users)
def nvmlDeviceGetUtilizationRates(handle):
    return answer("nvmlDeviceGetUtilizationRates", SimpleNamespace(gpu=10 + 60 * handle, memory=5))
def nvmlDeviceGetMemoryInfo(handle):
    return answer("nvmlDeviceGetMemoryInfo", SimpleNamespace(used=(handle + 1) * 9 * 2**30))
"""


def nvml(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...] = (),
    pids: tuple[object, ...] = ("own",), used: int | None = 3 * GIB,
) -> None:  # fmt: skip
    """Two GPUs; these processes use the second one."""
    (folder / "pynvml.py").write_text(NVML.format(broken=broken, pids=pids, used=used))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
