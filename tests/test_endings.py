"""However a run ends, the program is as ever, and what was open is closed and says why.

Facts 14 to 17 of ignite's engines; see ``test_engine_facts.py``.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from tests.support.programs import (
    EC,
    ES,
    EXC,
    GC,
    GS,
    IC,
    IS,
    STOP,
    TERMINATE,
    C,
    Case,
    S,
    Setup,
    check_case,
    failing,
    interrupt,
    keep,
    on,
    params,
    short,
    terminate,
    terminate_and_skip,
    terminate_epoch,
    terminate_epoch_and_skip,
    training,
)  # fmt: skip
from tests.support.unchanged import INTERRUPTIBLE, WAYS, Program, Stage, compare

FIRST, AGAIN = "S ES GS GC IS IC GS GC IS IC EC", "ES GS STOP GC IS IC GS GC IS IC EC"
EPOCH, NEXT = "epoch[ES loader step x2 EC]", "epoch[ES restart step EC]"
SECOND = "S ES GS GC IS IC"  # events until the second step
CUT = "epoch~terminate"


def in_(event: Any, action: Setup, step: Any = None) -> Program:
    """Two epochs; an event's handler does this, in the first epoch (of a step: in the second)."""
    return training(on(event, action, 2 if event in (GS, GC, IS, IC) else 1), max_epochs=2)


