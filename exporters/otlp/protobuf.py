"""OTLP's protobuf messages of a journal's spans, many at once.

What is alike in all spans of a name is encoded once, by OpenTelemetry's own encoder, and taken
apart; of most spans only ids, times, epoch and iteration are then filled in. The rest (a failure, a
scalar, something that the user noted) goes through that encoder one by one. A message is, byte by
byte but for the order of its fields, what the encoder would have made.

Source: opentelemetry-proto, ``trace/v1/trace.proto``; field numbers as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan

from firetrace.exporters.batches import BATCH_BYTES, BATCH_SPANS
from firetrace.exporters.shapes import (
    CHILD,
    FORMS,
    LINKED,
    PEER_CHILD,
    PEER_ROOT,
    TIMED,
    without_told,
)
from firetrace.exporters.spans import SpanMaker, close_open
from firetrace.tracer.ids import span_ids
from firetrace.tracer.table import Table

# Tags, where a field's number and its wire type make more than one use: (number << 3 | type).
BYTES, FIXED64, VARINT = 2, 1, 0


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or a message."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


@dataclass(frozen=True)
class Batch(Sequence[ReadableSpan]):
    """Spans that are sent together, encoded. As a sequence it holds them as the SDK's."""

    around: tuple[bytes, bytes]  #: fields of the resource and of the scope
    spans: list[bytes]  #: each a field of a ``ScopeSpans``
    ids: list[int]  #: their span ids
    readable: Callable[[], list[ReadableSpan]]

    def request(self) -> bytes:
        """The ``ExportTraceServiceRequest``."""
        resource, scope = self.around
        scope_spans = field(2, scope + b"".join(self.spans))
        return field(1, resource + scope_spans)

    def halves(self) -> tuple[Batch, Batch]:
        """Two smaller batches."""
        middle = len(self.spans) // 2
        return (
            Batch(self.around, self.spans[:middle], self.ids[:middle],
                  lambda: self.readable()[:middle]),
            Batch(self.around, self.spans[middle:], self.ids[middle:],
                  lambda: self.readable()[middle:]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, index: int) -> ReadableSpan: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReadableSpan]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.readable()[index]

    def __iter__(self) -> Iterator[ReadableSpan]:
        return iter(self.readable())


