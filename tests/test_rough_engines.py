"""Programs that are hard on a recorder: what they do stays the same, and the tree stays right."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.exporters.otlp.delivery import deliver
from firetrace.exporters.otlp.sender import Sender, connect
from firetrace.tracer.journal import Flag
from firetrace.tracer.recorder import Recorder
from firetrace.tracer.rows import ThreadTrack
from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table
from tests.support.shape import assert_well_formed, outline, tree
from tests.support.trainings import Phase, Training, plain_engine


def recorded(handler: TraceHandler) -> Table:
    assert handler.directory is not None
    handler.close()
    table = read_table(open_run(handler.directory).newest)
    assert_well_formed(table)
    assert not len(table.open_positions())
    assert table.meta.stopped is None
    return table


def test_exceptions_that_the_process_function_catches() -> None:
    """Each is recorded, and the steps around it look as ever."""

    def step(engine: Engine, batch: int) -> None:
        with contextlib.suppress(ValueError):
            engine.fire_event(Phase.FORWARD_COMPLETED)
        engine.fire_event(Phase.LOSS_COMPLETED)

    engine = Engine(step)
    engine.register_events(*Phase)

    @engine.on(Phase.FORWARD_COMPLETED)
    def sometimes() -> None:
        if engine.state.iteration % 3 == 0:
            raise ValueError(f"in iteration {engine.state.iteration}")

    handler = TraceHandler()
    handler.attach(engine)
    engine.run(range(10), max_epochs=3)
    table = recorded(handler)
    (run,) = tree(table)
    assert [name for name, _ in run[1]] == ["STARTED", *["epoch"] * 3, "COMPLETED"]
    assert len(table.of_kind("step")) == 30
    said = [line["exception.message"] for line in table.meta.exceptions.values()]
    assert said == [f"in iteration {i}" for i in range(3, 31, 3)]


def test_an_exception_that_a_handler_swallows_is_recorded() -> None:
    """Ignite hands it to EXCEPTION_RAISED; the journal has its type and message."""

    def step(engine: Engine, batch: int) -> None:
        if batch == 1:
            raise ValueError("swallowed")

    engine = Engine(step)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    table = recorded(handler)
    assert [line["exception.message"] for line in table.meta.exceptions.values()] == [
        "swallowed", "swallowed",
    ]  # fmt: skip


def test_a_loader_that_cannot_be_restarted() -> None:
    """Its exception ends the loader's span; what a swallowing handler lets go on is in place."""

    class Loader:
        count = 0

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            self.count += 1
            if self.count == 2:
                raise OSError("stale file handle")
            return iter([1, 2])

    engine = plain_engine()
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run(Loader(), max_epochs=3)
    table = recorded(handler)
    (run,) = tree(table)
    assert {name for name, _ in run[1]} == {"STARTED", "epoch", "COMPLETED"}
    failed = [table.name(i).text for i in range(len(table)) if table.rows["flags"][i] & Flag.ERROR]
    assert "loader" in failed


def test_two_handlers_of_one_run_on_one_engine_record_it_once() -> None:
    """As when a bundle's config has the handler and a line of code attaches another."""
    engine = plain_engine()
    handlers = [TraceHandler(), TraceHandler()]
    for handler in handlers:
        handler.attach(engine)
    engine.run([1, 2])
    handlers[1].close()
    assert len(recorded(handlers[0]).of_kind("step")) == 2


def test_detaching_one_engine_leaves_the_other_alone() -> None:
    """Also from inside a handler, in the middle of both runs."""
    training = Training(epochs=3)
    handler = TraceHandler()
    handler.attach(training.trainer)
    handler.attach(training.evaluator)
    training.trainer.add_event_handler(
        Events.EPOCH_COMPLETED(once=1), lambda: handler.detach(training.evaluator)
    )
    training.evaluator.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda: handler.detach(training.evaluator)
    )
    training.trainer.run()
    table = recorded(handler)
    trainer = [i for i in table.of_kind("epoch").tolist() if table.rows["lane"][i] == 0]
    assert len(trainer) == 3
    assert len([i for i in table.of_kind("run").tolist() if table.rows["lane"][i] == 1]) == 1


def test_a_logger_of_the_users_own() -> None:
    """Ignite asks no more of a logger than its methods; neither does firetrace."""

    class Logger:
        def debug(self, *_: object) -> None: ...

        info = warning = error = debug

    engine = plain_engine()
    engine.logger = Logger()  # type: ignore[assignment]
    handler = TraceHandler()
    handler.attach(engine)
    assert engine.run([1, 2]).iteration == 2
    assert len(recorded(handler).of_kind("step")) == 2


