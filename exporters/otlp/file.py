"""OTLP as JSON Lines: a journal's spans in a file that a Collector, or any OTLP reader, takes.

Each line is one ``TracesData``: ids in hex, 64-bit numbers as strings. What is alike in all spans
of a name is encoded once, by OpenTelemetry's own encoder; of most spans only ids, times, epoch and
iteration are then filled in.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from firetrace.exporters.files import whole_file
from firetrace.exporters.otlp.encoding import otlp_json
from firetrace.exporters.selection import Selection, selector_of
from firetrace.exporters.shapes import CHILD, FORMS, PEER_CHILD, PEER_ROOT, TIMED, without_told
from firetrace.exporters.spans import SpanMaker, close_open, maker
from firetrace.tracer.ids import span_ids
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table

#: Spans a line, and characters: a Collector's file receiver breaks lines over 1 MiB.
LINE_SPANS, LINE_SIZE = 1000, 900_000
MARK = "\0firetrace:%s\0"  # no name in a template is this


def export_otlp_file(
    journals: Path | Sequence[Path],
    path: Path,
    selection: Selection | None = None,
    split: str | None = None,
    progress: Callable[[int], Any] = lambda done: None,
) -> int:
    """Write the spans of journals as OTLP JSON Lines; gzipped if the name ends in ``.gz``.

    Each journal has lines of its own, with its resource.

    Open spans end when their journal does, marked ``ignite.incomplete``. The file appears under its
    name when it is whole. Returns the number of spans written.

    Raises:
        JournalError: a journal cannot be read.
        OSError: the file cannot be written.
    """
    count, zipped = 0, path.suffix.lower() == ".gz"
    with whole_file(path) as file, _zipped(file) if zipped else nullcontext(file) as output:
        for journal in [journals] if isinstance(journals, Path) else journals:
            for line, spans in lines(journal, selection, split):
                output.write(line)
                count += spans
                progress(count)
    return count


def _zipped(file: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile("", "wb", compresslevel=3, fileobj=file))


def lines(
    journal: Path, selection: Selection | None = None, split: str | None = None
) -> Iterator[tuple[bytes, int]]:
    """The lines of the file, each with the number of its spans."""
    with Stream(journal) as stream, selector_of(journal, selection or Selection()) as selector:
        writer = None
        for block in _blocks(stream):
            writer = writer or _Lines(maker(stream.reader, split), stream.last_ns)
            for selected in selector.select([block]):
                yield from writer.of(selected)


def _blocks(stream: Stream) -> Iterator[Table]:
    yield from stream.ended()
    yield stream.rest()


class _Lines:
    """Makes lines of the blocks of one journal."""

    def __init__(self, makes: SpanMaker, last_ns: Callable[[], int]) -> None:
        self._maker, self._last_ns = makes, last_ns
        self._templates: dict[tuple[int, int, int], str] = {}
        self._head = self._tail = ""

    def of(self, table: Table) -> Iterator[tuple[bytes, int]]:
        """The lines of a block."""
        if not len(table):
            return
        plain = self._maker.plain(table)
        rows, seed = table.rows, table.header.seed
        shapes = self._learn(table, plain.shape)
        strange = np.flatnonzero(shapes == 0)
        others = self._encoded(table, strange) if len(strange) else iter(())
        columns = zip(
            shapes.tolist(), plain.traces, plain.parent_traces,
            span_ids(seed, table.numbers).tolist(), span_ids(seed, rows["parent"]).tolist(),
            rows.tolist(), strict=True,
        )  # fmt: skip
        texts: list[str] = []
        size = 0
        for index, (shape, trace, parent_trace, id, above, row) in enumerate(columns):
            if shape:
                _, name, lane, _, epoch, iteration, end, start = row
                template = self._templates[name, lane, shape]
                peer: tuple[int, ...]
                if shape == CHILD:
                    text = template % (trace, id, above, start, end, epoch, iteration)
                elif shape == TIMED:
                    told = _attributes(plain.told[index])
                    text = template % (trace, id, above, start, end, epoch, iteration, told)
                elif shape == PEER_CHILD:
                    peer = plain.peers[index]
                    text = template % (trace, id, above, start, end, epoch, iteration, *peer)
                else:
                    peer = plain.peers[index] if shape == PEER_ROOT else ()
                    own = trace, id, start, end, epoch, iteration
                    text = template % (*own, parent_trace, above, *peer)
            else:
                text = next(others)
            length = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
            if texts and (len(texts) == LINE_SPANS or size + length > LINE_SIZE):
                yield self._line(texts), len(texts)
                texts, size = [], 0
            texts.append(text)
            size += length
        yield self._line(texts), len(texts)

    def _line(self, texts: list[str]) -> bytes:
        return (self._head + ",".join(texts) + self._tail).encode("utf-8", "replace")

    def _encoded(self, table: Table, positions: Any) -> Iterator[str]:
        """Spans that are encoded one by one."""
        end_ns = self._last_ns()
        for first in range(0, len(positions), LINE_SPANS):
            some = self._maker.spans(table, positions[first : first + LINE_SPANS])
            spans = [close_open(span, end_ns) for span in some]
            yield from (_json(span) for span in _spans_of(otlp_json(spans)))

    def _learn(self, table: Table, shape: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Make the templates that are missing, and what stands around the spans of a line.

        Returns the shapes again, 0 for spans that are not as their shape says (damaged rows).
        """
        kinds = shape << 24 | table.rows["name"].astype(np.int64) << 8 | table.rows["lane"]
        found, firsts = np.unique(kinds, return_index=True)
        if not self._head:
            (span,) = self._maker.spans(table, firsts[:1])
            data = otlp_json([span])
            data["resourceSpans"][0]["scopeSpans"][0]["spans"] = [MARK]
            before, after = _json(data).split(_json(MARK))
            self._head, self._tail = before, after + "\n"
        for kind, first in zip(found.tolist(), firsts.tolist(), strict=True):
            key = kind >> 8 & 0xFFFF, kind & 0xFF, kind >> 24
            if key[2] and key not in self._templates:
                (span,) = self._maker.spans(table, np.array([first]))
                (encoded,) = _spans_of(otlp_json([span]))
                fits = FORMS[key[2]] == ("parentSpanId" in encoded, len(encoded.get("links", ())))
                is_timed = key[2] == TIMED
                self._templates[key] = (
                    _template(encoded, self._maker.numbered, is_timed) if fits else ""
                )
            if key[2] and not self._templates[key]:
                shape = np.where(kinds == kind, 0, shape)
        return shape


