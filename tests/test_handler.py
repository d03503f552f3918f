"""What ``TraceHandler`` records: the span tree, in full shape."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, EventEnum, Events
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from firetrace import TraceHandler
from firetrace.tracer import storage
from firetrace.tracer.journal import Flag
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tracer.writer import JournalWriter
from tests.support.recordings import recorded
from tests.support.shape import outline, tree
from tests.support.simulated import MadeTime
from tests.support.trainings import Training, plain_engine

TRAINING = """\
run
  STARTED
  epoch
    EPOCH_STARTED
    loader
    step x3
      GET_BATCH_STARTED
      get_batch
      GET_BATCH_COMPLETED
      iteration
        ITERATION_STARTED
        prepare_batch
        forward
        FORWARD_COMPLETED
        loss
        LOSS_COMPLETED
        backward
        BACKWARD_COMPLETED
        optimizer
        MODEL_COMPLETED
          Workflow._decollate_data
        output
        ITERATION_COMPLETED
          StatsHandler.iteration_completed
    EPOCH_COMPLETED
      ValidationHandler
        run
          STARTED
          epoch
            EPOCH_STARTED
              MeanAbsoluteError.started
            loader
            step x2
              GET_BATCH_STARTED
              get_batch
              GET_BATCH_COMPLETED
              iteration
                ITERATION_STARTED
                prepare_batch
                forward
                FORWARD_COMPLETED
                MODEL_COMPLETED
                  Workflow._decollate_data
                ITERATION_COMPLETED
                  MeanAbsoluteError.iteration_completed
            EPOCH_COMPLETED
              MeanAbsoluteError.completed
              Workflow._compare_metrics
          COMPLETED
      StatsHandler.epoch_completed
  epoch
    EPOCH_STARTED
    step
      GET_BATCH_STARTED
      get_batch
      DATALOADER_STOP_ITERATION
      loader
      get_batch
      GET_BATCH_COMPLETED
      iteration
"""


def test_the_tree_of_a_monai_training() -> None:
    """Run, epochs, loader, steps, phases, events, handlers and the nested validation."""
    training = Training()
    handler = TraceHandler()
    handler.attach(training.trainer)
    handler.attach(training.evaluator)
    training.trainer.run()
    table = recorded(handler)
    text = outline(tree(table)) + "\n"
    assert text.startswith(TRAINING), text
    assert text.endswith("  COMPLETED\n")
    assert table.meta.runs[int(table.numbers[0])]["max_epochs"] == 2
    assert table.meta.runs[int(table.numbers[0])]["epoch_length"] == 3


def test_every_epoch_has_the_same_tree() -> None:
    """What was learned in one epoch does not change what the later ones look like."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3], max_epochs=7)
    (run,) = tree(recorded(handler))
    epochs = [outline(children) for name, children in run[1] if name == "epoch"]
    assert len(epochs) == 7
    assert len(set(epochs[1:])) == 1
    assert "DATALOADER_STOP_ITERATION\n  loader\n  get_batch\n  GET_BATCH_COMPLETED" in epochs[1]


def test_spans_say_where_they_belong() -> None:
    """Epoch and iteration are ignite's own, the fetch included, which ignite counts later."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3], max_epochs=2)
    table = recorded(handler)
    for kind, name in (("step", "step"), ("phase", "get_batch"), ("phase", "forward")):
        id = next(i for i, n in table.names.items() if (n.kind, n.text) == (kind, name))
        rows = table.rows[table.rows["name"] == id]
        counted = sorted(set(zip(rows["epoch"].tolist(), rows["iteration"].tolist(), strict=True)))
        assert counted == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)], name


def test_phases_hold_what_they_are_named_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase lasts from the end of the handlers of the event before it to its own event."""
    time = MadeTime(monkeypatch)
    pauses = {"FORWARD_COMPLETED": 30, "LOSS_COMPLETED": 10, "BACKWARD_COMPLETED": 20}

    class Parts(EventEnum):
        FORWARD_COMPLETED = "forward_completed"
        LOSS_COMPLETED = "loss_completed"
        BACKWARD_COMPLETED = "backward_completed"

    def step(engine: Engine, batch: Any) -> None:
        for event in Parts:
            time.pass_by(pauses[event.name] * 10**6)
            engine.fire_event(event)

    engine = Engine(step)
    engine.register_events(*Parts)
    engine.add_event_handler(Parts.FORWARD_COMPLETED, lambda: time.pass_by(50 * 10**6))
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3])
    table = recorded(handler)
    durations = {
        name: [int(ns) // 10**6 for i in range(len(table)) if table.name(i).text == name
               for ns in [table.rows["end"][i] - table.rows["start"][i]]]
        for name in ("forward", "loss", "backward", "FORWARD_COMPLETED")
    }  # fmt: skip
    for name, ms in (("forward", 30), ("loss", 10), ("backward", 20), ("FORWARD_COMPLETED", 50)):
        assert durations[name] == [ms] * 3


