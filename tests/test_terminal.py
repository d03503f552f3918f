from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
ROOT = Path(__file__).parents[1]


class Terminal:
    """A shell in a tmux of its own: what is typed into it, and what it shows."""

    def __init__(self, socket: Path, columns: int, lines: int) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", os.devnull]
        size = ["-x", str(columns), "-y", str(lines)]
        shell = ["env", "PS1=$ ", "TERM=tmux-256color", "sh"]
        self._run("new-session", "-d", *size, *shell)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def type(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(lines))

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def modes(self) -> str:
        """Alternate screen, cursor visible, mouse wanted: ``0 1 0`` in a plain shell."""
        return self._run(
            "display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}"
        )

    def until(self, condition: Callable[[str], object]) -> str:
        deadline = time.monotonic() + 60
        while not condition(shown := self.screen()):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return shown

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path / "tmux", 120, 36)
    yield terminal
    terminal.close()


def train() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import tests.support.recordings as r; r.train_slowly()"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def training() -> Iterator[subprocess.Popen[bytes]]:
    """A training that goes on until the test is over."""
    process = train()
    yield process
    process.kill()
    process.wait()


def epoch(shown: str) -> int:
    found = re.search(r"epoch (\d+)/", shown.splitlines()[0])
    return int(found[1]) if found else 0


def test_watches_a_training_in_a_real_terminal(
    terminal: Terminal, training: subprocess.Popen[bytes], own_folders: Path
) -> None:
    """The app waits, follows the training, and ``q`` leaves the terminal as it was."""
    program = "from firetrace.tui.session import watch; raise SystemExit(watch(None))"
    terminal.type(f"{sys.executable} -c '{program}'; echo left with $?", "Enter")
    shown = terminal.until(lambda shown: "● RUN" in shown and "(open " in shown)
    first = epoch(shown)
    later = terminal.until(lambda shown: epoch(shown) > first)
    assert "FOLLOW" in later
    assert "get_batch" in later
    assert terminal.modes().startswith("1 ")
    terminal.type("q")
    shown = terminal.until(lambda shown: "left with 0" in shown)
    assert "watch(None)" in shown  # what was there before is there again
    assert "RUN" not in shown
    assert terminal.modes().strip() == "0 1 0"
    assert training.poll() is None


def test_says_in_a_line_why_it_cannot_show_a_run(terminal: Terminal, tmp_path: Path) -> None:
    """What is no journal: exit code 1, and one line behind the app."""
    path = tmp_path / "rank0.1.rows"
    path.write_bytes(bytes(5000))
    program = f'from firetrace.tui.session import watch; raise SystemExit(watch("{path}"))'
    terminal.type(f"clear; {sys.executable} -c '{program}'; echo left with $?", "Enter")
    shown = terminal.until(lambda shown: "left with 1" in shown)
    assert "not a firetrace journal" in shown.replace("\n", "")
    assert "Traceback" not in shown


def test_a_training_that_is_killed_and_started_again(
    terminal: Terminal, training: subprocess.Popen[bytes], own_folders: Path
) -> None:
    """Attached to it, the app says that it died; it goes on to the next one, at any size."""
    command = Path(sys.executable).with_name("firetrace")
    terminal.type(f"{command} watch; echo left with $?", "Enter")
    terminal.until(lambda shown: "● RUN" in shown and "step p50" in shown)
    terminal.resize(60, 15)
    terminal.until(lambda shown: "● RUN" in shown and "Timeline" in shown and "Phases" not in shown)
    terminal.resize(160, 50)
    terminal.until(lambda shown: "Slowest steps" in shown and "CPU" in shown)
    training.kill()
    training.wait()
    shown = terminal.until(lambda shown: "✖ DIED" in shown)
    assert "(open " in shown
    again = train()
    try:
        terminal.until(lambda shown: "● RUN" in shown and "FOLLOW" in shown)
        terminal.type("q")
        terminal.until(lambda shown: "left with 0" in shown)
        assert terminal.modes().strip() == "0 1 0"
        assert again.poll() is None
    finally:
        again.kill()
        again.wait()


PROGRAM = """
import sys, time
from pathlib import Path
from ignite.engine import Engine, Events
trainer = Engine(lambda engine, batch: time.sleep(0.01))
@trainer.on(Events.ITERATION_COMPLETED(every=10))
def tell(engine):
    print(f"\\r\\x1b[32miteration {engine.state.iteration}\\x1b[0m", end="", flush=True)
@trainer.on(Events.EPOCH_COMPLETED)
def look(engine):
    if Path(__file__).with_name("enough").exists():
        engine.terminate()
try:
    trainer.run(range(100), max_epochs=100)
except KeyboardInterrupt:
    print("\\ninterrupted")
    sys.exit(3)
print("\\nall done", sys.stdin.isatty(), sys.stdout.isatty())
"""


@pytest.fixture
def program(tmp_path: Path, own_folders: Path) -> str:
    """A command that runs a program under the app, until there is a file ``enough`` beside it."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    return f"clear; {Path(sys.executable).with_name('firetrace')} run --watch {script}"


def test_a_program_under_the_app_gets_ctrl_c(terminal: Terminal, program: str) -> None:
    """Its output is in a pane, Ctrl-C is its own, and its exit code is the command's."""
    terminal.type(f"{program}; echo left with $?", "Enter")
    terminal.until(lambda shown: "● RUN" in shown and re.search(r"Output.*iteration", shown, re.S))
    terminal.type("C-c")
    terminal.until(lambda shown: "■ ENDED" in shown and "interrupted" in shown)
    terminal.type("q")
    shown = terminal.until(lambda shown: "left with 3" in shown)
    assert "interrupted" in shown
    assert terminal.modes().strip() == "0 1 0"


def test_a_program_outlives_the_app_that_it_ran_under(
    terminal: Terminal, program: str, tmp_path: Path
) -> None:
    """After ``q`` its output goes on in the plain terminal, to its end."""
    terminal.type(f"{program}; echo left with $?", "Enter")
    terminal.until(lambda shown: "● RUN" in shown)
    terminal.type("q")
    terminal.until(lambda shown: "the program goes on" in shown)
    (tmp_path / "enough").touch()
    shown = terminal.until(lambda shown: "left with 0" in shown)
    assert "see it with: firetrace watch " in shown.replace("\n", "")
    assert "all done True True" in shown
    assert terminal.modes().strip() == "0 1 0"


def test_whoever_ends_the_app_gets_the_terminal_back(
    terminal: Terminal, training: subprocess.Popen[bytes], tmp_path: Path, own_folders: Path
) -> None:
    """A SIGTERM leaves the terminal as ``q`` does."""
    command, told = Path(sys.executable).with_name("firetrace"), tmp_path / "pid"
    terminal.type(f"sh -c 'echo $$ >{told}; exec {command} watch'; echo left with $?", "Enter")
    terminal.until(lambda shown: "● RUN" in shown)
    os.kill(int(told.read_text()), signal.SIGTERM)
    terminal.until(lambda shown: "left with 143" in shown)
    assert terminal.modes().strip() == "0 1 0"
    assert training.poll() is None


def test_it_ends_when_its_terminal_is_gone(tmp_path: Path) -> None:
    """Also where nobody tells it so by a signal: it reads from nothing, and must not go on."""
    ours, its = pty.openpty()
    app = subprocess.Popen(
        [sys.executable, "-m", "firetrace.tui.cli", "watch", str(tmp_path / "to come")],
        stdin=its, stdout=its, stderr=its, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(its)
    assert os.read(ours, 1)
    os.close(ours)
    assert app.wait(60) in (128 + signal.SIGHUP, 1)