def _attributes(told: dict[str, Any]) -> str:
    """What is told of a span, as attributes after others."""
    return "".join([f',{{"key":"{key}","value":{{{_value(each)}}}}}' for key, each in told.items()])


def _value(value: Any) -> str:
    """A text, a number or a bool."""
    if isinstance(value, str):
        return f'"stringValue":{_json(value)}'
    return f'"boolValue":{_json(value)}' if isinstance(value, bool) else f'"intValue":"{value}"'


def _template(span: dict[str, Any], numbered: tuple[str, str], is_timed: bool = False) -> str:
    """A ``%`` template of the spans that are like this one.

    Its holes, in their order: trace, id, parent (of a child), start, end, epoch, iteration, of a
    ``TIMED`` span more attributes, and each link's trace and id.
    """
    holes = {"traceId": "%032x", "spanId": "%016x", "parentSpanId": "%016x"}
    holes |= {"startTimeUnixNano": "%d", "endTimeUnixNano": "%d"}
    ordered = {key: MARK % key for key in holes if key in span}
    rest = {key: value for key, value in span.items() if key not in holes}
    for attribute in numbered:
        holes[attribute] = "%d"
        (found,) = [each for each in rest["attributes"] if each["key"] == attribute]
        found["value"] = {"intValue": MARK % attribute}
    if is_timed:
        keys = [each["key"] for each in rest["attributes"]]
        rest["attributes"] = [*without_told(rest["attributes"], keys), MARK % "told"]
    for link in rest.get("links", ()):  # these keys come first, as they are
        link |= {"traceId": MARK % "of", "spanId": MARK % "to"}
    links = rest.pop("links", None)
    text = _json({**ordered, **rest, **({"links": links} if links else {})}).replace("%", "%%")
    for key, hole in {**holes, "of": "%032x", "to": "%016x"}.items():
        text = text.replace(_json(MARK % key), f'"{hole}"')
    return text.replace("," + _json(MARK % "told"), "%s")


def _spans_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = data["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
