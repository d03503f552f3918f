"""What the app looks like, compared with pictures that people have looked at.

After a change that is meant: ``pytest tests/test_pictures.py --snapshot-update``, and look at them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from firetrace.tracer.reader import JournalReader
from firetrace.tui import app as app_module
from firetrace.tui.app import WatchApp
from tests.support.screens import until
from tests.support.staged import MS, Failed, Interrupted, S, Stage

SIZES = ((60, 15), (80, 24), (120, 40), (200, 60))
Compare = Callable[..., bool]


def staged(folder: Path, state: str) -> int:
    """Write a run in a state; the present in its time, Unix ns."""
    stage = Stage(folder, device=state == "device")
    if state == "finished":
        stage.run(4)
        stage.writer.close()
        return stage.now
    if state == "empty":
        return stage.now + S
    error = Failed("no [b]luck[/b]") if state == "erroring" else Interrupted()
    with contextlib.suppress(Failed, Interrupted):
        stage.run(4, stop_at=29, error=error)
    if state == "erroring":
        stage.writer.close()
    elif state == "died":
        stage.die()
    elif state == "two ranks":
        other = Stage(folder, rank=1)
        with contextlib.suppress(Interrupted):
            other.run(4, stop_at=27, error=error)
        KEPT.append(other)
    KEPT.append(stage)
    return stage.now + (38 * S if state == "hanging" else 20 * MS)


#: A journal whose writer is collected has ended.
KEPT: list[Stage] = []


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gauges: what this process uses of the machine is never the same.

    And no second look at the run: whether one comes before the picture is the machine's luck.
    """
    monkeypatch.setattr(app_module, "GAUGES_S", float("inf"))
    monkeypatch.setattr(app_module, "PERIOD_S", 60.0)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    "state",
    ["running", "finished", "died", "hanging", "empty", "erroring", "two ranks", "device"],
)
def test_the_picture_is_the_accepted_one(
    state: str, size: tuple[int, int], snap_compare: Compare, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every state, at every size, looks as it did when somebody looked at it."""
    folder = tmp_path / "spleen-unet"
    wall, monotonic = time.time_ns(), time.monotonic_ns()
    with monkeypatch.context() as frozen:  # all ranks' clocks begin together
        frozen.setattr("time.time_ns", lambda: wall)
        frozen.setattr("time.monotonic_ns", lambda: monotonic)
        now = staged(folder, state)
    monkeypatch.setattr(JournalReader, "now_ns", lambda self: now)
    app = WatchApp(str(folder))

    async def shown(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.shown is not None, "nothing shown")
        if state == "two ranks":
            await until(pilot, lambda: app.shown.skew is not None, "no ranks")  # type: ignore[union-attr]
            await pilot.pause()
            app.timeline.show(app.shown)  # type: ignore[arg-type]  # as the next look does
        await pilot.pause()
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=shown)
