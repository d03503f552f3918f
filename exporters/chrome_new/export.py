"""Chrome trace JSON, for Perfetto: an array of events, streamed in constant memory.

The process is the rank, a thread is a lane (one engine in one thread). What Perfetto's importer
(v52) asks for: a child must not outlive its parent by even a nanosecond; times are rebased and
written as microseconds with three decimals, or nanoseconds are lost; events of one thread that
begin together stand parents first; ``B`` without ``E`` is kept as open; names are raw UTF-8
without backslashes or control characters, because escapes are shown as they stand.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Table

CHUNK = 16_384
TOLD = int(Flag.ERROR | Flag.CUT | Flag.SKIPPED)
FIELDS = ("name", "lane", "flags", "epoch", "iteration", "end")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f\\"]')


def export_chrome(
    table: Table, path: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Write a table as Chrome trace JSON; gzipped if the name ends in ``.gz``.

    The file appears under its name when it is whole. Returns the number of spans written.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with _open(part, path.suffix == ".gz") as file:
            count = 0
            for text in chunks(table):
                file.write(text.encode("utf-8", "replace"))
                count = min(count + CHUNK, len(table))
                progress(count, len(table))
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return len(table)


def _open(path: Path, zipped: bool) -> IO[bytes]:
    if zipped:
        return cast(IO[bytes], gzip.open(path, "wb", compresslevel=5))
    return open(path, "wb")


def chunks(table: Table) -> Iterator[str]:
    """The pieces of the file. Any prefix that ends after an event is valid to Perfetto."""
    pid = _rank(table) + 1  # Perfetto takes process 0 for the idle task
    yield "[\n" + ",\n".join(_metadata(table, pid))
    rows = table.rows
    order = np.argsort(rows["start"], kind="stable")  # of equal starts the parent, written first
    base = int(rows["start"].min()) if len(rows) else 0
    templates: dict[tuple[int, int], tuple[str, str]] = {}
    attributes = table.meta.attributes
    for first in range(0, len(order), CHUNK):
        part = rows[order[first : first + CHUNK]]
        numbers = table.numbers[order[first : first + CHUNK]]
        starts = (part["start"] - base).tolist()
        durations = (part["end"] - part["start"]).tolist()
        lines = []
        columns = (part[field].tolist() for field in FIELDS)
        for number, start, duration, name, lane, flags, epoch, iteration, end in zip(
            numbers.tolist(), starts, durations, *columns, strict=True
        ):
            template = templates.get((name, lane))
            if template is None:
                template = templates[name, lane] = _templates(table, name, lane, pid)
            more = _more(table, number, flags) if flags & TOLD or number in attributes else ""
            micro, nano = divmod(start, 1000)
            if end:
                long, rest = divmod(duration, 1000)
                lines.append(
                    template[0] % (micro, nano, long, rest, epoch, iteration, number, more)
                )
            else:
                lines.append(template[1] % (micro, nano, epoch, iteration, number, more))
        yield ",\n" + ",\n".join(lines)
    yield "\n]\n"


def _rank(table: Table) -> int:
    match = re.match(r"rank(\d+)", table.path.name)
    return int(match.group(1)) if match else 0


def safe(text: str) -> str:
    """A name as Perfetto shows it right: no escapes, no control characters."""
    return _UNSAFE.sub(lambda found: {'"': "'", "\\": "/"}.get(found.group(), "\u00b7"), text)


def _metadata(table: Table, pid: int) -> Iterator[str]:
    run = safe(str(table.meta.resource.get("ignite.run.id") or table.path.parent.name))
    rank = _rank(table)

    def line(what: str, tid: int, **args: Any) -> str:
        event = {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args}
        return json.dumps(event, ensure_ascii=False)

    yield line("process_name", 0, name=f"rank {rank} {run}")
    yield line("process_sort_index", 0, sort_index=rank)
    threads = {lane.thread for lane in table.meta.lanes.values()}
    for id, lane in sorted(table.meta.lanes.items()):
        label = lane.engine if len(threads) == 1 else f"{lane.engine} ({lane.thread})"
        yield line("thread_name", id + 1, name=safe(label))
        yield line("thread_sort_index", id + 1, sort_index=id)


def _templates(table: Table, name: int, lane: int, pid: int) -> tuple[str, str]:
    """``%`` templates of a closed and of an open span of this name in this lane."""
    found = table.meta.names.get(name)
    kind, text = (found.kind, found.text) if found else ("span", "(name lost)")
    label = json.dumps(safe(text), ensure_ascii=False).replace("%", "%%")
    head = f'"pid":{pid},"tid":{lane + 1},"cat":"{kind}","name":{label}'
    args = '"args":{"epoch":%d,"iteration":%d,"row":%d%s}'
    closed = '{"ph":"X","ts":%d.%03d,"dur":%d.%03d,' + head + "," + args + "}"
    return closed, '{"ph":"B","ts":%d.%03d,' + head + "," + args + "}"


def _shown(value: Any) -> Any:
    """A value that Perfetto takes: one NaN would lose all of a span's arguments."""
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return value if not isinstance(value, float) or isfinite(value) else str(value)


def _more(table: Table, number: int, flags: int) -> str:
    """Arguments of a span that failed, was cut short or skipped, or is the user's own."""
    more: dict[str, Any] = {
        safe(key): _shown(value) for key, value in table.meta.attributes.get(number, {}).items()
    }
    if flags & Flag.SKIPPED:
        more["skipped"] = True
    exception = table.meta.exceptions.get(number)
    if exception is not None:
        for key in ("exception.type", "exception.message", "exception.stacktrace"):
            more[key] = str(exception.get(key, ""))
    elif flags & Flag.ERROR:
        more["error"] = True
    if flags & Flag.CUT:
        more["cut"] = table.meta.reasons.get(number, "cut short")
    return "," + json.dumps(more, ensure_ascii=False)[1:-1] if more else ""
