"""Everything that is done with a journal, as the commands and the app do it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from firetrace.exporters.chrome.export import export_chrome
from firetrace.exporters.chrome.run import export_run
from firetrace.exporters.journals import members
from firetrace.exporters.otlp.file import export_otlp_file
from firetrace.exporters.otlp.protobuf import Encoder
from firetrace.exporters.spans import maker
from firetrace.tracer.run import open_run
from firetrace.tracer.stream import Stream, blocks
from firetrace.tracer.table import Table
from firetrace.tui.diff import diff
from firetrace.tui.diff_text import print_diff
from firetrace.tui.feed import Feed, Snapshot
from firetrace.tui.html.page import page
from firetrace.tui.model.ranks import Ranks, skew
from firetrace.tui.model.report import read_report
from firetrace.tui.model.search import Matches
from firetrace.tui.text import print_report

ROWS_LOOKED_AT = 200  #: of the app's tree


def report(journal: Path, folder: Path) -> None:
    """``firetrace report``, as text and as JSON."""
    found = read_report(journal)
    json.dumps(found.as_json(), allow_nan=False)
    with redirect_stdout(io.StringIO()):
        print_report(found)


def chrome(journal: Path, folder: Path) -> None:
    """``firetrace export --to chrome``: what it writes is JSON."""
    path = folder / "trace.json"
    export_chrome(blocks(journal), path)
    json.loads(path.read_bytes())


def otlp_file(journal: Path, folder: Path) -> None:
    """``firetrace export --to otlp-file``: each line is JSON."""
    path = folder / "trace.jsonl"
    export_otlp_file(journal, path)
    with path.open("rb") as file:
        for line in file:
            json.loads(line)


def otlp(journal: Path, folder: Path) -> None:
    """``firetrace export --to otlp``, but for the network: each message is one."""
    with Stream(journal) as stream:
        encoder: Encoder | None = None
        for block in _blocks(stream):
            encoder = encoder or Encoder(maker(stream.reader))
            for batch in encoder.batches(block, stream.last_ns()):
                ExportTraceServiceRequest.FromString(batch.request())


def _blocks(stream: Stream) -> Iterator[Table]:
    yield from stream.ended()
    yield stream.rest()


def html(journal: Path, folder: Path) -> None:
    """``firetrace report --html``."""
    from firetrace.tui.model.report import read_both

    page(*read_both(journal)).encode()


def compared(journal: Path, folder: Path) -> None:
    """``firetrace diff`` of a journal with itself."""
    with redirect_stdout(io.StringIO()):
        print_diff(diff(journal, journal))


def watched(journal: Path, folder: Path) -> None:
    """What ``firetrace watch`` shows: snapshots, the tree, a search."""
    with closing(Feed(str(journal))) as feed:
        for _ in range(3):
            found = feed.poll()
        if not isinstance(found, Snapshot):
            return
        tree = found.tree
        lines = tree.lines(set(_numbers(found)), 0)
        for line in range(min(len(lines), ROWS_LOOKED_AT)):
            number, _ = lines.at(line)[:2]
            span = tree.span(number)
            if span is not None:
                tree.label(span)
                tree.ancestors(number)
                tree.meta.said_of(number)
        tree.errors()
        matches = Matches(tree, "e")
        for line in range(min(len(matches), ROWS_LOOKED_AT)):
            matches.at(line)


def many(journal: Path, folder: Path) -> None:
    """The same as two ranks of a run, and as what a worker of each made: compared and exported."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    for stem in ("rank0.1", "rank1.1", "rank0.1.data0"):
        for suffix in (".rows", ".meta.jsonl"):
            os.link(journal.with_suffix(suffix), run / f"{stem}{suffix}")  # it may be huge
    ranks = Ranks(run)
    ranks.poll()
    compared = skew(ranks)
    json.dumps(compared.as_json(), allow_nan=False)
    found = read_report(run / "rank0.1.rows")
    json.dumps(found.as_json(), allow_nan=False)
    with redirect_stdout(io.StringIO()):
        print_report(found, compared)
    export_run(members(open_run(run)), folder / "run.json")
    json.loads((folder / "run.json").read_bytes())


def _numbers(found: Snapshot) -> Iterator[int]:
    stack = [0]
    for _ in range(ROWS_LOOKED_AT):
        if not stack:
            return
        number = stack.pop()
        yield number
        stack += found.tree.children(number).tolist()[:ROWS_LOOKED_AT]


READERS: dict[str, Callable[[Path, Path], None]] = {
    "report": report, "watch": watched, "export --to chrome": chrome,
    "export --to otlp-file": otlp_file, "export --to otlp": otlp, "report --html": html,
    "diff": compared, "of many ranks": many,
}  # fmt: skip
