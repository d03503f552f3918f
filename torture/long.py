"""Long runs: fifty million spans recorded while a relay sends them and the app follows.

The memory of all three is looked at all the time. Afterwards everything is read. Fields of a row
that are too small for what a program does are tried as well: row numbers, names, engines, counts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from bench.process import SampleError, begin, forked
from bench.receiver import receiver
from bench.settings import Progress
from firetrace import TraceHandler
from firetrace.exporters.chrome.export import export_chrome
from firetrace.tracer import writer
from firetrace.tracer.journal import MAX_NAMES, MAX_ROW, ROW_BYTES
from firetrace.tracer.lock import lock_path
from firetrace.tracer.recording import close_all
from firetrace.tracer.stream import blocks
from firetrace.tui.model.report import read_report
from torture.checks import read
from torture.children import await_child, has_ended
from torture.firehose import Firehose, Witness
from torture.kills import lock_holder
from torture.result import Result
from torture.settings import Settings

SPANS_A_STEP = 14  #: of the firehose, at the least
LOOK_S = 0.25
LATE_S = 1800  #: after the training; of fifty million spans, many are sent then
#: How much more each may take in the last quarter of a run than in its second.
FLAT_BYTES = 8 * 2**20
#: The app keeps this much of every span; the rest of it is flat.
APP_BYTES_A_SPAN = 8
#: Follows a run as the app does; says how many spans it has taken in.
APP = """\
import sys, time
from firetrace.tui.feed import Feed, Snapshot
feed, last = Feed(sys.argv[1]), None
while True:
    found = feed.poll()
    if isinstance(found, Snapshot):
        last = found
    elif last is not None and last.report.state != "running" and last.read == 1:
        print(last.report.spans, flush=True)  # it was over, and nothing came after that
        sys.stdin.read()
    time.sleep(0.25)
"""


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Record for long, then past every limit."""
    yield from _long(settings, progress)
    for what, trial in LIMITS.items():
        progress(f"long: {what}")
        folder = settings.workspace / "limit"
        result = Result("limits of the format", what, 1)
        try:
            trial(folder, result)
        except Exception as error:
            result.failures.append(f"{type(error).__name__}: {error}")
        for file in folder.iterdir() if folder.exists() else ():
            file.unlink()
        yield result


@dataclass
class Memory:
    """Private memory of a process, sampled: bytes."""

    samples: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        """Take a sample, if the process is there."""
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return
        kinds = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.M)
        if kinds:
            self.samples.append(sum(map(int, kinds)) * 1024)

    def growth(self) -> int:
        """From the second quarter of the samples to the last one."""
        quarter = len(self.samples) // 4
        if not quarter:
            return 0
        before = np.median(self.samples[quarter : 2 * quarter])
        return int(np.median(self.samples[-quarter:]) - before)

    def __str__(self) -> str:
        return f"{max(self.samples, default=0) / 1e6:,.0f} MB"


def _long(settings: Settings, progress: Progress) -> Iterator[Result]:
    steps = -(-settings.long_spans // SPANS_A_STEP)
    folder, witness = settings.workspace / "long", Witness(1)  # its notes are memory, too
    names = ("the training", "the relay", "the app")
    training, relay, app = (Memory() for _ in names)
    with receiver() as backend:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = backend.endpoint
        child = begin(lambda: _train(folder, witness, steps))
        journal = folder / "rank0.1.rows"
        await_child(child, journal.exists)
        shown = subprocess.Popen(
            [sys.executable, "-c", APP, str(journal)], stdin=-1, stdout=-1, text=True
        )
        while not has_ended(child):
            for memory, pid in ((training, child), (relay, lock_holder(lock_path(journal))),
                                (app, shown.pid)):  # fmt: skip
                memory.look(pid)
            progress(f"long: {witness.calls:,} of {steps:,} iterations")
            time.sleep(LOOK_S if settings.short else 1)
        late = time.monotonic() + LATE_S
        while (pid := lock_holder(lock_path(journal))) != 0:
            if time.monotonic() > late:
                raise SampleError(f"the relay still sends after {LATE_S} s")
            progress("long: the relay sends the rest")
            relay.look(pid)
            time.sleep(LOOK_S)
    del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert shown.stdout is not None
    followed = int(shown.stdout.readline() or 0)
    shown.kill()
    shown.communicate()
    yield from _counted(journal, witness, followed, progress)
    memories = dict(zip(names, (training, relay, app), strict=True))
    spans = followed or settings.long_spans
    for name, memory in memories.items():
        room = FLAT_BYTES + (APP_BYTES_A_SPAN * spans if name == "the app" else 0)
        grown = 0 if settings.short else memory.growth()  # it is over before caches are full
        yield Result(
            "a long run", f"looks at the memory of {name}", len(memory.samples),
            [f"it grew by {grown:,} bytes"] if grown > room else [],
            f"at most {memory}; grew by {max(grown, 0) / 1e6:.1f} MB from its second quarter on",
        )  # fmt: skip


def _train(folder: Path, witness: Witness, steps: int) -> None:
    os.environ["FIRETRACE_OTLP_WAIT"] = "0"
    Firehose([witness], steps=steps, otlp=True).run(folder)
    close_all()


def _counted(
    journal: Path, witness: Witness, followed: int, progress: Progress
) -> Iterator[Result]:
    """What the readers make of it: all the same number of spans, a step for each call."""
    progress("long: report")
    report = read_report(journal)
    sent = json.loads(journal.with_suffix(".otlp.json").read_text())
    progress("long: export")
    exported = export_chrome(blocks(journal), Path(os.devnull))
    calls = witness.calls
    steps = sum(1 for _ in report.phases)
    counts = {
        "the app": followed, "the relay": sent["sent"], "the Chrome export": exported,
    }  # fmt: skip
    wrong = [f"{name}: {n:,}" for name, n in counts.items() if n != report.spans]
    if report.iterations != calls:
        wrong.append(f"{report.iterations:,} iterations of {calls:,}")
    if not sent["done"] or sent["rejected"]:
        wrong.append("the relay has not sent everything")
    if report.notes or not steps:
        wrong.append(f"the report says {report.notes}")
    yield Result(
        "a long run", "spans recorded, followed, sent, reported, exported", report.spans, wrong,
        f"{calls:,} iterations, {journal.stat().st_size / 2**20:,.0f} MiB",
    )  # fmt: skip


# Limits


def _stops(folder: Path, result: Result, train: Callable[[Path], dict[str, Any]]) -> None:
    """A training that goes past a limit is as it would be, warned of once, and readable."""
    seen = forked(train, folder)
    table, wrong = read(folder / "rank0.1.rows")
    result.failures += wrong
    if seen["iterations"] != seen["planned"]:
        result.failures.append(f"{seen['iterations']} iterations of {seen['planned']}")
    if len(seen["said"]) != 1:
        result.failures.append(f"{len(seen['said'])} warnings: {seen['said']}")
    if table is not None:
        result.figures = f"{len(table):,} spans; " + "; ".join(seen["said"])[-90:]


def _listening() -> list[str]:
    """Everything that firetrace says from now on."""
    import logging

    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    vars(listener)["emit"] = lambda record: said.append(record.getMessage())
    logging.getLogger("firetrace").addHandler(listener)
    logging.getLogger("firetrace").propagate = False
    return said


def _train_past_the_last_row(folder: Path) -> dict[str, Any]:
    said = _listening()
    handler = TraceHandler(folder, min_free_bytes=0, max_bytes=2**42)
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.ITERATION_COMPLETED(once=10))
    def go_far(engine: Engine) -> None:
        made = handler._recording.writer
        assert made is not None
        made._windows = (MAX_ROW + 1) * ROW_BYTES // writer.WINDOW_BYTES - 2

    handler.attach(engine)
    state = engine.run(range(1000), max_epochs=10)
    close_all()
    return {"iterations": state.iteration, "planned": 10_000, "said": said}