def test_custom_events_before_and_after_attaching() -> None:
    """Pairs, lone events, string events and late registrations are all recorded."""

    class Own(EventEnum):
        AUGMENT_STARTED = "augment_started"
        AUGMENT_COMPLETED = "augment_completed"
        NOTED = "noted"

    def step(engine: Engine, batch: Any) -> None:
        engine.fire_event(Own.AUGMENT_STARTED)
        engine.fire_event("halfway")
        engine.fire_event(Own.AUGMENT_COMPLETED)
        engine.fire_event(Own.NOTED)

    engine = Engine(step)
    engine.register_events(*Own)
    handler = TraceHandler()
    handler.attach(engine)
    engine.register_events("halfway")
    engine.add_event_handler("halfway", lambda: None)
    engine.run([1, 2])
    text = outline(tree(recorded(handler)))
    assert (
        """\
      iteration
        ITERATION_STARTED
        augment
          AUGMENT_STARTED
          halfway
            test_custom_events_before_and_after_attaching.<lambda>
          AUGMENT_COMPLETED
        NOTED
        ITERATION_COMPLETED"""
        in text
    ), text


def test_a_span_that_is_open_can_be_seen() -> None:
    """While the training runs, spans() has the open ones, the phase in progress among them."""
    seen: list[list[str]] = []

    class Parts(EventEnum):
        FORWARD_COMPLETED = "forward_completed"
        LOSS_COMPLETED = "loss_completed"

    def step(engine: Engine, batch: int) -> None:
        engine.fire_event(Parts.FORWARD_COMPLETED)
        seen.append([span.name for span in handler.spans() if span.end_time is None])
        engine.fire_event(Parts.LOSS_COMPLETED)

    engine = Engine(step)
    engine.register_events(*Parts)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2])
    recorded(handler)
    assert seen == [
        ["run", "epoch", "step", "iteration"],
        ["run", "epoch", "step", "iteration", "loss"],  # expected, as it was so the first time
    ]


def test_a_guess_that_proves_wrong_leaves_no_trace() -> None:
    """Steps with different phases are recorded as they were, not as the step before them was."""

    class Parts(EventEnum):
        A_COMPLETED = "a"
        B_COMPLETED = "b"

    def step(engine: Engine, batch: list[str]) -> None:
        for name in batch:
            engine.fire_event(Parts[name])

    engine = Engine(step)
    engine.register_events(*Parts)
    handler = TraceHandler()
    handler.attach(engine)
    a, b = "A_COMPLETED", "B_COMPLETED"
    batches = [[a, b], [b, a], [], [a], [a, b], [b, b], [a, b]]
    engine.run(batches)
    roots = tree(recorded(handler))
    epoch = next(children for name, children in roots[0][1] if name == "epoch")
    steps = [dict(children) for name, children in epoch if name == "step"]
    phases = [[name for name, _ in step["iteration"] if name in ("a", "b")] for step in steps]
    assert phases == [[name[0].lower() for name in batch] for batch in batches]


def failing(engine: Engine, batch: int) -> None:
    if batch == 2:
        raise ValueError("batch 2 is bad")


