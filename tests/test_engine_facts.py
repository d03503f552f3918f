"""What ignite's engines do, fact by fact, traced as untraced, and how it is recorded.

The numbers are those of a list of facts that a recorder must get right; 14 to 17, about how a run
ends, are in ``test_endings.py``, those about MONAI in ``test_monai_engines.py``. An entry's name is
what it shows; then come the program, its events and the recorded tree, both abbreviated.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ignite.engine import Engine, EventEnum, State
from ignite.handlers import BasicTimeProfiler, HandlersTimeProfiler

from tests.support.programs import (
    EC,
    ES,
    EXC,
    GC,
    GS,
    IC,
    IS,
    STOP,
    TSE,
    C,
    Case,
    S,
    Setup,
    check_case,
    failing,
    fire,
    keep,
    keeping,
    on,
    params,
    registering,
    short,
    terminate,
    terminate_epoch,
    training,
)  # fmt: skip
from tests.support.trainings import name_of
from tests.support.unchanged import INTERRUPTIBLE, WAYS, Program, Stage, compare


class Custom(EventEnum):
    FOO = "foo"
    STARTED = "started_by_me"


class Other(EventEnum):
    FOO = "other"


class Unsized:
    """Two batches each time, and no length."""

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


def fails_once(engine: Engine, batch: Any) -> Any:
    """Fail in the second iteration."""
    if engine.state.iteration == 2:
        raise ValueError("in the second iteration")
    return batch


def reraise(engine: Engine, error: BaseException) -> None:
    raise error


def adds_a_handler(engine: Engine) -> None:
    engine.add_event_handler(ES, keeping(lambda engine: "added"))


def inserts_a_handler(engine: Engine) -> None:
    engine._event_handlers[ES].insert(0, (lambda: keep(engine, "inserted"), (), {}))


def removes_itself(engine: Engine) -> None:
    def once() -> None:
        keep(engine, "once")
        handle.remove()

    handle = engine.add_event_handler(IS, once)


def borrows_a_handler(engine: Engine) -> Engine:
    """A handler that was added to another engine."""
    lender = Engine(lambda engine, batch: None)
    lender.add_event_handler(ES, lambda owner: keep(engine, owner is lender))
    engine._event_handlers[ES] = lender._event_handlers[ES]
    return lender


def fires_with(*keywords: dict[str, Any]) -> Setup:
    """Fire ``extra`` with each of these keywords."""

    def act(engine: Engine) -> None:
        for each in keywords:
            engine._fire_event("extra", **each)

    return act


def keeps_keywords(engine: Engine) -> None:
    engine.add_event_handler("extra", lambda **keywords: keep(engine, dict(keywords)))


EXTRA = registering("extra")
SEEN = keeping(lambda engine: "seen")

FIRING = [
    Case("1 the last event's name stays", training(EXTRA, on(IS, fire("extra")), on(
        IS, keeping(lambda e: name_of(e.last_event_name))))),
    Case("1 a handler added to the event that fires runs at once",
         training(on(ES, adds_a_handler))),
    Case("1 one inserted before runs the current one again", training(on(ES, inserts_a_handler, 1),
                                                                      max_epochs=2)),
    Case("1 a handler that removes itself", training(removes_itself, on(IS, SEEN))),
    Case("1 a handler taken out in place hides the next", training(
        on(IS, lambda e: e._event_handlers[IS].pop(0), 1), on(IS, keeping(lambda e: "hidden")))),
    Case("1 keywords stay for the firings that follow", training(
        EXTRA, keeps_keywords, on(ES, fires_with({"one": 1}, {}, {"two": 2})))),
    Case("1 a handler that raises hides those behind it",
         training(on(IS, failing()), on(IS, SEEN), on(EXC, SEEN))),
    Case("1 a handler of another engine", training(
        lambda e: setattr(e.state, "lender", borrows_a_handler(e)))),
    Case("1 a handler of an engine that is gone", training(borrows_a_handler)),
    Case("2 an event registered and fired while running",
         training(on(IS, registering("late"), 1), on(IC, fire("late"))),
         "S ES GS GC IS IC late GS GC IS IC late EC C"),
    Case("2 events fired before and after the run",
         training(EXTRA, fire("extra"), fire("extra"), on(C, fire("extra"))),
         "extra extra S ES GS GC IS IC GS GC IS IC EC C extra"),
    Case("3 an exception without handler", training(step=fails_once), "S ES GS GC IS IC GS GC IS"),
    Case("3 an exception that a handler sees is swallowed",
         training(on(EXC, SEEN), step=fails_once), "S ES GS GC IS IC GS GC IS EXC EC C"),
    Case("3 also by one that was added and removed", training(
        lambda e: e.add_event_handler(EXC, keep).remove(), step=fails_once),
         "S ES GS GC IS IC GS GC IS EXC EC C"),
    Case("3 also by a mere look", training(lambda e: e._event_handlers[EXC], step=fails_once),
         "S ES GS GC IS IC GS GC IS EXC EC C"),
    Case("3 also by a look at all handlers of one function",
         training(lambda e: e.has_event_handler(keep, EXC), step=fails_once),
         "S ES GS GC IS IC GS GC IS"),
    Case("3 ignite's profiler of handlers swallows", training(
        lambda e: HandlersTimeProfiler().attach(e), step=fails_once)),
    Case("3 ignite's basic profiler", training(lambda e: BasicTimeProfiler().attach(e))),
    Case("4 a handler that raises again sees it twice", training(
        lambda e: e.add_event_handler(EXC, reraise), step=fails_once),
         "S ES GS GC IS IC GS GC IS EXC EXC"),
    Case("4 one behind it sees nothing", training(
        lambda e: e.add_event_handler(EXC, reraise), on(EXC, SEEN), step=fails_once)),
    Case("4 an interrupt by keyboard is seen once", training(
        on(IS, failing(KeyboardInterrupt)), lambda e: e.add_event_handler(EXC, reraise)),
         "S ES GS GC IS EXC"),
    Case("4 a handler that raises another", training(
        on(EXC, failing(KeyError, "second")), step=fails_once),
         "S ES GS GC IS IC GS GC IS EXC EXC"),
    Case("5 the end of an epoch says after how many iterations", training(
        lambda e: e.add_event_handler(TSE, lambda iter_counter: keep(e, iter_counter)),
        on(IC, terminate_epoch)), "S ES GS GC IS IC TSE EC C"),
    Case("5 a handler that does not take that", training(
        lambda e: e._event_handlers[TSE].append((lambda: None, (), {})), on(IC, terminate_epoch))),
    Case("7 events registered twice", training(
        registering("extra", "extra", *Custom, *Other), keeping(lambda e: str(e._allowed_events)))),
    Case("7 equal names of two enumerations", training(
        registering(*Custom, *Other), on(Custom.FOO, keeping(lambda e: "foo")),
        on(IS, fire(Other.FOO))), "S ES GS GC IS FOO IC GS GC IS FOO IC EC C"),
    Case("7 a custom event by the name of one of ignite's", training(
        registering(*Custom), on(S, keeping(lambda e: "started")), on(IS, fire(Custom.STARTED)))),
    Case("7 one of ignite's events fired by its name", training(
        on(S, keeping(lambda e: "started")), step=lambda e, b: e.fire_event("STARTED"))),
    Case("9 filters are handlers that may do nothing", training(
        on(IC(every=2), keeping(lambda e: e.state.iteration)), on(ES(once=2), SEEN),
        on(IS(event_filter=lambda e, n: n == 3), keeping(lambda e: 3)),
        on(GS(before=2), keeping(lambda e: "before")), on(GC(after=2), keeping(lambda e: "after")),
        on(ES | EC(every=2), keeping(lambda e: "either")), max_epochs=2)),
    Case("9 an attribute that counts an event", training(
        lambda e: e.register_events("extra", event_to_attr={"extra": "extras"}),
        keeping(lambda e: dict(State.event_to_attr)), on(IC, fire("extra")),
        on(C, keeping(lambda e: vars(e.state)["extras"])))),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", params(FIRING))
def test_firing(case: Case, way: str) -> None:
    """Events and handlers are what they are untraced, and the events that happened are recorded."""
    check_case(case, way)


FIRST, AGAIN = "S ES GS GC IS IC GS GC IS IC EC", "ES GS STOP GC IS IC GS GC IS IC EC"
EPOCH, NEXT = "epoch[ES loader step x2 EC]", "epoch[ES restart step EC]"
UNKNOWN = "step~no more data[GS get_batch~no more data]"
EMPTY = "step~no more data[GS get_batch STOP loader]"


def loaded(**state: int) -> Setup:
    """The engine goes on from this state."""
    return lambda engine: engine.load_state_dict(state)


def two_batches() -> Iterator[int]:
    return iter([1, 2])


FETCHING = [
    Case("10 two epochs", training(max_epochs=2), f"{FIRST} {AGAIN} C", f"run[S {EPOCH} {NEXT} C]"),
    Case("11 an event in STOP", training(EXTRA, on(STOP, fire("extra")), max_epochs=2),
         f"{FIRST} ES GS STOP extra GS GC IS IC GS GC IS IC EC C"),
    Case("13 unknown length", training(data=Unsized, max_epochs=2),
         f"S ES GS GC IS IC GS GC IS IC GS EC {AGAIN} C",
         f"run[S epoch[ES loader step x2 {UNKNOWN} EC] {NEXT} C]"),
    Case("13 exhausted", training(data=two_batches, max_epochs=3, epoch_length=2),
         f"{FIRST} ES GS STOP EC ES GS STOP EC C", f"run[S {EPOCH} epoch[ES {EMPTY} EC] x2 C]"),
    Case("13 exhausted and of unknown length", training(data=two_batches, max_epochs=2),
         "S ES GS GC IS IC GS GC IS IC GS EC ES GS STOP EC C",
         f"run[S epoch[ES loader step x2 {UNKNOWN} EC] epoch[ES {EMPTY} EC] C]"),
    Case("13 fewer batches than said", training(data=two_batches, epoch_length=3),
         "S ES GS GC IS IC GS GC IS IC GS STOP EC C",
         f"run[S epoch[ES loader step x2 {EMPTY} EC] C]"),
    Case("13 more batches than said", training(data=(1, 2, 3), epoch_length=2, max_epochs=2),
         f"{FIRST} ES GS GC IS IC GS STOP GC IS IC EC C",
         f"run[S {EPOCH} epoch[ES step restart EC] C]"),
    Case("13 no data", training(data=None, max_epochs=2, epoch_length=2),
         "S ES IS IC IS IC EC ES IS IC IS IC EC C",
         "run[S epoch[ES step[iteration[IS IC]] x2 EC] x2 C]"),
    Case("13 no data and no length", training(data=None), ""),
    Case("13 data of length zero", training(data=()), ""),
    Case("20 half an epoch", training(loaded(iteration=3, max_epochs=3, epoch_length=2)),
         "S ES GS GC IS IC EC ES GS GC IS IC GS STOP GC IS IC EC C",
         "run[S epoch[ES loader step EC] epoch[ES step restart EC] C]"),
    Case("20 an epoch that is over", training(loaded(epoch=1, max_epochs=2, epoch_length=2)),
         f"{FIRST} C", f"run[S {EPOCH} C]"),
    Case("20 so many iterations", training(loaded(iteration=3, max_iters=5, epoch_length=2)),
         "S ES GS GC IS IC EC ES GS GC IS IC TERMINATE C",
         "run[S epoch[ES loader step EC] epoch~terminate[ES step] TERMINATE C]"),
    Case("other data in mid-epoch", training(
        on(IC, lambda e: e.set_data([5, 6, 7]), 3), on(GC, keeping(lambda e: e.state.batch)),
        max_epochs=3), f"{FIRST} {AGAIN} ES GS GC IS IC GS GC IS IC EC C"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", params(FETCHING))
def test_fetching(case: Case, way: str) -> None:
    """However the data comes, the program is as ever, and its steps and fetches are recorded."""
    check_case(case, way)


def running(*runs: dict[str, Any], setups: tuple[Setup, ...] = (), step: Any = None) -> Program:
    """Run one engine with these arguments, one after the other, whatever comes of it."""

    def program(stage: Stage) -> None:
        engine = stage.add(Engine(step or (lambda engine, batch: batch)))
        for setup in setups:
            setup(engine)
        for how in runs:
            stage.attempt(lambda how=how: engine.run((1, 2), **how))  # type: ignore[misc]

    return program


def reset(engine: Engine) -> None:
    engine.state.max_epochs = None


def run_inside(engine: Engine) -> None:
    if hasattr(engine.state, "seen"):
        return
    keep(engine, "again")
    with contextlib.suppress(ValueError):
        engine.run((1, 2))


ONE = f"run[S {EPOCH} C]"
RUNNING = [
    Case("19 a second run begins anew", running({}, {}), f"{FIRST} C {FIRST} C", f"{ONE} x2"),
    Case("19 more epochs", running({}, {"max_epochs": 2}), f"{FIRST} C {FIRST} C", f"{ONE} x2"),
    Case("19 more iterations", running({"max_iters": 2}, {"max_iters": 3}),
         f"{FIRST} C S ES GS GC IS IC TERMINATE C",
         f"{ONE} run[S epoch~terminate[ES loader step] TERMINATE C]"),
    Case("19 fewer epochs than were run", running({"max_epochs": 2}, {"max_epochs": 1}),
         f"{FIRST} {AGAIN} C", f"run[S {EPOCH} {NEXT} C]"),
    Case("19 iterations after epochs", running({}, {"max_iters": 3}), f"{FIRST} C", ONE),
    Case("19 another length", running({"max_epochs": 2}, {"max_epochs": 3, "epoch_length": 3})),
    Case("19 after a termination", running({"max_epochs": 2}, {}, setups=(on(IC, terminate, 1),)),
         f"S ES GS GC IS IC TERMINATE C {FIRST} C",
         "run[S epoch~terminate[ES loader step*] TERMINATE C] "
         "run[S epoch[ES loader step* x2 EC] C]"),
    Case("19 after an exception", running({"max_epochs": 2}, {}, {}, step=fails_once)),
    Case("19 after being reset", running({"max_epochs": 2}, {}, setups=(on(C, reset),))),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", params(RUNNING))
def test_running_again(case: Case, way: str) -> None:
    """Each call of ``run`` is a run of its own, and what it does is as ever."""
    check_case(case, way)


def test_the_first_run_after_an_exception_does_nothing() -> None:
    """19: it returns None, and the run after that is a new one (not so in the legacy loop)."""
    seen = compare(running({"max_epochs": 2}, {}, {}, step=fails_once))
    assert seen.short() == f"S ES GS GC IS IC GS GC IS {FIRST} C"
    assert seen.notes[1][1] is None


RUNNING_INSIDE = [
    Case("19 in its own handler", running({}, {"max_epochs": 2}, setups=(on(EC, run_inside),))),
    Case("19 in its own process function", running({}, step=lambda e, b: run_inside(e))),
]


@pytest.mark.parametrize("way", INTERRUPTIBLE)
@pytest.mark.parametrize("case", RUNNING_INSIDE, ids=lambda case: case.name)
def test_running_inside_itself(case: Case, way: str) -> None:
    """Ignite refuses to run an engine that is running; the run around goes on."""
    check_case(case, way)


@pytest.mark.parametrize("case", RUNNING_INSIDE, ids=lambda case: case.name)
def test_the_legacy_loop_runs_inside_itself(case: Case) -> None:
    """There an engine may be run while it runs, and both runs end."""
    check_case(case, "legacy")


def test_steps_and_fetches_bear_the_number_of_the_iteration_that_they_serve() -> None:
    """10: ignite's counter still has the previous value when a batch is fetched."""
    table = compare(training(max_epochs=2)).recorded
    rows = table.rows
    for kind in ("step", "iteration"):
        assert rows["iteration"][table.of_kind(kind)].tolist() == [1, 2, 3, 4]
        assert rows["epoch"][table.of_kind(kind)].tolist() == [1, 1, 2, 2]
    fetches = [i for i in table.of_kind("phase").tolist() if table.name(i).text == "get_batch"]
    # The third is fetched twice: the first loader is exhausted.
    assert rows["iteration"][fetches].tolist() == [1, 2, 3, 3, 4]


