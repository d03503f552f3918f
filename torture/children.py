"""Children that a subject watches from outside, while they train."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from bench.process import SampleError

PATIENCE_S = 120


def await_child(child: int, there: Callable[[], object]) -> None:
    """Wait until a child that runs has come so far.

    Raises:
        SampleError: it has ended before, or does not come so far.
    """
    until = time.monotonic() + PATIENCE_S
    while not there():
        if has_ended(child):
            raise SampleError("the child has ended before anything was seen of it")
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            raise SampleError(f"nothing was seen of the child in {PATIENCE_S} s")
        time.sleep(0.001)


def has_ended(child: int) -> bool:
    """Whether a child has ended, without waiting for it.

    Raises:
        SampleError: it has failed; its traceback is on stderr.
    """
    pid, status = os.waitpid(child, os.WNOHANG)
    if status:
        raise SampleError(f"the child has failed (wait status {status})")
    return pid != 0
