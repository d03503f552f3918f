"""One program, run untraced and traced: everything that it can see must be the same.

A program is a function of a ``Stage``: it makes its engines, puts them on the stage, which watches
them and (in the second run) traces them, and runs them. ``compare`` runs it twice and checks what
was recorded as well.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import re
import sys
import tempfile
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ignite.engine import State

from firetrace import TraceHandler
from firetrace.tracer.errors import RunNotFoundError
from firetrace.tracer.journal import Flag
from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table
from tests.support.described import SHORT, described, described_engine, error_story, is_ours
from tests.support.shape import assert_well_formed
from tests.support.trainings import name_of, random_states, seed

#: How a program is watched: from inside ignite's ``_fire_event`` ("lookups"; "debug": and ignite
#: says what it does; "legacy": and runs its other loop), as by a tool that wraps that ("calls"), or
#: not at all ("bare").
WAYS = ("lookups", "debug", "calls", "bare", "legacy")
#: The ways in which an engine can be interrupted.
INTERRUPTIBLE = WAYS[:4]

Event = tuple[str, str, str, int, int, str]  # thread, engine, name, epoch, iteration, the last one
Program = Callable[["Stage"], Any]


class _Lookups(defaultdict[Any, list[Any]]):
    """An engine's ``_event_handlers`` that notes whose handlers are looked up to be run."""

    def __init__(self, handlers: Any, note: Callable[[Any], None]) -> None:
        super().__init__(list, handlers)
        self._note = note

    def __getitem__(self, event: Any) -> list[Any]:
        caller = sys._getframe(1)  # not a program that looks something up itself
        if caller.f_code.co_name == "_fire_event" or is_ours(caller):
            self._note(event)
        return super().__getitem__(event)


class Stage:
    """What a program is given."""

    def __init__(self, way: str, handler: TraceHandler | None, folder: Path) -> None:
        self.way = way
        self.handler = handler
        self.folder = folder  #: for files of the program's own
        self.events: list[Event] = []
        self.notes: list[Any] = []  #: what the program itself has seen
        self.partial = False  #: not every event was to be recorded
        self.engines: dict[str, Any] = {}

    def add(self, engine: Any, label: str = "", attach: bool = True) -> Any:
        """Watch an engine and trace it; returns the engine."""
        label = label or f"engine {len(self.engines)}"
        self.engines[label] = engine
        if self.way == "legacy":
            engine.interrupt_resume_enabled = False
        self._watch(engine, label)
        self.partial |= not attach
        if attach and self.handler is not None:
            self.handler.attach(engine)
        return engine

    def attach(self, engine: Any) -> None:
        """Trace an engine from now on."""
        self.partial = True
        if self.handler is not None:
            self.handler.attach(engine)

    def detach(self, engine: Any) -> None:
        """Trace an engine no more."""
        self.partial = True
        if self.handler is not None:
            self.handler.detach(engine)

    def close(self) -> None:
        """End the recording."""
        self.partial = True
        if self.handler is not None:
            self.handler.close()

    def forget(self, engine: Any) -> None:
        """Hold this engine no more: the program may drop it."""
        for label in [label for label, each in self.engines.items() if each is engine]:
            self.note((label, described_engine(self.engines.pop(label), attributes=False)))

    def note(self, value: Any) -> None:
        """Keep something that the program has seen, for the comparison."""
        self.notes.append((threading.current_thread().name, described(value)))

    def attempt(self, action: Callable[[], Any]) -> None:
        """Do something that may fail; note what came out, and go on."""
        try:
            self.note(action())
        except BaseException as error:
            self.note(error_story(error))

    def _watch(self, engine: Any, label: str) -> None:
        if self.way == "bare":
            return
        state_of, events = _reader(engine), self.events

        def note(event: Any) -> None:
            state, last = state_of()
            place = (threading.current_thread().name, label, name_of(event))
            events.append((*place, state.epoch, state.iteration, name_of(last)))

        if self.way != "calls":
            engine._event_handlers = _Lookups(engine._event_handlers, note)
            return
        original = engine._fire_event

        def fire(event: Any, *args: Any, **kwargs: Any) -> None:
            note(event)
            original(event, *args, **kwargs)

        vars(engine)["_fire_event"] = fire


def _reader(engine: Any) -> Callable[[], tuple[State, Any]]:
    return lambda: (engine.state, engine.last_event_name)


