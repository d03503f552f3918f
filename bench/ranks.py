"""Ranks: the report and the app of a run of many ranks, of which one makes the others wait.

The run is made of a recorded journal (``bench.alike``): each rank has one of its own, eight are
on a host. ``firetrace report`` of the directory is timed from the start of the process to its end
and must name the slow rank. The peer, a new process as well, loads the times of the same steps from
JSON Lines (``json.loads``), a file a rank and an object a step, and computes nothing; the two
alternate. The app is timed in a terminal from the start of its process until it shows the run, the
slow rank in its verdict and the strip of ranks (``is_whole``). Memory is what the process shares
with no other, the most that was seen in starts of their own, which are not timed. Linux only.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.alike import SLOW_RANK, as_ranks
from bench.memory import private_mb
from bench.process import SampleError, fresh
from bench.result import Bar, Row, difference_bound, median, number, ratio_bounds
from bench.settings import Progress, Settings
from bench.watching import COMPLETE, app

EPOCH = 1_000  #: steps in one at most
LOOK_S = 0.02  #: between two looks at a process's memory
PATIENCE_S = 30.0  #: for which the app's whole picture is waited for
SETTLED_S = 1.0
REPORT = (sys.executable, "-m", "firetrace.tui.cli", "report")
PEER = """
import json, sys
from pathlib import Path
steps = []
for path in Path(sys.argv[1]).iterdir():
    with path.open(encoding="utf-8") as file:
        steps += map(json.loads, file)
