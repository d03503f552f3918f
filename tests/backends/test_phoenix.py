"""A real Arize Phoenix takes what ``firetrace export`` sends, by gRPC and HTTP, and gives it back.

It keeps no links and of the resource only the project. It acknowledges spans before they are in
its database, so they are waited for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from firetrace.exporters.spans import journal_spans
from firetrace.tracer.run import open_run
from tests.backends.conftest import Export, free_port, program, serving

PAGE = 500  # spans; fewer than the long run has
QUIET = {
    "PHOENIX_TELEMETRY_ENABLED": "false",
    "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    "PHOENIX_ENABLE_MCP_SERVER": "false",
    "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
}


class Phoenix(NamedTuple):
    """Where it listens."""

    http: str
    grpc: str


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    """Phoenix with a database of its own."""
    folder = tmp_path_factory.mktemp("phoenix")
    http, grpc = free_port(), free_port()
    variables = {
        "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(http), "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_WORKING_DIR": str(folder), **QUIET,
    }  # fmt: skip
    urls = Phoenix(f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}")
    with serving(
        [program("arize-phoenix", "phoenix"), "serve"], folder, f"{urls.http}/healthz", variables
    ):
        yield urls


def read(url: str, project: str) -> list[dict[str, Any]]:
    """All spans of a project, page by page."""
    spans: list[dict[str, Any]] = []
    query = {"limit": str(PAGE)}
    while True:
        try:
            with urlopen(f"{url}/v1/projects/{project}/spans?{urlencode(query)}") as response:
                page = json.load(response)
        except HTTPError as error:
            if error.code == 404:  # the project comes with its first span
                return []
            raise
        spans += page["data"]
        if not page["next_cursor"]:
            return spans
        query["cursor"] = page["next_cursor"]


def arrived(url: str, project: str, count: int) -> list[dict[str, Any]]:
    """The spans of a project once there are so many."""
    give_up = time.monotonic() + 60
    while len(spans := read(url, project)) < count and time.monotonic() < give_up:
        time.sleep(0.2)
    return spans


def as_phoenix_says(span: ReadableSpan) -> dict[str, Any]:
    """A span of the journal in the words of Phoenix, without its times."""
    assert span.context
    return {
        "name": span.name,
        "context": {
            "trace_id": f"{span.context.trace_id:032x}",
            "span_id": f"{span.context.span_id:016x}",
        },
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "status_code": span.status.status_code.name,
        "status_message": span.status.description or "",
        "attributes": plain(span.attributes),
        "events": [[event.name, plain(event.attributes)] for event in span.events],
    }


def plain(attributes: Any) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (attributes or {}).items()
    }


def is_near(read: str, ns: int | None) -> bool:
    """Whether a time that was read is the one that was sent, to Phoenix's microsecond."""
    assert ns is not None
    sent = datetime.fromtimestamp(ns // 10**9, timezone.utc) + timedelta(
        microseconds=ns % 10**9 / 1000
    )
    return abs(datetime.fromisoformat(read) - sent) <= timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("long_run", "grpc"), ("rough_run", "http/protobuf"), ("device_run", "grpc")],
)
def test_phoenix_has_every_span(
    name: str,
    protocol: str,
    phoenix: Phoenix,
    export: Export,
    request: pytest.FixtureRequest,
) -> None:
    """Ids, parents, names, attributes and errors are the journal's, times to a microsecond."""
    run: Path = request.getfixturevalue(name)
    spans = {
        f"{span.context.span_id:016x}": span
        for span in journal_spans(open_run(run).newest)
        if span.context
    }
    export(
        run,
        phoenix.grpc if protocol == "grpc" else phoenix.http,
        protocol,
        OTEL_RESOURCE_ATTRIBUTES=f"openinference.project.name={name}",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
    )
    got = arrived(phoenix.http, name, len(spans))
    assert sorted(item["context"]["span_id"] for item in got) == sorted(spans)
    assert name != "long_run" or len(got) > PAGE
    for item in got:
        span = spans[item["context"]["span_id"]]
        expected = as_phoenix_says(span)
        item["events"] = [[event["name"], event["attributes"]] for event in item["events"]]
        assert {key: item[key] for key in expected} == expected
        assert is_near(item["start_time"], span.start_time)
        assert is_near(item["end_time"], span.end_time)
