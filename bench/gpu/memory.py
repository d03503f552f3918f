"""Memory: what is allocated, what is copied, and the moment in which there is not enough."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine

from bench.gpu.check import Check, Settings
from bench.gpu.machine import Machine
from bench.gpu.planted import After
from bench.gpu.recorded import Recorded, read, record
from bench.gpu.trainings import Batches, calling, pinned, tiny
from firetrace.tracer import TraceHandler
from firetrace.tracer.device.track import MEMORY_EVERY_NS, MOST_STEPS
from firetrace.tracer.run import device_journal, open_run
from firetrace.tracer.table import read_table

OutOfMemoryError = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
#: Bytes by which counts may differ, and the part of them in which the allocator rounds.
ROUNDED, PART = 2**20, 0.01
ABOUT = "ignite.device.memory.allocated"
FULL_AT = 4  #: the iteration
AHEAD_MS = 1.0  #: of work a step, which the host queues faster than that


def checks(machine: Machine, settings: Settings) -> Iterator[Check]:
    """What is counted, then what happens when there is no more."""
    yield allocated(machine, settings)
    yield copied(machine, settings)
    yield events(machine, settings)
    for caught in (False, True):
        yield from full(machine, settings, caught)


def allocated(machine: Machine, settings: Settings) -> Check:
    """What is recorded as allocated, against what torch says in a handler of the same step."""
    said: dict[int, int] = {}
    parts, kept = tiny(machine.device), list[torch.Tensor]()

    def note(engine: Engine) -> None:
        kept.append(torch.zeros(2**18, device=machine.device))  # 1 MiB a step
        said[engine.state.iteration] = machine.allocated()

    engine = parts.trainer(Batches(parts.batch, settings.steps * 10), [After(note)])
    recorded = record(machine, settings, engine)
    return same_allocated(recorded.scalars.get("memory allocated", []), said)


def same_allocated(recorded: list[tuple[int, float]], said: dict[int, int]) -> Check:
    """Compare them by iteration."""
    pairs = [(value, said[at]) for at, value in recorded if at in said]
    worst = max((abs(value - truth) for value, truth in pairs), default=0.0)
    return Check(
        "memory allocated, against torch.cuda.memory_allocated",
        f"{len(pairs)} values, off by {worst:,.0f} bytes at most",
        f"at most {ROUNDED:,} bytes", bool(pairs) and worst <= ROUNDED,
    )  # fmt: skip


def copied(machine: Machine, settings: Settings) -> Check:
    """Batches that lie on the host: each step copies one, and where it is looked at, its bytes."""
    parts = tiny(machine.device)
    batch = {key: pinned(torch.rand(256, 32 if key == "image" else 4)) for key in parts.batch}
    size = sum(value.nbytes for value in batch.values())
    recorded = record(machine, settings, parts.trainer(Batches(batch, settings.steps)))
    return same_copied(recorded, size, settings.steps)


def same_copied(recorded: Recorded, size: int, steps: int) -> Check:
    """Whether each step is said to copy, and so many bytes where they were counted."""
    sizes = [value for _, value in recorded.scalars.get("copied to device", [])]
    copies = sum(each.copied and each.device is not None for each in recorded.phases)
    return Check(
        "copied to the device",
        f"{copies} copies, {np.median(sizes) if sizes else 0:,.0f} bytes, {len(sizes)} counted",
        f"{steps} of {size:,} bytes", copies == steps and set(sizes) == {size},
    )  # fmt: skip


def events(machine: Machine, settings: Settings) -> Check:
    """Events that were made while the host ran far ahead of the device."""
    parts = calling(machine.device, lambda: machine.work(AHEAD_MS))
    engine, counting = parts.steps(settings.many_steps), machine.accelerator()
    recorded = record(machine, settings, engine, device=counting)
    return few_events(recorded, settings.many_steps)


def few_events(recorded: Recorded, steps: int) -> Check:
    """They are used again: not more than those of the steps that may be unsettled."""
    phases = sum(each.iteration == steps for each in recorded.phases)
    most = (MOST_STEPS + 2) * (phases + 1)
    return Check(
        f"events made in {steps:,} steps that are queued ahead",
        f"{recorded.events:,}; {len(recorded.of('forward')):,} forwards have times",
        f"at most {most:,}", 0 < recorded.events <= most,
    )  # fmt: skip


def full(machine: Machine, settings: Settings, caught: bool) -> Iterator[Check]:
    """Allocate in a forward until there is no more; the program catches that, or it does not."""
    kept, taken = list[Any](), list[int]()

    def within() -> None:
        if caught:
            time.sleep(2 * MEMORY_EVERY_NS / 1e9)  # looked at in every step
        if engine.state.iteration == FULL_AT:
            try:
                machine.fill(kept)
            except OutOfMemoryError:
                taken.append(machine.allocated())
                if not caught:
                    raise
                kept.clear()

    parts = calling(machine.device, within)
    engine: Any = None
    messages: list[str] = []
    journal = None
    for traced in (False, True):
        engine = parts.steps(2 * FULL_AT)
        handler = TraceHandler(settings.folder() / "run", device=machine.asked)
        if traced:
            handler.attach(engine)
        try:
            engine.run()
            messages.append("no exception")
        except Exception as error:
            messages.append(_described(error))
        finally:
            kept.clear()
            gc.collect()
            machine.empty()
        machine.synchronize()
        if traced:
            assert handler.directory is not None
            journal = open_run(handler.directory).newest
        handler.close()
    assert journal is not None
    found = out_of_memory(journal)
    what = "memory full, and caught" if caught else "memory full"
    yield same_error(what, messages[0], messages[1], caught)
    yield instant(what, found, taken[-1], caught)
    yield went_on(what, read(journal), 2 * FULL_AT if caught else FULL_AT - 1)


def _described(error: BaseException) -> str:
    """An exception, but for the numbers in its text, which change."""
    chain = (error.__cause__ is not None, error.__context__ is not None)
    notes = getattr(error, "__notes__", [])
    first = str(error).split(".")[0]
    return f"{type(error).__name__}: {first}, {chain}, {len(notes)} notes"


def same_error(what: str, plain: str, traced: str, caught: bool) -> Check:
    """The training's own exception is what it would have been."""
    wanted = ("no exception" in plain) == caught and (caught or "OutOfMemoryError" in plain)
    return Check(
        f"{what}: the training's exception", traced if plain == traced else f"{traced} / {plain}",
        "as without firetrace", plain == traced and wanted,
    )  # fmt: skip


