"""Reading: from a finished journal to the whole report, against loading the same run as JSON.

firetrace opens the journal, reads all of it and computes everything that ``firetrace report``
says (``read_report``). The peer only parses the run's Chrome trace (``json.load``) and
computes nothing. Wall time, in one new interpreter that has done both once, files in the page
cache; the two alternate and are compared in pairs. The parsed objects are freed outside the
timing, which favours the peer. The garbage collector is on, as in any program that calls
``json.load``; that is half of what it takes, so the ratio without the collector is shown as well.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from pathlib import Path

from bench.disk import record
from bench.result import Bar, Row, median, number, ratio_bounds
from bench.settings import Progress, Settings

REPEATS = 5  #: readings of the journal in a sample, which is their median: they are short


def read(
    journal: str, trace: str, pairs: int, collect: bool
) -> tuple[list[float], list[float], int]:
    """Seconds to load the JSON, seconds to compute the report, spans. For a new interpreter."""
    from firetrace.tui.model.report import read_report

    def our_seconds() -> float:
        start = time.perf_counter()
        read_report(journal)
        return time.perf_counter() - start

    def peer_seconds() -> float:
        start = time.perf_counter()
        with open(trace, encoding="utf-8") as file:
            events = json.load(file)
        used = time.perf_counter() - start
        if len(events) < spans:
            raise RuntimeError(f"{len(events)} events of at least {spans}")
        return used

    spans = read_report(journal).spans
    peer_seconds()
    if not collect:
        gc.disable()
    ours, peers = [], []
    for _ in range(pairs):
        gc.collect()
        ours.append(median([our_seconds() for _ in range(REPEATS)]))
        gc.collect()
        peers.append(peer_seconds())
    return peers, ours, spans


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Record a run, export it, read both."""
    from bench.process import fresh
    from bench.training import SPANS

    with tempfile.TemporaryDirectory(dir=settings.workspace) as folder:
        progress(f"reading: recording and exporting {settings.reading_spans:,} spans")
        iterations = -(-settings.reading_spans // SPANS)
        journal, trace = fresh(record, str(Path(folder) / "run"), iterations)
        rows = []
        for bar in (Bar(20, at_least=True), None):
            state = "on" if bar else "off"
            progress(f"reading: {settings.reading_pairs} pairs, collector {state}")
            pairs = settings.reading_pairs
            peers, ours, spans = fresh(read, journal, trace, pairs, collect=bar is not None)
            faster, low, _ = ratio_bounds(peers, ours)
            rows.append(
                Row(
                    "reading: journal to report", f"{spans:,} spans, garbage collector {state}",
                    f"{median(ours) * 1e3:.0f} ms",
                    f"json.load of the Chrome trace: {median(peers) * 1e3:,.0f} ms",
                    f"{number(faster)}x faster (>= {number(low)}x)", bar, low,
                    {"firetrace": ours, "json.load": peers},
                )
            )  # fmt: skip
    return rows
