"""From spans to the numbers that are shown: counts, percentiles, shares, progress, verdict.

Pure: takes a ``Table``, returns frozen values; no terminal, no I/O, no clock. The report and the
live app show the same numbers because both come from here. Times are ns, shares 0 to 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Ints, Table
from firetrace.tui.groups import Groups, Stats

SLOWEST = 10
#: A part of the run that is smaller than this is no verdict.
CLEAR = 1 / 3
FETCHING = ("get_batch", "loader")


@dataclass(frozen=True)
class SlowStep:
    """A step that took long, and what took it."""

    epoch: int
    iteration: int
    start_ns: int
    duration_ns: int
    largest: tuple[tuple[str, int], ...]  #: its biggest parts: name, ns


@dataclass(frozen=True)
class OpenSpan:
    """A span without an end: running now, or cut off when the process died."""

    kind: str
    name: str
    engine: str
    epoch: int
    iteration: int
    start_ns: int
    open_ns: int
    guessed: bool  #: its name is what followed here before; it is not known yet


@dataclass(frozen=True)
class Progress:
    """How far the main engine is. None where that is not known."""

    epoch: int
    max_epochs: int | None
    iteration: int  #: in all
    epoch_length: int | None
    max_iters: int | None
    fraction: float | None
    eta_ns: int | None
    steps_per_second: float | None  #: over the last steps


@dataclass(frozen=True)
class Report:
    """Everything that ``firetrace report`` says."""

    run: str
    path: str
    state: str  #: running, finished, ended (cut short, by the program itself), died, unknown
    engine: str  #: the main engine: the one that began first
    spans: int
    steps: int
    epochs: int
    duration_ns: int
    progress: Progress
    verdict: str
    step: Stats | None
    unexplained: float | None  #: share of the main engine's step time that lies in no span
    phases: dict[str, Stats]
    handlers: dict[str, Stats]
    slowest_steps: tuple[SlowStep, ...]
    incomplete: tuple[OpenSpan, ...]
    exceptions: tuple[str, ...]
    notes: tuple[str, ...]  #: what was thinned out, could not be read, or stopped the recording

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)


def report(table: Table) -> Report:
    """Compute everything. A million spans take some 60 ms."""
    main = _main_lane(table)
    engine = table.lane_of(main).engine if len(table) else ""
    groups = Groups(table, main)
    step_positions = groups.positions("step", main)
    steps = groups.stats(step_positions, 0)
    runs = table.of_kind("run")
    main_runs = runs[(table.rows["lane"][runs] == main) & (table.rows["parent"][runs] == 0)]
    duration = int(table.durations(main_runs).sum())
    phases = groups.phases()
    handlers = groups.handlers(duration)
    epochs = groups.positions("epoch", main)
    whole = int(table.durations(step_positions).sum())
    progress = _progress(table, main_runs, epochs, step_positions)
    return Report(
        run=str(table.meta.resource.get("ignite.run.id") or table.path.parent.name),
        path=str(table.path.parent),
        state=state(table, main_runs),
        engine=engine,
        spans=len(table),
        steps=len(step_positions),
        epochs=len(epochs),
        duration_ns=duration,
        progress=progress,
        verdict=_verdict(groups, duration, steps, phases, handlers),
        step=steps,
        unexplained=groups.unexplained_ns() / whole if whole else None,
        phases=phases,
        handlers=handlers,
        slowest_steps=_slowest(table, step_positions),
        incomplete=_incomplete(table),
        exceptions=_exceptions(table),
        notes=_notes(table),
    )


def state(table: Table, main_runs: Ints | None = None) -> str:
    """What has become of the run: running, idle, finished, ended (cut short), died, unknown."""
    if main_runs is None:
        runs = table.of_kind("run")
        main_runs = runs[table.rows["parent"][runs] == 0]
    if not len(main_runs):
        return "running" if table.alive else "empty"
    last = table.rows[main_runs[-1]]
    if last["end"] == 0:
        return {True: "running", False: "died", None: "unknown"}[table.alive]
    return "ended" if last["flags"] & Flag.CUT else "finished"


def _main_lane(table: Table) -> int:
    """The lane of the first engine that ran on its own, rather than inside another's handler."""
    runs = table.of_kind("run")
    roots = runs[table.rows["parent"][runs] == 0]
    if len(roots):
        return int(table.rows["lane"][roots[0]])
    return int(table.rows["lane"][0]) if len(table) else 0


