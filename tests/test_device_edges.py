"""What goes wrong with device time is not the training's affair, nor the rest of the recording's.

Calls of the GPU that fail, signals, disks, forks, kills.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset

from firetrace import TraceHandler
from firetrace.tracer.journal import Flag
from firetrace.tracer.table import read_table
from tests.support.launching import (
    MS,
    PHASES,
    Parts,
    attach,
    cases,
    device_path,
    finish,
    plain,
    read,
    supervised,
    warnings,
)
from tests.support.programs import on
from tests.support.simulated import SimulatedGpu

ROOT = Path(__file__).parents[1]
CALLS = "hardware", "event", "record", "record_aside", "done", "elapsed_ms", "memory"


def weights(parts: Parts) -> list[Any]:
    return [value.tolist() for value in parts.net.state_dict().values()]


def untraced(gpu: SimulatedGpu, steps: int = 30) -> list[Any]:
    parts = Parts(SimulatedGpu(time=gpu.time))
    supervised(parts, steps).run()
    return weights(parts)


# Failures


@pytest.mark.parametrize("since", [1, 2, 9, 40])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("hooks", [False, True], ids=["events", "hooks"])
def test_a_call_that_fails(
    hooks: bool, call: str, since: int, gpu: SimulatedGpu, tmp_path: Path, caplog: Any
) -> None:
    """One warning, no more calls; the training's result and the rest of the recording are whole."""
    gpu.fails, gpu.fails_from = call, since
    parts = Parts(gpu)
    trainer = supervised(parts, steps=30)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer, **({"model": parts.net, "loss_fn": parts.loss} if hooks else {}))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, gpu.time.pass_by, 60 * MS)
    trainer.run()
    failed = gpu.calls[call] >= since
    assert failed or since > 2 or call == "hardware"
    assert gpu.calls[call] == since if failed else True
    handler.close()
    assert weights(parts) == untraced(gpu)
    said = warnings(caplog)
    assert len(said) == failed
    assert all(f"{call}: the device has failed" in line for line in said)
    main = read_table(tmp_path / "run" / "rank0.1.rows")
    assert main.meta.stopped is None
    assert len(main.of_kind("iteration")) == 30
    if device_path(tmp_path / "run").exists():
        found = read(tmp_path / "run")
        assert not len(found.device.open_positions())
        stops = [note for note in found.notes if note["type"] == "stopped"]
        assert len(stops) == failed


class Stop(Exception):
    """What the program's signal handler raises."""


