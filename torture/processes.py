"""Trainings that fork, spawn and kill: nothing hangs, nobody else writes, nothing is left behind.

Each is run as it is, with a handler, and by ``firetrace run``, in fresh interpreters; the program
is ``torture.forker``. What the three do and say must be the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.settings import Progress
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.table import Table, read_table
from torture.checks import problems
from torture.result import Result
from torture.settings import Settings

SECONDS = 150  #: after which a training has hung
GONE_S = 8.0  #: by then even a child that outlives its parent on purpose is gone
MARK = "FIRETRACE_TORTURE_MARK"
WAYS = ("untraced", "handler", "run")
LOADERS = tuple(
    f"loader:{method}:2:0+loader:{method}:2:1+loader:{method}:0:0"
    for method in ("fork", "spawn", "forkserver")
)
POOLS = tuple(
    f"pool:{method}:{kind}"
    for method in ("fork", "spawn", "forkserver") for kind in ("pool", "executor")
)  # fmt: skip
SUBJECTS = {
    "loader workers of each start method": LOADERS,
    "MONAI's cache, loader threads and workers": ("monai:0+monai:2",),
    "os.fork in handlers": (
        "fork:exit+fork:sys.exit+fork:atexit+fork:exception", "fork:events+fork:uses",
        "fork:uses and exits", "fork:goes on", "fork:grandchild+fork:killed", "fork:outlives",
    ),
    "pools of each start method in handlers": POOLS,
    "subprocess and posix_spawn in handlers": ("programs",),
    "forks beside threads that hold locks": ("hammer",) * 6,
}  # fmt: skip
SHORT = {
    "workers, pools, forks, programs": (
        "loader:fork:2:1+programs+pool:fork:pool+fork:exit+fork:exception+fork:uses and exits+"
        "fork:goes on+fork:grandchild+fork:outlives",
    ),
    "forks beside threads that hold locks": ("hammer",),
}  # fmt: skip
#: What the libraries say of a worker that was killed depends on when that was; and threads that
#: hammer make more engines than a journal can tell apart, or fewer.
CHANCE = re.compile(
    r"(Current|Engine) run is terminating due to exception|has more engines and threads than"
)


@dataclass
class Outcome:
    """One training: what it said, and what it left."""

    code: int | None  #: None: it hung
    said: dict[str, Any]
    errors: set[str]  #: lines of stderr, numbers left out
    folder: Path
    left: list[str]  #: processes that outlived it


def run(scenario: str, way: str, folder: Path) -> Outcome:
    """Run a training to its end."""
    mark, words = uuid.uuid4().hex, ["-m", "torture.forker", scenario]
    environment = {
        **os.environ, MARK: mark, "FIRETRACE_DIR": str(folder),
        "PYTHONWARNINGS": "default,error::ResourceWarning",
    }  # fmt: skip
    if way == "run":
        words = ["-m", "firetrace.tui.cli", "run", "-q", "-o", str(folder / "run"), *words]
    elif way == "handler":
        words.append("traced")
    folder.mkdir(parents=True)
    out, errors = folder / "stdout", folder / "stderr"
    with open(out, "wb") as stdout, open(errors, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *words], env=environment, stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=stderr, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
    lines = out.read_text(errors="replace").splitlines()
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    told = errors.read_text(errors="replace").splitlines()
    plain = {re.sub(r"0x[0-9a-f]+|\d+", "N", line) for line in told if not CHANCE.search(line)}
    said["alive"] = [path.name for path in journals(folder) if is_alive(path)]
    return Outcome(code, said, plain, folder, left_behind(mark))


def journals(folder: Path) -> list[Path]:
    """Every journal of a training and its children."""
    return sorted(folder.glob("*/*.rows"))


def is_alive(journal: Path) -> bool:
    """Whether somebody still has its lock."""
    with JournalReader(journal) as reader:
        return bool(reader.alive())


def left_behind(mark: str) -> list[str]:
    """Processes that have the mark in their environment and do not go; they are ended."""
    deadline = time.monotonic() + GONE_S
    while found := list(marked(mark)):
        if time.monotonic() > deadline:
            names = [f"process {each.pid} was left: {' '.join(each.cmdline())}" for each in found]
            for each in found:
                each.kill()
            return names
        time.sleep(0.1)
    return []


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes with the mark in their environment."""
    for each in psutil.process_iter():
        try:
            if each.environ().get(MARK) == mark and each.status() != psutil.STATUS_ZOMBIE:
                yield each
        except psutil.Error:
            continue


