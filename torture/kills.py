"""SIGKILL at any moment: what had ended is there, what was open is marked, and all of it is usable.

Trainings that fire events as fast as they can are killed at random moments; a small one is killed
at every call that firetrace makes. Some are followed by a relay, which is killed, too.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.process import begin, forked
from bench.settings import Progress
from firetrace.exporters.chrome.export import export_chrome
from firetrace.exporters.otlp.file import export_otlp_file
from firetrace.tracer.ids import span_ids
from firetrace.tracer.lock import lock_path
from firetrace.tracer.reader import lock_is_held
from firetrace.tracer.stream import blocks
from firetrace.tracer.table import Table
from firetrace.tui.cli import main as command
from firetrace.tui.model.report import read_report
from tests.support.otlp_server import OtlpHttpServer
from torture.checks import read
from torture.children import await_child
from torture.firehose import Firehose, Witness, lost
from torture.result import Result
from torture.settings import Settings
from torture.sites import Site, Visit, act_at, visits

LONGEST_S = 0.3
PATIENCE_S = 60


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Kill trainings."""
    draw = random.Random(settings.seed)
    yield _at_random(settings, draw, progress)
    yield _at_calls(settings, draw, progress)
    yield _with_a_relay(settings, draw, progress)


def _at_random(settings: Settings, draw: random.Random, progress: Progress) -> Result:
    result = Result("SIGKILL", "a training as fast as it can, at a random moment")
    expected = missing = opened = 0
    for number in range(settings.kills):
        if number % 10 == 0:
            progress(f"kills: {number} of {settings.kills}")
        witnesses = [Witness() for _ in range(draw.choice((1, 1, 3)))]
        firehose = Firehose(
            witnesses, mapped=draw.random() < 0.7, window_bytes=draw.choice((2**13, 2**15, 2**18))
        )
        # At its beginning as often as later: half of the moments are equally likely in time, half
        # in its logarithm.
        moment = draw.uniform(0, LONGEST_S) if number % 2 else LONGEST_S * 10 ** draw.uniform(-4, 0)
        folder = settings.workspace / f"run{number}"
        killed(lambda: firehose.run(folder), moment)  # noqa: B023
        result.tried += 1
        tables, wrong = examined(folder)
        for table in tables:
            more, gone, wrong_here = lost(table, witnesses)
            expected, missing = expected + more, missing + gone
            opened += len(table.open_positions())
            wrong += wrong_here
        if not tables and any(len(each.times()) for each in witnesses):
            wrong.append("there is no journal")
        result.failures += [f"kill {number}, after {moment:.4f} s: {each}" for each in wrong]
        _remove(folder)
    result.figures = f"spans lost: {missing:,} of {expected:,}; {opened:,} were open"
    return result


def killed(
    program: Callable[[], None], after_s: float, begun: Callable[[], object] = lambda: True
) -> None:
    """Run a program in a child and kill it so long after it has begun."""
    ready, told = os.pipe()

    def run() -> None:
        os.write(told, b"1")
        program()

    child = begin(run)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    await_child(child, begun)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def examined(folder: Path) -> tuple[list[Table], list[str]]:
    """A killed run's journals, and what is wrong with them or with what can be made of them."""
    wrong: list[str] = []
    tables = []
    for journal in sorted(folder.glob("*.rows")):
        table, problems = read(journal)
        wrong += problems
        if table is None:
            continue
        tables.append(table)
        if table.alive is not False:
            wrong.append("it does not look dead")
        if table.meta.ended is not None:
            wrong.append("it looks properly closed")
        try:
            wrong += _usable(journal, table)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    return tables, wrong


def _usable(journal: Path, table: Table) -> Iterator[str]:
    """What is wrong with the report and the exports of a journal."""
    opened = len(table.open_positions())
    report = read_report(journal)
    if opened and (report.state != "died" or not report.incomplete):
        yield f"the report says {report.state}, {len(report.incomplete)} incomplete"
    if report.spans != len(table):
        yield f"the report has {report.spans} spans of {len(table)}"
    written = export_chrome(blocks(journal), journal.with_suffix(".json"))
    if written != len(table):
        yield f"Chrome JSON has {written} spans of {len(table)}"
    written = export_otlp_file(journal, journal.with_suffix(".otlp.jsonl"))
    if written != len(table):
        yield f"OTLP JSON Lines have {written} spans of {len(table)}"


def _remove(folder: Path) -> None:
    for file in folder.glob("*"):
        file.unlink()
    if folder.exists():
        folder.rmdir()


