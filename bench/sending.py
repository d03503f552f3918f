"""Sending: a journal to an OTLP receiver, to OTLP JSON Lines, and while it grows.

First the whole way from a closed journal to a receiver that takes everything, through the official
exporter over HTTP, against what that exporter alone takes for the same spans, ready-made and in the
same batches. Then the OTLP JSON Lines file, against one ``ReadableSpan.to_json`` a span, ready-made
too. Wall time, in one new interpreter that has done all once; they alternate and are compared in
pairs. Last the relay, beside a training that fires events at a steady pace: the share of a core
that it takes, and how long after its end a span is at the receiver, from three seconds after the
training has begun. Linux only.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.disk import record
from bench.receiver import receiver
from bench.result import Bar, Row, median, number, ratio_bounds
from bench.settings import Progress, Settings

PACE = 20_000  #: spans a second
WARM_S = 3


def send(
    journal: str, folder: str, endpoint: str, pairs: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each way, and spans. For a new interpreter."""
    from firetrace.exporters.batches import BATCH_SPANS
    from firetrace.exporters.otlp.delivery import deliver
    from firetrace.exporters.otlp.file import export_otlp_file
    from firetrace.exporters.otlp.sender import Sender, connect
    from firetrace.exporters.spans import journal_spans

    source, target = Path(journal), Path(folder) / "spans.jsonl"
    ready = list(journal_spans(source))
    batches = [ready[at : at + BATCH_SPANS] for at in range(0, len(ready), BATCH_SPANS)]
    transport = connect("http/protobuf", endpoint)

    def ours() -> None:
        sent = deliver(source, Sender(transport))
        if sent.accepted != len(ready):
            raise RuntimeError(f"{sent.accepted} of {len(ready)} spans were taken")

    def official() -> None:
        for batch in batches:
            transport.exporter.export(batch)

    def our_file() -> None:
        export_otlp_file(source, target)

    def to_json() -> None:
        with target.open("w") as file:
            for span in ready:
                file.write(span.to_json(indent=None) + "\n")

    ways = {"ours": ours, "official": official, "our file": our_file, "to_json": to_json}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    gc.freeze()  # the ready-made spans are the peer's, and none of ours to look through
    for index in range(pairs + 1):
        for name, way in ways.items():
            gc.collect()
            start = time.perf_counter()
            way()
            if index:  # the first of each warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds, len(ready)


TRAINING = """
import sys, time
from bench.training import Batches, build
from bench.peers import Firetrace
from bench.training import SPANS
from pathlib import Path
pace, seconds = float(sys.argv[2]) / SPANS, float(sys.argv[3])
engine, tracer = build(handlers=False), Firetrace(Path(sys.argv[1]))
begun = time.monotonic()

def keep_the_pace(engine, process=engine._process_function):
    def paced(engine, batch):
        late = engine.state.iteration / pace - (time.monotonic() - begun)
        if late > 0.002:
            time.sleep(late)
        return process(engine, batch)
    return paced

engine._process_function = keep_the_pace(engine)
tracer.attach(engine)
engine.run(Batches(), max_epochs=int(pace * seconds / 1000))
"""


def relayed(folder: Path, seconds: float) -> tuple[float, float, float, float]:
    """Share of a core, median and largest lag in seconds, spans a second that arrived."""
    with receiver(timing=True) as backend:
        environment = {
            **os.environ, "FIRETRACE_OTLP": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint,
            "FIRETRACE_OTLP_WAIT": "30",
        }  # fmt: skip
        words = [sys.executable, "-c", TRAINING, str(folder), str(PACE), str(seconds)]
        begun = time.time()
        with subprocess.Popen(words, env=environment) as training:
            relay = _relay_of(folder)
            time.sleep(WARM_S)
            first = _cpu_seconds(relay), time.monotonic()
            time.sleep(max(1.0, seconds - WARM_S - 3))
            share = (_cpu_seconds(relay) - first[0]) / (time.monotonic() - first[1])
        if training.returncode:
            raise RuntimeError("the training failed")
        ended = time.time()
        lags = backend.lags()
    steady = [lag for at, lag in lags if begun + 2 * WARM_S < at < ended - WARM_S]
    span = ended - begun - 3 * WARM_S
    return share, median(steady), max(steady), len(steady) / span


def _relay_of(folder: Path) -> int:
    for _ in range(600):
        for each in Path("/proc").iterdir():
            if each.name.isdigit():
                try:
                    words = (each / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"firetrace.exporters.otlp.relay" in words and os.fsencode(folder) in words:
                    time.sleep(1)  # what starts it has gone
                    if each.exists():
                        return int(each.name)
        time.sleep(0.05)
    raise RuntimeError("no relay was started")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Record a run, send it; then a training with a relay."""
    from bench.process import fresh
    from bench.training import SPANS

    rows = []
    with tempfile.TemporaryDirectory(dir=settings.workspace) as folder:
        progress(f"sending: recording {settings.sending_spans:,} spans")
        iterations = -(-settings.sending_spans // SPANS)
        journal, trace = fresh(record, str(Path(folder) / "run"), iterations)
        Path(trace).unlink()
        progress(f"sending: {settings.sending_pairs} pairs")
        with receiver() as backend:
            seconds, spans = fresh(send, journal, folder, backend.endpoint, settings.sending_pairs)
        ratio, _, high = ratio_bounds(seconds["ours"], seconds["official"])
        rows.append(
            Row(
                "sending: journal to OTLP", f"{spans:,} spans to a receiver, http/protobuf",
                _rate(seconds["ours"], spans),
                f"official exporter, ready-made spans: {_rate(seconds['official'], spans)}",
                f"{number(ratio)}x the time (<= {number(high)}x)", Bar(1.3), high,
                {name: seconds[name] for name in ("ours", "official")},
            )
        )  # fmt: skip
        faster, low, _ = ratio_bounds(seconds["to_json"], seconds["our file"])
        rows.append(
            Row(
                "sending: journal to OTLP", f"{spans:,} spans to OTLP JSON Lines",
                _rate(seconds["our file"], spans),
                f"to_json, ready-made spans: {_rate(seconds['to_json'], spans)}",
                f"{number(faster)}x faster (>= {number(low)}x)", Bar(3, at_least=True), low,
                {name: seconds[name] for name in ("our file", "to_json")},
            )
        )  # fmt: skip
        progress(f"sending: {settings.relay_seconds} s beside a training")
        share, lag, worst, pace = relayed(Path(folder) / "live", settings.relay_seconds)
        what = f"{pace:,.0f} spans a second, {settings.relay_seconds} s"
        rows += [
            Row(
                "sending: the relay", f"{what}: share of a core", f"{share:.0%}", "", "",
                Bar(0.5, " of a core"), share,
            ),
            Row(
                "sending: the relay", f"{what}: from a span's end to the receiver",
                f"{worst:.2f} s at most", f"median {lag:.2f} s", "", Bar(2, " s"), worst,
            ),
        ]  # fmt: skip
    return rows


def _rate(seconds: list[float], spans: int) -> str:
    return f"{spans / median(seconds):,.0f} spans/s"
