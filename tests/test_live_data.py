"""The app beside a real training with slow data. Taken alone: it counts seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firetrace.tracer.run import data_journals
from firetrace.tracer.table import read_table
from firetrace.tui import app as app_module
from firetrace.tui.app import WatchApp
from firetrace.tui.widgets.worker_lanes import WorkerLanes
from tests.support.screens import until, until_shown


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait for a reader made for eyes."""
    monkeypatch.setattr(app_module, "PERIOD_S", 0.06)


TRAINING = """
    import sys, time
    from ignite.engine import Engine
    from monai.data import DataLoader, Dataset
    from monai.transforms import Compose, EnsureTyped, MapTransform, RandFlipd
    import numpy as np
    from firetrace import TraceHandler

    class SlowReadd(MapTransform):
        def __call__(self, data):
            time.sleep(0.02)
            return dict(data)

    if __name__ == "__main__":
        items = [{"image": np.zeros((1, 8, 8, 8), "float32")} for _ in range(40)]
        transform = Compose([
            SlowReadd(["image"]), EnsureTyped(["image"]), RandFlipd(["image"], prob=0.5)
        ])
        loader = DataLoader(
            Dataset(items, transform), batch_size=4, num_workers=2,
            multiprocessing_context=sys.argv[2], persistent_workers=True,
        )
        trainer = Engine(lambda engine, batch: time.sleep(0.005))
        TraceHandler(sys.argv[1], data=True).attach(trainer)
        print("begins", flush=True)
        trainer.run(loader, max_epochs=60)
"""


@pytest.fixture(params=["fork"])
def training(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A training that waits for a slow transform, in a process of its own.

    Its parameter: how workers are started.
    """
    program = tmp_path / "train.py"
    program.write_text(textwrap.dedent(TRAINING))
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": "", "XDG_STATE_HOME": str(tmp_path / "state")}
    with subprocess.Popen(
        [sys.executable, str(program), str(out), request.param], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        try:
            yield out
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # a server of workers lives on by itself


@pytest.mark.parametrize("training", ["fork", "spawn", "forkserver"], indirect=True)
async def test_a_slow_transform_is_named_within_ten_seconds(training: Path) -> None:
    """Live: the verdict goes to the transform, with how many workers would do.

    Counted from when the workers begin: those that are spawned import torch and MONAI first.
    """
    app = WatchApp(str(training))
    async with app.run_test(size=(180, 44), notifications=True) as pilot:
        await until_shown(pilot, "worker 0", "worker 1")
        named = "DATA-BOUND", "SlowReadd is", "of the workers' time"
        await until_shown(pilot, *named)
        paths = data_journals(training / "rank0.1.rows")
        passes = [read_table(path).meta.passes.values() for path in paths]
        begun = max(min((each.time_ns for each in one), default=0) for one in passes)
        assert time.time_ns() - begun < 10 * 10**9
        await until_shown(pilot, "Workers", "worker 0", "worker 1")
        lanes = app.screen_stack[0].query_one(WorkerLanes)
        await until(pilot, lambda: "█" in lanes.render().plain, "empty lanes")
        await pilot.press("6")
        await until_shown(pilot, "Making batches", "SlowReadd", "RandFlipd", "sample")
        await pilot.press("W")
        await until_shown(pilot, "a batch takes a worker", "2 workers make a batch every")
        await pilot.press("2", "home", "s", "enter")
        await until_shown(pilot, "its batch", "made by worker")


async def test_a_program_that_is_gone_leaves_no_worker_at_work(training: Path) -> None:
    """What its workers had open when they were killed is not shown as if it went on."""
    app = WatchApp(str(training))
    async with app.run_test(size=(160, 40)) as pilot:
        await until_shown(pilot, "worker 0", "RUN")
        subprocess.run(["pkill", "-KILL", "-f", str(training)], check=True)
        await until_shown(pilot, "DIED")
        await until(pilot, lambda: app.shown is not None and not any(
            worker.open for worker in app.shown.workers
        ), "still at work")  # fmt: skip
