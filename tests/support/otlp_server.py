"""OTLP receivers in this process, for tests of what is really sent over the wire.

Both are built on the official protobuf services, listen on a free loopback port while their
``with`` block lasts, and keep what they accept::

    with OtlpHttpServer(fail_first=2) as server:
        export_to(server.endpoint)
    assert [received.span.name for received in server.spans()] == ["run"]
"""

from __future__ import annotations

import gzip
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

# None of these three ships types.
import grpc  # type: ignore[import-untyped]
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span
    from typing_extensions import Self

TRACES_PATH = "/v1/traces"
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}


class ReceivedSpan(NamedTuple):
    """A span with what OTLP sends once for many: its resource's attributes and its scope."""

    resource: dict[str, object]
    scope: InstrumentationScope
    span: Span


class OtlpServer(ABC):
    """What the receivers share: turning requests down at first, keeping those accepted later."""

    endpoint: str
    """The URL to give to an exporter."""

    def __init__(self, fail_first: int, retry_after: int | None) -> None:
        self._lock = threading.Lock()
        self._failures_left = fail_first
        self._retry_after = retry_after
        self._rejected: list[ExportTraceServiceRequest] = []
        self._accepted: list[tuple[ExportTraceServiceRequest, dict[str, str]]] = []

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        """The requests accepted so far."""
        with self._lock:
            return [request for request, _ in self._accepted]

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of each accepted request (gRPC: its metadata), their names in lower case."""
        with self._lock:
            return [headers for _, headers in self._accepted]

    @property
    def rejected(self) -> list[ExportTraceServiceRequest]:
        """The requests that were answered with the error status."""
        with self._lock:
            return list(self._rejected)

    def spans(self) -> list[ReceivedSpan]:
        """Every span accepted so far, in order of arrival."""
        return [
            ReceivedSpan(attributes(resource_spans.resource.attributes), scope_spans.scope, span)
            for request in self.requests
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    @abstractmethod
    def close(self) -> None:
        """Stop answering; what was received stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(
        self, request: ExportTraceServiceRequest, headers: Iterable[tuple[str, str | bytes]]
    ) -> bool:
        """Keep a request; False if it is one of the first and has to be turned down."""
        with self._lock:
            if self._failures_left > 0:
                self._failures_left -= 1
                self._rejected.append(request)
                return False
            self._accepted.append((request, {name.lower(): str(value) for name, value in headers}))
            return True


class OtlpHttpServer(OtlpServer):
    """Receives OTLP over HTTP (binary protobuf).

    The first ``fail_first`` requests are answered with ``status``, and with ``retry_after`` in
    seconds as the wait to ask for: 0 spares a test the exporters' back-off of a second and more,
    None leaves it to them.
    """

    def __init__(self, fail_first: int = 0, status: int = 503, retry_after: int | None = 0) -> None:
        super().__init__(fail_first, retry_after)
        self._status = status
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_HttpHandler, self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}{TRACES_PATH}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},  # close() waits for a poll
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering; what was received stays."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a POST; header names are in lower case."""
        decode = DECODERS.get(headers.get("content-encoding", "identity"))
        if path != TRACES_PATH:
            return 404, {}, b""
        if decode is None or headers.get("content-type") != "application/x-protobuf":
            return 415, {}, b""
        try:
            request = ExportTraceServiceRequest.FromString(decode(body))
        except (DecodeError, OSError, zlib.error):
            return 400, {}, b""
        if self._accept(request, headers.items()):
            response = ExportTraceServiceResponse().SerializeToString()
            return 200, {"Content-Type": "application/x-protobuf"}, response
        wait = {} if self._retry_after is None else {"Retry-After": str(self._retry_after)}
        return self._status, wait, b""


class _HttpHandler(BaseHTTPRequestHandler):
    def __init__(self, receiver: OtlpHttpServer, *connection: Any) -> None:
        self._receiver = receiver
        super().__init__(*connection)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answer_headers, answer = self._receiver.answer(self.path, headers, body)
        self.send_response(status)
        for name, value in {**answer_headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output quiet."""


class OtlpGrpcServer(OtlpServer):
    """Receives OTLP over gRPC.

    The options are those of ``OtlpHttpServer``, but ``status`` is a ``grpc.StatusCode``.
    """

    def __init__(
        self,
        fail_first: int = 0,
        status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        retry_after: int | None = 0,
    ) -> None:
        super().__init__(fail_first, retry_after)
        self._status = status
        self._workers = ThreadPoolExecutor()
        self._server = grpc.server(self._workers)
        # generated code, untyped
        add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _GrpcServicer(self), self._server
        )
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        """Stop answering; what was received stays."""
        self._server.stop(grace=None).wait()
        self._workers.shutdown()

    def answer(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Answer one call of the trace service."""
        if not self._accept(request, context.invocation_metadata()):
            if self._retry_after is not None:
                wait = RetryInfo(retry_delay=Duration(seconds=self._retry_after))
                context.set_trailing_metadata(
                    [("google.rpc.retryinfo-bin", wait.SerializeToString())]
                )
            context.abort(self._status, "turned down by the test")
        return ExportTraceServiceResponse()


class _GrpcServicer(TraceServiceServicer):
    def __init__(self, receiver: OtlpGrpcServer) -> None:
        self._receiver = receiver

    def Export(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        return self._receiver.answer(request, context)


def attributes(key_values: Iterable[KeyValue]) -> dict[str, object]:
    """OTLP attributes (of a resource, a span, an event, a link) as plain Python values."""
    return {key_value.key: _plain(key_value.value) for key_value in key_values}


def _plain(value: AnyValue) -> object:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_plain(item) for item in value.array_value.values]
        case "kvlist_value":
            return attributes(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)
