"""Interrupted, dropped, nested and parallel engines: as untraced, and each in its own place."""

from __future__ import annotations

import contextvars
import gc
import itertools
import threading
import time
from typing import Any

import pytest
from ignite.engine import Engine

from tests.support.programs import (
    EC,
    ES,
    EXC,
    GC,
    GS,
    IC,
    INTERRUPT,
    IS,
    C,
    Case,
    S,
    Setup,
    check_case,
    failing,
    fire,
    interrupt,
    keep,
    on,
    params,
    terminate,
    training,
)  # fmt: skip
from tests.support.unchanged import INTERRUPTIBLE, WAYS, Stage, compare

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


def new(step: Any = lambda engine, batch: batch) -> Engine:
    return Engine(step)


def running(engine: Engine, *data: int) -> Setup:
    """Run another engine."""
    return lambda _: engine.run(data or (1,))


INTERRUPTED = [
    Case("17 in every iteration", training(on(IC, interrupt), runs=3),
         "S ES GS GC IS IC INTERRUPT GS GC IS IC INTERRUPT EC C",
         "run~interrupt[S epoch~interrupt[ES loader step* INTERRUPT]] "
         "run~interrupt>[epoch~interrupt>[step* INTERRUPT]] run>[epoch>[EC] C]"),
    Case("17 twice in an iteration", training(on(GS | IS, interrupt), runs=9, max_epochs=2)),
    Case("17 wherever it is possible", training(
        on(S | ES | GS | GC | IS | IC | EC, interrupt), runs=23, max_epochs=2)),
    Case("17 and never resumed", training(on(IS, interrupt))),
    Case("17 and terminated between the runs", training(
        on(IC, interrupt, 1), on(INTERRUPT, terminate), runs=3, max_epochs=2)),
    Case("17 and then an exception", training(on(IC, interrupt, 1), on(IS, failing(), 2), runs=2)),
    Case("17 in INTERRUPT again", training(on(IC, interrupt, 1), on(INTERRUPT, interrupt), runs=3)),
    Case("17 and an exception in INTERRUPT", training(
        on(IC, interrupt, 1), on(INTERRUPT, failing()), runs=2)),
    Case("17 without data", training(
        on(IC, interrupt), data=None, epoch_length=2, runs=3)),
]  # fmt: skip


@pytest.mark.parametrize("way", INTERRUPTIBLE)
@pytest.mark.parametrize("case", params(INTERRUPTED))
def test_interrupts(case: Case, way: str) -> None:
    """However often a run is interrupted, it goes on as untraced."""
    check_case(case, way)


def test_interrupting_is_refused_in_the_legacy_loop() -> None:
    """18: an engine that cannot be interrupted says so."""
    seen = compare(training(on(IC, interrupt)), "legacy")
    assert seen.facts["raised"][0] == "RuntimeError"


def test_the_time_between_interrupt_and_resume_is_nobodys() -> None:
    """17: what the caller does meanwhile is not in the recording."""

    def program(stage: Stage) -> None:
        engine = stage.add(new())
        on(IC, interrupt, 1)(engine)
        engine.run((1, 2))
        time.sleep(0.02)
        engine.run((1, 2))

    table = compare(program).recorded
    first, second = table.of_kind("run").tolist()
    assert table.rows["start"][second] - table.rows["end"][first] > 15e6


CATCHERS = {
    "nobody": lambda engine: None,
    "a handler": lambda engine: engine.add_event_handler(
        EXC, lambda engine, error: keep(engine, 1)
    ),
    "a handler of the error alone": lambda engine: engine.add_event_handler(
        EXC, lambda error: None
    ),
    "one that raises": on(EXC, failing(KeyError)),
}


@pytest.mark.parametrize("way", ["lookups", "bare"])
@pytest.mark.parametrize(("fate", "catcher"), [
    *(("closed", name) for name in CATCHERS),
    ("dropped", "nobody"),
    *(("dropped", name) for name in CATCHERS if name != "nobody"),
])  # fmt: skip
def test_an_interrupted_run_that_is_given_up(fate: str, catcher: str, way: str) -> None:
    """17: its generator gets a GeneratorExit, which EXCEPTION_RAISED hands to the handlers."""
    fates: list[str] = []

    def program(stage: Stage) -> None:
        engine = stage.add(new())
        CATCHERS[catcher](engine)
        engine.add_event_handler(EXC, lambda error: fates.append(type(error).__name__))
        if catcher == "nobody":
            engine._event_handlers.pop(EXC)
        on(IS, interrupt, 2)(engine)
        engine.run((1, 2))
        if fate == "closed":
            stage.attempt(engine._internal_run_generator.close)
        stage.forget(engine)
        del engine
        gc.collect()
        stage.note([*fates])
        fates.clear()

    compare(program, way)


