"""Start-up: what the command loads before it does anything, and how long that takes.

Importing the command's module and ``firetrace --help`` may load neither torch nor textual: a
login node has no torch, and a script that only exports should not wait for a user interface.
The times are wall times of whole processes, alternating, and have no bar.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.result import Bar, Row, median, ratio_bounds, times
from bench.settings import Progress, Settings

SUBJECT = "start-up: a new process"
HEAVY = ("torch", "textual")
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import firetrace.tui.cli": ("-c", "import firetrace.tui.cli"),
    "firetrace --help": ("-m", "firetrace.tui.cli", "--help"),
    "import torch": ("-c", "import torch"),
}


def loaded(*arguments: str) -> set[str]:
    """The top-level modules that a Python process imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def seconds(*arguments: str) -> float:
    """Wall seconds of a whole Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Look at what is loaded, then at the time."""
    ours = ("import firetrace.tui.cli", "firetrace --help")
    rows = []
    for name in ours:
        found = sorted(loaded(*COMMANDS[name]).intersection(HEAVY))
        said = ", ".join(found) if found else "neither torch nor textual"
        rows.append(Row(SUBJECT, f"{name}: heavy modules", said, bar=Bar(0), figure=len(found)))
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for index in range(settings.starts):
        progress(f"start-up: round {index + 1} of {settings.starts}")
        for name, arguments in COMMANDS.items():
            samples[name].append(seconds(*arguments))
    for name in ours:
        for peer in ("python -c pass", "import torch"):
            ratio, _, high = ratio_bounds(samples[name], samples[peer])
            rows.append(
                Row(
                    SUBJECT, name, milli(samples[name]), f"{peer}: {milli(samples[peer])}",
                    f"{times(ratio)} (<= {times(high)})",
                    samples={name: samples[name], peer: samples[peer]},
                )
            )  # fmt: skip
    return rows


def milli(values: list[float]) -> str:
    """The median, in ms."""
    return f"{median(values) * 1e3:,.0f} ms"
