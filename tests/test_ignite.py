"""Which ignite it is: every release from 0.5.0 on, and ones whose private parts have other names.

``make versions`` runs this file and others with each release.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ignite
import pytest

#: The private names of ignite that the recording uses.
PRIVATE = (
    "_fire_event", "_event_handlers", "_internal_run", "_setup_dataloader_iter",
    "_process_function", "_parent", "_allowed_events", "_internal_run_generator",
)  # fmt: skip

PROGRAM = """
import json, sys
from ignite.engine import Engine, EventEnum, Events
from firetrace import TraceHandler

class Own(EventEnum):
    LONELY = "lonely"
    HALF_STARTED = "half started"
    HALF_COMPLETED = "half completed"

def step(engine, batch):
    engine.fire_event(Own.HALF_STARTED)
    engine.fire_event(Own.LONELY)
    engine.fire_event(Own.HALF_COMPLETED)
    return batch

engine = Engine(step)
engine.register_events(*Own)
seen = []
engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda: seen.append("second"))
engine.add_event_handler(Own.LONELY, lambda engine: seen.append(engine.state.iteration))
before = {name: list(held) for name, held in engine.__dict__.items() if isinstance(held, dict)}
handler = TraceHandler()
handler.attach(engine)
state = engine.run([1, 2, 3], max_epochs=2)
failing = Engine(lambda engine, batch: 1 / 0)
handler.attach(failing)
try:
    failing.run([1])
except ZeroDivisionError:
    seen.append("raised")
handler.detach()
engine.run([1, 2], max_epochs=3)
paused = Engine(lambda engine, batch: seen.append("turn"))
paused.add_event_handler(Events.ITERATION_COMPLETED(once=2), paused.interrupt)
handler.attach(paused)
paused.run([1, 2, 3])
paused.run([1, 2, 3])
spans = [(span.name, span.attributes.get("ignite.cut")) for span in handler.spans()]
json.dump({"seen": seen, "iteration": state.iteration, "spans": spans}, sys.stdout)
"""


def run(folder: Path | None, environment: dict[str, str]) -> dict[str, Any]:
    """What the program prints with the ignite in this folder (None: the installed one)."""
    paths = [str(folder) if folder else "", os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True,
        env={**os.environ, **environment, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stopped recording" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_release_is_the_one_that_is_meant() -> None:
    """``make versions`` really tests the release that it names."""
    assert ignite.__version__ == os.environ.get("IGNITE_VERSION", ignite.__version__)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(None, {"FIRETRACE_DIR": str(tmp_path_factory.mktemp("runs"))})


def names(found: dict[str, Any]) -> list[str]:
    """The spans that do not depend on how handlers are seen."""
    handlers = ("lambda", "Engine.interrupt", "loader")
    return [name for name, _ in found["spans"] if not any(word in name for word in handlers)]


def test_the_usual_ignite(usual: dict[str, Any]) -> None:
    """Handlers are told apart, whichever release it is."""
    spans = [name for name, _ in usual["spans"]]
    turns = [1, 2, "second", 3, 4, "second", 5, 6, "second", "raised", 7, 8, "second", 9]
    turns += ["turn"] * 3
    assert usual["seen"] == turns
    assert spans.count("step") == 10
    assert spans.count("LONELY") == spans.count("half") == 6
    assert len([name for name in spans if "lambda" in name]) == 12


@pytest.mark.parametrize("missing", PRIVATE)
def test_a_private_part_that_has_another_name(
    missing: str, usual: dict[str, Any], tmp_path: Path
) -> None:
    """The program runs as ever, and its events are recorded: only details can be less."""
    shutil.copytree(
        Path(ignite.__file__).parent, tmp_path / "ignite", ignore=shutil.ignore_patterns("*.pyc")
    )
    changed = 0
    for file in (tmp_path / "ignite").rglob("*.py"):
        text = file.read_text()
        changed += text.count(missing)
        file.write_text(text.replace(missing, "_other" + missing))
    assert changed
    found = run(tmp_path, {})
    assert (found["seen"], found["iteration"]) == (usual["seen"], usual["iteration"])
    assert names(found) == names(usual)
    assert ["run", "exception"] in found["spans"]
