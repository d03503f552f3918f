"""The relay: a process that tails a journal and sends its spans by OTLP as they end.

Started by ``firetrace.tracer.relay`` as a process of its own, with the rows file's path. It ends
when the training has ended, however that was, and everything is sent, or when the backend has not
been there for ``FIRETRACE_OTLP_LINGER`` seconds after that (600 by default); then ``firetrace
export --resume`` sends the rest. What it has to say goes to ``<journal>.otlp.log``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

LINGER_S = 600.0
LOG_BYTES = 256 * 1024
BUSY = 3  # exit code: somebody else sends this journal


def main(arguments: list[str]) -> int:
    """Become a relay. The calling process ends at once, when the relay holds its lock."""
    journal = Path(arguments[0])
    ready, told = os.pipe()
    if os.fork():
        os.close(told)
        answer = os.read(ready, 1)
        os._exit(0 if answer == b"1" else BUSY)
    os.close(ready)
    from firetrace.tracer.lock import lock_path, take_lock

    try:
        lock = take_lock(lock_path(journal))
    except OSError:
        return BUSY
    os.write(told, b"1")
    os.close(told)
    try:
        os.nice(5)
    except OSError:
        pass
    return _relay(journal, lock)


def _relay(journal: Path, lock: int) -> int:
    import gc
    import logging
    import signal
    import threading
    import time
    from logging.handlers import RotatingFileHandler

    from firetrace.tracer.files import open_own

    class OwnFile(RotatingFileHandler):
        """A log file that is neither a link to another file nor a pipe, or else no log."""

        def _open(self) -> Any:
            # The mode is always "a".
            fd = open_own(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            return open(fd, self.mode, encoding="utf-8", errors="replace")

    log_file = OwnFile(
        journal.with_suffix(".otlp.log"), maxBytes=LOG_BYTES, backupCount=1, delay=True
    )
    logging.basicConfig(
        handlers=[log_file], level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # ours says the same, once
    log = logging.getLogger("firetrace.relay")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        from firetrace.exporters.otlp.delivery import Cursor, Delivery
        from firetrace.exporters.otlp.sender import Sender, connect

        waiting = [0.0, -1.0]  # since when the training is over and nothing is taken; taken then

        def told(line: str) -> None:
            log.warning(line)
            if delivery.alive or sender.sent.accepted != waiting[1]:
                waiting[:] = time.monotonic(), sender.sent.accepted
            elif time.monotonic() - waiting[0] > _linger():
                stop.set()

        gc.freeze()  # spans hold no cycles, so there is little to collect
        gc.set_threshold(100_000, 50, 100)
        cursor = Cursor(journal, lock)
        sender = Sender(connect(), patience_s=None, told=told, stop=stop)
        delivery = Delivery(journal, sender, cursor)
        finished = delivery.follow(stop)
        sender.close()
        if sender.sent.rejected:
            log.error("%d spans were rejected: %s", sender.sent.rejected, sender.sent.reasons)
        if not finished:
            log.error("not everything was sent; 'firetrace export --resume' sends the rest")
        return 0 if finished else 1
    except Exception:
        log.exception("the relay has failed; 'firetrace export --resume' sends the rest")
        return 1


def _linger() -> float:
    try:
        return float(os.environ.get("FIRETRACE_OTLP_LINGER", LINGER_S))
    except ValueError:
        return LINGER_S
