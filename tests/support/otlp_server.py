"""OTLP receivers in this process, for tests of what is really sent over the wire.

Both are built on the official protobuf services, listen on a free loopback port while their
``with`` block lasts, and keep what they accept::

    with OtlpHttpServer(fail_first=2) as server:
        export_to(server.endpoint)
    assert [received.span.name for received in server.spans()] == ["run"]

What else can go wrong on the way is scripted by the faults of ``otlp_faults``, and a server can
``stop`` and ``start`` again at the same endpoint.
"""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, NamedTuple

# None of these ships types.
import grpc  # type: ignore[import-untyped]
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.support.otlp_faults import (
    Fault,
    Hang,
    Line,
    Listener,
    LoseAnswer,
    Partial,
    Refuse,
    ResetMidBody,
    break_off,
    divide,
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
PROTOBUF = "application/x-protobuf"


class ReceivedSpan(NamedTuple):
    """A span with what OTLP sends once for many: its resource's attributes and its scope."""

    resource: dict[str, object]
    scope: InstrumentationScope
    span: Span


class OtlpServer:
    """What the receivers share: a port that can be closed and opened, a script, what was kept."""

    endpoint: str
    """The URL to give to an exporter."""

    def __init__(self, handler: Callable[..., Any], script: Iterable[Fault | None]) -> None:
        self._lock = threading.Lock()
        self._script = deque(script)
        self._rejected: list[ExportTraceServiceRequest] = []
        self._accepted: list[tuple[ExportTraceServiceRequest, dict[str, str]]] = []
        self._handler = handler
        self._listener: Listener | None = None
        self._port = 0
        self.start()

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        """The requests accepted so far, without the spans that a partial success left out."""
        with self._lock:
            return [request for request, _ in self._accepted]

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of each accepted request (gRPC: its metadata), their names in lower case."""
        with self._lock:
            return [headers for _, headers in self._accepted]

    @property
    def rejected(self) -> list[ExportTraceServiceRequest]:
        """The requests that were read and not kept; of a partial success the rejected spans.

        Those that were too large are not among them.
        """
        with self._lock:
            return list(self._rejected)

    @property
    def script(self) -> list[Fault | None]:
        """What is still to be played."""
        with self._lock:
            return list(self._script)

    def play(self, *faults: Fault | None) -> None:
        """Add to what is still to be played."""
        with self._lock:
            self._script.extend(faults)

    def spans(self) -> list[ReceivedSpan]:
        """Every span accepted so far, in order of arrival."""
        return [
            ReceivedSpan(attributes(resource_spans.resource.attributes), scope_spans.scope, span)
            for request in self.requests
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    def start(self) -> None:
        """Listen, again at the same endpoint if it was stopped."""
        if self._listener is None:
            self._listener = Listener(self._port, self._handler)
            self._port = self._listener.server_address[1]
            self._thread = threading.Thread(
                target=self._listener.serve_forever,
                kwargs={"poll_interval": 0.02},  # stop() waits for a poll
                daemon=True,
            )
            self._thread.start()

    def stop(self) -> None:
        """Go down: connections are refused, open ones reset. What was received stays."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown()
            listener.break_all_off()
            listener.server_close()
            self._thread.join()

    def close(self) -> None:
        """Stop answering; what was received stays."""
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset_comes(self) -> bool:
        """Whether the request whose body begins is to be reset; asking takes it off the script."""
        with self._lock:
            if self._script and isinstance(self._script[0], ResetMidBody):
                self._script.popleft()
                return True
            return False

    def _receive(
        self, request: ExportTraceServiceRequest, headers: Iterable[tuple[str, str | bytes]]
    ) -> Fault | None:
        """Keep of a request what the script lets through; what goes wrong with it, if anything."""
        names = {name.lower(): str(value) for name, value in headers}
        with self._lock:
            fault = self._script.popleft() if self._script else None
            match fault:
                case Refuse() | Hang(keep=False) | ResetMidBody():
                    self._rejected.append(request)
                case Partial(rejected_spans=count):
                    rejected, kept = divide(request, count)
                    self._rejected.append(rejected)
                    self._accepted.append((kept, names))
                case _:
                    self._accepted.append((request, names))
            return fault


def _response(fault: Fault | None) -> ExportTraceServiceResponse:
    if not isinstance(fault, Partial):
        return ExportTraceServiceResponse()
    return ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(
            rejected_spans=fault.rejected_spans, error_message=fault.message
        )
    )