def _train_with_names(folder: Path) -> dict[str, Any]:
    said = _listening()
    handler = TraceHandler(folder, min_free_bytes=0)
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def spans(engine: Engine) -> None:
        for number in range(1000):
            with handler.span(f"{engine.state.iteration}-{number}"):
                pass

    state = engine.run(range(MAX_NAMES // 1000 + 5))
    close_all()
    return {"iterations": state.iteration, "planned": MAX_NAMES // 1000 + 5, "said": said}


def _train_many_engines(folder: Path) -> dict[str, Any]:
    said, iterations = _listening(), 0
    handler = TraceHandler(folder, min_free_bytes=0)
    for _ in range(300):
        engine = Engine(lambda engine, batch: None)
        handler.attach(engine)
        iterations += engine.run([1, 2]).iteration
    close_all()
    return {"iterations": iterations, "planned": 600, "said": said}


def _train_from(iteration: int, epoch: int) -> Callable[[Path], dict[str, Any]]:
    def train(folder: Path) -> dict[str, Any]:
        said = _listening()
        handler = TraceHandler(folder, min_free_bytes=0)
        calls: list[int] = []
        engine = Engine(lambda engine, batch: calls.append(batch))

        @engine.on(Events.STARTED)
        def begin_late(engine: Engine) -> None:
            engine.state.epoch = epoch

        @engine.on(Events.ITERATION_COMPLETED)
        def go_far(engine: Engine) -> None:
            if len(calls) == 3 and iteration:
                engine.state.iteration = iteration

        handler.attach(engine)
        engine.run(range(10), max_epochs=epoch + 1)
        close_all()
        return {"iterations": len(calls), "planned": 10, "said": said}

    return train


def _folded(
    folder: Path, result: Result, train: Callable[[Path], dict[str, Any]], kind: str
) -> None:
    """The same where what has no number of its own is recorded as "other"."""
    _stops(folder, result, train)
    table, _ = read(folder / "rank0.1.rows")
    if table is None:
        return
    names = [name.text for name in table.names.values() if name.kind == kind]
    lanes = [lane.engine for lane in table.meta.lanes.values()]
    if "other" not in names + lanes:
        result.failures.append("nothing is called other")
    if table.meta.stopped is not None:
        result.failures.append(f"recording stopped: {table.meta.stopped}")


LIMITS: dict[str, Callable[[Path, Result], None]] = {
    "more than 2^32 rows": lambda folder, result: _stops(folder, result, _train_past_the_last_row),
    "more than 65,536 names": lambda folder, result: _folded(
        folder, result, _train_with_names, "span"
    ),
    "more than 256 engines": lambda folder, result: _folded(
        folder, result, _train_many_engines, ""
    ),
    "more than 2^32 iterations": lambda folder, result: _stops(
        folder, result, _train_from(2**32 - 5, 0)
    ),
    "more than 2^32 epochs": lambda folder, result: _stops(folder, result, _train_from(0, 2**32)),
}  # fmt: skip
