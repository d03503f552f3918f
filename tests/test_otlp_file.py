"""OTLP JSON Lines of a journal: what the official parser takes, and what the network would get."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse  # type: ignore[import-untyped]
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from firetrace.exporters.otlp.delivery import deliver
from firetrace.exporters.otlp.file import export_otlp_file
from firetrace.exporters.otlp.sender import Sender, connect
from firetrace.tracer import stream
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tui.cli import main
from tests.support.otlp_server import OtlpHttpServer
from tests.support.random_journal import RandomJournal
from tests.support.recordings import record, record_failing, record_killed

SPLITS = pytest.mark.parametrize("split", [None, "run", "epoch", "step"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)


def parsed(text: str) -> list[TracesData]:
    """Every line by protobuf's own strict parser, for which ids are base64."""
    return [Parse(json.dumps(_base64_ids(json.loads(line))), TracesData()) for line in
            text.splitlines()]  # fmt: skip


def _base64_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_base64_ids(each) for each in value]
    if isinstance(value, dict):
        return {
            key: base64.b64encode(bytes.fromhex(each)).decode()
            if key in ("traceId", "spanId", "parentSpanId") else _base64_ids(each)
            for key, each in value.items()
        }  # fmt: skip
    return value


def spans_of(data: list[TracesData]) -> dict[bytes, Span]:
    found = {
        span.span_id: span
        for each in data for resource in each.resource_spans
        for scope in resource.scope_spans for span in scope.spans
    }  # fmt: skip
    return found


def over_the_network(journal: Path, split: str | None) -> OtlpHttpServer:
    with OtlpHttpServer() as server:
        deliver(journal, Sender(connect("http/protobuf", server.endpoint)), split)
    return server


@SPLITS
@pytest.mark.parametrize("make", [record, record_failing, record_killed])
def test_it_is_what_the_network_gets(
    tmp_path: Path, split: str | None, make: Callable[[], Path]
) -> None:
    """Span by span equal to what an OTLP server receives: ids, attributes, events, links, flags."""
    path, journal = tmp_path / "run.jsonl", open_run(make()).newest
    count = export_otlp_file(journal, path, split=split)
    data = parsed(path.read_text())
    server = over_the_network(journal, split)
    assert spans_of(data) == {item.span.span_id: item.span for item in server.spans()}
    assert count == len(read_table(journal)) == len(spans_of(data))
    sent = server.requests[0].resource_spans[0]
    for each in data:
        (resource,) = each.resource_spans
        assert resource.resource == sent.resource
        assert resource.scope_spans[0].scope == sent.scope_spans[0].scope


def test_strange_names_and_values(tmp_path: Path) -> None:
    """Names and values of any kind are JSON that the parser takes."""
    random = RandomJournal(tmp_path, 3)
    random.write(400)
    strange = ['a"b\\c\n\x1b[31m%d%s\x00', "é漢😀", "", "x" * 5000]
    values = {"nan": float("nan"), "inf": float("inf"), "big": 2**63 - 1, "list": [1, 2], "t": True}
    for row, text in zip(sorted(random.ended), strange, strict=False):
        random.writer.note("attributes", row=row, attributes={"text": text, **values})
    journal = random.path
    lane = random.writer.lane(strange[0], 77)
    pen = random.writer.pen()
    for text in strange:
        parent = pen.open(0, random.writer.name("run", text), lane, 0, 0, 0, 0, random.now)
        child = pen.open(parent, random.writer.name("step", text), lane, 0, 1, 1, 0, random.now)
        pen.close(child, random.now + 5, 0)
        pen.close(parent, random.now + 9, 0)
    random.close()
    path = tmp_path / "run.jsonl"
    export_otlp_file(journal, path)
    ours = spans_of(parsed(path.read_text()))
    theirs = {item.span.span_id: item.span for item in over_the_network(journal, None).spans()}
    assert {id: str(span) for id, span in ours.items()} == {
        id: str(span) for id, span in theirs.items()
    }  # as text, for NaN is not equal to itself


def test_the_command_writes_it_gzipped(tmp_path: Path) -> None:
    """``.gz`` compresses; the options that take a part apply; nothing half-written stays."""
    directory = record(epochs=3, steps=4)
    plain, zipped = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    for path in (plain, zipped):
        assert main(["export", "--to", "otlp-file", "-o", str(path), str(directory)]) == 0
    assert gzip.decompress(zipped.read_bytes()) == plain.read_bytes()
    part = tmp_path / "part.jsonl"
    words = ["--from-epoch", "3", "-o", str(part), str(directory)]
    assert main(["export", "--to", "otlp-file", *words]) == 0
    steps = [s for s in spans_of(parsed(part.read_text())).values() if s.name == "step"]
    assert len(steps) == 6
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == [
        "a.jsonl", "a.jsonl.gz", "part.jsonl",
    ]  # fmt: skip
