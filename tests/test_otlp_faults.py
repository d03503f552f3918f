"""The OTLP receivers of the tests fail as they are told to, as real backends and networks do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import NamedTuple
from urllib.parse import urlsplit

# None of these three ships types.
import grpc  # type: ignore[import-untyped]
import pytest
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext

from tests.support.otlp_faults import (
    Fault,
    Hang,
    LoseAnswer,
    Partial,
    Refuse,
    ResetMidBody,
)
from tests.support.otlp_server import OtlpGrpcServer, OtlpHttpServer, OtlpServer

both_protocols = pytest.mark.parametrize("protocol", ["http", "grpc"])
# The names of four spans that one request carries, in two scopes.
NAMES = ["run", "epoch", "step", "forward"]
FOUR = ExportTraceServiceRequest(
    resource_spans=[
        ResourceSpans(
            scope_spans=[
                ScopeSpans(spans=[Span(name=name) for name in NAMES[first : first + 2]])
                for first in (0, 2)
            ]
        )
    ]
)
UNANSWERED = "unanswered"


def scripted(
    protocol: str, *faults: Fault | None, max_bytes: int | None = None
) -> OtlpHttpServer | OtlpGrpcServer:
    """Start a receiver that plays these faults."""
    kind = OtlpHttpServer if protocol == "http" else OtlpGrpcServer
    return kind(faults=faults, max_bytes=max_bytes)


class Answer(NamedTuple):
    """What a client without any retries gets for a request."""

    status: object  #: of HTTP, or the name of gRPC's; or UNANSWERED
    retry_after: str | None = None
    said: str = ""
    response: ExportTraceServiceResponse | None = None


def post(
    server: OtlpServer, request: ExportTraceServiceRequest = FOUR, timeout: float = 30
) -> Answer:
    """Send one request, once."""
    if isinstance(server, OtlpGrpcServer):
        return call(server, request, timeout)
    connection = HTTPConnection(urlsplit(server.endpoint).netloc, timeout=timeout)
    try:
        connection.request(
            "POST", "/v1/traces", request.SerializeToString(),
            {"content-type": "application/x-protobuf"},
        )  # fmt: skip
        got = connection.getresponse()
        body, wait = got.read(), got.headers.get("Retry-After")
    except OSError:
        return Answer(UNANSWERED)
    finally:
        connection.close()
    if got.status == 200:
        return Answer(200, wait, response=ExportTraceServiceResponse.FromString(body))
    return Answer(got.status, wait, Status.FromString(body).message)


def call(server: OtlpServer, request: ExportTraceServiceRequest, timeout: float) -> Answer:
    """Send one request by gRPC."""
    # Else it shares the back-off of an earlier connection to this address that failed.
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(urlsplit(server.endpoint).netloc, options=alone) as channel:
        try:
            stub = TraceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            return Answer("OK", response=stub.Export(request, timeout=timeout))
        except grpc.RpcError as error:
            name, said = error.code().name, error.details()
            for key, value in error.trailing_metadata() or ():
                if key == "google.rpc.retryinfo-bin":
                    delay = RetryInfo.FromString(value).retry_delay
                    return Answer(name, f"{delay.ToMilliseconds() / 1000:g}", said)
    by_the_server = said in ("not now", Refuse.message)
    if name == "DEADLINE_EXCEEDED" or (name == "UNAVAILABLE" and not by_the_server):
        return Answer(UNANSWERED)
    return Answer(name, None, said)


def kept(server: OtlpServer) -> list[str]:
    return [received.span.name for received in server.spans()]


@pytest.mark.parametrize(
    ("protocol", "status", "name"),
    [
        ("http", 429, 429),
        ("http", 503, 503),
        ("http", 400, 400),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
        ("grpc", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
@pytest.mark.parametrize("wait", [None, 1.5])
def test_receiver_refuses_with_any_status(
    protocol: str, status: object, name: object, wait: float | None
) -> None:
    """The answer has the status, the text and the wait of the script, and nothing is kept."""
    with scripted(protocol, Refuse(status, wait, "not now")) as server:
        assert post(server) == Answer(name, None if wait is None else "1.5", "not now")
        assert server.rejected == [FOUR]
        assert kept(server) == []


@both_protocols
def test_receiver_plays_its_script_and_then_behaves(protocol: str) -> None:
    """One fault a request, in order, None is a request taken, and more can be added later."""
    status = 503 if protocol == "http" else grpc.StatusCode.UNAVAILABLE
    refused = 503 if protocol == "http" else "UNAVAILABLE"
    taken = 200 if protocol == "http" else "OK"
    script = [Refuse(status), None, LoseAnswer()]
    with scripted(protocol, *script) as server:
        assert server.script == script
        answers = [post(server).status for _ in range(4)]
        assert answers == [refused, taken, UNANSWERED, taken]
        assert server.script == []
        server.play(Refuse(status))
        assert [post(server).status for _ in range(2)] == [refused, taken]
        assert kept(server) == NAMES * 4


@both_protocols
@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_receiver_takes_a_part_of_a_request(protocol: str, count: int) -> None:
    """The answer says how many spans were rejected and why; the others are kept, the rest not."""
    with scripted(protocol, Partial(count, "too old")) as server:
        response = post(server).response
        assert response is not None
        said = response.partial_success
        assert (said.rejected_spans, said.error_message) == (count, "too old")
        assert kept(server) == NAMES[count:]
        [rejected] = server.rejected
        assert [
            span.name
            for scope in rejected.resource_spans[0].scope_spans
            for span in scope.spans
        ] == NAMES[:count]  # fmt: skip
        plain = post(server).response
        assert plain is not None
        assert not plain.HasField("partial_success")


@both_protocols
@pytest.mark.parametrize("keep", [False, True])
def test_receiver_hangs_until_the_client_gives_up(protocol: str, keep: bool) -> None:
    """No answer comes within the client's patience; whether the spans are kept is the script's."""
    with scripted(protocol, Hang(keep)) as server:
        assert post(server, timeout=2) == Answer(UNANSWERED)
        assert kept(server) == (NAMES if keep else [])
        assert post(server).response is not None


@both_protocols
def test_receiver_that_hangs_can_be_stopped(protocol: str) -> None:
    """A client that waits for an answer is cut off, and stopping does not wait for it."""
    with scripted(protocol, Hang()) as server, ThreadPoolExecutor() as threads:
        waiting = threads.submit(post, server, timeout=200)
        while not server.rejected:
            time.sleep(0.01)
        assert not waiting.done()
        server.stop()
        assert waiting.result(30) == Answer(UNANSWERED)


@both_protocols
@pytest.mark.parametrize("size", [1, 20_000_000])
def test_receiver_resets_in_the_middle_of_a_body(protocol: str, size: int) -> None:
    """The client sees a reset, be its body small or still on the way, and nothing is kept."""
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(name="a" * size)])])]
    )
    with scripted(protocol, ResetMidBody(), max_bytes=2 * size + 1000) as server:
        assert post(server, request) == Answer(UNANSWERED)
        assert (server.requests, server.rejected, server.script) == ([], [], [])
        assert post(server, request).response is not None
        assert server.requests == [request]


@both_protocols
def test_receiver_loses_an_answer(protocol: str) -> None:
    """The client sees a reset, and the spans are there: sent again, they are there twice."""
    with scripted(protocol, LoseAnswer()) as server:
        assert post(server) == Answer(UNANSWERED)
        assert kept(server) == NAMES
        assert post(server).response is not None
        assert kept(server) == NAMES * 2


@both_protocols
def test_receiver_refuses_what_is_too_large(protocol: str) -> None:
    """Requests up to the limit arrive; a byte more is refused, and takes nothing off the script."""
    size = FOUR.ByteSize()
    larger = 413 if protocol == "http" else "RESOURCE_EXHAUSTED"
    with scripted(protocol, Partial(1), max_bytes=size) as server:
        assert post(server).response is not None
        assert kept(server) == NAMES[1:]
    with scripted(protocol, Partial(1), max_bytes=size - 1) as server:
        assert post(server).status == larger
        assert (server.requests, server.rejected, server.script) == ([], [], [Partial(1)])


@both_protocols
def test_receiver_goes_down_and_comes_back(protocol: str) -> None:
    """Stopped it refuses connections, started again it answers at the same endpoint."""
    with scripted(protocol) as server:
        endpoint = server.endpoint
        assert post(server).response is not None
        server.stop()
        assert post(server) == Answer(UNANSWERED)
        server.start()
        assert server.endpoint == endpoint
        assert post(server).response is not None
        assert kept(server) == NAMES * 2
    server.close()
    assert post(server) == Answer(UNANSWERED)


@both_protocols
def test_exporters_get_over_it(protocol: str) -> None:
    """The official exporters try again after a reset and a lost answer, and are told of success."""
    span = ReadableSpan("step", SpanContext(1, 2, is_remote=False), start_time=1, end_time=2)
    with scripted(protocol, ResetMidBody(), LoseAnswer()) as server:
        http = isinstance(server, OtlpHttpServer)
        kind: type[SpanExporter] = HttpSpanExporter if http else GrpcSpanExporter
        exporter = kind(endpoint=server.endpoint)  # type: ignore[call-arg]
        assert exporter.export([span]) is SpanExportResult.SUCCESS
        exporter.shutdown()
        assert kept(server) == ["step", "step"]
