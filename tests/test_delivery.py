"""OTLP from a journal to a backend that is not always well: nothing lost, nothing claimed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from firetrace.exporters.otlp.delivery import Cursor, CursorError, Delivery, deliver
from firetrace.exporters.otlp.protobuf import Batch
from firetrace.exporters.otlp.sender import Sender, Sent, connect
from firetrace.exporters.otlp.transport import http_answer
from firetrace.tracer.ids import span_ids
from firetrace.tracer.reader import Position
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tui.cli import main
from tests.support.otlp_faults import Fault, Hang, LoseAnswer, Partial, Refuse, ResetMidBody
from tests.support.otlp_server import OtlpGrpcServer, OtlpHttpServer, OtlpServer
from tests.support.random_journal import RandomJournal
from tests.support.recordings import record, record_killed
from tests.support.tls import TlsLine

HTTP, GRPC = "http/protobuf", "grpc"
PROTOCOLS = pytest.mark.parametrize("protocol", [HTTP, GRPC], ids=["http", "grpc"])
BUSY, REFUSED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def journal() -> Path:
    """Some 2,300 spans: three batches."""
    return open_run(record(epochs=3, steps=50)).newest


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20")
    monkeypatch.setattr("firetrace.exporters.otlp.sender.FIRST_WAIT_S", 0.1)


def server_of(protocol: str, *faults: Fault | None, **how: Any) -> OtlpServer:
    kind = OtlpHttpServer if protocol == HTTP else OtlpGrpcServer
    return kind(faults=faults, **how)


def sender_to(server: OtlpServer, protocol: str, **how: Any) -> Sender:
    endpoint = server.endpoint.removesuffix("/v1/traces")
    return Sender(connect(protocol, endpoint), **how)


def ids_of(journal: Path) -> set[int]:
    table = read_table(journal)
    return set(span_ids(table.header.seed, table.numbers).tolist())


def received_by(server: OtlpServer) -> Counter[int]:
    return Counter(int.from_bytes(item.span.span_id, "big") for item in server.spans())


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter gives up soon what it would itself try again; an answer has to be as soon."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5")


TROUBLES: dict[str, tuple[str, list[Fault | None]]] = {
    "429 with Retry-After": (HTTP, [Refuse(429, retry_after=1), Refuse(429, retry_after=0)]),
    "503": (HTTP, [Refuse(503), None, Refuse(503)]),
    "Retry-After longer than the timeout": (HTTP, [Refuse(503, retry_after=2)]),
    "reset in mid-body": (HTTP, [ResetMidBody(), None, ResetMidBody()]),
    "lost answer": (HTTP, [None, LoseAnswer()]),
    "hangs": (HTTP, [Hang()]),
    "hangs but keeps": (HTTP, [Hang(keep=True)]),
    "gRPC unavailable": (GRPC, [Refuse(BUSY), None, Refuse(BUSY)]),
    "gRPC exhausted with RetryInfo": (
        GRPC, [Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=1)],
    ),
    "gRPC reset": (GRPC, [ResetMidBody(), None, ResetMidBody()]),
    "gRPC lost answer": (GRPC, [None, LoseAnswer()]),
    "gRPC hangs": (GRPC, [Hang()]),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLES)
def test_what_passes_is_waited_for(
    journal: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """Everything arrives; twice only what a backend had taken without being able to say so."""
    protocol, faults = TROUBLES[name]
    if "hangs" in name or "timeout" in name:
        request.getfixturevalue("short_timeout")
    with server_of(protocol, *faults) as server:
        sender = sender_to(server, protocol)
        sent = deliver(journal, sender)
        sender.close()
        received = received_by(server)
    assert not server.script
    assert set(received) == ids_of(journal)
    assert (sent.accepted, sent.rejected, sent.unsent) == (len(received), 0, 0)
    twice = sum(received.values()) - len(received)
    assert (twice > 0) == ("lost" in name or "keeps" in name)
    assert twice <= 2048


@PROTOCOLS
def test_a_partial_success_is_counted(journal: Path, protocol: str) -> None:
    """What the backend did not take of a batch is no success, and its reason is passed on."""
    with server_of(protocol, None, Partial(3, "too old")) as server:
        sent = deliver(journal, sender_to(server, protocol))
        received = received_by(server)
    assert (sent.rejected, sent.reasons) == (3, ["too old"])
    assert len(received) + sent.rejected == len(ids_of(journal))
    assert not sent.complete


@PROTOCOLS
def test_a_refused_batch_is_named(journal: Path, protocol: str) -> None:
    """The ids received and those reported as rejected are the ids recorded."""
    bad = Refuse(400 if protocol == HTTP else REFUSED, message="no such thing")
    with server_of(protocol, None, bad) as server:
        sent = deliver(journal, sender_to(server, protocol))
        received = received_by(server)
    assert set(received) | set(sent.rejected_ids) == ids_of(journal)
    assert not set(received) & set(sent.rejected_ids)
    assert sent.rejected == len(sent.rejected_ids) > 0
    assert "no such thing" in sent.reasons[0]


@PROTOCOLS
def test_a_backend_that_refuses_everything_is_left_alone(journal: Path, protocol: str) -> None:
    """Wrong credentials, or three refusals: the rest is not tried, and counts as not sent."""
    denied = Refuse(401 if protocol == HTTP else grpc.StatusCode.UNAUTHENTICATED)
    bad = Refuse(400 if protocol == HTTP else REFUSED)
    moved = [[Refuse(302)]] if protocol == HTTP else []
    for faults in ([denied], [bad] * 3, *moved):
        with server_of(protocol, *faults) as server:
            sender = sender_to(server, protocol)
            sent = deliver(journal, sender)
            assert sender.gave_up
            assert not server.spans()
            assert len(server.rejected) == len(faults)
            assert sent.accepted == 0


@PROTOCOLS
def test_a_batch_that_is_too_large_is_divided(journal: Path, protocol: str) -> None:
    """A 413, or gRPC's limit on a message, is met with smaller batches, down to single spans."""
    with server_of(protocol, max_bytes=60_000) as server:
        sent = deliver(journal, sender_to(server, protocol))
        assert set(received_by(server)) == ids_of(journal)
    assert sent.complete