@pytest.mark.parametrize("way", ["keyboard", "signal"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("library", [plain, supervised])
def test_what_is_raised_in_a_call_but_is_the_programs(
    library: Any, call: str, way: str, gpu: SimulatedGpu, tmp_path: Path, caplog: Any
) -> None:
    """Ctrl-C, and what a signal handler raises, reach the program; nothing is said."""
    kind: type[BaseException] = KeyboardInterrupt if way == "keyboard" else Stop

    def interrupt(*_: Any) -> None:
        raise kind

    def act(name: str, count: int) -> None:
        if (name, count) == (call, 1 if call in ("hardware", "record_aside", "event") else 3):
            gpu.at_call = None
            os.kill(os.getpid(), signal.SIGUSR1)

    gpu.at_call = act
    parts = Parts(gpu)
    engine = library(parts)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    attach(handler, engine, parts) if library is plain else handler.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, gpu.time.pass_by, 25 * MS)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(kind):
            engine.run(*([cases(9)] if library is plain else []))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert gpu.at_call is None
    handler.close()
    assert not warnings(caplog)
    main = read_table(tmp_path / "run" / "rank0.1.rows")
    assert not len(main.open_positions())


def test_a_device_journal_that_is_deleted(gpu: SimulatedGpu, tmp_path: Path, caplog: Any) -> None:
    """Its writing fails, with one warning; the rank's journal goes on."""
    handler = TraceHandler(tmp_path / "run", device=gpu, max_bytes=2**16)
    trainer = supervised(Parts(gpu), steps=200)
    on(Events.ITERATION_COMPLETED, lambda engine: device_path(tmp_path / "run").unlink(), 9)(
        trainer
    )
    handler.attach(trainer)
    trainer.run()
    handler.close()
    assert len(warnings(caplog)) == 1
    assert "records no more device time (FileNotFoundError" in warnings(caplog)[0]
    main = read_table(tmp_path / "run" / "rank0.1.rows")
    assert main.meta.stopped is None
    assert main.meta.ended is not None


def test_a_device_journal_that_cannot_be_made(
    gpu: SimulatedGpu, tmp_path: Path, caplog: Any
) -> None:
    """Something else has its name."""
    (tmp_path / "run").mkdir()
    device_path(tmp_path / "run").write_text("something else")
    trainer = supervised(Parts(gpu))
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    handler.close()
    assert len(warnings(caplog)) == 1
    assert device_path(tmp_path / "run").read_text() == "something else"
    assert len(read_table(tmp_path / "run" / "rank0.1.rows").of_kind("iteration")) == 6


# Other processes


@pytest.mark.parametrize("phase", PHASES)
def test_a_fork_in_a_phase(phase: str, gpu: SimulatedGpu, tmp_path: Path) -> None:
    """The child goes on with the step and asks nothing of the GPU; the parent's spans are whole."""
    parts = Parts(gpu)
    before, forked, statuses = parts.launch, iter(range(1000)), []

    def launch(now: str) -> None:
        before(now)
        if now == phase and next(forked) == 3:
            calls = dict(gpu.calls)
            child = os.fork()
            if child:
                statuses.append(os.waitpid(child, 0)[1])
                return
            try:
                image = torch.rand(2, 4)
                parts.launch = before
                parts.loss(parts.net(image), image).backward()
                parts.optimizer.step()
                plain(parts).run(cases(2))
                engine.fire_event(Events.ITERATION_COMPLETED)
                handler.close()
            finally:
                os._exit(0 if gpu.calls == calls else 3)

    parts.launch = launch
    engine = plain(parts)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    attach(handler, engine, parts)
    engine.run(cases(6))
    found = finish(handler, gpu)
    assert statuses == [0]
    found.whole()
    assert len(found.spans()) == 36
    assert not found.untimed()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_backward_in_a_forked_child(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """A gradient that reaches an output of the parent's marks nothing in the child."""
    parts = Parts(gpu)
    statuses = []

    def step(engine: Engine, batch: Any) -> None:
        answer = parts.net(batch["image"])
        calls = dict(gpu.calls)
        child = os.fork()
        if not child:
            try:
                answer.sum().backward()
            finally:
                os._exit(0 if gpu.calls == calls else 3)
        statuses.append(os.waitpid(child, 0)[1])

    engine = Engine(step)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    attach(handler, engine, parts)
    engine.run(cases(3))
    assert statuses == [0, 0, 0]
    notes = finish(handler, gpu).notes
    assert not [note for note in notes if note["type"] == "stopped"]


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_workers(persistent: bool, gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Workers that are forked while phases go on."""
    data = DataLoader(
        Dataset([each for case in cases(6) for each in [{k: v[0] for k, v in case.items()}] * 2]),
        batch_size=2, num_workers=2, persistent_workers=persistent,
    )  # fmt: skip
    trainer = supervised(Parts(gpu), epochs=2, train_data_loader=data)
    handler = TraceHandler(tmp_path / "run", device=gpu)
    handler.attach(trainer)
    trainer.run()
    found = finish(handler, gpu)
    found.whole()
    assert len(found.spans()) == 12 * 6


def train_and_die(folder: str) -> None:
    """Be killed while the GPU is behind."""
    gpu = SimulatedGpu()
    trainer = supervised(Parts(gpu), steps=20)
    on(Events.ITERATION_COMPLETED, lambda engine: gpu.synchronize(), 5)(trainer)
    on(Events.ITERATION_COMPLETED, lambda engine: os.kill(os.getpid(), signal.SIGKILL), 10)(trainer)
    handler = TraceHandler(folder, device=gpu)
    handler.attach(trainer)
    trainer.run()


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """The journal is readable; what was not settled is open, since when it began on the host."""
    code = f"import {__name__} as this; this.train_and_die({str(tmp_path / 'run')!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    found = read(tmp_path / "run")
    spans = found.spans()
    assert len(spans) == 10 * 6
    settled = {span.iteration for span in spans if span.device[1]}
    opened = {span.iteration for span in spans if not span.device[1]}
    assert {1, 2, 3, 4} <= settled
    assert {9, 10} <= opened
    for span in spans:
        if not span.device[1]:
            assert 0 <= span.device[0] - span.host[0] <= 1_000
            assert not span.flags & Flag.CUT
