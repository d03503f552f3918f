"""Real trainings for the tests with real backends, and the backends as processes.

``make test-backends`` installs the backends, each into an environment of its own (what they depend
on conflicts), and names the folder of these in FIRETRACE_BACKENDS. Without it nothing here is
collected.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.conftest import SAMPLES

ENVIRONMENTS = os.environ.get("FIRETRACE_BACKENDS")
START_TIMEOUT = 150.0  # seconds; 10 are usual, three times as much the first time
collect_ignore_glob = [] if ENVIRONMENTS else ["test_*.py"]
logs: list[Path] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the backends have said, where a test failed."""
    report = yield
    if report.failed:
        for log in logs:
            said = log.read_text("utf-8", "replace")
            report.sections.append((f"end of {log.name}", said[-9000:]))
    return report


def program(backend: str, name: str) -> str:
    """A program of a backend's environment."""
    assert ENVIRONMENTS is not None
    return str(Path(ENVIRONMENTS).absolute() / backend / "bin" / name)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def serving(
    command: list[str], folder: Path, url: str, variables: dict[str, str]
) -> Iterator[None]:
    """Run a backend in a folder, from when it answers at an URL; nothing of it is left running."""
    log = folder / f"{folder.name}.log"
    logs.append(log)
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            give_up = time.monotonic() + START_TIMEOUT
            while not answers(url):
                assert process.poll() is None, "it has ended"
                assert time.monotonic() < give_up, "it does not answer"
                time.sleep(0.1)
            yield
        finally:
            end(process)
            logs.remove(log)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    for sign, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        give_up = time.monotonic() + patience
        try:
            os.killpg(process.pid, sign)
            while time.monotonic() < give_up:
                process.poll()
                os.killpg(process.pid, 0)  # is anyone left?
                time.sleep(0.05)
        except ProcessLookupError:
            return


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's directory of the plain ignite sample: more spans than a request or a page has."""
    return train(tmp_path_factory.mktemp("long"), SAMPLES / "ignite_trainer.py", "--epochs", "5")


@pytest.fixture(scope="session")
def rough_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's directory of a training with an interruption, an error and odd attributes."""
    return train(tmp_path_factory.mktemp("rough"), Path(__file__).with_name("rough_training.py"))


@pytest.fixture(scope="session")
def device_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's directory of a training with device time."""
    return train(tmp_path_factory.mktemp("device"), Path(__file__).with_name("device_training.py"))


def train(folder: Path, script: Path, *arguments: str) -> Path:
    variables = {"FIRETRACE_DIR": str(folder / "runs"), "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, str(script), *arguments]
    subprocess.run(command, env={**os.environ, **variables}, check=True)
    (run,) = (folder / "runs").iterdir()
    return run


Export = Callable[..., str]


@pytest.fixture
def export() -> Export:
    """Provide the command ``firetrace export``; it must succeed. Returns what it has printed."""

    def run(run: Path, endpoint: str, protocol: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "firetrace.tui.cli", "export", str(run), "--to", "otlp",
             "--endpoint", endpoint, "--protocol", protocol],
            env={**os.environ, **variables}, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run