def test_after_a_loaded_state_the_counters_go_on() -> None:
    """20: the first step has the number of the state's next iteration."""
    table = compare(training(loaded(iteration=3, max_epochs=3, epoch_length=2))).recorded
    steps = table.of_kind("step")
    assert table.rows["iteration"][steps].tolist() == [4, 5, 6]
    assert table.rows["epoch"][steps].tolist() == [2, 3, 3]


def test_a_fetch_whose_start_is_fired_twice_is_one_step() -> None:
    """11: where a handler of STOP fires another event, ignite fires GET_BATCH_STARTED again."""
    program = training(EXTRA, on(STOP, fire("extra")), max_epochs=2)
    step = "step[GS get_batch STOP[act[extra]] loader GS get_batch GC iteration[IS IC]]"
    assert step in short(compare(program).recorded)


def test_the_loaders_start_is_told_from_the_fetch() -> None:
    """12: ``iter(loader)`` is the loader's, in the first epoch and when it begins anew."""
    pause = 0.005

    class SlowLoader:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[int]:
            time.sleep(pause)
            return iter([1, 2])

    table = compare(training(data=SlowLoader, max_epochs=2)).recorded
    loaders = table.of_kind("loader")
    assert (table.durations(loaders) >= pause * 1e9).tolist() == [True, True]
    assert [table.name(i).text for i in table.parents()[loaders].tolist()] == ["epoch", "step"]


def test_durations_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """21: a clock that is set back makes no span end before it begins."""
    clock = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    table = compare(training(max_epochs=2)).recorded
    run = table.of_kind("run")
    assert (table.durations(run) < 60e9).all()