@dataclass
class Seen:
    """What came of a program."""

    events: list[Event]
    facts: dict[str, Any] = field(default_factory=dict)  #: everything to be compared
    notes: list[Any] = field(default_factory=list)
    table: Table | None = None  #: what was recorded
    said: list[str] = field(default_factory=list)  #: firetrace's own warnings

    @property
    def recorded(self) -> Table:
        """The recording, which must be there."""
        assert self.table is not None, "nothing was recorded"
        return self.table

    def short(self, label: str = "engine 0") -> str:
        """An engine's events by their short names, as ``S ES GS GC IS IC EC C``."""
        return " ".join(SHORT.get(name, name) for _, engine, name, *_ in self.events
                        if engine == label)  # fmt: skip


def compare(program: Program, way: str = "lookups", **settings: Any) -> Seen:
    """Run a program untraced and traced, and check that it saw the same and was recorded well.

    ``way``: one of ``WAYS``; ``settings``: of the ``TraceHandler``.
    """
    untraced = observe(program, way, None)
    traced = observe(program, way, settings)
    found = differences(untraced, traced)
    assert not found, "the traced program differs:\n" + "\n".join(found[:20])
    return traced


def differences(untraced: Seen, traced: Seen) -> list[str]:
    """Where the two runs of a program were not the same, as readable texts."""
    return [
        line for key in untraced.facts
        for line in _differences(key, untraced.facts[key], traced.facts[key])
    ]  # fmt: skip


def observe(
    program: Program, way: str, settings: dict[str, Any] | None, sound: bool = True
) -> Seen:
    """Run a program once.

    ``settings``: of the ``TraceHandler``; None: untraced. ``sound``: firetrace itself is, so
    everything must have been recorded.
    """
    with tempfile.TemporaryDirectory() as name, _own_world(way) as world:
        folder = Path(name)
        handler = None if settings is None else TraceHandler(folder / "journal", **settings)
        stage = Stage(way, handler, folder)
        try:
            seen = _play(program, stage, world)
            if handler is not None:
                directory = handler.directory
                handler.close()
                if not sound:
                    seen.table = _whatever_was_recorded(directory)
                elif directory is None:
                    assert stage.partial or not stage.events, "nothing was recorded"
                else:
                    seen.table = read_table(open_run(directory).newest)
                    check(seen.table, "max_bytes" not in (settings or {}))
                    if not stage.partial and not settings and way != "bare":
                        _same_events(seen.table, seen.events)
        finally:
            for engine in stage.engines.values():  # what is suspended ends here
                if (generator := engine._internal_run_generator) is not None:
                    with contextlib.suppress(BaseException):
                        generator.close()
            seen.said = world.said()
        return seen


def _whatever_was_recorded(directory: Path | None) -> Table | None:
    """The recording of a firetrace that has failed: readable, if there is one."""
    sys.settrace(None)  # with which it was made to fail; reading is another matter
    try:
        table = None if directory is None else read_table(open_run(directory).newest)
    except RunNotFoundError:
        return None
    assert table is None or not table.damaged
    return table


def _play(program: Program, stage: Stage, world: _World) -> Seen:
    """Run the program; say all that can be compared of it. The engines are untraced then."""
    facts: dict[str, Any] = {"result": None, "raised": None}
    context = contextvars.copy_context()
    before = dict(context)
    seed()
    try:
        facts["result"] = described(context.run(program, stage))
    except BaseException as error:
        facts["raised"] = error_story(error)
    facts["random streams"] = random_states()
    facts["context"] = {
        var.name: described(value) for var, value in context.items() if before.get(var) is not value
    }
    facts["events"] = sorted(stage.events, key=lambda event: event[0])  # by thread
    facts["notes"] = sorted(stage.notes, key=lambda note: note[0])
    facts["states"] = {
        label: described_engine(engine, attributes=False) for label, engine in stage.engines.items()
    }
    if stage.handler is not None:
        stage.handler.detach()
    facts["engines"] = {label: described_engine(each) for label, each in stage.engines.items()}
    return Seen(facts["events"], facts | world.facts(stage.folder), facts["notes"])


