"""What every test needs: its own folders, so that nothing leaks into the user's home."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs and the index of runs lie in the test's own folder; a recording ends with its test."""
    runs = tmp_path / "firetrace-runs"
    monkeypatch.setenv("FIRETRACE_DIR", str(runs))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "RANK"):
        monkeypatch.delenv(name, raising=False)
    yield runs
    recording = sys.modules.get("firetrace.tracer.recording")
    if recording is not None:
        recording.close_all()
