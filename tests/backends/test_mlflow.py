"""A real MLflow tracking server takes what ``firetrace export`` sends and gives it back."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from firetrace.exporters.devices import DURATION
from firetrace.exporters.spans import journal_spans
from firetrace.tracer.ids import span_id
from firetrace.tracer.run import open_run
from tests.backends.conftest import Export, free_port, program, serving
from tests.support.device_exports import expected, of_device
from tests.support.launching import read as read_both

HEADERS = {"OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment-id=0"}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server with a database of its own; its URL."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [
        program("mlflow", "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1",
        "--default-artifact-root", str(folder / "artifacts"),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with serving(command, folder, f"{url}/health", QUIET):
        yield url


def read(url: str, spans: list[ReadableSpan]) -> list[dict[str, Any]]:
    """The spans of the same traces, as MLflow's own client reads them from the server."""
    traces = sorted({f"{span.context.trace_id:032x}" for span in spans if span.context})
    done = subprocess.run(
        [program("mlflow", "python"), str(Path(__file__).with_name("read_mlflow.py")), *traces],
        env={**os.environ, "MLFLOW_TRACKING_URI": url, **QUIET},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def as_mlflow_says(span: ReadableSpan) -> dict[str, Any]:
    """A span of the journal in the words of ``read_mlflow``."""
    assert span.context
    return {
        "trace": f"{span.context.trace_id:032x}",
        "id": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        "name": span.name,
        "start": span.start_time,
        "end": span.end_time,
        "status": span.status.status_code.name,
        "message": span.status.description or "",
        "attributes": plain(span.attributes),
        "events": [
            {"name": event.name, "time": event.timestamp, "attributes": plain(event.attributes)}
            for event in span.events
        ],
        "links": [
            [f"{to.context.trace_id:032x}", f"{to.context.span_id:016x}", plain(to.attributes)]
            for to in span.links
        ],
        "tags": {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in span.resource.attributes.items()
            if not key.startswith("telemetry.sdk.")  # which MLflow leaves out
        },
    }


def plain(attributes: Any) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (attributes or {}).items()
    }


def without_its_own(read: dict[str, Any]) -> dict[str, Any]:
    """What was read, without the attributes and tags that MLflow adds."""
    kept = {
        part: {key: value for key, value in read[part].items() if not key.startswith("mlflow.")}
        for part in ("attributes", "tags")
    }
    return {**read, **kept}


@pytest.mark.parametrize(("name", "compression"), [("long_run", "gzip"), ("rough_run", "none")])
def test_mlflow_has_every_span_exactly(
    name: str, compression: str, server: str, export: Export, request: pytest.FixtureRequest
) -> None:
    """Times to the nanosecond, attributes, errors, links, resource; sent twice it is there once."""
    run: Path = request.getfixturevalue(name)
    spans = list(journal_spans(open_run(run).newest))
    variables = {**HEADERS, "OTEL_EXPORTER_OTLP_COMPRESSION": compression}
    for _ in range(2):
        export(run, server, "http/protobuf", **variables)
    got = sorted(map(without_its_own, read(server, spans)), key=identity)
    expected = sorted(map(as_mlflow_says, spans), key=identity)
    assert list(map(identity, got)) == list(map(identity, expected))
    for ours, theirs in zip(expected, got, strict=True):
        assert theirs == ours


def test_mlflow_has_device_time(device_run: Path, server: str, export: Export) -> None:
    """What the device took for each phase, as the device journal says it; and which it was."""
    found = read_both(device_run)
    spans = list(journal_spans(open_run(device_run).newest))
    export(device_run, server, "http/protobuf", **HEADERS)
    got = list(map(without_its_own, read(server, spans)))
    seed = found.main.header.seed
    wanted = {f"{span_id(seed, row):016x}": about for row, about in expected(found).items()}
    assert sum(DURATION in about for about in wanted.values()) > 50
    assert len(got) == len(spans)
    said = {each["id"]: of_device(each["attributes"]) for each in got}
    assert {id: about for id, about in said.items() if about} == wanted
    assert {each["tags"]["hw.model"] for each in got} == {"Simulated"}


def identity(span: dict[str, Any]) -> tuple[str, str]:
    return span["trace"], span["id"]
