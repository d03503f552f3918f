"""Two ranks of one training send to one real backend at the same time, and all of both is there.

Directly, and as on a cluster through one process that collects from all ranks: Rotel, a collector
that PyPI has, where it is installed beside the backends. The OpenTelemetry Collector has no package
there nor in Debian; tests/test_collector_sample.py checks what can be checked of its configuration.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from firetrace.exporters.spans import journal_spans
from firetrace.tracer.run import open_run
from tests.backends import test_mlflow
from tests.backends.conftest import ENVIRONMENTS, Export, free_port, program, serving
from tests.backends.test_mlflow import HEADERS, as_mlflow_says, identity, read, without_its_own

RANKS = 2
TRAINING = """
import sys
from ignite.engine import Engine, Events
from firetrace import TraceHandler

trainer = Engine(lambda engine, batch: 1 / batch)
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: None)
handler = TraceHandler(directory=sys.argv[1])
handler.attach(trainer, output_transform=lambda output: {"loss": output})
trainer.run(range(1, 41), max_epochs=3)
handler.close()
"""
ROTEL = """
import os, sys
from pathlib import Path
import rotel

agent = str(Path(rotel.__file__).with_name("rotel-agent"))
os.execv(agent, [agent, "start", *sys.argv[1:]])
"""
server = test_mlflow.server
has_rotel = pytest.mark.skipif(
    not (ENVIRONMENTS and Path(program("rotel", "python")).exists()), reason="no Rotel installed"
)


@pytest.fixture(scope="module")
def rotel(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Rotel in front of the server; where it listens for gRPC."""
    folder = tmp_path_factory.mktemp("rotel")
    grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    headers = HEADERS["OTEL_EXPORTER_OTLP_HEADERS"]
    command = [
        program("rotel", "python"), "-c", ROTEL,
        "--otlp-grpc-endpoint", grpc, "--otlp-http-endpoint", http,
        "--exporter", "otlp", "--otlp-exporter-protocol", "http",
        "--otlp-exporter-endpoint", server, "--otlp-exporter-custom-headers", headers,
        "--pid-file", str(folder / "pid"), "--log-file", str(folder / "agent.log"),
    ]  # fmt: skip
    with serving(command, folder, f"{server}/health", {}):  # who sends waits for Rotel itself
        yield f"http://{grpc}"


def train(directory: Path, **variables: str) -> dict[int, Path]:
    """Train in several processes at a time, as torchrun starts them. Returns journals by rank."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(directory)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(RANKS), **variables},
        )
        for rank in range(RANKS)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0] * RANKS
    journals = open_run(directory).ranks
    assert sorted(journals) == list(range(RANKS))
    return journals


def send(journals: dict[int, Path], export: Export, endpoint: str, protocol: str) -> None:
    """``firetrace export`` for each rank, all at the same time."""
    with ThreadPoolExecutor(RANKS) as pool:
        sent = [
            pool.submit(export, journal, endpoint, protocol, **HEADERS)
            for journal in journals.values()
        ]
        for each in sent:
            each.result()


def spans_of(journals: dict[int, Path]) -> list[ReadableSpan]:
    return [span for journal in journals.values() for span in journal_spans(journal)]


def assert_all_there(server: str, journals: dict[int, Path]) -> None:
    """The server has every span of every rank, once and exactly, and knows which is whose."""
    spans = spans_of(journals)
    got = sorted(map(without_its_own, read(server, spans)), key=identity)
    expected = sorted(map(as_mlflow_says, spans), key=identity)
    assert list(map(identity, got)) == list(map(identity, expected))
    for ours, theirs in zip(expected, got, strict=True):
        assert theirs == ours
    for rank, journal in journals.items():
        own = {as_mlflow_says(span)["id"] for span in journal_spans(journal)}
        tags = [span["tags"] for span in got if span["id"] in own]
        assert len(tags) == len(own)
        assert {(each["ignite.rank"], each["ignite.world_size"]) for each in tags} == {
            (str(rank), str(RANKS))
        }
    (run,) = {span["tags"]["ignite.run.id"] for span in got}
    assert run == next(iter(journals.values())).parent.name


def test_ranks_that_are_sent_at_the_same_time(server: str, export: Export, tmp_path: Path) -> None:
    """``firetrace export --to otlp`` for each rank's journal, to one backend."""
    journals = train(tmp_path / "run")
    send(journals, export, server, "http/protobuf")
    assert_all_there(server, journals)


def test_ranks_that_send_while_they_train(server: str, tmp_path: Path) -> None:
    """Each rank's relay sends to the same backend, as soon as spans end."""
    journals = train(
        tmp_path / "run",
        FIRETRACE_OTLP="1",
        FIRETRACE_OTLP_WAIT="100",  # seconds; by the end of the training all is there
        OTEL_EXPORTER_OTLP_ENDPOINT=server,
        **HEADERS,
    )
    assert_all_there(server, journals)


@has_rotel
def test_ranks_through_one_collector(
    rotel: str, server: str, export: Export, tmp_path: Path
) -> None:
    """Every rank sends to one collector by gRPC, which sends on what it got from all by HTTP."""
    journals = train(tmp_path / "run")
    send(journals, export, rotel, "grpc")
    wait_for_them(server, journals)
    assert_all_there(server, journals)


def wait_for_them(server: str, journals: dict[int, Path]) -> None:
    """A collector acknowledges what it has not sent on yet."""
    spans = spans_of(journals)
    give_up = time.monotonic() + 60
    while len(read(server, spans)) < len(spans) and time.monotonic() < give_up:
        time.sleep(0.5)