TERMINATED = [
    (S, "S", "S*"),
    (ES, "S ES", f"S {CUT}[ES*]"),
    (GS, f"{SECOND} GS", f"S {CUT}[ES loader step* step~terminate[GS*]]"),
    (GC, f"{SECOND} GS GC", f"S {CUT}[ES loader step* step~terminate[GS get_batch GC*]]"),
    (STOP, f"{FIRST} ES GS STOP", f"S {EPOCH} {CUT}[ES step~terminate[GS get_batch STOP*]]"),
    (IS, f"{SECOND} GS GC IS",
     f"S {CUT}[ES loader step* step~terminate[GS get_batch GC iteration~terminate[IS*]]]"),
    (IC, f"{SECOND} GS GC IS IC", f"S {CUT}[ES loader step* x2]"),
    (EC, FIRST, "S epoch[ES loader step x2 EC*]"),
]  # fmt: skip
TERMINATING = [
    *(Case(f"14 in {e.name}", in_(e, terminate),
           f"{events} TERMINATE C", f"run[{tree} TERMINATE C]") for e, events, tree in TERMINATED),
    *(Case(f"14 in {e.name}, skipping COMPLETED", in_(e, terminate_and_skip),
           f"{events} TERMINATE", f"run~terminate[{tree} TERMINATE]")
      for e, events, tree in TERMINATED),
    Case("14 in the process function", training(step=lambda e, b: terminate(e)),
         "S ES GS GC IS IC TERMINATE C", f"run[S {CUT}[ES loader step] TERMINATE C]"),
    Case("14 in COMPLETED", in_(C, terminate), f"{FIRST} {AGAIN} C", f"run[S {EPOCH} {NEXT} C*]"),
    Case("14 in TERMINATE", training(on(IC, terminate, 1), on(TERMINATE, terminate_and_skip)),
         "S ES GS GC IS IC TERMINATE", f"run~terminate[S {CUT}[ES loader step*] TERMINATE*]"),
    Case("14 in no data", training(on(IC, terminate), data=None, epoch_length=2),
         "S ES IS IC TERMINATE C", f"run[S {CUT}[ES step[iteration[IS IC*]]] TERMINATE C]"),
    Case("15 max_iters in mid-epoch", training(max_iters=3),
         f"{FIRST} ES GS STOP GC IS IC TERMINATE C",
         f"run[S {EPOCH} {CUT}[ES restart] TERMINATE C]"),
    Case("15 max_iters at an epoch's end", training(max_iters=4), f"{FIRST} {AGAIN} C",
         f"run[S {EPOCH} {NEXT} C]"),
    Case("15 max_iters and unknown length", training(data=lambda: map(int, "12"), max_iters=1),
         "S ES GS GC IS IC TERMINATE C", f"run[S {CUT}[ES loader step] TERMINATE C]"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", params(TERMINATING))
def test_terminate(case: Case, way: str) -> None:
    """The run ends with TERMINATE, and what it cut says so; max_iters does the same."""
    check_case(case, way)


OVER, WHOLE = "step~terminate_epoch", "epoch[ES step* x2 EC]"
END = "GS GC IS IC GS GC IS IC EC C"
EPOCH_TERMINATED = [
    (GS, f"{SECOND} GS", f"ES loader step* {OVER}[GS*] TSE loader"),
    (GC, f"{SECOND} GS GC", f"ES loader step* {OVER}[GS get_batch GC*] TSE loader"),
    (IS, f"{SECOND} GS GC IS",
     f"ES loader step* {OVER}[GS get_batch GC iteration~terminate_epoch[IS*]] TSE loader"),
    (IC, f"{SECOND} GS GC IS IC", "ES loader step* x2 TSE loader"),
]  # fmt: skip
ENDING_EPOCHS = [
    *(Case(f"16 in {e.name}", in_(e, terminate_epoch), f"{events} TSE EC ES {END}",
           f"run[S epoch[{tree} EC] {WHOLE} C]") for e, events, tree in EPOCH_TERMINATED),
    *(Case(f"16 in {e.name}, skipping EPOCH_COMPLETED", in_(e, terminate_epoch_and_skip),
           f"{events} TSE ES {END}", f"run[S epoch~terminate_epoch[{tree}] {WHOLE} C]")
      for e, events, tree in EPOCH_TERMINATED),
    Case("16 in STOP", in_(STOP, terminate_epoch), f"{FIRST} ES GS STOP TSE EC C",
         f"run[S {EPOCH} epoch[ES {OVER}[GS get_batch STOP*] TSE loader EC] C]"),
    Case("16 in the process function", training(step=lambda e, b: terminate_epoch(e)),
         "S ES GS GC IS IC TSE EC C", "run[S epoch[ES loader step TSE loader EC] C]"),
    Case("16 in EPOCH_COMPLETED it is too late", in_(EC, terminate_epoch), f"{FIRST} {AGAIN} C",
         "run[S epoch[ES loader step x2 EC*] epoch[ES restart step EC*] C]"),
    Case("16 in STARTED it is refused", in_(S, terminate_epoch), "S", "run~exception![S*]"),
    Case("16 in EPOCH_STARTED it is refused", in_(ES, terminate_epoch), "S ES",
         "run~exception![S epoch~exception![ES*]]"),
    Case("16 and refused where exceptions are swallowed",
         training(on(ES, terminate_epoch), on(EXC, lambda e: None)), "S ES EXC"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", params(ENDING_EPOCHS))
def test_terminate_epoch(case: Case, way: str) -> None:
    """What an epoch leaves undone says why, and the next epoch is whole."""
    check_case(case, way)


TWICE = "GS STOP GC IS IC GS GC IS IC EC C"
STARS = "epoch[ES restart* step* EC]"
INTERRUPTED = [
    (S, f"S INTERRUPT ES GS GC IS IC GS GC IS IC EC ES {TWICE}",
     f"run~interrupt[S* INTERRUPT] run>[{EPOCH} {NEXT} C]"),
    (ES, f"S ES INTERRUPT GS GC IS IC GS GC IS IC EC ES {TWICE}",
     "run~interrupt[S epoch~interrupt[ES* INTERRUPT]] "
     "run>[epoch>[loader step x2 EC] epoch[ES* restart step EC] C]"),
    (GS, f"{SECOND} GS INTERRUPT GC IS IC EC ES {TWICE}",
     "run~interrupt[S epoch~interrupt[ES loader step* step~interrupt[GS* INTERRUPT]]] "
     f"run>[epoch>[step>[get_batch GC iteration[IS IC]] EC] {STARS} C]"),
    (GC, f"{SECOND} GS GC INTERRUPT IS IC EC ES {TWICE}",
     "run~interrupt[S epoch~interrupt[ES loader step* step~interrupt[GS get_batch GC* INTERRUPT]]] "
     f"run>[epoch>[step>[iteration[IS IC]] EC] {STARS} C]"),
    (STOP, f"{FIRST} ES GS STOP INTERRUPT GS GC IS IC GS GC IS IC EC C",
     f"run~interrupt[S {EPOCH} epoch~interrupt[ES step~interrupt[GS get_batch STOP* INTERRUPT]]] "
     "run>[epoch>[step>[loader GS get_batch GC iteration[IS IC]] step EC] C]"),
    (IS, f"{SECOND} GS GC IS INTERRUPT IC EC ES {TWICE}",
     "run~interrupt[S epoch~interrupt[ES loader step* step~interrupt[GS get_batch GC "
     "iteration~interrupt[IS* INTERRUPT]]]] "
     f"run>[epoch>[step>[iteration>[IC]] EC] {STARS} C]"),
    (IC, f"{SECOND} GS GC IS IC INTERRUPT EC ES {TWICE}",
     "run~interrupt[S epoch~interrupt[ES loader step* x2 INTERRUPT]] "
     f"run>[epoch>[EC] {STARS} C]"),
    (EC, f"{FIRST} INTERRUPT {AGAIN} C", "run~interrupt[S epoch[ES loader step x2 EC*] INTERRUPT] "
     "run>[epoch[ES restart step EC*] C]"),
    (C, f"{FIRST} {AGAIN} C {FIRST} {AGAIN} C", f"run[S {EPOCH} {NEXT} C*] x2"),
]  # fmt: skip
INTERRUPTING = [
    *(Case(f"17 in {e.name}", training(on(e, interrupt, 2 if e in (GS, GC, IS, IC) else 1),
           max_epochs=2, runs=2), *rest) for e, *rest in INTERRUPTED),
]  # fmt: skip


@pytest.mark.parametrize("way", INTERRUPTIBLE)
@pytest.mark.parametrize("case", params(INTERRUPTING))
def test_interrupt_and_resume(case: Case, way: str) -> None:
    """The run is cut where it was interrupted, and goes on in a second one that says so."""
    check_case(case, way)


def swallow(engine: Engine, error: BaseException) -> None:
    keep(engine, repr(error))


def reraise(engine: Engine, error: BaseException) -> None:
    raise error


class Broken:
    """Two batches, of which the second one fails; or ``iter`` does."""

    def __init__(self, kind: type[BaseException], at_once: bool) -> None:
        self.kind, self.at_once = kind, at_once

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[int]:
        if self.at_once:
            raise self.kind("no data")
        return self._batches()

    def _batches(self) -> Iterator[int]:
        yield 1
        raise self.kind("no second batch")


PLACES = (S, ES, GS, GC, STOP, IS, IC, EC, C, "iter", "next", "step")
KINDS = (ValueError, KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit)
CATCHERS: dict[str, Setup] = {
    "nobody": lambda engine: None,
    "swallowed": lambda engine: engine.add_event_handler(EXC, swallow),
    "raised again": lambda engine: engine.add_event_handler(EXC, reraise),
    "raised anew": on(EXC, failing(KeyError)),
}


def failing_in(place: Any, kind: type[BaseException], catcher: Setup) -> Program:
    """Three epochs, in which one thing fails once."""
    fail = failing(kind, "no luck")
    how: dict[str, Any] = {"max_epochs": 3, "runs": 2}
    if place == "iter":
        return training(catcher, data=lambda: Broken(kind, True), **how)
    if place == "next":
        return training(catcher, data=lambda: Broken(kind, False), **how)
    if place == "step":
        return training(catcher, step=lambda e, b: e.state.iteration == 2 and fail(e), **how)
    return training(catcher, on(place, fail, 1 if place in (S, ES, EC, C) else 2), **how)


@pytest.mark.parametrize("way", ["lookups", "legacy"])
@pytest.mark.parametrize("catcher", CATCHERS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "place", [S, ES, GS, GC, STOP, IS, IC, EC, C, "iter", "next", "step"], ids=str
)
def test_exceptions(place: Any, kind: type[BaseException], catcher: str, way: str) -> None:
    """Wherever one is raised and whoever catches it: what it ended has its reason."""
    seen = compare(failing_in(place, kind, CATCHERS[catcher]), way)
    table = seen.recorded
    if seen.facts["raised"]:
        (last,) = table.of_kind("run").tolist()[-1:]
        assert table.meta.reasons[int(table.numbers[last])] == "exception"
    if seen.facts["raised"] or "raise" in repr(seen.notes):
        assert table.meta.exceptions


class Dataset(torch.utils.data.Dataset[int]):
    """Four samples, of which the third is not to be had."""

    def __init__(self, fail: Any) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            self.fail()
        return index


def raise_in_worker() -> None:
    raise ValueError("no third sample")


def die_in_worker() -> None:
    os._exit(1)


@pytest.fixture
def brisk_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do not wait five seconds, as torch does, for each worker that does not end by itself."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.mark.usefixtures("brisk_workers")
@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("fail", [raise_in_worker, die_in_worker])
def test_loader_workers_that_fail(fail: Any, swallowed: bool) -> None:
    """An exception that comes from another process, or that it has died, ends the run like any."""

    def program(stage: Stage) -> None:
        engine = stage.add(Engine(lambda engine, batch: batch.tolist()))
        if swallowed:
            engine.add_event_handler(EXC, swallow)
        loader = torch.utils.data.DataLoader(Dataset(fail), batch_size=2, num_workers=1)
        try:
            engine.run(loader, max_epochs=2)
        except (ValueError, RuntimeError) as error:
            stage.note(str(error)[:20])
        engine.state.seen = len(getattr(engine.state, "seen", []))  # they name the process

    table = compare(program).recorded
    run = int(table.numbers[table.of_kind("run")[0]])
    assert table.meta.reasons.get(run) == (None if swallowed else "exception")
    assert {line["exception.type"] for line in table.meta.exceptions.values()} == {
        "ValueError" if fail is raise_in_worker else "RuntimeError"
    }


@pytest.mark.usefixtures("brisk_workers")
@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers(workers: int) -> None:
    """With forked workers the program is as ever; ``iter`` and their start are the loader's."""

    def program(stage: Stage) -> None:
        engine = stage.add(Engine(lambda engine, batch: stage.note(batch)))
        data = torch.utils.data.TensorDataset(torch.arange(6))
        loader = torch.utils.data.DataLoader(
            data, batch_size=2, shuffle=True, num_workers=workers, persistent_workers=workers == 2
        )
        engine.run(loader, max_epochs=2)

    assert short(compare(program).recorded) == (
        "run[S epoch[ES loader step x3 EC] epoch[ES restart step x2 EC] C]"
    )
