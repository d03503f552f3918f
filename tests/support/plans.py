"""Random programs for the harness ``unchanged``: what happens where, and how it is played."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypothesis import strategies as st
from ignite.engine import Engine, EventEnum, Events

from tests.support.unchanged import Stage


class Custom(EventEnum):
    """Events of the program's own; ``extra`` is a string, and one is never registered."""

    FORWARD_COMPLETED = "forward_completed"
    LOAD_STARTED = "load_started"
    LOAD_COMPLETED = "load_completed"
    UNREGISTERED = "unregistered"


CORE = [event for event in Events if event not in (Events.INTERRUPT,)]
OWN = [Custom.FORWARD_COMPLETED, Custom.LOAD_STARTED, Custom.LOAD_COMPLETED, "extra"]
EVENTS: list[Any] = [*CORE, Events.INTERRUPT, *OWN]
#: Where something may happen: in a handler, the process function or the data.
EVERYWHERE = (*range(len(EVENTS)), "step", "iter", "next")
#: The same, those that are reached again and again more often.
PLACES = EVERYWHERE + 3 * tuple(
    place for place in EVERYWHERE
    if isinstance(place, str) or "ITER" in str(EVENTS[place]) or "BATCH" in str(EVENTS[place])
)  # fmt: skip

ERRORS: dict[str, type[BaseException]] = {
    "ValueError": ValueError, "KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit,
    "StopIteration": StopIteration, "GeneratorExit": GeneratorExit, "Exception": Exception,
}  # fmt: skip
PLAIN = (
    "add", "remove", "fire", "fire", "fire of the other", "terminate", "terminate and skip",
    "terminate epoch", "terminate epoch and skip", "interrupt", "interrupt", "run the other",
    "run the other", "run itself", "reset", "other data", *ERRORS,
)  # fmt: skip
ATTACHING = ("attach", "detach", "attach the other", "detach the other")


class Act(NamedTuple):
    """The ``time``-th time at this place of this engine, do ``what``."""

    engine: int
    place: int | str
    time: int
    what: str
    event: int  #: of those that can be fired or handled


class Run(NamedTuple):
    """The arguments of ``run``."""

    data: str
    length: int  #: of the data
    epoch_length: int | None
    max_epochs: int | None
    max_iters: int | None


@dataclass(frozen=True)
class Plan:
    """A program: two engines, what they run over and what happens meanwhile."""

    runs: tuple[Run, ...]  #: of the first engine, one after the other
    other: Run
    handlers: tuple[tuple[int, int], ...]  #: engine, event: handlers that only look
    acts: tuple[Act, ...]
    nested: int | None = None  #: at this event the first engine runs the other one
    attached: tuple[bool, bool] = (True, True)  #: from the start

    def __call__(self, stage: Stage) -> None:
        """Play it."""
        _Play(self, stage).play()


def runs() -> st.SearchStrategy[Run]:
    few = st.integers(1, 3)
    return st.builds(
        Run, data=st.sampled_from(["list", "list", "none", "iterator", "unsized"]), length=few,
        epoch_length=st.none() | few, max_epochs=st.none() | few,
        max_iters=st.none() | st.integers(1, 5),
    ).map(lambda run: run._replace(max_iters=None) if run.max_epochs else run)  # fmt: skip


def plans(acts: tuple[str, ...] = PLAIN) -> st.SearchStrategy[Plan]:
    """Programs in which these things happen; with ``ATTACHING`` tracing comes and goes."""
    attaching = set(ATTACHING) <= set(acts)
    events = st.integers(0, len(EVENTS) - 1)
    which = st.integers(0, 1)
    act = st.builds(
        Act, engine=which, place=st.sampled_from(PLACES), time=st.sampled_from((1, 1, 2, 3)),
        what=st.sampled_from(acts), event=events,
    )  # fmt: skip
    return st.builds(
        Plan, runs=st.lists(runs(), min_size=1, max_size=3).map(tuple), other=runs(),
        handlers=st.lists(st.tuples(which, events), max_size=4).map(tuple),
        acts=st.lists(act, min_size=1, max_size=8).map(tuple), nested=st.none() | events,
        attached=st.tuples(st.booleans(), st.booleans()) if attaching else st.just((True, True)),
    )  # fmt: skip