class OtlpHttpServer(OtlpServer):
    """Receives OTLP over HTTP (binary protobuf).

    Args:
        fail_first: so many requests are answered with ``status`` before anything else.
        status: see ``fail_first``.
        retry_after: the wait that these ask for, in seconds: 0 spares a test the exporters'
            back-off of a second and more, None leaves it to them.
        faults: what goes wrong with the requests after these, one after the other.
        max_bytes: a larger body (as sent, maybe compressed) is answered with 413. It takes nothing
            off the script.
    """

    def __init__(
        self,
        fail_first: int = 0,
        status: int = 503,
        retry_after: int | None = 0,
        *,
        faults: Sequence[Fault | None] = (),
        max_bytes: int | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        script = [Refuse(status, retry_after)] * fail_first + list(faults)
        super().__init__(partial(_HttpHandler, self), script)
        self.endpoint = f"http://127.0.0.1:{self._port}{TRACES_PATH}"

    def answer(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | Fault:
        """Answer a POST: status, headers and body; or that there is none, for this reason.

        Header names are in lower case.
        """
        decode = DECODERS.get(headers.get("content-encoding", "identity"))
        if path != TRACES_PATH:
            return 404, {}, b""
        if decode is None or headers.get("content-type") != PROTOBUF:
            return 415, {}, b""
        if self._max_bytes is not None and len(body) > self._max_bytes:
            return 413, {}, b""
        try:
            request = ExportTraceServiceRequest.FromString(decode(body))
        except (DecodeError, OSError, zlib.error):
            return 400, {}, b""
        fault = self._receive(request, headers.items())
        said = {"Content-Type": PROTOBUF}
        match fault:
            case Refuse(status, wait, message):
                asked = {} if wait is None else {"Retry-After": str(wait)}
                return status, {**said, **asked}, Status(message=message).SerializeToString()
            case Hang() | LoseAnswer() | ResetMidBody():
                return fault
        return 200, said, _response(fault).SerializeToString()


class _HttpHandler(BaseHTTPRequestHandler):
    def __init__(self, receiver: OtlpHttpServer, *connection: Any) -> None:
        self._receiver = receiver
        super().__init__(*connection)

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        if self._receiver.reset_comes():
            self.rfile.read(size // 2)
            break_off(self.connection)
            return
        body = self.rfile.read(size)
        headers = {name.lower(): value for name, value in self.headers.items()}
        match self._receiver.answer(self.path, headers, body):
            case Hang():
                self.connection.recv(1)  # nothing more comes before one of the two hangs up
            case status, answer_headers, answer:
                self.send_response(status)
                for name, value in {**answer_headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)
            case _:
                break_off(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output quiet."""


class OtlpGrpcServer(OtlpServer):
    """Receives OTLP over gRPC.

    The options are those of ``OtlpHttpServer``, but ``status`` is a ``grpc.StatusCode``, and what
    is larger than ``max_bytes`` (without compression) is answered with RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        fail_first: int = 0,
        status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        retry_after: int | None = 0,
        *,
        faults: Sequence[Fault | None] = (),
        max_bytes: int | None = None,
    ) -> None:
        options = [("grpc.so_reuseport", 0)]  # else two servers may get the same free port
        if max_bytes is not None:
            options.append(("grpc.max_receive_message_length", max_bytes))
        self._workers = ThreadPoolExecutor()
        self._server = grpc.server(self._workers, options=options)
        # generated code, untyped
        add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _GrpcServicer(self), self._server
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._clients: dict[int, socket.socket] = {}
        line = partial(Line, port, self._clients, self.reset_comes)
        super().__init__(line, [Refuse(status, retry_after)] * fail_first + list(faults))
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """Stop answering; what was received stays."""
        super().close()
        self._server.stop(grace=None).wait()
        self._workers.shutdown()

    def answer(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Answer one call of the trace service."""
        fault = self._receive(request, context.invocation_metadata())
        match fault:
            case Refuse(status, wait, message):
                if wait is not None:
                    delay = Duration()
                    delay.FromNanoseconds(round(float(wait) * 1e9))
                    info = RetryInfo(retry_delay=delay).SerializeToString()
                    context.set_trailing_metadata([("google.rpc.retryinfo-bin", info)])
                context.abort(status, message)
            case Hang() | LoseAnswer() | ResetMidBody():
                over = threading.Event()
                waits = context.add_callback(over.set)  # False: it is over already
                if not isinstance(fault, Hang):
                    break_off(self._clients[int(context.peer().rpartition(":")[2])])
                if waits:
                    over.wait()
        return _response(fault)


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