def check(table: Table, room: bool = True) -> None:
    """A recording of what is over: every span is closed, and says why where it was cut short.

    ``room``: there was room on the disk for all that had to be said.
    """
    assert_well_formed(table)
    assert table.meta.stopped is None, table.meta.stopped
    assert not table.damaged
    left = [str(table.name(i)) for i in table.open_positions().tolist()]
    assert not left, f"left open: {left}"
    for i in table.of_kind("run").tolist():
        flags, number = int(table.rows["flags"][i]), int(table.numbers[i])
        reason = table.meta.reasons.get(number)
        assert not room or bool(flags & Flag.CUT) == (reason is not None), (flags, reason)
        assert not room or reason == "exception" or not flags & Flag.ERROR, (flags, reason)


def _same_events(table: Table, seen: list[Event]) -> None:
    """The events that were recorded are those that happened, in their order."""
    rows = table.rows
    order = sorted(table.of_kind("event").tolist(), key=lambda i: (int(rows["start"][i]), i))
    of_thread: dict[str, list[str]] = defaultdict(list)
    for i in order:
        of_thread[table.lane(i).thread].append(table.name(i).text)
    expected: dict[str, list[str]] = defaultdict(list)
    for thread, _, name, *_ in seen:
        expected[thread].append(name)
    assert of_thread == expected


class _World:
    """What a program does to the process around it."""

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []
        self.warnings: list[warnings.WarningMessage] = []
        self.unraisable: list[Any] = []

    def said(self) -> list[str]:
        """Firetrace's own warnings."""
        ours = (r for r in self.records if r.name.startswith("firetrace"))
        return [r.getMessage() for r in ours if r.levelno >= logging.WARNING]

    def facts(self, folder: Path) -> dict[str, Any]:
        """Everything that was said, without ids, times and the names of folders."""

        def clean(text: str) -> str:
            text = text.replace(str(folder), "<folder>")
            text = re.sub(r"Time taken: [\d:.]+|\d{4}-\d\d-\d\d [\d:,]+", "<time>", text)
            return re.sub(r"0x[0-9a-f]+|pid\(s\) \d+", "<id>", text)

        return {
            "log": sorted(
                (
                    (r.threadName or "", r.name, r.levelname, clean(r.getMessage()))
                    for r in self.records
                    if not r.name.startswith("firetrace")
                ),
                key=lambda line: line[0],
            ),
            "warnings": [
                (w.category.__name__, clean(str(w.message)), Path(w.filename).name, w.lineno)
                for w in self.warnings
            ],
            "unraisable": self.unraisable,
        }


@contextlib.contextmanager
def _own_world(way: str) -> Iterator[_World]:
    """Listen to logs, warnings and lost exceptions; put everything global back after."""
    world = _World()
    listener = logging.Handler()
    vars(listener)["emit"] = world.records.append
    root, hook, attributes = logging.getLogger(), sys.unraisablehook, dict(State.event_to_attr)
    known = {each: (each.level, [*each.handlers]) for each in _loggers()}

    def note(lost: Any) -> None:
        world.unraisable.append(error_story(lost.exc_value))

    sys.unraisablehook = note
    root.addHandler(listener)
    root.setLevel(logging.DEBUG if way == "debug" else logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            world.warnings = caught
            yield world
    finally:
        for logger in _loggers():
            level, logger.handlers[:] = known.get(logger, (logging.NOTSET, []))
            logger.setLevel(level)
        sys.unraisablehook = hook
        State.event_to_attr.clear()
        State.event_to_attr.update(attributes)


def _loggers() -> list[logging.Logger]:
    made = logging.root.manager.loggerDict.values()
    return [logging.root, *(each for each in made if isinstance(each, logging.Logger))]


def _differences(path: str, one: Any, other: Any) -> Iterator[str]:
    """Where two descriptions differ, as readable lines."""
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one | other:
            yield from _differences(
                f"{path}.{key}", one.get(key, "nothing"), other.get(key, "nothing")
            )
    elif (
        isinstance(one, (list, tuple))
        and isinstance(other, (list, tuple))
        and len(one) == len(other)
    ):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{path}[{index}]", left, right)
    else:
        yield f"{path}:\n  untraced {str(one)[:600]}\n  traced   {str(other)[:600]}"


__all__ = [
    "INTERRUPTIBLE", "WAYS", "Program", "Seen", "Stage", "compare", "differences", "observe",
]  # fmt: skip
