"""What every test needs: its own folders, so that nothing leaks into the user's home."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from firetrace import TraceHandler
    from tests.support.simulated import SimulatedGpu


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs and the index of runs lie in the test's own folder; a recording ends with its test."""
    runs = tmp_path / "firetrace-runs"
    monkeypatch.setenv("FIRETRACE_DIR", str(runs))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in (
        *(name for name in os.environ if name.startswith(("OTEL_", "FIRETRACE_O"))),
        "FIRETRACE_NAME", "FIRETRACE_RUN", "RANK", "TRACEPARENT",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    yield runs
    recording = sys.modules.get("firetrace.tracer.recording")
    if recording is not None:
        recording.close_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests run in several processes; what they print has to get from one to another."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "replace").decode()) for name, text in report.sections
    ]
    return report


SAMPLES = Path(__file__).resolve().parent.parent / "samples"


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a small training of the sample bundle, run as its README says."""
    folder = tmp_path_factory.mktemp("bundle")
    environment = {
        **os.environ,
        "FIRETRACE_DIR": str(folder / "runs"),
        "XDG_STATE_HOME": str(folder / "state"),
    }  # fmt: skip
    bundle = SAMPLES / "spleen_bundle"
    small = "--epochs 2 --crops_per_case 2 --patch_size [16,16,16] --spacing [10,10,12]"
    for command in (
        [str(bundle / "make_data.py"), str(folder / "data"), "--cases", "3",
         "--size", "32", "32", "24"],
        ["-m", "monai.bundle", "run", "--config_file", "configs/train.json",
         "--dataset_dir", str(folder / "data"), "--output_dir", str(folder / "output"),
         "--val_cases", "1", *small.split()],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, *command], cwd=bundle, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (folder / "runs").iterdir()
    (journal,) = run.glob("*.rows")
    return journal


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """A simulated one, on a clock that is made."""
    from tests.support.simulated import MadeTime, SimulatedGpu

    return SimulatedGpu(time=MadeTime(monkeypatch))


@pytest.fixture
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each step it is looked at what was copied, however short it is."""
    from firetrace.tracer.device import copies

    monkeypatch.setattr(copies, "EVERY_NS", 0)


@pytest.fixture
def handler(gpu: SimulatedGpu, tmp_path: Path) -> TraceHandler:
    """One that records what is done on it."""
    from firetrace import TraceHandler

    return TraceHandler(tmp_path / "run", device=gpu)
