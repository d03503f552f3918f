"""A program in a pseudo-terminal: what it paints, with the time at which that could be read.

The text that comes back has no escape sequences: those that only colour are dropped, those that
move the cursor become line ends, so that what was painted in one go is one line. Textual paints
only what has changed, so a marker to wait for must be something that is painted at once.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from bench.environment import POOLS
from bench.memory import private_mb
from bench.process import SampleError

COLUMNS, LINES = 120, 40
COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
COMMANDS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_=>]")


def plain(data: bytes) -> str:
    """Terminal output as text: see the module."""
    return COMMANDS.sub("\n", COLOURS.sub("", data.decode("utf-8", "replace")))


@dataclass
class Paint:
    """What was read at once. ``at``: seconds since the epoch, as journals count."""

    at: float
    data: bytes


@dataclass
class Terminal:
    """Starts the program at once; use it as a context, which ends the program."""

    words: Sequence[str]
    painted: list[Paint] = field(default_factory=list)  #: since ``forget``
    began: float = field(default=0.0, init=False)  #: just before the process was made

    def __post_init__(self) -> None:
        """Start the program."""
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in POOLS}  # a user's has none
        environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.began = time.time()
        self._process = subprocess.Popen(
            self.words, stdin=inner, stdout=inner, stderr=inner, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(inner)

    def __enter__(self) -> Terminal:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """End the program."""
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def _read(self, seconds: float) -> bool:
        """Wait for output for so long. Return whether there was any."""
        if not select.select([self._fd], [], [], max(0.0, seconds))[0]:
            return False
        at = time.time()
        try:
            self.painted.append(Paint(at, os.read(self._fd, 1 << 16)))
        except OSError:  # what Linux says when nobody has the other end any more
            raise SampleError(f"{' '.join(self.words)} ended:\n{self.text()[-2000:]}") from None
        return True

    def text(self) -> str:
        """Everything since ``forget``."""
        return plain(b"".join(paint.data for paint in self.painted))

    def forget(self) -> None:
        """Begin anew with what is painted from now on."""
        self.painted.clear()

    def wait_for(self, marker: str, seconds: float = 30) -> float:
        """When this pattern had been painted since ``forget``, as seconds since the epoch.

        Raises:
            SampleError: it was not painted in so many seconds, or the program has ended.
        """
        at = self.wait_until(lambda text: bool(re.search(marker, text)), seconds)
        if at is None:
            raise SampleError(f"{marker!r} was not painted:\n{self.text()[-2000:]}")
        return at

    def wait_until(self, holds: Callable[[str], bool], seconds: float = 30) -> float | None:
        """When this came to hold of all that was painted since ``forget``, as ``wait_for``.

        Returns:
            Seconds since the epoch; None: it does not after so many seconds.

        Raises:
            SampleError: the program has ended.
        """
        deadline = time.time() + seconds
        while not holds(self.text()):
            left = deadline - time.time()
            if left <= 0 or not self._read(left):
                return None
        return self.painted[-1].at

    def watch(self, seconds: float) -> None:
        """Take in what is painted for so long."""
        deadline = time.time() + seconds
        while (left := deadline - time.time()) > 0:
            self._read(left)

    def settle(self, quiet_s: float, most_s: float) -> float:
        """Wait until nothing has been painted for a while. Return when the last of it was."""
        deadline = time.time() + most_s
        while time.time() < deadline and self._read(quiet_s):
            pass
        return self.painted[-1].at if self.painted else time.time()

    def type(self, keys: str) -> float:
        """Press keys, on a clean slate. Return when."""
        self.watch(0)
        self.forget()
        at = time.time()
        os.write(self._fd, keys.encode())
        return at

    def cpu_seconds(self) -> float:
        """User and system time of all of the program's threads, in steps of 10 ms."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def private_mb(self) -> float:
        """Memory that the program shares with no other, in MB (10^6 bytes)."""
        return private_mb(self._process.pid)
