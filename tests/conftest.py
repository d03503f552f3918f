"""What every test needs: its own folders, so that nothing leaks into the user's home."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and the index of runs lie in the test's own folder, which is returned."""
    runs = tmp_path / "firetrace-runs"
    monkeypatch.setenv("FIRETRACE_DIR", str(runs))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return runs