def _progress(table: Table, main_runs: Ints, epochs: Ints, steps: Ints) -> Progress:
    plan: dict[str, Any] = {}
    if len(main_runs):
        plan = table.meta.runs.get(int(table.numbers[main_runs[-1]]), {})
    began = int(table.rows["start"][main_runs[-1]]) if len(main_runs) else 0
    steps = steps[table.rows["start"][steps] >= began]  # of the last run
    last = np.concatenate([steps[-1:], epochs[-1:]])  # thinned steps leave their number there
    epoch = int(table.rows["epoch"][last].max(initial=0))
    iteration = int(table.rows["iteration"][last].max(initial=0))
    limits = {
        key: plan.get(key) if isinstance(plan.get(key), int) else None
        for key in ("max_epochs", "epoch_length", "max_iters")
    }
    planned = limits["max_iters"]
    if planned is None and limits["max_epochs"] and limits["epoch_length"]:
        planned = limits["max_epochs"] * limits["epoch_length"]
    rows = table.rows[steps[-200:]]
    rows = rows[rows["end"] != 0]
    rate = fraction = eta = None
    if len(rows) > 1:
        rate = (len(rows) - 1) / max(1e-9, int(rows["end"][-1] - rows["end"][0]) / 1e9)
        thinned = int(rows["iteration"][-1]) - int(rows["iteration"][0])
        rate *= max(1.0, thinned / (len(rows) - 1))
    completed = int(rows["iteration"][-1]) if len(rows) else 0
    if planned:
        fraction = min(1.0, completed / planned)
        if len(main_runs) and completed and table.rows["end"][main_runs[-1]] == 0:
            # Over the whole run, so that validation and checkpoints count.
            first = int(table.rows["iteration"][steps[0]]) - 1
            spent = table.last_ns() - began
            eta = round(spent / max(1, completed - first) * (planned - completed))
    return Progress(
        epoch, limits["max_epochs"], iteration, limits["epoch_length"], limits["max_iters"],
        fraction, eta, rate,
    )  # fmt: skip


def _slowest(table: Table, steps: Ints) -> tuple[SlowStep, ...]:
    rows = table.rows[steps]
    done = (rows["end"] != 0) & (rows["flags"] & Flag.CUT == 0)
    steps, durations = steps[done], (rows["end"] - rows["start"])[done]
    count = min(SLOWEST, len(steps))
    if not count:
        return ()
    top = np.argpartition(durations, len(durations) - count)[-count:]
    top = top[np.argsort(-durations[top], kind="stable")]
    return tuple(
        SlowStep(
            int(table.rows["epoch"][steps[i]]), int(table.rows["iteration"][steps[i]]),
            int(table.rows["start"][steps[i]]), int(durations[i]), _largest(table, int(steps[i])),
        )
        for i in top
    )  # fmt: skip


def _largest(table: Table, step: int) -> tuple[tuple[str, int], ...]:
    """The biggest parts of a step: its phases, and the handlers of its events."""
    number = int(table.numbers[step])
    # Children come after their parent and, in one thread, before the next step.
    end = int(np.searchsorted(table.rows["start"][step:], table.rows["end"][step] + 1)) + step
    near = slice(step, max(end, step + 1))
    inside = {number}
    parts: dict[str, int] = {}
    for offset in range(near.start + 1, min(near.stop, near.start + 20_000)):
        row = table.rows[offset]
        if int(row["parent"]) not in inside or not row["end"]:
            continue
        name = table.name(offset)
        if name.kind in ("phase", "handler", "loader", "pair", "span"):
            parts[name.text] = parts.get(name.text, 0) + int(row["end"] - row["start"])
        else:
            inside.add(int(table.numbers[offset]))
    return tuple(sorted(parts.items(), key=lambda part: -part[1])[:3])


