"""Starts the process that sends a journal on while it grows, and waits for it at the end.

The relay is no child of the training's: it is started by a helper that has gone when ``start``
returns, in a session of its own, with nothing open that the training has open. So it survives the
training's death, no ``wait`` of the program's meets it, and a pipe behind the training ends when
the training does. What it does is in ``firetrace.exporters.otlp.relay``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from firetrace.tracer.lock import lock_path
from firetrace.tracer.reader import lock_is_held

#: Seconds for which the end of the training waits for the relay, unless told otherwise.
WAIT_S = 5.0
START_TIMEOUT_S = 30.0
#: Not ``-m``: what lies in the current folder, a ``random.py`` perhaps, is the training's.
PROGRAM = """\
import sys
sys.path = [each for each in sys.path if each]
from firetrace.exporters.otlp.relay import main
sys.exit(main(sys.argv[1:]))
"""


def wanted(said: bool | None) -> bool:
    """Whether there shall be a relay: as the program says, or else ``FIRETRACE_OTLP``."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if said is not None:
        return said
    return os.environ.get("FIRETRACE_OTLP", "").strip().lower() in ("1", "true", "yes", "on")


def wait_seconds(said: float | None) -> float:
    """How long to wait at the end: as the program says, or else ``FIRETRACE_OTLP_WAIT``."""
    if said is not None:
        return max(0.0, said)
    try:
        return max(0.0, float(os.environ.get("FIRETRACE_OTLP_WAIT", WAIT_S)))
    except ValueError:
        return WAIT_S


def start(journal: Path) -> None:
    """Start a relay for a journal that has just been made.

    Raises:
        OSError: it could not be started.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("this program is no Python that could run a relay")
    command, quiet = [sys.executable, "-c", PROGRAM, str(journal)], subprocess.DEVNULL
    environment = {**os.environ, "FIRETRACE_OTLP": "0"}
    helper = subprocess.Popen(
        command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True, env=environment
    )
    try:
        code = helper.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        helper.kill()
        code = helper.wait()
    if code:
        raise OSError(f"the relay did not start (exit code {code}); see {journal.parent}")


def wait(journal: Path, seconds: float) -> bool:
    """Wait for the relay to have sent everything. Returns False if it has not, by then."""
    end = time.monotonic() + seconds
    while lock_is_held(lock_path(journal)):
        if time.monotonic() >= end:
            return False
        time.sleep(0.02)
    return True