def test_data_none_has_steps_like_any_other() -> None:
    """Without data no fetch is fired; the steps are whole all the same."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    engine.run(epoch_length=3)
    table = recorded(handler)
    assert not (table.rows["flags"] & Flag.LATE).any()
    assert "epoch\n    EPOCH_STARTED\n    step x3\n      iteration" in outline(tree(table))


def test_prepare_batch_keeps_its_attributes() -> None:
    """MONAI's may be an object with settings, which a program reads, sets and deletes."""

    class Prepare:
        extra, scale = "a", 1.0
        name = phase = tracer = recorder = below = engine = "the program's"

        def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
            scales.append(self.scale)
            return batch["image"], batch["label"]

    training, scales = Training(), list[float]()
    prepare = training.trainer.prepare_batch = Prepare()
    handler = TraceHandler()
    handler.attach(training.trainer)
    training.trainer.prepare_batch.scale = 0.5
    training.trainer.run()
    assert set(scales) == {0.5}
    found = training.trainer.prepare_batch
    assert found.extra == "a"
    assert {found.name, found.phase, found.tracer, found.below, found.engine, found.recorder} == {
        "the program's"
    }
    assert vars(found) == vars(prepare) == {"scale": 0.5}
    del training.trainer.prepare_batch.scale
    assert prepare.scale == 1
    assert "prepare_batch" in outline(tree(recorded(handler)))


def test_prepare_batch_is_put_back() -> None:
    """Also where the engine is attached again."""
    training = Training()
    prepare = training.trainer.prepare_batch
    handler = TraceHandler()
    for _ in range(2):
        handler.attach(training.trainer)
        assert training.trainer.prepare_batch is not prepare
        handler.detach(training.trainer)
        assert training.trainer.prepare_batch is prepare


def test_a_copied_engine_can_be_traced_itself() -> None:
    """A deep copy of a traced engine gets handlers told apart, like any other engine."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    twin = copy.deepcopy(engine)
    twin.add_event_handler(Events.STARTED, print)
    handler.attach(twin)
    twin.run([1])
    assert "STARTED\n    print" in outline(tree(recorded(handler)))


def test_threads_that_follow_one_another_are_told_apart() -> None:
    """The system uses thread numbers again; names are those of the threads that ran."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    for number in range(3):
        thread = threading.Thread(target=engine.run, args=([1],), name=f"worker {number}")
        thread.start()
        thread.join()
    lanes = recorded(handler).meta.lanes.values()
    assert [lane.thread for lane in lanes] == ["worker 0", "worker 1", "worker 2"]


def test_exceptions_without_end_keep_to_the_budget(tmp_path: Path) -> None:
    """Their texts have a share of it; that they happened is recorded all the same."""

    def step(engine: Engine, batch: int) -> None:
        with contextlib.suppress(ValueError):
            engine.fire_event(Phase.FORWARD_COMPLETED)

    engine = Engine(step)
    engine.register_events(*Phase)

    @engine.on(Phase.FORWARD_COMPLETED)
    def fail() -> None:
        raise ValueError("x" * 60_000)

    handler = TraceHandler(tmp_path / "run", max_bytes=2**20)
    handler.attach(engine)
    engine.run(range(500))
    table = recorded(handler)
    assert sum(file.stat().st_size for file in (tmp_path / "run").iterdir()) < 2**20
    names = [table.name(i).text for i in range(len(table)) if table.rows["flags"][i] & Flag.ERROR]
    assert names.count("FORWARD_COMPLETED") == 500


def test_a_failure_of_ours_beside_other_engines_is_ours_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another engine's event and the user's span, where recording what is around them fails."""

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    other = plain_engine()

    def step(engine: Engine, batch: int) -> None:
        other.fire_event(Phase.FORWARD_COMPLETED)
        with handler.span("own"):
            pass

    for owner, method in (
        (Recorder, "assume"), (Recorder, "step_back"), (ThreadTrack, "leave_what_is_over"),
    ):  # fmt: skip
        engine, handler = Engine(step), TraceHandler()
        handler.attach(other)
        handler.attach(engine)
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, fail)
            assert engine.run([1, 2]).iteration == 2
        handler.close()
    warnings = [r for r in caplog.records if (r.name, r.levelname) == ("firetrace", "WARNING")]
    assert len(warnings) == 3


def test_names_that_no_encoder_takes() -> None:
    """A file name that is not UTF-8, in an exception: exported as text."""
    engine = plain_engine()

    @engine.on(Events.STARTED)
    def fail() -> None:
        raise ValueError("cannot load " + os.fsdecode(b"caf\xe9.nii.gz"))

    handler = TraceHandler()
    handler.attach(engine)
    with pytest.raises(ValueError, match="cannot load"):
        engine.run([1])
    from tests.support.otlp_server import OtlpHttpServer

    table = recorded(handler)
    with OtlpHttpServer() as server:
        sender = Sender(connect("http/protobuf", server.endpoint))
        assert deliver(table.path, sender).accepted == len(table)