def leaking(stage: Stage) -> None:
    """A handler and the process function set a variable; the caller finds it set."""
    engine = stage.add(new(lambda engine, batch: VARIABLE.set(f"batch {batch}") and None))
    on(ES, lambda engine: VARIABLE.set("epoch"))(engine)
    on(IS | IC, lambda engine: keep(engine, VARIABLE.get()))(engine)
    engine.run((1, 2))
    stage.note(VARIABLE.get())
    on(IC, interrupt, 1)(engine)
    engine.run((3, 4))
    stage.note(VARIABLE.get())
    VARIABLE.set("between")
    engine.run((3, 4))


@pytest.mark.parametrize("way", INTERRUPTIBLE)
def test_context_variables(way: str) -> None:
    """17: what handlers set is set for the caller, also when the run is only interrupted."""
    seen = compare(leaking, way)
    assert seen.facts["context"] == {"VARIABLE": "batch 4"}


# Several engines


def nested(stage: Stage) -> None:
    """A trainer's handler runs an evaluator."""
    trainer, evaluator = stage.add(new()), stage.add(new())
    on(EC, running(evaluator))(trainer)
    trainer.run((1, 2), max_epochs=2)


def nested_thrice(stage: Stage) -> None:
    """An engine in a handler of one in a handler of one; the innermost in a process function."""
    engines = [stage.add(new()) for _ in range(3)]
    innermost = stage.add(new())
    engines[2]._process_function = lambda engine, batch: innermost.run((1,)).iteration
    for outer, inner in itertools.pairwise(engines):
        on(IC, running(inner))(outer)
    engines[0].run((1, 2))


def nested_and_interrupted(stage: Stage) -> None:
    """The evaluator is interrupted in each epoch, and goes on in the next one."""
    trainer, evaluator = stage.add(new()), stage.add(new())
    on(IC, interrupt)(evaluator)
    on(EC, running(evaluator, 1, 2))(trainer)
    trainer.run((1, 2), max_epochs=3)


def nested_and_failing(stage: Stage) -> None:
    """The evaluator fails, and with it the trainer's handler."""
    trainer, evaluator = stage.add(new()), stage.add(new())
    on(IS, failing(ValueError, "in the evaluator"), 2)(evaluator)
    on(EC, running(evaluator, 1, 2))(trainer)
    trainer.run((1, 2), max_epochs=2)


def nested_and_failing_quietly(stage: Stage) -> None:
    """The trainer's handler catches what the evaluator raises."""
    trainer, evaluator = stage.add(new()), stage.add(new())
    on(IS, failing(ValueError, "in the evaluator"))(evaluator)
    on(EC, lambda engine: stage.attempt(lambda: evaluator.run((1, 2))))(trainer)
    trainer.run((1, 2), max_epochs=3)


def one_ends_the_other(stage: Stage) -> None:
    """The evaluator's handler terminates the trainer that runs it."""
    trainer, evaluator = stage.add(new()), stage.add(new())
    on(C, lambda engine: trainer.terminate())(evaluator)
    on(IC, running(evaluator), 2)(trainer)
    trainer.run((1, 2), max_epochs=3)


def one_interrupts_the_other(stage: Stage) -> None:
    """The evaluator's handler interrupts the trainer that runs it, which goes on later."""
    trainer, evaluator = stage.add(new()), stage.add(new())
    on(C, lambda engine: trainer.interrupt(), 1)(evaluator)
    on(IC, running(evaluator), 2)(trainer)
    trainer.run((1, 2), max_epochs=2)
    trainer.run((1, 2), max_epochs=2)


def alternating(stage: Stage) -> None:
    """Two interrupted engines go on in turns."""
    engines = [stage.add(new()), stage.add(new())]
    for engine in engines:
        on(IS, interrupt)(engine)
    for _ in range(5):
        for engine in engines:
            engine.run((1, 2), max_epochs=2)


def resumed_inside(stage: Stage) -> None:
    """An interrupted engine goes on in the handler of another."""
    first, second = stage.add(new()), stage.add(new())
    on(IC, interrupt, 1)(first)
    first.run((1, 2))
    on(IC, running(first, 1, 2))(second)
    second.run((1,))