def _at_calls(settings: Settings, draw: random.Random, progress: Progress) -> Result:
    """A short training, killed just before a call of firetrace's, each in turn."""
    result = Result("SIGKILL", "just before each call that firetrace makes")
    found = forked(_visited, settings.workspace / "visited")
    plan = [Visit(Site(*site), time) for site, n in found for time in {1, draw.randint(1, n)}]
    plan = [visit for visit in plan if visit.site.is_call]
    if settings.short:
        plan = draw.sample(plan, min(40, len(plan)))
    expected = missing = 0
    for number, visit in enumerate(plan):
        if number % 20 == 0:
            progress(f"kills: call {number} of {len(plan)}")
        folder, witness = settings.workspace / f"call{number}", Witness(256)
        child = os.fork()
        if child == 0:
            _die_at(visit, folder, witness)
        _, status = os.waitpid(child, 0)
        result.tried += 1
        tables, wrong = examined(folder) if os.WIFSIGNALED(status) else ([], [])
        for table in tables:
            more, gone, wrong_here = lost(table, [witness])
            expected, missing, wrong = expected + more, missing + gone, wrong + wrong_here
        result.failures += [f"{visit.site} (time {visit.time}): {each}" for each in wrong]
        _remove(folder)
    result.figures = f"spans lost: {missing:,} of {expected:,}"
    return result


def _visited(folder: Path) -> list[tuple[Site, int]]:
    return [*visits(lambda: _small(folder, Witness(256))).items()]


def _small(folder: Path, witness: Witness) -> None:
    Firehose([witness], window_bytes=2**13, steps=100).run(folder)


def _die_at(visit: Visit, folder: Path, witness: Witness) -> None:
    try:
        act_at(visit, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: _small(folder, witness))
    finally:
        os._exit(0)


def _with_a_relay(settings: Settings, draw: random.Random, progress: Progress) -> Result:
    result = Result("SIGKILL", "of a training whose spans a relay sends on, and of the relay")
    spans = 0
    for number in range(settings.relayed_kills):
        progress(f"kills: relayed, {number} of {settings.relayed_kills}")
        folder, witness = settings.workspace / f"relayed{number}", Witness()
        firehose = Firehose([witness], pause_s=0.001, otlp=True)
        with OtlpHttpServer() as server:  # its own: what a killed relay has sent may come late
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = server.endpoint.removesuffix("/v1/traces")
            # Before it trains, nobody can tell whether there is going to be a relay.
            killed(
                lambda: firehose.run(folder),  # noqa: B023
                draw.uniform(0, 2),
                lambda: witness.calls,  # noqa: B023
            )
            result.tried += 1
            wrong = _delivered(folder / "rank0.1.rows", server, draw.random() < 0.5)
            result.failures += [f"kill {number}: {each}" for each in wrong]
            spans += len(server.spans())
    del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
    result.figures = f"{spans:,} spans, each at the backend"
    return result


def _delivered(journal: Path, server: OtlpHttpServer, kill_relay: bool) -> Iterator[str]:
    """What is wrong with what arrived of a run, after its relay has ended or was killed."""
    relay = lock_holder(lock_path(journal))
    if relay and kill_relay:
        os.kill(relay, signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while lock_is_held(lock_path(journal)):
        if time.monotonic() > end:
            yield "the relay does not end"
            return
        time.sleep(0.02)
    if kill_relay and command(["export", str(journal), "--to", "otlp", "--resume"]):
        yield "firetrace export --resume failed"
    table, wrong = read(journal)
    yield from wrong
    if table is None:
        return
    ids = span_ids(table.header.seed, table.numbers).tolist()
    arrived = Counter(int.from_bytes(each.span.span_id, "big") for each in server.spans())
    lost_ids, alien = set(ids) - set(arrived), set(arrived) - set(ids)
    twice = sum(count - 1 for count in arrived.values())
    if lost_ids:
        yield f"{len(lost_ids)} of {len(ids)} spans did not arrive"
    if alien:
        yield f"{len(alien)} spans arrived that are not in the journal"
    if twice and not kill_relay:
        yield f"{twice} spans arrived twice"


def lock_holder(path: Path) -> int:
    """The process that holds a lock; 0: none."""
    if not path.exists():
        return 0
    flock = struct.Struct("hhqqi4x")
    with path.open("rb") as file:
        asked = flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = flock.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return pid if kind != fcntl.F_UNLCK else 0
