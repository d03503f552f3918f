"""What a training uses of the machine: asked of this very process.

There is no GPU here: see ``tests/support/nvml.py`` for what stands in for it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from firetrace.tracer.reader import JournalReader
from firetrace.tracer.writer import JournalWriter
from firetrace.tui.gauges import Gauges
from tests.support.nvml import GIB, nvml


def gauges(folder: Path) -> Gauges:
    """Of a journal that this process writes."""
    writer = JournalWriter(folder / "rank0.1", {}, min_free_bytes=0)
    with JournalReader(writer.path) as reader:
        return Gauges(reader.header)


def test_without_nvml_there_are_only_the_other_gauges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML is an extra: nothing of the GPU is said, and all else is."""
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    usage = gauges(tmp_path).look("GPU-1")
    assert usage is not None
    assert usage.memory_bytes > 2**20
    assert (usage.gpu, usage.gpu_memory_bytes) == (None, None)


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount"])
def test_without_a_driver_there_are_only_the_other_gauges(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is there and the driver is not: the same."""
    nvml(tmp_path, monkeypatch, broken=(broken,))
    usage = gauges(tmp_path).look()
    assert usage is not None
    assert (usage.gpu, usage.gpu_memory_bytes) == (None, None)


def test_the_gpu_of_the_process_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load of the GPU that it is on, not of others; and the memory that is its own."""
    nvml(tmp_path, monkeypatch)
    looking = gauges(tmp_path)
    for _ in range(2):
        usage = looking.look()
        assert usage is not None
        assert (usage.gpu, usage.gpu_memory_bytes) == (0.7, 3 * GIB)
    assert list(looking.gpu) == [0.7, 0.7]


@pytest.mark.parametrize("pids", [(), (999_999_999,)], ids=["none", "others"])
def test_in_a_container_the_journal_tells_which_gpu_it_is(
    pids: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML knows the host's numbers of processes, or none: then all of the GPU's memory counts."""
    nvml(tmp_path, monkeypatch, pids=pids)
    looking = gauges(tmp_path)
    known, unknown = looking.look("GPU-1"), looking.look()
    assert known is not None
    assert unknown is not None
    assert (known.gpu, known.gpu_memory_bytes) == (0.7, 18 * GIB)
    assert (unknown.gpu, unknown.gpu_memory_bytes) == (None, None)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (("nvmlDeviceGetUtilizationRates",), (None, 3 * GIB)),
        (("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUUID"), (0.7, 3 * GIB)),
        (("nvmlDeviceGetComputeRunningProcesses",), (0.7, 18 * GIB)),
        (("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetUUID"), (None, None)),
    ],
)
def test_one_answer_may_be_missing(
    broken: tuple[str, ...], expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a GPU (MIG) tells no load, an old driver no processes: the rest is still shown."""
    nvml(tmp_path, monkeypatch, broken=broken)
    usage = gauges(tmp_path).look("GPU-1")
    assert usage is not None
    assert (usage.gpu, usage.gpu_memory_bytes) == expected


def test_memory_that_nvml_does_not_know_by_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer may be that there is none: what the GPU has in use is said instead."""
    nvml(tmp_path, monkeypatch, used=None)
    usage = gauges(tmp_path).look()
    assert usage is not None
    assert usage.gpu_memory_bytes == 18 * GIB


def test_a_process_that_is_not_here_has_no_gauges(tmp_path: Path) -> None:
    """Of another boot, or another host, nothing can be asked."""
    looking = gauges(tmp_path)
    elsewhere = replace(looking.header, boot_id="another")
    assert Gauges(elsewhere).look() is None
