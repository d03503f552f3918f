"""Which device is recorded: by default, by choice, by the command's option; where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.tracer.device import accelerator
from tests.support.launching import Parts, device_path, evaluator, supervised, warnings
from tests.support.simulated import SimulatedGpu

ROOT = Path(__file__).parents[1]


def recorded(folder: Path, device: Any, steps: int = 2, **how: Any) -> Path:
    """A training on no GPU at all."""
    trainer = supervised(Parts(SimulatedGpu()), steps, **how)
    judge = evaluator(Parts(SimulatedGpu()), steps)
    handler = TraceHandler(folder, device=device)
    for engine in (trainer, judge):
        handler.attach(engine)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: judge.run())
    trainer.run()
    handler.close()
    return device_path(folder)


@pytest.mark.parametrize("asked", [None, False])
def test_without_a_gpu_nothing_is_made(asked: Any, tmp_path: Path, caplog: Any) -> None:
    assert not recorded(tmp_path / "run", asked).exists()
    assert not warnings(caplog)
    names = {line["id"] for line in _notes(tmp_path / "run" / "rank0.1.meta.jsonl", "process")}
    assert len(_notes(tmp_path / "run" / "rank0.1.meta.jsonl", "process")) == 1
    assert names


def _notes(meta: Path, type: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in meta.read_text().splitlines()]
    return [{"id": 0} | line for line in lines if line["type"] == type]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [(True, "'cpu'"), ("cpu", "'cpu'"), ("mps", "'mps'"), (torch.device("meta"), "'meta'"),
     ("cuda:0", "has not begun to use"), ("nonsense", "nonsense")],
)  # fmt: skip
def test_what_was_asked_for_and_cannot_be(
    asked: Any, reason: str, tmp_path: Path, caplog: Any
) -> None:
    """One line says why, however many engines run however often."""
    assert not recorded(tmp_path / "run", asked).exists()
    (line,) = warnings(caplog)
    assert reason in line


@pytest.mark.parametrize(("value", "lines"), [("0", 0), ("1", 1), ("", 0)])
def test_the_variable(
    value: str, lines: int, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRETRACE_DEVICE", value)
    assert not recorded(tmp_path / "run", None).exists()
    assert len(warnings(caplog)) == lines


@pytest.mark.parametrize("type", ["cpu", "mps"])
@pytest.mark.parametrize("asked", [None, True])
def test_the_device_of_an_engines_state(asked: Any, type: str, tmp_path: Path, caplog: Any) -> None:
    """It is believed; one without times is none."""
    engine = Engine(lambda engine, batch: batch)
    engine.state.device = torch.device(type)  # type: ignore[attr-defined]
    handler = TraceHandler(tmp_path / "run", device=asked)
    handler.attach(engine)
    engine.run([1, 2])
    handler.close()
    assert not device_path(tmp_path / "run").exists()
    assert [repr(type) in line for line in warnings(caplog)] == [True] * bool(asked)


def simulate_meta() -> None:
    """In this process, what is on the device ``meta`` is on a simulated GPU."""
    gpu = SimulatedGpu()

    class Found:
        @staticmethod
        def find(torch: Any, index: int) -> tuple[SimulatedGpu, str]:
            return gpu, ""

    accelerator.KINDS["meta"] = Found  # type: ignore[assignment]


def test_a_device_is_found_by_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plain engine's device is where its model is; another asked for by name is that one."""
    monkeypatch.setattr(accelerator, "KINDS", dict(accelerator.KINDS))
    simulate_meta()
    for name, asked, there in (("a", None, True), ("b", "meta", True), ("c", False, False)):
        model = torch.nn.Linear(2, 2, device="meta" if name == "a" else "cpu")
        engine = Engine(lambda engine, batch: None)
        handler = TraceHandler(tmp_path / name, device=asked)
        handler.attach(engine, model=model)
        engine.run([1, 2])
        handler.close()
        assert device_path(tmp_path / name).exists() == there


PROGRAM = """\
import torch
from ignite.engine import Engine
from tests.test_device_choice import simulate_meta
simulate_meta()
engine = Engine(lambda engine, batch: None)
engine.state.device = torch.device("meta")
engine.run([1, 2])
"""


@pytest.mark.parametrize("words", [[], ["--no-device"]])
def test_the_commands_option(words: list[str], tmp_path: Path) -> None:
    """``firetrace run --no-device`` records none."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "firetrace.tui.cli", "run", "-q", "-o", str(tmp_path / "run"),
         *words, str(tmp_path / "program.py")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "rank0.1.rows").exists()
    assert device_path(tmp_path / "run").exists() == (not words)