def in_threads(stage: Stage) -> None:
    """Two engines at once, one thread each."""
    barrier = threading.Barrier(2)

    def run() -> None:
        engine = stage.add(new(), threading.current_thread().name)
        on(ES, lambda engine: barrier.wait(60))(engine)
        stage.note(engine.run((1, 2), max_epochs=3).iteration)

    threads = [threading.Thread(target=run, name=f"worker {number}") for number in (1, 2)]
    for thread in threads:
        thread.start()
        thread.join(0 if thread is threads[0] else 60)
    threads[0].join(60)
    stage.engines = dict(sorted(stage.engines.items()))


def in_one_thread_after_the_other(stage: Stage) -> None:
    """An engine that is interrupted in one thread and goes on in another."""
    engine = stage.add(new())
    on(IC, interrupt)(engine)
    for number in range(3):
        thread = threading.Thread(target=engine.run, args=((1, 2),), name=f"worker {number}")
        thread.start()
        thread.join()


def events_from_a_thread(stage: Stage) -> None:
    """Another thread fires an event of an engine that is running."""
    engine = stage.add(new())
    engine.register_events("extra")
    stage.partial = True  # the engine is recorded in the thread in which it runs

    def fire_there(engine: Engine) -> None:
        thread = threading.Thread(target=fire("extra"), args=(engine,), name="firing")
        thread.start()
        thread.join()

    on(IS, fire_there)(engine)
    engine.run((1, 2))


def closed_in_mid_run(stage: Stage) -> None:
    """Recording ends in a handler."""
    engine = stage.add(new())
    stage.partial = True
    on(IS, lambda engine: stage.close(), 2)(engine)
    engine.run((1, 2), max_epochs=2)


def same_handler_function(stage: Stage) -> None:
    """One function is a handler of two engines."""

    def both(engine: Engine) -> None:
        stage.note(engine.state.iteration)

    for _ in range(2):
        stage.add(new()).add_event_handler(IC, both)
    for engine in stage.engines.values():
        engine.run((1, 2))


RUN = "run[S epoch[ES loader step EC] C]"
TOGETHER = [
    Case("an evaluator", nested, None, f"run[S epoch[ES loader step x2 EC[act[{RUN}]]] "
         f"epoch[ES restart step EC[act[{RUN}]]] C]"),
    Case("three in one another", nested_thrice),
    Case("a failing evaluator", nested_and_failing, None,
         "run~exception![S epoch~exception![ES loader step x2 EC~exception![act~exception!["
         "run~exception![S epoch~exception![ES loader step* step~exception![GS get_batch GC "
         "iteration~exception![IS~exception![act~exception!]]]]]]]]]"),
    Case("one whose failure is caught", nested_and_failing_quietly),
    Case("an evaluator that ends the training", one_ends_the_other, None,
         "run[S epoch~terminate[ES loader step* step[GS get_batch GC iteration[IS IC[act["
         "run[S epoch[ES loader step EC] C*]]]]]] TERMINATE C]"),
    Case("two threads", in_threads, None,
         "run[S epoch[ES* loader step x2 EC] epoch[ES* restart step EC] x2 C] x2"),
    Case("an event from another thread", events_from_a_thread),
    Case("recording closed in mid-run", closed_in_mid_run),
    Case("one function for two engines", same_handler_function),
]  # fmt: skip
AND_INTERRUPTED = [
    Case("an interrupted evaluator", nested_and_interrupted),
    Case("an evaluator that interrupts the training", one_interrupts_the_other, None,
         "run~interrupt[S epoch~interrupt[ES loader step* step[GS get_batch GC iteration[IS IC[act["
         "run[S epoch[ES loader step EC] C*]]]]] INTERRUPT]] "
         "run>[epoch>[EC] epoch[ES restart* step* EC] C]"),
    Case("two in turns", alternating),
    Case("one that goes on in another", resumed_inside, None,
         "run~interrupt[S epoch~interrupt[ES loader step* INTERRUPT]] run[S epoch[ES loader "
         "step[GS get_batch GC iteration[IS IC[act[run>[epoch>[step* EC] C]]]]] EC] C]"),
    Case("one thread after the other", in_one_thread_after_the_other, None,
         "run~interrupt[S epoch~interrupt[ES loader step* INTERRUPT]] "
         "run~interrupt>[epoch~interrupt>[step* INTERRUPT]] run>[epoch>[EC] C]"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", params(TOGETHER))
def test_together(case: Case, way: str) -> None:
    """Engines that know of each other do what they do untraced, each with runs of its own."""
    check_case(case, way)


@pytest.mark.parametrize("way", INTERRUPTIBLE)
@pytest.mark.parametrize("case", params(AND_INTERRUPTED))
def test_interrupted_together(case: Case, way: str) -> None:
    """Where one of several engines is interrupted, the others are not touched."""
    check_case(case, way)
