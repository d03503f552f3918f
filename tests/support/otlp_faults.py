"""What can go wrong between an exporter and its backend, as a script for ``otlp_server``.

A server plays one fault for each request that arrives, in order, and then behaves. ``None`` in a
script is a request that it takes as it should::

    with OtlpHttpServer(faults=[Refuse(429, retry_after=1), None, LoseAnswer()]) as server:
        ...

Below are the connections at which the harder ones are played.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Refuse:
    """Answer with a status and keep nothing.

    Args:
        status: an HTTP status, or a ``grpc.StatusCode``.
        retry_after: the wait to ask for, in seconds (``Retry-After``, which may also be a date as
            text, or ``RetryInfo``). None: leave it to the exporter.
        message: what the answer says; over HTTP a ``google.rpc.Status``, as OTLP wants it.
    """

    status: Any
    retry_after: float | str | None = None
    message: str = "turned down by the test"


@dataclass(frozen=True)
class Partial:
    """Answer that so many spans, a request's first, were not taken; keep the others."""

    rejected_spans: int
    message: str = "turned down by the test"


@dataclass(frozen=True)
class Hang:
    """Read the request and never answer, until the client gives up or the server stops.

    Args:
        keep: whether the spans are kept nevertheless.
    """

    keep: bool = False


@dataclass(frozen=True)
class ResetMidBody:
    """Reset the connection when a part of the request's body has been read; keep nothing."""


@dataclass(frozen=True)
class LoseAnswer:
    """Keep the spans, and reset the connection instead of saying so."""


Fault = Refuse | Partial | Hang | ResetMidBody | LoseAnswer


def divide(
    request: ExportTraceServiceRequest, first: int
) -> tuple[ExportTraceServiceRequest, ExportTraceServiceRequest]:
    """The request with its first spans only, and with the rest only."""
    head, tail = ExportTraceServiceRequest(), ExportTraceServiceRequest()
    head.CopyFrom(request)
    tail.CopyFrom(request)
    for of_head, of_tail in zip(head.resource_spans, tail.resource_spans, strict=True):
        for scope_head, scope_tail in zip(of_head.scope_spans, of_tail.scope_spans, strict=True):
            count = min(first, len(scope_head.spans))
            del scope_head.spans[count:]
            del scope_tail.spans[:count]
            first -= count
    return head, tail


class Listener(ThreadingTCPServer):
    """A TCP server whose open connections can be broken off; its threads end when it closes."""

    allow_reuse_address = True  # it comes back on the port on which it was
    request_queue_size = 128

    def __init__(self, port: int, handler: Any) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Not the inherited one, which says a polite goodbye first: see break_off.
        self._open.discard(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a client that has gone away; what else goes wrong is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def break_all_off(self) -> None:
        """Reset every open connection."""
        for connection in list(self._open):
            break_off(connection)


def break_off(connection: socket.socket) -> None:
    """Let a connection end with a reset: at once if a thread waits for it, else when closed."""
    with contextlib.suppress(OSError):  # the client was first
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes the reader; nothing is sent


class Line(StreamRequestHandler):
    """Hands a client's HTTP/2 on to a gRPC server, which has no say over its connections.

    Args:
        port: of that server.
        clients: where the client's end is found by the port that the server sees.
        reset_comes: asked when the body of a call begins; True resets the client's connection.
    """

    PREFACE, HEADER, DATA = 24, 9, 0  # RFC 9113: sizes in bytes, and a frame's type

    def __init__(
        self,
        port: int,
        clients: dict[int, socket.socket],
        reset_comes: Callable[[], bool],
        *connection: Any,
    ) -> None:
        self._port, self._clients, self._reset_comes = port, clients, reset_comes
        super().__init__(*connection)

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            seen_as = server.getsockname()[1]
            self._clients[seen_as] = self.connection
            back = threading.Thread(target=self._hand_back, args=(server,))
            back.start()
            with contextlib.suppress(OSError):
                self._hand_on(server)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()
            del self._clients[seen_as]

    def _hand_on(self, server: socket.socket) -> None:
        server.sendall(self.rfile.read(self.PREFACE))
        while len(header := self.rfile.read(self.HEADER)) == self.HEADER:
            if header[3] == self.DATA and self._reset_comes():
                break_off(self.connection)
                return
            server.sendall(header + self.rfile.read(int.from_bytes(header[:3], "big")))

    def _hand_back(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := server.recv(65536):
                self.connection.sendall(part)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)  # the server has hung up: so does the line
