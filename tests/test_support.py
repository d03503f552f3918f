"""The readers that other tests rely on read what was written, and object to what is wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]  # ships no types
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from tests.support.otlp_server import OtlpGrpcServer, OtlpHttpServer, OtlpServer, attributes
from tests.support.perfetto import PerfettoTrace

REPOSITORY = Path(__file__).parent.parent
SLICES = "select name, ts, dur, depth from slice order by ts, depth"


def chrome_event(name: str, start: int, duration: int) -> str:
    """Write a complete event; both times are in nanoseconds."""
    ts, dur = ("{}.{:03}".format(*divmod(time_ns, 1000)) for time_ns in (start, duration))
    return f'{{"ph":"X","name":"{name}","ts":{ts},"dur":{dur},"pid":1,"tid":1}}'


@pytest.fixture
def write_trace(tmp_path: Path) -> Callable[..., Path]:
    """Provide a function that writes events into a Chrome trace and returns its path."""

    def write(*events: str) -> Path:
        path = tmp_path / "trace.json"
        path.write_text(f"[{','.join(events)}]")
        return path

    return write


def test_perfetto_reads_nanoseconds_and_nesting(write_trace: Callable[..., Path]) -> None:
    """Durations come back to the nanosecond, and a slice within a slice is one deeper."""
    day = 86_400_000_000_000
    path = write_trace(
        chrome_event("epoch", 0, day + 7),
        chrome_event("step", 1, 1_000_001),
        chrome_event("forward", 1_000, 999),
        chrome_event("step", day - 1, 8),
    )
    with PerfettoTrace(path) as trace:
        assert trace.sql(SLICES) == [
            {"name": "epoch", "ts": 0, "dur": day + 7, "depth": 0},
            {"name": "step", "ts": 1, "dur": 1_000_001, "depth": 1},
            {"name": "forward", "ts": 1_000, "dur": 999, "depth": 2},
            {"name": "step", "ts": day - 1, "dur": 8, "depth": 1},
        ]


def test_perfetto_objects_to_a_child_that_outlives_its_parent(
    write_trace: Callable[..., Path],
) -> None:
    """One nanosecond too long is an error with a name, unless the test asks to see the rest."""
    path = write_trace(chrome_event("parent", 0, 10_000), chrome_event("child", 1_000, 9_001))
    with pytest.raises(ValueError, match="slice_drop_overlapping_complete_event"):
        PerfettoTrace(path)
    with PerfettoTrace(path, allow_errors=True) as trace:
        assert [row["name"] for row in trace.sql(SLICES)] == ["parent"]


@pytest.mark.parametrize("content", ["no trace", '[{"ph":"X","name":}]'])
def test_perfetto_rejects_what_is_no_trace(tmp_path: Path, content: str) -> None:
    """A file that Perfetto cannot read as a trace is an error even where errors are allowed."""
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="Perfetto rejects"):
        PerfettoTrace(path, allow_errors=True)


def test_perfetto_needs_node(
    write_trace: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without node the error says so."""
    path = write_trace(chrome_event("run", 0, 1))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"needs Node\.js"):
        PerfettoTrace(path)


