from __future__ import annotations

import os
import re
import shutil
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
            [*self._tmux, *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout

    def type(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def modes(self) -> str:
        """Alternate screen, cursor visible, mouse wanted: ``0 1 0`` in a plain shell."""
        return self._run(
            "display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}"
        )

    def until(self, condition: Callable[[str], object]) -> str:
        deadline = time.monotonic() + 20
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


@pytest.fixture
def training() -> Iterator[subprocess.Popen[bytes]]:
    """A training that goes on until the test is over."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import tests.support.recordings as r; r.train_slowly()"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
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
    program = "from firetrace.tui.app import watch; raise SystemExit(watch(None))"
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
    program = f'from firetrace.tui.app import watch; raise SystemExit(watch("{path}"))'
    terminal.type(f"clear; {sys.executable} -c '{program}'; echo left with $?", "Enter")
    shown = terminal.until(lambda shown: "left with 1" in shown)
    assert "not a firetrace journal" in shown.replace("\n", "")
    assert "Traceback" not in shown