class Attributes:
    """Encodes attributes of a span that are text, numbers or bool, each as a field of the span."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._texts: dict[tuple[str, str], bytes] = {}

    def encoded(self, attributes: dict[str, Any]) -> bytes:
        """The fields, one after the other."""
        return b"".join([self._field(key, value) for key, value in attributes.items()])

    def _field(self, key: str, value: Any) -> bytes:
        if isinstance(value, str):
            found = self._texts.get((key, value))
            if found is None:
                content = self._key(key) + field(2, field(1, value.encode("utf-8", "replace")))
                found = self._texts[key, value] = field(9, content)
            return found
        # An int is one of 64 bits, and so is what is less than 0, to which 2**64 is added.
        kind = b"\x10" if isinstance(value, bool) else b"\x18"
        number = kind + varint(int(value) & 2**64 - 1)
        head = self._key(key)
        return b"\x4a%c%b\x12%c%b" % (len(head) + 2 + len(number), head, len(number), number)

    def _key(self, key: str) -> bytes:
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = field(1, key.encode())
        return found


#: Of a span: what comes before its head, then what surrounds epoch, iteration and links' ids; last
#: how long it is without its own tag and length.
Template = tuple[bytes, bytes, bytes, bytes, bytes, bytes, int]


class Encoder:
    """Encodes the spans of one journal, block by block.

    Args:
        makes: makes the journal's spans.
    """

    def __init__(self, makes: SpanMaker) -> None:
        self._maker = makes
        self._around: tuple[bytes, bytes] | None = None
        self._resource: Any = None  # of which that is
        self._attributes = Attributes()
        self._examples: dict[tuple[int, int, int], Any] = {}
        self._misfits: set[tuple[int, int, int]] = set()
        self._templates: dict[tuple[int, int, int, int, int], Template] = {}

    def batches(self, table: Table, end_ns: int | None = None) -> Iterator[Batch]:
        """The spans of a block. Open ones end at ``end_ns``, marked ``ignite.incomplete``."""
        if not len(table):
            return
        plain = self._maker.plain(table)
        plain = plain._replace(shape=self._learn(table, plain.shape))
        assert self._around is not None
        ids = span_ids(table.header.seed, table.numbers)
        spans: list[bytes] = []
        first, size = 0, 0
        for index, span in enumerate(self._encoded(table, plain, ids, end_ns)):
            if spans and (size + len(span) > BATCH_BYTES or len(spans) == BATCH_SPANS):
                yield self._batch(table, spans, ids, first, end_ns)
                spans, first, size = [], index, 0
            spans.append(span)
            size += len(span)
        yield self._batch(table, spans, ids, first, end_ns)

    def _batch(
        self, table: Table, spans: list[bytes], ids: Any, first: int, end_ns: int | None
    ) -> Batch:
        assert self._around is not None
        positions = np.arange(first, first + len(spans))
        return Batch(
            self._around, spans, ids[positions].tolist(),
            lambda: self._readable(table, positions, end_ns),
        )  # fmt: skip

    def _readable(self, table: Table, positions: Any, end_ns: int | None) -> list[ReadableSpan]:
        spans = self._maker.spans(table, positions)
        return [span if end_ns is None else close_open(span, end_ns) for span in spans]

    def _encoded(
        self, table: Table, plain: Any, ids: npt.NDArray[np.uint64], end_ns: int | None
    ) -> Iterator[bytes]:
        """The spans one by one, each as a field of a ``ScopeSpans``."""
        strange = np.flatnonzero(plain.shape == 0)
        others = iter(self._by_the_official(self._readable(table, strange, end_ns)))
        seed, parents = table.header.seed, table.rows["parent"]
        above = span_ids(seed, parents).astype(">u8").tobytes()
        own = ids.astype(">u8").tobytes()
        starts, ends = table.rows["start"].tobytes(), table.rows["end"].tobytes()
        columns = zip(
            plain.shape.tolist(), plain.traces, plain.parent_traces,
            *(table.rows[name].tolist() for name in ("name", "lane", "epoch", "iteration")),
            strict=True,
        )  # fmt: skip
        trace = epoch = iteration = -1
        trace_bytes = epoch_bytes = iteration_bytes = b""
        for index, (shape, its_trace, around, name, lane, its_epoch, its_iteration) in enumerate(
            columns
        ):
            if not shape:
                yield next(others)
                continue
            if its_trace != trace:
                trace, trace_bytes = its_trace, its_trace.to_bytes(16, "big")
            if its_epoch != epoch:
                epoch, epoch_bytes = its_epoch, varint(its_epoch)
            if its_iteration != iteration:
                iteration, iteration_bytes = its_iteration, varint(its_iteration)
            key = name, lane, shape, len(epoch_bytes), len(iteration_bytes)
            template = self._templates.get(key)
            if template is None:
                template = self._templates[key] = _template(
                    self._examples[key[:3]], self._maker.numbered, *key[2:]
                )
            before, a, b, c, d, e, length = template
            at, to = 8 * index, 8 * index + 8
            if shape == CHILD:
                yield b"".join((
                    before, b"\x0a\x10", trace_bytes, b"\x12\x08", own[at:to], b"\x22\x08",
                    above[at:to], b"\x39", starts[at:to], b"\x41", ends[at:to],
                    a, epoch_bytes, b, iteration_bytes, c,
                ))  # fmt: skip
                continue
            if shape == TIMED:
                more = self._attributes.encoded(plain.told[index])
                yield b"".join((
                    b"\x12", varint(length + len(more)), b"\x0a\x10", trace_bytes,
                    b"\x12\x08", own[at:to], b"\x22\x08", above[at:to],
                    b"\x39", starts[at:to], b"\x41", ends[at:to],
                    a, epoch_bytes, b, iteration_bytes, c, more,
                ))  # fmt: skip
                continue
            peer = peer_trace = b""
            if shape in LINKED:
                of, to_span = plain.peers[index]
                peer_trace, peer = of.to_bytes(16, "big"), to_span.to_bytes(8, "big")
            if shape == PEER_CHILD:
                yield b"".join((
                    before, b"\x0a\x10", trace_bytes, b"\x12\x08", own[at:to], b"\x22\x08",
                    above[at:to], b"\x39", starts[at:to], b"\x41", ends[at:to],
                    a, epoch_bytes, b, iteration_bytes, c, peer_trace, b"\x12\x08", peer, d,
                ))  # fmt: skip
                continue
            yield b"".join((
                before, b"\x0a\x10", trace_bytes, b"\x12\x08", own[at:to],
                b"\x39", starts[at:to], b"\x41", ends[at:to],
                a, epoch_bytes, b, iteration_bytes, c,
                around.to_bytes(16, "big"), b"\x12\x08", above[at:to], d,
                *((peer_trace, b"\x12\x08", peer, e) if shape == PEER_ROOT else ()),
            ))  # fmt: skip

    def _by_the_official(self, spans: list[ReadableSpan]) -> list[bytes]:
        if not spans:
            return []
        (resource_spans,) = encode_spans(spans).resource_spans
        (scope_spans,) = resource_spans.scope_spans
        return [field(2, span.SerializePartialToString()) for span in scope_spans.spans]

    def _learn(self, table: Table, shape: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Take examples of the kinds of spans that are new.

        Returns the shapes again, 0 for spans that are not as their shape says (damaged rows).
        """
        kinds = shape << 24 | table.rows["name"].astype(np.int64) << 8 | table.rows["lane"]
        found, firsts = np.unique(kinds, return_index=True)
        for kind, first in zip(found.tolist(), firsts.tolist(), strict=True):
            key = kind >> 8 & 0xFFFF, kind & 0xFF, kind >> 24
            if key in self._misfits:
                shape = np.where(kinds == kind, 0, shape)
            if key in self._examples and self._resource is self._maker.resource:
                continue
            (resource_spans,) = encode_spans(
                self._readable(table, np.array([first]), 0)
            ).resource_spans
            (scope_spans,) = resource_spans.scope_spans
            (example,) = scope_spans.spans
            self._examples[key] = example
            if key[2] and FORMS[key[2]] != (bool(example.parent_span_id), len(example.links)):
                self._misfits.add(key)
                shape = np.where(kinds == kind, 0, shape)
            self._around = (
                field(1, resource_spans.resource.SerializePartialToString()),
                field(1, scope_spans.scope.SerializePartialToString()),
            )
            self._resource = self._maker.resource
        return shape