def test_trace_processor_ends_with_the_process_that_started_it() -> None:
    """A trace processor whose parent was killed stops by itself."""
    program = (
        "import time\n"
        "from tests.support.perfetto import trace_processor\n"
        "with trace_processor() as address:\n"
        "    print(address, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as parent:
        assert parent.stdout is not None
        host, port = parent.stdout.readline().strip().split(":")
        assert accepts_connections(host, int(port))
        parent.kill()
    give_up = time.monotonic() + 30
    while accepts_connections(host, int(port)):
        assert time.monotonic() < give_up, "it goes on without its parent"
        time.sleep(0.01)


def accepts_connections(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


SPAN = ReadableSpan(
    name="step",
    context=SpanContext(trace_id=1, span_id=2, is_remote=False),
    resource=Resource({"service.name": "training", "process.command_args": ["train.py", "--fast"]}),
    attributes={"ignite.epoch": 3, "loss": 0.5},
    instrumentation_scope=InstrumentationScope("firetrace", "1"),
    start_time=1_700_000_000_000_000_001,
    end_time=1_700_000_000_000_000_002,
)


def serve(protocol: str, fail_first: int = 0, retryable: bool = True) -> OtlpServer:
    """Start a receiver whose failures are to be tried again, or are final."""
    if protocol == "http":
        return OtlpHttpServer(fail_first, 503 if retryable else 400)
    codes = grpc.StatusCode
    return OtlpGrpcServer(fail_first, codes.UNAVAILABLE if retryable else codes.INVALID_ARGUMENT)


def send(server: OtlpServer, compressed: bool = False) -> SpanExportResult:
    """Send `SPAN` by the official exporter."""
    exporter: SpanExporter
    headers = {"x-tenant": "lab"}
    if isinstance(server, OtlpHttpServer):
        compression = Compression.Gzip if compressed else Compression.NoCompression
        exporter = HttpSpanExporter(server.endpoint, headers=headers, compression=compression)
    else:
        compression = grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression
        exporter = GrpcSpanExporter(server.endpoint, headers=headers, compression=compression)
    try:
        return exporter.export([SPAN])
    finally:
        exporter.shutdown()


both_protocols = pytest.mark.parametrize("protocol", ["http", "grpc"])


@both_protocols
@pytest.mark.parametrize("compressed", [False, True])
def test_receiver_hands_over_what_was_sent(protocol: str, compressed: bool) -> None:
    """A span arrives with its times, attributes, scope, resource and request headers."""
    with serve(protocol) as server:
        assert send(server, compressed) is SpanExportResult.SUCCESS
    [(resource, scope, span)] = server.spans()
    assert resource == {
        "service.name": "training",
        "process.command_args": ["train.py", "--fast"],
    }
    assert (scope.name, scope.version) == ("firetrace", "1")
    assert span.name == "step"
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (SPAN.start_time, SPAN.end_time)
    assert attributes(span.attributes) == {"ignite.epoch": 3, "loss": 0.5}
    assert [headers["x-tenant"] for headers in server.headers] == ["lab"]
    if protocol == "http":
        assert server.headers[0].get("content-encoding", "none") == (
            "gzip" if compressed else "none"
        )


@both_protocols
def test_receiver_accepts_after_its_first_failures(protocol: str) -> None:
    """An exporter that tries again gets through, and its span is there once."""
    with serve(protocol, fail_first=2) as server:
        assert send(server) is SpanExportResult.SUCCESS
    assert server.rejected == [server.requests[0]] * 2
    assert [received.span.name for received in server.spans()] == ["step"]


@both_protocols
def test_receiver_can_refuse_for_good(protocol: str) -> None:
    """A status that is not to be retried makes the exporter fail at once, and nothing arrives."""
    with serve(protocol, fail_first=1, retryable=False) as server:
        assert send(server) is SpanExportResult.FAILURE
    assert len(server.rejected) == 1
    assert server.spans() == []


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/metrics", {}, 404),
        ("/v1/traces", {"content-type": "application/json"}, 415),
        ("/v1/traces", {"content-encoding": "br"}, 415),
        ("/v1/traces", {"content-encoding": "gzip"}, 400),
        ("/v1/traces", {}, 400),
    ],
)
def test_http_receiver_is_strict(path: str, headers: dict[str, str], status: int) -> None:
    """What is not OTLP in binary protobuf at the right path is refused with the fitting status."""
    with OtlpHttpServer() as server:
        connection = HTTPConnection(urlsplit(server.endpoint).netloc)
        defaults = {"content-type": "application/x-protobuf"}
        connection.request("POST", path, b"\xffnonsense", {**defaults, **headers})
        assert connection.getresponse().status == status
        connection.close()
    assert server.requests == []