def _incomplete(table: Table) -> tuple[OpenSpan, ...]:
    positions = table.open_positions()
    found = []
    for position, open_ns in zip(
        positions.tolist(), table.durations(positions).tolist(), strict=True
    ):
        row, name = table.rows[position], table.name(position)
        found.append(
            OpenSpan(
                name.kind, name.text, table.lane(position).engine, int(row["epoch"]),
                int(row["iteration"]), int(row["start"]), open_ns, bool(row["flags"] & Flag.GUESS),
            )
        )  # fmt: skip
    return tuple(found)


def _exceptions(table: Table) -> tuple[str, ...]:
    return tuple(
        f"{line.get('exception.type', '?')}: {line.get('exception.message', '')}"
        for line in table.meta.exceptions.values()
    )


def _notes(table: Table) -> tuple[str, ...]:
    notes = []
    if table.meta.thinned:
        every = int(table.meta.thinned[-1].get("every", 0))
        notes.append(
            f"only every {every:,}th step was recorded at the end (disk budget or every=N)"
        )
    if table.meta.stopped:
        notes.append(f"recording stopped before the training did: {table.meta.stopped}")
    if table.damaged or table.meta.damaged:
        notes.append(
            f"{table.damaged:,} damaged rows and {table.meta.damaged:,} damaged lines left out"
        )
    return tuple(notes)


def _verdict(
    groups: Groups,
    duration: int,
    step: Stats | None,
    phases: dict[str, Stats],
    handlers: dict[str, Stats],
) -> str:
    """The one thing to know, in plain words, with its figure: the largest part of the run."""
    if step is None or not duration:
        return "no step has been completed yet"
    table = groups.table
    wait = sum(phases[name].total_ns for name in FETCHING if name in phases)
    compute = max(0, step.total_ns - wait - groups.event_ns(in_steps=True))
    parts = {
        "DATA-BOUND": (wait, f"waiting for data is {wait / duration:.0%} of the run"),
        "COMPUTE-BOUND": (compute, f"the process function is {compute / duration:.0%} of the run"),
    }
    own = {name: s for name, s in phases.items() if ": " not in name and name not in FETCHING}
    if own:
        name = max(own, key=lambda name: own[name].total_ns)
        parts["COMPUTE-BOUND"] = (
            compute,
            f"{parts['COMPUTE-BOUND'][1]}, {name} alone {own[name].total_ns / duration:.0%}",
        )
    runs = table.of_kind("run")
    nested: dict[str, int] = {}
    inner = runs[(table.rows["parent"][runs] != 0) & (table.rows["lane"][runs] != groups.main)]
    for position, ns in zip(inner.tolist(), table.durations(inner).tolist(), strict=True):
        engine = table.lane(position).engine
        nested[engine] = nested.get(engine, 0) + ns
    if nested:
        engine = max(nested, key=lambda engine: nested[engine])
        part = nested[engine]
        parts["VALIDATION-BOUND"] = (part, f"{engine} is {part / duration:.0%} of the run")
    rest = groups.event_ns() - sum(nested.values())  # handlers, less the engines that they ran
    if handlers and rest > 0:
        slow = {name: s for name, s in handlers.items() if s.total_ns <= rest * 1.05}
        name = max(slow, key=lambda name: slow[name].total_ns, default="")
        if name:
            figure = f"handlers are {rest / duration:.0%} of the run, {name} {slow[name].share:.0%}"
            parts["HANDLER-BOUND"] = (rest, figure)
    word = max(parts, key=lambda word: parts[word][0])
    part, figure = parts[word]
    of_step = f"; get_batch is {wait / step.total_ns:.0%} of a step" if step.total_ns else ""
    if part < CLEAR * duration:
        return f"BALANCED: nothing dominates; {figure}" + of_step
    return f"{word}: {figure}" + of_step