def _template(
    example: Any, holes: tuple[str, str], shape: int, epoch_bytes: int, iteration_bytes: int
) -> Template:
    """What surrounds the ids, times and numbers of the spans that are like this one."""
    parts, tails = [b""], [b"", b""]
    attributes = [*example.attributes]
    if shape == TIMED:
        attributes = without_told(attributes, [each.key for each in attributes])
    for attribute in attributes:
        if attribute.key in holes:
            size = epoch_bytes if attribute.key == holes[0] else iteration_bytes
            value = varint(2 << 3 | BYTES) + varint(1 + size) + varint(3 << 3 | VARINT)
            content = field(1, attribute.key.encode()) + value
            parts[-1] += varint(9 << 3 | BYTES) + varint(len(content) + size) + content
            parts.append(b"")
        else:
            parts[-1] += field(9, attribute.SerializePartialToString())
    a, b, c = parts
    rest = type(example)()
    rest.CopyFrom(example)
    for name in ("trace_id", "span_id", "parent_span_id", "start_time_unix_nano",
                 "end_time_unix_nano", "attributes", "links"):  # fmt: skip
        rest.ClearField(name)
    c += rest.SerializePartialToString()
    has_parent, links = FORMS[shape]
    size = 18 + 10 + 9 + 9 + (10 if has_parent else 0) + links * (16 + 10)
    for index, link in enumerate(example.links):
        of_link = type(link)()
        of_link.CopyFrom(link)
        of_link.ClearField("trace_id")
        of_link.ClearField("span_id")
        tails[index] = of_link.SerializePartialToString()
        head = varint(13 << 3 | BYTES) + varint(2 + 16 + 10 + len(tails[index])) + b"\x0a\x10"
        if index:
            tails[index - 1] += head
        else:
            c += head
    around = len(a) + len(b) + len(c) + sum(map(len, tails))
    size += around + epoch_bytes + iteration_bytes
    return varint(2 << 3 | BYTES) + varint(size), a, b, c, tails[0], tails[1], size
