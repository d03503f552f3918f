"""Tracing every engine of a process: what it sees, what it leaves alone, and how it is undone."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events, State

from firetrace import TraceHandler
from firetrace.tracer.everywhere import trace_every_engine
from firetrace.tracer.fire import FireEvent
from firetrace.tracer.run import known_runs, open_run
from firetrace.tracer.startup.sitecustomize import AfterImport
from firetrace.tracer.table import Table, read_table
from tests.support.shape import assert_well_formed, outline, tree
from tests.support.trainings import Training

ENTRIES = ("_internal_run", "_internal_run_legacy")
DATA = [1, 2]


@pytest.fixture
def undo(own_folders: Path) -> Iterator[Callable[[], None]]:
    """Every engine is traced in this test; what undoes it."""
    end = trace_every_engine()
    yield end
    end()


def step(engine: Engine, batch: int) -> int:
    if batch == 13:
        raise ValueError("an unlucky batch")
    return batch


def recorded() -> Table:
    """What the test's one run has recorded in its one journal."""
    (run,) = known_runs()
    (journal,) = run.journals
    table = read_table(journal)
    assert_well_formed(table)
    return table


def test_an_unchanged_training_is_recorded_as_with_a_handler(
    undo: Callable[[], None], own_folders: Path
) -> None:
    """A MONAI training with validation: the same tree, whoever attaches."""
    Training().trainer.run()
    undo()
    by_itself = recorded()
    handler = TraceHandler(own_folders / "by-handler")
    Training(lambda: [handler]).trainer.run()
    handler.close()
    by_handler = read_table(open_run(own_folders / "by-handler").newest)
    assert outline(tree(by_itself)) == outline(tree(by_handler))
    assert "prepare_batch" in outline(tree(by_itself))


def test_the_program_s_own_handler_joins(undo: Callable[[], None]) -> None:
    """A handler made before the first run, or after it: one run, one journal, nothing twice."""
    handler = TraceHandler(max_bytes=2**24)
    training = Training(lambda: [handler])
    training.trainer.run()
    later = Engine(step)
    TraceHandler().attach(later)
    later.run(DATA)
    handler.close()
    training.evaluator.run()
    assert [name for name, _ in tree(recorded())] == ["run"] * 3
    assert len(recorded().of_kind("run")) == 5