@pytest.mark.usefixtures("short_timeout")
def test_patience_has_an_end(journal: Path) -> None:
    """A backend that stays down: the sender gives up in time and says how it is."""
    with OtlpHttpServer() as server:
        server.stop()
        told: list[str] = []
        sender = sender_to(server, HTTP, patience_s=0.5, told=told.append)
        sent = deliver(journal, sender)
    assert sent.accepted == 0
    assert "Connection refused" in sent.reasons[0]
    assert any("trying again in" in line for line in told)


@PROTOCOLS
def test_a_backend_comes_back(
    journal: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was down when the sending began; when it is back, everything arrives once."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "4")  # it gives up before
    with server_of(protocol) as server:
        server.stop()
        timer = threading.Timer(3.7, server.start)
        timer.start()
        sent = deliver(journal, sender_to(server, protocol))
        timer.join()
        received = received_by(server)
    assert set(received) == ids_of(journal)
    assert sum(received.values()) == len(received) == sent.accepted


def test_a_date_is_a_retry_after_too() -> None:
    """``Retry-After`` may be a date; nonsense in it is no reason to fail."""
    for said, wait in (("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("nonsense", None), ("2.5", 2.5)):
        assert http_answer(503, "", {"Retry-After": said}, b"").retry_after_s == wait


@PROTOCOLS
def test_tls_headers_and_compression(
    journal: Path, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard variables: an authority of one's own, headers, gzip, and gzip switched off."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret,x-team=lab")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with server_of(protocol) as server:
        port = int(server.endpoint.removesuffix("/v1/traces").rpartition(":")[2])
        with TlsLine(port, tmp_path) as line:
            with monkeypatch.context() as patch:
                patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5")
                untrusting = Sender(connect(protocol, line.endpoint), patience_s=0)
            assert deliver(journal, untrusting).accepted == 0
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(line.authority))
            sent = deliver(journal, Sender(connect(protocol, line.endpoint)))
            assert sent.complete
            (first, *_) = server.headers
            assert (first["x-key"], first["x-team"]) == ("secret", "lab")
            if protocol == HTTP:
                assert first["content-encoding"] == "gzip"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        assert deliver(journal, sender_to(server, protocol)).complete
        assert "content-encoding" not in server.headers[-1]


@pytest.mark.usefixtures("short_timeout")
@pytest.mark.parametrize(
    ("name", "value"), [("COMPRESSION", "squeeze"), ("CERTIFICATE", "/nowhere/ca.pem")]
)
def test_settings_that_cannot_be(
    journal: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One line and exit code 1, no traceback."""
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    words = ["--protocol", "grpc", "--endpoint", "https://localhost:1", "--patience", "0s"]
    assert main(["export", "--to", "otlp", *words, str(journal)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("firetrace: ")


# Going on where it stopped


class Stopping(Sender):
    """Gives up after so many batches, as if it were killed before the answer was noted."""

    left = 3

    def send(self, batch: Batch) -> bool:
        done = super().send(batch)
        self.left -= 1
        return done and self.left >= 0


@pytest.mark.parametrize("left", [0, 1, 2])
def test_it_goes_on_at_its_cursor(journal: Path, left: int) -> None:
    """At most one batch is sent twice, and nothing is missing, wherever it was stopped."""
    with OtlpHttpServer() as server:
        first = Stopping(connect(HTTP, server.endpoint))
        first.left = left
        cursor = Cursor(journal)
        delivery = Delivery(journal, first, cursor)
        assert not delivery.once()
        cursor.close()
        cursor = Cursor(journal)
        delivery = Delivery(journal, sender_to(server, HTTP), cursor)
        assert delivery.once()
        assert delivery.rest()
        cursor.close()
        received = received_by(server)
        assert set(received) == ids_of(journal)
        assert sum(received.values()) - len(received) <= 1024
        assert len(server.requests) <= 5
        cursor = Cursor(journal)
        assert cursor.done
        assert cursor.sent >= len(received) - 1024
        cursor.close()


def test_a_cursor_of_another_journal_counts_for_nothing(journal: Path) -> None:
    """Its file was left where a new run is recorded."""
    cursor = Cursor(journal)
    cursor.write(Position(99, {}, []), Sent(accepted=5), done=True)
    cursor.close()
    path = cursor.path
    path.write_text(path.read_text().replace('"journal": "', '"journal": "0'))
    cursor = Cursor(journal)
    assert (cursor.position, cursor.done, cursor.sent) == (None, False, 0)
    cursor.close()


def test_two_do_not_send_the_same_journal(journal: Path) -> None:
    """The cursor is locked while it is in use; a damaged one says so."""
    code = (
        "import sys; from pathlib import Path\n"
        "from firetrace.exporters.otlp.delivery import Cursor\n"
        "Cursor(Path(sys.argv[1])); print('locked', flush=True); input()"
    )
    import subprocess
    import sys

    with subprocess.Popen(
        [sys.executable, "-c", code, str(journal)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(CursorError, match="another process is sending it"):
            Cursor(journal)
        other.communicate("\n")
    journal.with_suffix(".otlp.json").write_text("{]")
    with pytest.raises(CursorError, match="damaged"):
        Cursor(journal)


# The command


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpHttpServer]:
    """A backend that the standard variables name."""
    with OtlpHttpServer() as server:
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", server.endpoint.removesuffix("/v1/traces")
        )
        yield server


def test_the_command_says_what_was_rejected(
    journal: Path, endpoint: OtlpHttpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and one line with the counts and the backend's words."""
    endpoint.play(None, Refuse(400, message="too late"))
    assert main(["export", "--to", "otlp", str(journal)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "spans sent and acknowledged" in said
    assert "rejected" in said
    assert "too late" in said


def test_the_command_resumes(journal: Path, endpoint: OtlpHttpServer) -> None:
    """``--resume`` sends everything once; a second one finds nothing to do."""
    assert main(["export", "--to", "otlp", "--resume", str(journal)]) == 0
    assert main(["export", "--to", "otlp", "--resume", str(journal)]) == 0
    received = received_by(endpoint)
    assert set(received) == ids_of(journal)
    assert sum(received.values()) == len(received)


def test_a_killed_run_is_sent_with_what_was_open(endpoint: OtlpHttpServer) -> None:
    """What was open is marked incomplete and ends with the last that is known."""
    journal = open_run(record_killed()).newest
    table = read_table(journal)
    assert main(["export", "--to", "otlp", str(journal)]) == 0
    spans = endpoint.spans()
    assert len(spans) == len(table)
    incomplete = [
        item.span for item in spans
        if any(each.key == "ignite.incomplete" for each in item.span.attributes)
    ]  # fmt: skip
    assert {"run", "epoch", "step", "iteration"} <= {span.name for span in incomplete}
    assert {span.end_time_unix_nano for span in incomplete} == {table.last_ns()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--to", "otlp", "--follow", "--errors"], ["--to", "otlp", "--resume", "--to-epoch", "2"],
        ["--to", "chrome", "--endpoint", "http://x"], ["--to", "chrome", "--split", "run"],
        ["--to", "otlp", "-o", "x"], ["--to", "otlp", "--from-epoch", "3", "--to-epoch", "2"],
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(
    journal: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line that says why."""
    assert main(["export", *arguments, str(journal)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_batches_are_bounded_in_bytes(tmp_path: Path, endpoint: OtlpHttpServer) -> None:
    """Spans with long texts make small batches: none over 4 MiB, which gRPC servers refuse."""
    random = RandomJournal(tmp_path, 1)
    random.write(3000)
    for row in sorted(random.ended)[:600]:
        random.writer.note("attributes", row=row, attributes={"text": "x" * 20_000})
    random.close()
    assert main(["export", "--to", "otlp", str(random.path)]) == 0
    sizes = [request.ByteSize() for request in endpoint.requests]
    assert max(sizes) < 4 * 2**20
    assert sum(sizes) > 11 * 2**20
    assert set(received_by(endpoint)) == ids_of(random.path)
