"""The disk budget: a run that would write twenty times as much stays within it.

It keeps its runs, epochs, errors and newest steps, and says what was thinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events

from bench.process import forked
from bench.settings import Progress
from firetrace import TraceHandler
from firetrace.tracer.journal import Flag
from firetrace.tracer.recording import close_all
from firetrace.tracer.table import Table
from firetrace.tui.model.report import read_report
from torture.checks import read
from torture.result import Result
from torture.settings import Settings

STEPS, EPOCHS = 200, 10  #: of an epoch, of a run
SPANS_A_STEP = 11
BAD_STEP = 77  #: of each run's last epoch, in which a handler raises


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Outgrow budgets of several sizes, with both storages."""
    sizes = [2**18, 2**20] if settings.short else [2**18, 2**20, 2**22, 2**24]
    for size in sizes:
        for mapped in (True, False):
            name = f"{size // 1024:,} KiB, {'mapped' if mapped else 'pwrite'}"
            progress(f"budget: {name}")
            folder = settings.workspace / name.replace(" ", "").replace(",", "")
            seen = forked(_train, folder, size, mapped, settings.budget_factor)
            yield _judged(folder, size, name, seen)
            for file in folder.iterdir():
                file.unlink()


def _train(folder: Path, budget: int, mapped: bool, factor: int) -> dict[str, int]:
    """Run after run, each ended by an error, until it would have been too much."""

    def step(engine: Engine, batch: int) -> None:
        pass

    def fail(engine: Engine) -> None:
        if engine.state.iteration == STEPS * (EPOCHS - 1) + BAD_STEP:
            raise ValueError("a bad batch")

    handler = TraceHandler(folder, max_bytes=budget, min_free_bytes=0)
    recording = handler._recording
    recording.settings = replace(recording.settings, mapped=mapped)
    runs = largest = 0
    while runs * STEPS * (EPOCHS - 1) * SPANS_A_STEP * 32 < factor * budget:
        engine = Engine(step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, fail)
        handler.attach(engine)
        try:
            engine.run(range(STEPS), max_epochs=EPOCHS)
        except ValueError:
            runs += 1
        handler.detach(engine)
        largest = max(largest, used(folder))
    stopped = int(recording.ended)
    close_all()
    return {"runs": runs, "largest": max(largest, used(folder)), "stopped": stopped}


def used(folder: Path) -> int:
    """Bytes that a folder's files take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def _judged(folder: Path, budget: int, name: str, seen: dict[str, int]) -> Result:
    result = Result("disk budget", f"{name}: 20 times as much", seen["runs"])
    journal = folder / "rank0.1.rows"
    table, result.failures = read(journal)
    if table is None:
        return result
    report = read_report(journal)
    rows, meta = table.rows, table.meta
    errors = int(np.count_nonzero(rows["flags"][table.of_kind("run")] & Flag.ERROR))
    texts = len(meta.exceptions)
    last = _last_step(table)
    end = STEPS * (EPOCHS - 1) + BAD_STEP
    wrong = {
        f"{seen['largest']:,} bytes on the disk": seen["largest"] > budget,
        "recording stopped": bool(seen["stopped"]),
        f"{len(table.of_kind('run'))} runs": len(table.of_kind("run")) != seen["runs"],
        f"{len(table.of_kind('epoch'))} epochs": len(table.of_kind("epoch"))
        != seen["runs"] * EPOCHS,
        f"{errors} errors": errors != seen["runs"],
        f"the newest step is {last}, of {end}": last < end - 2 * meta.sparsest,
        "the report does not say it": not any("was recorded" in note for note in report.notes),
    }
    result.failures += [text for text, is_wrong in wrong.items() if is_wrong]
    result.figures = (
        f"{seen['largest'] / budget:.0%} of it; {seen['runs']} runs and their errors, "
        f"{seen['runs'] * EPOCHS} epochs, {texts} texts of errors, one step in {meta.sparsest}"
    )
    return result


def _last_step(table: Table) -> int:
    """The iteration of the newest step that was recorded."""
    steps = table.of_kind("step")
    return int(table.rows["iteration"][steps[-1]]) if len(steps) else 0