print(len(steps))
"""
VERDICT = rf"rank {SLOW_RANK} makes the others wait"
STRIP = r"ranks, step "


class Run(NamedTuple):
    """The same run twice."""

    what: str
    directory: str  #: of the journals
    lines: str  #: of the peer's files
    steps: int  #: of all ranks


def is_whole(text: str) -> bool:
    """Whether this, which the app has painted so far, is the whole picture of the run."""
    return all(re.search(each, text) for each in (COMPLETE, VERDICT, STRIP))


def record(directory: str, steps: int) -> str:
    """Record a run of so many steps. Returns the rows file. For a new interpreter."""
    from bench.peers import Firetrace
    from bench.training import build
    from firetrace.tracer.run import open_run

    engine, tracer = build(handlers=False), Firetrace(Path(directory))
    tracer.attach(engine)
    engine.run(range(min(steps, EPOCH)), max_epochs=-(-steps // EPOCH))
    tracer.finish(steps)
    return str(open_run(Path(directory)).newest)


def write_lines(directory: str, folder: str) -> int:
    """Write the steps of a run as the peer reads them; return how many. For a new interpreter."""
    from firetrace.tui.model.rank_reader import ITERATION_MASK, STEP
    from firetrace.tui.model.ranks import Ranks

    ranks, count = Ranks(Path(directory)), 0
    ranks.poll()
    Path(folder).mkdir()
    times = ("start", "data", "ready", "end")
    for rank, reader in ranks.readers.items():
        values = reader.steps(ranks.engine).values
        count += len(values)
        with (Path(folder) / f"rank{rank}.jsonl").open("w", encoding="utf-8") as file:
            for value in values.tolist():
                step = dict(zip(STEP.names or (), value, strict=True))
                said = {"rank": rank, "epoch": step["epoch"], "step": step["key"] & ITERATION_MASK}
                file.write(json.dumps({**said, **{name: step[name] for name in times}}) + "\n")
    return count


def make(folder: Path, ranks: int, steps: int) -> Run:
    """Make a run of so many ranks."""
    pattern = fresh(record, str(folder / "recorded"), steps)
    directory = as_ranks(pattern, folder / "run", ranks)
    count = fresh(write_lines, directory, str(folder / "lines"))
    if count != ranks * steps:
        raise SampleError(f"{count:,} steps of {ranks:,} x {steps:,}")
    return Run(f"{ranks:,} ranks, {steps:,} steps each", directory, str(folder / "lines"), count)


def ended(words: Sequence[str], marker: str) -> float:
    """Seconds that a program takes which says this."""
    began = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    took = time.perf_counter() - began
    if not re.search(marker, done.stdout):
        raise SampleError(f"{' '.join(words)} does not say {marker!r}:\n{done.stdout[:2000]}")
    return took


def most_mb(words: Sequence[str]) -> float:
    """The most private memory that a program has, as far as that is seen."""
    most = 0.0
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                most = max(most, private_mb(process.pid))
            except OSError:  # it is ending
                pass
            time.sleep(LOOK_S)
    return most


def reports(run: Run, pairs: int, progress: Progress) -> list[Row]:
    """The report, and the peer."""
    report, peer = (*REPORT, run.directory), (sys.executable, "-c", PEER, run.lines)
    ours, peers = list[float](), list[float]()
    for index in range(pairs + 1):
        progress(f"ranks: {run.what}, report {index} of {pairs}")
        peers.append(ended(peer, rf"^{run.steps}$"))
        ours.append(ended(report, VERDICT))
    del peers[0], ours[0]  # they fill the page cache
    ratio, _, high = ratio_bounds(ours, peers)
    _, most = difference_bound(ours, [0.0] * pairs)
    memory = {"report": most_mb(report), "json.loads": most_mb(peer)}
    subject = "ranks: firetrace report"
    return [
        Row(
            subject, run.what, f"{median(ours):.2f} s",
            f"json.loads of the steps' times: {median(peers):.2f} s",
            f"{number(ratio)}x (<= {number(high)}x), <= {most:.2f} s", Bar(10, " s"), most,
            {"firetrace": ours, "json.loads": peers},
        ),
        Row(
            subject, f"{run.what}, private memory", f"{memory['report']:.0f} MB",
            f"json.loads: {memory['json.loads']:.0f} MB", "", Bar(1000, " MB"), memory["report"],
        ),
    ]  # fmt: skip


def opened(directory: str) -> tuple[float, float]:
    """Seconds from the start of the app to its first and its whole picture; inf: it never came."""
    with app(directory) as terminal:
        first = terminal.wait_for(COMPLETE) - terminal.began
        whole = terminal.wait_until(is_whole, PATIENCE_S)
        return first, math.inf if whole is None else whole - terminal.began


def opened_mb(directory: str) -> float:
    """The most private memory that the app has until it is calm."""
    with app(directory) as terminal:
        seen, until, whole = [0.0], time.time() + PATIENCE_S, False
        while time.time() < until:
            seen.append(terminal.private_mb())
            terminal.watch(LOOK_S)
            if not whole and is_whole(terminal.text()):
                whole, until = True, time.time() + SETTLED_S
    return max(seen)


def pictures(run: Run, pairs: int, progress: Progress) -> list[Row]:
    """The app."""
    taken = list[tuple[float, float]]()
    for index in range(pairs + 1):
        progress(f"ranks: {run.what}, app {index} of {pairs}")
        taken.append(opened(run.directory))
    first, whole = [each[0] for each in taken[1:]], [each[1] for each in taken[1:]]
    came = all(map(math.isfinite, whole))
    bound = difference_bound(whole, [0.0] * pairs)[1] if came else math.inf
    private = opened_mb(run.directory)
    subject = "ranks: the app, to the whole picture"
    return [
        Row(
            subject, run.what, f"{median(whole):.2f} s" if came else "never",
            f"without the ranks: {median(first):.2f} s", f"<= {bound:.2f} s", Bar(5, " s"), bound,
            {"first": first, "whole": [each for each in whole if not math.isinf(each)]},
        ),
        Row(subject, f"{run.what}, private memory", f"{private:.0f} MB", "", "",
            Bar(1000, " MB"), private),
    ]  # fmt: skip


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Make the runs, one after the other, and look at them."""
    rows = list[Row]()
    for ranks, steps in (settings.ranks_many, settings.ranks_long):
        with tempfile.TemporaryDirectory(dir=settings.workspace) as folder:
            progress(f"ranks: making {ranks:,} x {steps:,} steps")
            run = make(Path(folder), ranks, steps)
            rows += reports(run, settings.ranks_pairs, progress)
            rows += pictures(run, settings.ranks_pairs, progress)
    return sorted(rows, key=lambda row: row.subject)