class _Data:
    """Data that can be told to fail, and ends a program that would run for ever."""

    def __init__(self, play: _Play, which: int, length: int) -> None:
        self.play, self.which, self.length = play, which, length

    def __iter__(self) -> Iterator[int]:
        self.play.arrive(self.which, "iter")
        return self._batches()

    def _batches(self) -> Iterator[int]:
        for batch in range(self.length):
            self.play.arrive(self.which, "next")
            yield batch


class _Sized(_Data):
    def __len__(self) -> int:
        return self.length


class _Once(_Data):
    """Gives each batch once, whoever asks."""

    def __init__(self, play: _Play, which: int, length: int) -> None:
        super().__init__(play, which, length)
        self.left = iter(range(length))

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.play.arrive(self.which, "next")
        return next(self.left)


class _Play:
    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.plan, self.stage = plan, stage
        self.times: Counter[tuple[int, int | str]] = Counter()
        self.engines = [self._engine(which) for which in (0, 1)]

    def play(self) -> None:
        for run in self.plan.runs:
            self.stage.attempt(lambda run=run: self.run(0, run))  # type: ignore[misc]

    def run(self, which: int, run: Run) -> Any:
        kinds = {"list": _Sized, "iterator": _Once, "unsized": _Data}
        make = kinds.get(run.data)
        return self.engines[which].run(
            None if make is None else make(self, which, run.length),
            epoch_length=run.epoch_length, max_epochs=run.max_epochs, max_iters=run.max_iters,
        )  # fmt: skip

    def _engine(self, which: int) -> Engine:
        def step(engine: Engine, batch: Any) -> Any:
            self.arrive(which, "step")
            return batch

        engine = self.stage.add(Engine(step), attach=self.plan.attached[which])
        engine.register_events(*OWN)
        places = [event for each, event in self.plan.handlers if each == which]
        acting = {act.place for act in self.plan.acts if act.engine == which}
        if which == 0 and self.plan.nested is not None:
            acting.add(self.plan.nested)
        for place in [*places, *(place for place in range(len(EVENTS)) if place in acting)]:
            engine.add_event_handler(EVENTS[place], self._handler(which, place))
        return engine  # type: ignore[no-any-return]

    def _handler(self, which: int, place: int) -> Any:
        def handle(*_: Any, **__: Any) -> None:
            self.arrive(which, place)

        return handle

    def arrive(self, which: int, place: int | str) -> None:
        """Somewhere in an engine: do what the plan says."""
        self.times[which, place] += 1
        if self.times.total() > 300:
            raise KeyboardInterrupt("this would go on for ever")
        if (which, place) == (0, self.plan.nested) and self.times[which, place] <= 2:
            self.run(1, self.plan.other)
        for act in self.plan.acts:
            if (act.engine, act.place, act.time) == (which, place, self.times[which, place]):
                self.do(act)

    def looking(self, *_: Any, **__: Any) -> None:
        self.stage.note("a handler that was added")

    def do(self, act: Act) -> None:
        """Do one thing."""
        engine, other = self.engines[act.engine], self.engines[1 - act.engine]
        event = EVENTS[act.event]
        if act.what in ERRORS:
            raise ERRORS[act.what](f"in {act.place}")
        if act.what == "add":
            engine.add_event_handler(event, self.looking)
        elif act.what == "remove":
            engine.remove_event_handler(self.looking, event)
        elif act.what == "fire":
            engine.fire_event(OWN[act.event % len(OWN)])
        elif act.what == "fire of the other":
            other.fire_event(OWN[act.event % len(OWN)])
        elif act.what.startswith("terminate epoch"):
            engine.terminate_epoch(act.what.endswith("skip"))
        elif act.what.startswith("terminate"):
            engine.terminate(act.what.endswith("skip"))
        elif act.what == "interrupt":
            engine.interrupt()
        elif act.what == "run the other":
            self.run(1 - act.engine, self.plan.other)
        elif act.what == "run itself":
            self.run(act.engine, self.plan.other)
        elif act.what == "reset":
            engine.state.max_epochs = engine.state.max_iters = None
        elif act.what == "other data":
            engine.set_data([7, 8])
        elif act.what.startswith("attach"):
            self.stage.attach(other if act.what.endswith("other") else engine)
        elif act.what.startswith("detach"):
            self.stage.detach(other if act.what.endswith("other") else engine)
        else:
            raise NotImplementedError(act.what)