def out_of_memory(journal: Any) -> list[tuple[int, float | None]]:
    """Moments in which the memory was full: iteration, and what was allocated."""
    table = read_table(device_journal(journal))
    found = []
    for at in table.of_kind("event").tolist():
        if table.name(at).text == "out of memory":
            about = table.meta.attributes.get(int(table.numbers[at])) or {}
            found.append((int(table.rows[at]["iteration"]), about.get(ABOUT)))
    return found


def instant(what: str, found: list[tuple[int, float | None]], taken: int, caught: bool) -> Check:
    """There is one, in the iteration, with what was allocated (not where that was given back)."""
    first = next(iter(found), (0, None))
    right = len(found) == 1 and first[0] == FULL_AT
    if not caught:
        right = right and first[1] is not None and abs(first[1] - taken) <= PART * taken
    return Check(
        f"{what}: the moment is recorded",
        f"{len(found)}, in iteration {first[0]}, {first[1] or 0:,.0f} bytes allocated",
        f"1, in iteration {FULL_AT}" + ("" if caught else f", {taken:,} bytes (1%)"), right,
    )  # fmt: skip


def went_on(what: str, recorded: Recorded, steps: int) -> Check:
    """The recording did, and the steps before it (or all) have their times."""
    forwards = len(recorded.of("forward"))
    problems = [f"stopped: {recorded.meta.stopped}"] if recorded.meta.stopped else []
    return Check(
        f"{what}: what was recorded", "; ".join([f"{forwards} forwards", *problems]),
        f"at least {steps}", forwards >= steps and not problems,
    )  # fmt: skip