def test_an_exception_in_the_process_function_is_recorded_once() -> None:
    """The spans it passed through are errors; the innermost holds type, message and stack."""
    engine = Engine(failing)
    handler = TraceHandler()
    handler.attach(engine)
    with pytest.raises(ValueError, match="batch 2 is bad"):
        engine.run([1, 2, 3])
    table = recorded(handler)
    failed = [table.name(i).text for i in range(len(table)) if table.rows["flags"][i] & Flag.ERROR]
    assert failed == ["run", "epoch", "step", "iteration"]
    spans = {span.name: span for span in handler.spans() if not span.status.is_ok}
    assert len(table.meta.exceptions) == 1
    event = spans["iteration"].events[0]
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "batch 2 is bad"
    assert "in failing" in str(event.attributes["exception.stacktrace"])
    assert spans["run"].status.status_code is StatusCode.ERROR


def test_an_exception_in_a_handler_is_the_handlers() -> None:
    """The handler's span holds the exception; the handlers behind it did not run."""
    engine = plain_engine()

    def bad() -> None:
        raise RuntimeError("no space")

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), bad)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: None)
    handler = TraceHandler()
    handler.attach(engine)
    with pytest.raises(RuntimeError, match="no space"):
        engine.run([1, 2, 3])
    table = recorded(handler)
    (row,) = table.meta.exceptions
    position = table.numbers.tolist().index(row)
    assert table.name(position).text.endswith(".bad")
    assert [table.name(i).text for i in table.of_kind("step")] == ["step", "step"]


def test_terminate_closes_what_it_cuts_and_says_why() -> None:
    """The epoch is cut with the reason; run and step came to their own end."""
    engine = plain_engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda e: e.terminate())
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3])
    table = recorded(handler)
    cut = {table.name(i).text: table.meta.reasons.get(int(table.numbers[i]))
           for i in range(len(table)) if table.rows["flags"][i] & Flag.CUT}  # fmt: skip
    assert cut == {"epoch": "terminate"}
    assert [name for name, _ in tree(table)[0][1]][-2:] == ["TERMINATE", "COMPLETED"]


def test_an_interrupted_run_goes_on_under_the_same_run() -> None:
    """Two parts of one run: idle time between them is in neither, and the second says so."""
    engine = plain_engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda e: e.interrupt())
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3])
    time.sleep(0.05)
    engine.run()
    table = recorded(handler)
    first, second = table.of_kind("run").tolist()
    assert table.meta.reasons[int(table.numbers[first])] == "interrupt"
    assert table.rows["flags"][second] & Flag.RESUMED
    assert table.rows["start"][second] - table.rows["end"][first] >= 50_000_000
    assert len(table.of_kind("step")) == 3


def test_a_second_run_is_a_second_tree() -> None:
    """The handler goes on recording; both runs are in the same journal."""
    engine = plain_engine()
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2])
    engine.run([1, 2, 3], max_epochs=2)
    roots = tree(recorded(handler))
    assert [name for name, _ in roots] == ["run", "run"]


