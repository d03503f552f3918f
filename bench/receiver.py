"""An OTLP receiver that takes everything: a process of its own, on loopback.

``plain`` only answers. ``timing`` reads each request and keeps, for every span, how long after its
end it arrived.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as a Collector's do
    server: _Server

    def do_POST(self) -> None:
        """Take a request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.note(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(HTTPServer):
    def __init__(self, timing: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.timing = timing
        self.lags: list[tuple[float, float]] = []  # seconds: when it arrived, how late

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes is no error."""

    def note(self, body: bytes) -> None:
        """Keep what is measured."""
        if not self.timing:
            return
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        now = time.time_ns()
        request = ExportTraceServiceRequest.FromString(body)
        self.lags += [
            (now / 1e9, (now - span.end_time_unix_nano) / 1e9)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def _serve(pipe: Connection, timing: bool) -> None:
    sys.stderr.close()
    server = _Server(timing)
    server.timeout = 0.05
    pipe.send(server.server_port)
    while not pipe.poll():
        server.handle_request()
    pipe.send(server.lags)


class Receiver:
    """A running receiver: where it is, and what it has seen."""

    def __init__(self, port: int, pipe: Connection) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._pipe = pipe

    def lags(self) -> list[tuple[float, float]]:
        """End it. Returns when each span arrived and how long after its end, in seconds."""
        self._pipe.send(None)
        found: list[tuple[float, float]] = self._pipe.recv()
        return found


@contextmanager
def receiver(timing: bool = False) -> Iterator[Receiver]:
    """Start a receiver, and stop it."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs, timing), daemon=True)
    process.start()
    try:
        yield Receiver(ours.recv(), ours)
    finally:
        process.kill()
        process.join()
