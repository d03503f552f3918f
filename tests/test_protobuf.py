"""OTLP messages made from columns: the official encoder's, byte for byte but for their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from firetrace.exporters.otlp.protobuf import Batch, Encoder, varint
from firetrace.exporters.spans import maker
from firetrace.tracer import stream
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table, read_table
from tests.support.random_journal import RandomJournal

SPLITS = pytest.mark.parametrize("split", [None, "run", "epoch", "step"])
STRANGE = ['a"b\\c\n\x1b[31m%d%s\x00', "é漢😀", "", "x" * 5000]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 2)


def batches_of(journal: Path, split: str | None = None) -> Iterator[Batch]:
    with Stream(journal) as source:
        encoder = None
        for block in blocks_of(source):
            encoder = encoder or Encoder(maker(source.reader, split))
            yield from encoder.batches(block, source.last_ns())


def blocks_of(source: Stream) -> Iterator[Table]:
    yield from source.ended()
    yield source.rest()


def assert_official(batch: Batch) -> None:
    request = batch.request()
    message = ExportTraceServiceRequest.FromString(request)
    assert message == encode_spans(list(batch))
    assert len(request) == message.ByteSize()
    spans = message.resource_spans[0].scope_spans[0].spans
    assert [int.from_bytes(span.span_id, "big") for span in spans] == batch.ids


@SPLITS
@pytest.mark.parametrize("seed", range(3))
def test_messages_are_the_official_encoders(tmp_path: Path, split: str | None, seed: int) -> None:
    """Every span of a wild journal: plain, root, open, with scalars, attributes, exceptions."""
    random = RandomJournal(tmp_path, seed)
    random.write(2500)
    rows = sorted(random.ended)
    for row, text in zip(rows[::50], STRANGE * 20, strict=False):
        random.writer.note("attributes", row=row, attributes={"text": text, "n": [1, 2], "f": 0.5})
    for row in rows[7::90]:
        more = {"exception.type": "ValueError", "exception.message": STRANGE[0]}
        random.writer.note("exception", row=row, time=random.now, **more)
    pen, lane = random.writer.pen(), random.writer.lane(STRANGE[0], 9)
    for text in STRANGE:
        for epoch, iteration in ((0, 0), (127, 128), (2**14, 2**21 - 1), (2**32 - 1, 2**32 - 1)):
            row = pen.open(0, random.writer.name("run", text), lane, 0, epoch, 1, 0, random.now)
            name = random.writer.name("step", text)
            step = pen.open(row, name, lane, 0, epoch, iteration, 0, random.now + 1)
            inner = pen.open(step, name, lane, 0, epoch, iteration, 0, random.now + 2)
            for each in (inner, step, row):
                pen.close(each, random.now + 9, 0)
    random.close()
    count = 0
    for batch in batches_of(random.path, split):
        assert_official(batch)
        count += len(batch)
    assert count == len(read_table(random.path))


def test_halves_are_batches(tmp_path: Path) -> None:
    """A batch that was too large, divided down to single spans, is still itself."""
    random = RandomJournal(tmp_path, 5)
    random.write(300)
    random.close()
    batch = next(batches_of(random.path))
    ids = batch.ids
    parts = [batch]
    while any(len(part) > 1 for part in parts):
        parts = [half for part in parts for half in (part.halves() if len(part) > 1 else (part,))]
    for part in parts[:20]:
        assert_official(part)
    assert [id for part in parts for id in part.ids] == ids


def test_numbers_are_written_as_protobuf_does() -> None:
    """Seven bits a byte, the lowest first, no longer than they must be."""
    assert [varint(n).hex() for n in (0, 127, 128, 300, 2**32 - 1)] == [
        "00", "7f", "8001", "ac02", "ffffffff0f",
    ]  # fmt: skip
