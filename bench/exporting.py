"""Exporting: from a finished journal to a Chrome trace, against a dict a span and ``json.dump``.

Both read the same journal and write the same spans with the same names, times and arguments to a
file, uncompressed; firetrace adds counters. Wall time, in one new interpreter that has done both
once, files in the page cache; the two alternate and are compared in pairs. ``json.dumps`` and one
``write``, which is faster and takes more memory, is shown as well. Then the memory of new
interpreters that do nothing but export: the peak of all that is resident, Python and numpy
included. Linux only.
"""

from __future__ import annotations

import gc
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.copies import enlarge
from bench.disk import record
from bench.result import Bar, Row, median, number, ratio_bounds
from bench.settings import Progress, Settings

MOST_MB = 200


def events(journal: Path) -> list[dict[str, Any]]:
    """A journal's spans as Chrome's events, one dict each."""
    from firetrace.tracer.table import read_table

    table = read_table(journal)
    base, names = table.header.wall_ns, table.meta.names
    found = []
    for row_number, row in zip(table.numbers.tolist(), table.rows.tolist(), strict=True):
        _, name, lane, _, epoch, iteration, end, start = row
        found.append({
            "ph": "X", "ts": (start - base) / 1000, "dur": (end - start) / 1000,
            "args": {"epoch": epoch, "iteration": iteration, "row": row_number},
            "pid": 1, "tid": lane + 1, "cat": names[name].kind, "name": names[name].text,
        })  # fmt: skip
    return found


def write(journal: str, folder: str, pairs: int) -> tuple[list[list[float]], list[float], int]:
    """Seconds of both peers, of firetrace, and spans. For a new interpreter."""
    from firetrace.exporters.chrome.export import export_chrome
    from firetrace.tracer.stream import blocks

    source, target = Path(journal), Path(folder) / "trace.json"
    spans = 0

    def our_seconds() -> float:
        nonlocal spans
        start = time.perf_counter()
        spans = export_chrome(blocks(source), target)
        return time.perf_counter() - start

    def peer_seconds(at_once: bool) -> float:
        start = time.perf_counter()
        found = events(source)
        with target.open("w") as file:
            if at_once:
                file.write(json.dumps(found))
            else:
                json.dump(found, file)
        return time.perf_counter() - start

    ours, peers = list[float](), [list[float](), list[float]()]
    for index in range(pairs + 1):
        took = []
        for way in (0, 1, 2):
            target.unlink(missing_ok=True)
            gc.collect()
            took.append(our_seconds() if way == 1 else peer_seconds(at_once=way == 2))
        if index:  # the first of each warms up
            ours.append(took[1])
            peers[0].append(took[0])
            peers[1].append(took[2])
    return peers, ours, spans


def peak_mb(journal: str, folder: str, suffix: str) -> tuple[float, int, float, float]:
    """Peak of resident memory in MB, spans, seconds, bytes. For a new interpreter."""
    from firetrace.exporters.chrome.export import export_chrome
    from firetrace.tracer.stream import blocks

    target = Path(folder) / f"trace{suffix}"
    start = time.perf_counter()
    spans = export_chrome(blocks(Path(journal)), target)
    took = time.perf_counter() - start
    size = target.stat().st_size
    target.unlink()
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("the system does not tell the peak of memory")
    return int(found.group(1)) * 1024 / 1e6, spans, took, size


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Record a run, export it both ways; make it ten times as long and look at memory."""
    from bench.process import fresh
    from bench.training import SPANS

    subject = "exporting: journal to Chrome trace"
    with tempfile.TemporaryDirectory(dir=settings.workspace) as folder:
        progress(f"exporting: recording {settings.exporting_spans:,} spans")
        iterations = -(-settings.exporting_spans // SPANS)
        journal, trace = fresh(record, str(Path(folder) / "run"), iterations)
        Path(trace).unlink()
        progress(f"exporting: {settings.exporting_pairs} pairs")
        peers, ours, spans = fresh(write, journal, folder, settings.exporting_pairs)
        rows = []
        for name, peer, bar in zip(
            ("json.dump", "json.dumps"), peers, (Bar(6, at_least=True), None), strict=True
        ):
            faster, low, _ = ratio_bounds(peer, ours)
            rows.append(
                Row(
                    subject, f"{spans:,} spans", f"{median(ours):.2f} s",
                    f"dicts and {name}: {median(peer):.1f} s",
                    f"{number(faster)}x faster (>= {number(low)}x)", bar, low,
                    {"firetrace": ours, name: peer},
                )
            )  # fmt: skip
        progress(f"exporting: making {settings.exporting_many:,} spans")
        many = fresh(enlarge, journal, str(Path(folder) / "many" / "rank0.1"),
                     settings.exporting_many)  # fmt: skip
        for source, suffix in ((journal, ".json"), (many, ".json"), (many, ".json.gz")):
            progress(f"exporting: memory, {suffix}")
            peak, spans, took, size = fresh(peak_mb, source, folder, suffix)
            rows.append(
                Row(
                    subject, f"peak memory, {spans:,} spans, {suffix}", f"{number(peak)} MB",
                    f"{size / spans:.0f} bytes a span, {took:.1f} s", "", Bar(MOST_MB, " MB"),
                    peak, {"MB": [peak]},
                )
            )  # fmt: skip
    return rows