def test_a_handler_with_another_directory_records_there_as_well(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``firetrace run`` has its recording, and the program has the one that it asked for."""
    monkeypatch.setenv("FIRETRACE_RUN", str(own_folders / "given"))
    undo = trace_every_engine()
    handler = TraceHandler(own_folders / "mine")
    engine = Engine(step)
    handler.attach(engine)
    engine.run(DATA)
    engine.run(DATA)
    undo()
    handler.close()
    first, second = (read_table(run.newest) for run in known_runs())
    assert len(first.of_kind("run")) == len(second.of_kind("run")) == 2


@pytest.mark.parametrize("resumable", [True, False])
def test_the_first_run_is_recorded_like_the_next(
    undo: Callable[[], None], resumable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine is attached to while it enters its first run; that run is whole."""
    monkeypatch.setattr(Engine, "interrupt_resume_enabled", resumable)
    engine = Engine(step)
    for _ in range(2):
        engine.run(DATA, max_epochs=2)
        engine.state.max_epochs = None
    first, second = tree(recorded())
    assert first[0] == "run"
    assert outline([first]) == outline([second])


def test_a_subclass_that_wraps_the_run_is_called_once(undo: Callable[[], None]) -> None:
    """Neither an overriding ``run`` nor an overriding ``_internal_run`` is entered twice."""
    calls = []

    class Careful(Engine):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("run")
            return super().run(*args, **kwargs)

        def _internal_run(self) -> Any:
            calls.append("_internal_run")
            return super()._internal_run()

    engine = Careful(step)
    engine.run(DATA)
    engine.run(DATA)
    assert calls == ["run", "_internal_run"] * 2
    assert [name for name, _ in tree(recorded())] == ["run", "run"]


def test_copies_are_traced_when_they_run(undo: Callable[[], None]) -> None:
    """A deep copy and an unpickled engine are engines of their own."""
    engine = Engine(step)
    engine.run(DATA)
    for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert "firetrace" not in repr(pickle.dumps(twin))
        twin.run(DATA)
    trees = tree(recorded())
    assert len(trees) == 3
    assert len({outline([each]) for each in trees}) == 1


def test_an_engine_is_freed_when_its_program_lets_go(undo: Callable[[], None]) -> None:
    """By its reference count, during no collection."""
    engine = Engine(step)
    engine.run(DATA)
    reference = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert reference() is None
    finally:
        gc.enable()
    assert Engine(step).run(DATA).epoch == 1  # held by nothing but its bound method


def test_engines_that_never_run_leave_nothing(undo: Callable[[], None], own_folders: Path) -> None:
    """No run, no directory; their attributes are ignite's."""
    engine = Engine(step)
    assert not isinstance(getattr(engine._fire_event, "__self__", None), FireEvent)
    engine.fire_event(Events.STARTED)
    assert not own_folders.exists()


def test_undoing_leaves_nothing_behind(own_folders: Path) -> None:
    """The very same functions in the class, no attribute in the engines, no more spans."""
    originals = {name: vars(Engine)[name] for name in ENTRIES}
    fire_event = Engine._fire_event
    undo = trace_every_engine()
    assert trace_every_engine() == undo
    assert Engine._fire_event is fire_event
    assert all(vars(Engine)[name] is not originals[name] for name in ENTRIES)
    engine = Engine(step)
    before = set(vars(engine))
    engine.run(DATA)
    pickled = pickle.dumps(engine)
    twin = pickle.loads(pickled)
    undo()
    assert {name: vars(Engine)[name] for name in ENTRIES} == originals
    assert set(vars(engine)) == before
    spans = len(recorded())
    for each in (engine, twin, pickle.loads(pickled)):
        each.run(DATA)
    assert len(recorded()) == spans
    undo()  # a second time changes nothing


def test_what_inspects_the_methods_sees_ignite_s(undo: Callable[[], None]) -> None:
    """Name, signature, source and pickle of the entries are those of the originals."""
    engine = Engine(step)
    for name in ENTRIES:
        ours = getattr(Engine, name)
        assert ours.__qualname__ == f"Engine.{name}"
        assert list(inspect.signature(ours).parameters) == ["self"]
        assert inspect.getsource(ours).lstrip().startswith(f"def {name}(self)")
        assert pickle.loads(pickle.dumps(ours)) is ours
        assert pickle.loads(pickle.dumps(getattr(engine, name))).__func__ is ours


def test_an_exception_shows_the_user_s_frames(own_folders: Path) -> None:
    """Between ignite's frames there are some of ours; the others are the same."""

    def frames() -> list[str]:
        try:
            Engine(step).run([1, 13])
        except ValueError as error:
            found = traceback.extract_tb(error.__traceback__)
            return [f.name for f in found if "/tracer/" not in f.filename]
        raise AssertionError("the batch was not unlucky")

    untraced = frames()
    undo = trace_every_engine()
    assert frames() == untraced
    undo()
    assert "ValueError" in str([*recorded().meta.exceptions.values()])


def test_a_failure_of_ours_is_logged_once(
    undo: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The training goes on, now and with every later engine."""

    def fail(self: TraceHandler, engine: Engine) -> None:
        raise RuntimeError("no way in")

    monkeypatch.setattr(TraceHandler, "attach", fail)
    for _ in range(3):
        assert Engine(step).run(DATA).iteration == 2
    assert [r.getMessage() for r in caplog.records if r.name == "firetrace"] == [
        "firetrace traces no more engines (RuntimeError: no way in)"
    ]


def test_an_ignite_with_one_entry_only(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no ``_internal_run``, as in an ignite to come, ``run`` is the entry."""

    class Bare:
        def __init__(self) -> None:
            self.state = State(max_epochs=1)
            self.last_event_name = None

        def _fire_event(self, event: Any) -> None:
            self.last_event_name = event

        def run(self, data: Any) -> str:
            self._fire_event(Events.STARTED)
            self._fire_event(Events.COMPLETED)
            return f"ran over {data}"

    original = Bare.run
    monkeypatch.setattr(sys.modules["ignite.engine.engine"], "Engine", Bare)
    undo = trace_every_engine()
    engine = Bare()
    assert engine.run(DATA) == engine.run(DATA) == "ran over [1, 2]"
    undo()
    assert Bare.run is original
    assert [name for name, _ in tree(recorded())] == ["run", "run"]


def test_a_module_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``AfterImport`` acts after the module's execution and leaves no trace in it."""
    (tmp_path / "awaited_by_firetrace.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[tuple[str, int]] = []
    finder = AfterImport("awaited_by_firetrace", lambda m: seen.append((m.__name__, m.value)))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    import awaited_by_firetrace as module  # type: ignore[import-not-found]

    assert seen == [("awaited_by_firetrace", 1)]
    spec = module.__spec__
    assert isinstance(spec, ModuleSpec)
    assert type(spec.loader).__name__ == type(module.__loader__).__name__ == "SourceFileLoader"
    assert inspect.getsource(module) == "value = 1\n"
    assert finder.find_spec("another") is None
    del sys.modules["awaited_by_firetrace"]