def test_engines_in_two_threads_keep_their_own_trees() -> None:
    """Each thread's spans hang on its own run, on a lane of its own."""
    handler = TraceHandler()
    engines = [plain_engine(), plain_engine()]
    for engine in engines:
        handler.attach(engine)
    threads = [
        threading.Thread(target=engine.run, args=(range(500),), name=f"worker {i}")
        for i, engine in enumerate(engines)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table = recorded(handler)
    lanes = table.meta.lanes
    assert sorted(lane.thread for lane in lanes.values()) == ["worker 0", "worker 1"]
    for lane in lanes:
        mine = table.rows["lane"] == lane
        assert mine.sum() == len(table) // 2
    parents = table.parents()
    inner = parents >= 0
    assert (table.rows["lane"][inner] == table.rows["lane"][parents[inner]]).all()


def test_handlers_of_one_process_share_a_run(own_folders: Path) -> None:
    """Two handlers, as in a bundle's train and validate sections, make one run directory."""
    training = Training(lambda: [TraceHandler()])
    training.trainer.run()
    (run,) = own_folders.iterdir()
    table = read_table(open_run(run).newest)
    assert {lane.engine for lane in table.meta.lanes.values()} == {
        "SupervisedTrainer", "SupervisedEvaluator",
    }  # fmt: skip


def test_the_first_argument_names_the_directory(tmp_path: Path) -> None:
    """A second handler there is a new attempt, not an overwritten file."""
    for attempt in (1, 2):
        engine = plain_engine()
        handler = TraceHandler(tmp_path / "here")
        handler.attach(engine)
        engine.run([1] * attempt)
        assert handler.directory == tmp_path / "here"
        handler.close()
    run = open_run(tmp_path / "here")
    assert [path.name for path in run.journals] == ["rank0.1.rows", "rank0.2.rows"]
    assert [len(read_table(path).of_kind("step")) for path in run.journals] == [1, 2]


def test_exporters_get_the_spans_when_the_run_ends() -> None:
    """Any SDK exporter works, and gets every span once, over several runs."""
    memory = InMemorySpanExporter()
    engine = plain_engine()
    handler = TraceHandler(exporters=[memory])
    handler.attach(engine)
    engine.run([1, 2])
    first = memory.get_finished_spans()
    assert [span.name for span in first].count("step") == 2
    engine.run([1, 2, 3])
    spans = memory.get_finished_spans()
    assert [span.name for span in spans].count("step") == 5
    ids = [span.context.span_id for span in spans if span.context]
    assert len(set(ids)) == len(ids) == len(list(handler.spans()))
    by_id = {span.context.span_id: span for span in spans if span.context}
    for span in spans:
        if span.parent is not None:
            parent = by_id[span.parent.span_id]
            assert (parent.start_time or 0) <= (span.start_time or 0)
            assert (span.end_time or 0) <= (parent.end_time or 0)
    handler.close()


def test_an_exporter_that_fails_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The training ends as if there were no exporter; a warning says what happened."""

    class Broken(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            raise OSError("backend is down")

    engine = plain_engine()
    handler = TraceHandler(exporters=[Broken()])
    handler.attach(engine)
    assert engine.run([1, 2]).iteration == 2
    assert "backend is down" in caplog.text
    handler.close()


@pytest.mark.parametrize("trouble", ["a file", "no permission"])
def test_a_run_that_cannot_be_made_does_not_stop_the_training(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the result of an untraced run."""
    if trouble == "a file":
        (tmp_path / "here").write_text("mine")
    else:
        if os.geteuid() == 0:
            (tmp_path / "here").symlink_to("/proc/self/nonexistent")  # root may write anywhere else
        else:
            (tmp_path / "here").mkdir(mode=0o500)
    engine = plain_engine()
    handler = TraceHandler(tmp_path / "here" / "run")
    handler.attach(engine)
    with caplog.at_level(logging.WARNING, "firetrace"):
        assert engine.run([1, 2], max_epochs=2).iteration == 4
    assert len([r for r in caplog.records if r.name == "firetrace"]) == 1
    assert "training goes on" in caplog.text
    handler.close()


def test_a_disk_that_fills_up_stops_the_recording_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was recorded until then is readable, and says why it ends."""
    handler = TraceHandler(tmp_path / "run", max_bytes=2**20)
    engine = plain_engine()
    handler.attach(engine)

    @engine.on(Events.ITERATION_COMPLETED(once=100))
    def fill() -> None:
        def full(fd: int, offset: int, length: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(storage, "reserve", full)

    assert engine.run(range(5000)).iteration == 5000
    table = read_table(open_run(tmp_path / "run").newest)
    assert 100 <= len(table.of_kind("step")) < 5000
    assert table.meta.stopped is not None
    assert "No space left" in table.meta.stopped
    assert caplog.text.count("training goes on") == 1
    handler.close()


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "pwrite"])
def test_a_real_limit_on_file_size_stops_the_recording_only(tmp_path: Path, mapped: bool) -> None:
    """The system refuses the next byte: same output and exit code, one warning, a readable run."""
    program = (
        "import resource, sys, signal\n"
        "from tests.support.trainings import plain_engine\n"
        "from firetrace import TraceHandler\n"
        "from firetrace.tracer import writer\n"
        "if sys.argv[2] == 'pwrite': writer.MAPPABLE = frozenset()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))\n"
        "engine = plain_engine(); TraceHandler(sys.argv[1]).attach(engine)\n"
        "print(engine.run(range(5000)).iteration)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run"), "mapped" if mapped else "pwrite"],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "5000\n"), done.stderr
    assert done.stderr.count("training goes on") == 1
    table = read_table(open_run(tmp_path / "run").newest)
    assert 500 < len(table.of_kind("step")) < 5000
    assert "OSError" in str(table.meta.stopped)


def test_every_nth_step_is_kept_and_the_rest_leaves_no_row() -> None:
    """With every=3 a third of the steps is there, whole; epochs and their validation all are."""
    training = Training()
    handler = TraceHandler(every=3)
    handler.attach(training.trainer)
    handler.attach(training.evaluator)
    training.trainer.run()
    table = recorded(handler)
    trainer = next(i for i, lane in table.meta.lanes.items() if lane.engine == "SupervisedTrainer")
    steps = [i for i in table.of_kind("step").tolist() if table.rows["lane"][i] == trainer]
    assert table.rows["iteration"][steps].tolist() == [3, 6]
    epochs = [i for i in table.of_kind("epoch").tolist() if table.rows["lane"][i] == trainer]
    assert len(epochs) == 2
    assert len(table.of_kind("run")) == 3  # the trainer's and both validations
    whole = [name for name, _ in dict(tree(table)[0][1])["epoch"]]
    assert whole.count("step") == 1


def test_torch_hooks_are_left_alone() -> None:
    """Recording a MONAI training registers nothing on the model or the optimizer."""
    training = Training()
    handler = TraceHandler()
    handler.attach(training.trainer)
    hooks = [m._forward_hooks for m in training.network.modules()]
    assert not any(hooks)
    assert not torch.nn.modules.module._global_forward_hooks
    handler.close()


def test_a_name_may_hold_what_a_path_may_not(own_folders: Path) -> None:
    """The directory's name is made of it; the spans have it as it is."""
    engine = plain_engine()
    handler = TraceHandler(name="lung/left: fold 3")
    handler.attach(engine)
    engine.run(range(2))
    handler.close()
    assert handler.directory is not None
    assert handler.directory.parent == own_folders
    assert handler.directory.name.endswith("-lung-left-fold-3")
    table = read_table(open_run(handler.directory).newest)
    assert table.meta.resource["service.name"] == "lung/left: fold 3"


@pytest.mark.parametrize("thing", [None, "trainer", object()])
def test_what_is_no_engine_is_refused(thing: Any) -> None:
    """That is the program's mistake, and no failure of the recording."""
    handler = TraceHandler()
    with pytest.raises(TypeError, match=f"not an engine: {type(thing).__name__}"):
        handler.attach(thing)
    assert not handler._recording.ended


def test_a_failure_while_it_is_attached_leaves_the_engine_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the engine is as it was."""

    def fail(*_: Any) -> None:
        raise KeyError("a mistake of ours")

    engine = Engine(lambda engine, batch: batch)
    before = dict(vars(engine))
    monkeypatch.setattr("firetrace.tracer.engine.EngineTracer._put_calls", fail)
    TraceHandler().attach(engine)
    assert dict(vars(engine)) == before
    assert engine.run([1, 2]).iteration == 2
    (said,) = [each.getMessage() for each in caplog.records if each.name == "firetrace"]
    assert "a mistake of ours" in said
    assert "training goes on" in said


@pytest.mark.parametrize("kind", ["function", "method", "object"])
def test_what_a_signal_handler_raises_is_the_program_s(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the signal comes while firetrace's own code runs: it reaches the training."""

    class Handler:
        def alarm(self, *_: Any) -> None:
            raise TimeoutError("too long")

        __call__ = alarm

    def alarm(*_: Any) -> None:
        raise TimeoutError("too long")

    ways: dict[str, Any] = {"function": alarm, "method": Handler().alarm, "object": Handler()}
    engine, handler = Engine(lambda engine, batch: batch), TraceHandler()
    handler.attach(engine)
    usual = JournalWriter._rows_to_next_level

    def interrupted(writer: JournalWriter, room: int) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return usual(writer, room)

    monkeypatch.setattr(JournalWriter, "_rows_to_next_level", interrupted)
    before = signal.signal(signal.SIGUSR1, ways[kind])
    try:
        with pytest.raises(TimeoutError, match="too long"):
            engine.run([1, 2])
    finally:
        signal.signal(signal.SIGUSR1, before)
        monkeypatch.undo()
    assert not handler._recording.ended
    other = Engine(lambda engine, batch: batch)
    handler.attach(other)
    assert other.run([1, 2]).iteration == 2
    assert len(recorded(handler).of_kind("run"))