def compare(plain: Outcome, traced: Outcome, way: str) -> Iterator[str]:
    """What is different from the training as it is, and what else must not be."""
    if traced.code is None:
        yield f"hung; it said {sorted(traced.errors)[-3:]}"
        return
    if traced.code != plain.code or "pid" not in traced.said:
        yield f"exit code {traced.code} instead of {plain.code}: {sorted(traced.errors)[-9:]}"
        return
    for name in ("result", "counted", "threads", "children"):
        if traced.said[name] != plain.said[name]:
            yield f"{name}: {traced.said[name]!r:.300} instead of {plain.said[name]!r:.300}"
    if traced.said["tasks"] > plain.said["tasks"]:
        yield f"{traced.said['tasks']} threads are left instead of {plain.said['tasks']}"
    if new := sorted(traced.errors - plain.errors):
        yield f"it says more on stderr: {new[:5]}"
    if way == "handler" and traced.said["open"] > plain.said["open"]:
        yield f"{traced.said['open']} descriptors are open instead of {plain.said['open']}"
    yield from traced.left
    yield from recorded(traced, way)


def recorded(traced: Outcome, way: str) -> Iterator[str]:
    """What is wrong with what was recorded."""
    said, own, others = traced.said, list[Table](), 0
    for path in journals(traced.folder):
        try:
            table = read_table(path)
        except FiretraceError as error:
            yield f"{error}"
            continue
        if table.meta.resource.get("process.pid") == said["pid"] == table.header.pid:
            own.append(table)
        else:
            others += 1
            if table.meta.stopped:
                yield f"a child's recording stopped: {table.meta.stopped}"
        yield from (f"{path.name}: {each}" for each in problems(table))
    expected = said["others"] if way == "handler" else said["running"]
    if others != expected:
        yield f"{others} journals of other processes instead of {expected}"
    if len(own) != 1:
        yield f"{len(own)} journals of the training itself instead of one"
        return
    (table,) = own
    if table.meta.stopped or table.meta.ended is None:
        yield f"its recording ended badly: {table.meta.stopped}"
    rows, names = table.rows, table.meta.names
    counts = np.bincount(rows["name"], minlength=max(names, default=0) + 1)
    by_name = {names[id].text: int(count) for id, count in enumerate(counts) if id in names}
    for text in ("Training.count", *(["own"] if way == "handler" else [])):
        if by_name.get(text) != said["counted"]:
            yield f"{by_name.get(text)} spans {text} instead of {said['counted']}"
    if by_name.get("in the child"):
        yield "a child wrote into the journal of its parent"
    spans = rows[rows["flags"] & 4 == 0]
    if len(rows) and (rows["start"].min() < said["begin"] or spans["end"].max() > said["end"]):
        yield "rows lie outside of the training's time"
    if said["alive"] and way == "handler":
        yield f"the lock is held after the training's end: {said['alive']}"


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Run them all."""
    for what, scenarios in (SHORT if settings.short else SUBJECTS).items():
        result = Result("processes", what)
        began = time.monotonic()
        for number, scenario in enumerate(scenarios):
            outcomes = {}
            for way in WAYS:
                progress(f"{scenario[:50]} ({way})")
                folder = settings.workspace / f"{what[:9]}{number}" / way
                outcomes[way] = run(scenario, way, folder)
            plain = outcomes.pop("untraced")
            result.tried += scenario.count("+") + 1
            if plain.code is None or plain.code != 0 or "pid" not in plain.said:
                told = sorted(plain.errors)[-9:]
                result.failures.append(f"{scenario}, untraced: {plain.code}, {told}")
                continue
            for way, traced in outcomes.items():
                found = compare(plain, traced, way)
                result.failures += [f"{scenario}, {way}: {each}" for each in found]
        result.figures = (
            f"each as it is, with a handler, by firetrace run; {time.monotonic() - began:.0f} s"
        )
        yield result
