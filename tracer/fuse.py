"""Carries a connection to the store of a job, and cuts it when an answer takes too long.

torch's own connection waits for ever (2.13: whatever its ``timeout`` says, it bounds neither the
greeting nor an answer), and a daemon thread that comes back from there while the interpreter ends
aborts the process: ``terminate called without an active exception``.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait

MOST_BYTES = 2**16


class Fuse:
    """A port of this host that leads to another one, for a single connection.

    Args:
        host: whom to connect to.
        port: of it.
        patience_s: how long that and the first answers may take, together; a later one a third.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, host: str, port: int, patience_s: float) -> None:
        self._until, self._patience_s = time.monotonic() + patience_s, patience_s
        self._far = socket.create_connection((host, port), patience_s)
        try:
            self._door = socket.create_server(("127.0.0.1", 0), backlog=1)
        except OSError:
            self._far.close()
            raise
        self.port = int(self._door.getsockname()[1])
        self._cut, self._told = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="firetrace-store", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        near = None
        try:
            near = self._let_in()
            if near is not None:
                self._carry(near)
        except OSError:
            pass  # whoever asks sees that the connection is gone
        finally:
            for each in (near, self._far, self._told):
                if each is not None:
                    each.close()

    def _let_in(self) -> socket.socket | None:
        try:
            ready = wait([self._door, self._told], self._patience_s / 3)
            return self._door.accept()[0] if self._door in ready else None
        finally:
            self._door.close()

    def _carry(self, near: socket.socket) -> None:
        until: float | None = None  # an answer has to be there
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = wait([near, self._far, self._told], left)
            if not ready or self._told in ready:
                return
            for one, other in ((near, self._far), (self._far, near)):
                if one in ready:
                    data = one.recv(MOST_BYTES)
                    if not data:
                        return
                    other.sendall(data)
                    soon = time.monotonic() + self._patience_s / 3
                    until = max(self._until, soon) if one is near else None

    def blow(self) -> None:
        """Cut the connection; whoever waits for an answer gets an error."""
        with suppress(OSError):
            self._cut.close()
        if self._thread is not threading.current_thread():
            self._thread.join(1)
