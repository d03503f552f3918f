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


#: Runs the program in a fork for each folder; what every ignite imports is imported once.
EACH = """
import os, sys
import torch.distributed.optim
program, *folders = sys.argv[1:]
for folder in folders:
    if os.fork() == 0:
        for number, name in (1, "out"), (2, "error"):
            os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
        sys.path.insert(0, folder)
        assert "ignite" not in sys.modules
        exec(program, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)  # Python takes a second to clear up after torch
    os.wait()
"""


def run(*folders: Path) -> list[dict[str, Any]]:
    """What the program prints with the ignite in each folder, or if none is there, the usual."""
    subprocess.run([sys.executable, "-c", EACH, PROGRAM, *map(str, folders)], check=True)
    found = []
    for folder in folders:
        error = (folder / "error").read_text()
        assert "Traceback" not in error, error[-3000:]
        assert "stopped recording" not in error
        found.append(json.loads((folder / "out").read_text()))
    return found


def test_the_release_is_the_one_that_is_meant() -> None:
    """``make versions`` really tests the release that it names."""
    assert ignite.__version__ == os.environ.get("IGNITE_VERSION", ignite.__version__)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRETRACE_DIR", str(tmp_path_factory.mktemp("runs")))
        return run(tmp_path_factory.mktemp("usual"))[0]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By the private part that has another name: what the program prints with such an ignite."""
    folders = [tmp_path_factory.mktemp("other") for _ in PRIVATE]
    for missing, folder in zip(PRIVATE, folders, strict=True):
        shutil.copytree(Path(ignite.__file__).parent, folder / "ignite")
        changed = 0
        for file in (folder / "ignite").rglob("*.py"):
            if missing in (text := file.read_text()):
                file.write_text(text.replace(missing, "_other" + missing))
                changed += 1
        assert changed, missing
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRETRACE_DIR", str(tmp_path_factory.mktemp("runs")))
        return dict(zip(PRIVATE, run(*folders), strict=True))


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
    missing: str, usual: dict[str, Any], others: dict[str, dict[str, Any]]
) -> None:
    """The program runs as ever, and its events are recorded: only details can be less."""
    found = others[missing]
    assert (found["seen"], found["iteration"]) == (usual["seen"], usual["iteration"])
    assert names(found) == names(usual)
    assert ["run", "exception"] in found["spans"]
