"""Spans, numbers and contexts of the user's own, and how parts of a run are linked."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Engine, EventEnum, Events
from ignite.metrics import Average
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from firetrace import TraceHandler
from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Table
from tests.support.recordings import recorded
from tests.support.shape import outline, tree
from tests.support.trainings import Phase, Training, plain_engine


def spans_named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def shape_of_iteration(table: Table) -> str:
    text = outline(tree(table))
    return "\n".join(text[text.index("ITERATION_STARTED") :].split("\n")[:12])


# Spans of the user's own


def test_a_span_in_a_process_function_and_in_a_handler() -> None:
    """It nests where it is opened, and carries its attributes."""

    def step(engine: Engine, batch: Any) -> None:
        with handler.span("augment", cases=4, names=["a", "b"], where=object()) as span:
            span.set_attribute("found", True)
            with handler.span("crop"):
                pass

    engine = Engine(step)

    @engine.on(Events.EPOCH_COMPLETED)
    def save() -> None:
        with handler.span("write"):
            pass

    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2])
    spans = list(handler.spans())
    by_id = {span.context.span_id: span for span in spans if span.context}
    augment = spans_named(spans, "augment")
    assert len(augment) == 2
    for span in augment:
        assert span.attributes
        assert dict(span.attributes) | {
            "cases": 4, "names": ["a", "b"], "where": "<object>", "found": True,
            "ignite.kind": "span",
        } == dict(span.attributes)  # fmt: skip
    handler_name = "test_a_span_in_a_process_function_and_in_a_handler.save"
    for name, parent in {
        "augment": "iteration", "crop": "augment", "write": handler_name,
    }.items():  # fmt: skip
        for span in spans_named(spans, name):
            assert span.parent
            assert by_id[span.parent.span_id].name == parent
    recorded(handler)


def test_a_span_inside_a_phase_belongs_to_it() -> None:
    """Also the first time, when it is not known yet that a phase is going on, nor which."""

    def step(engine: Engine, batch: Any) -> None:
        with handler.span("infer"):
            pass
        for event in Phase:
            engine.fire_event(event)

    engine = Engine(step)
    engine.register_events(*Phase)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3])
    table = recorded(handler)
    parents = table.parents().tolist()
    inside = [table.name(parents[i]).text for i in table.of_kind("span").tolist()]
    assert inside == ["forward"] * 3
    assert [table.name(i).text for i in table.of_kind("phase").tolist()].count("forward") == 3


def test_events_inside_a_span() -> None:
    """Phases that are fired inside a span are its children."""

    def step(engine: Engine, batch: Any) -> None:
        with handler.span("train"):
            for event in Phase:
                engine.fire_event(event)

    engine = Engine(step)
    engine.register_events(*Phase)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3])
    (run,) = tree(recorded(handler))
    text = outline([run])
    assert text.count("        train\n          forward\n          FORWARD_COMPLETED\n") >= 1
    assert text.count("train") == 1  # all three steps are alike, so the outline folds them


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_exception_ends_a_span(error: BaseException) -> None:
    """It passes on, and the span says that it was ended by it."""

    def step(engine: Engine, batch: Any) -> None:
        with handler.span("augment"):
            raise error

    engine = Engine(step)
    handler = TraceHandler()
    handler.attach(engine)
    with pytest.raises(type(error)) as caught:
        engine.run([1])
    assert caught.value is error
    table = recorded(handler)
    (at,) = table.of_kind("span").tolist()
    assert table.rows["flags"][at] == Flag.CUT | Flag.ERROR
    assert table.meta.exceptions[int(table.numbers[at])]["exception.type"].endswith(
        type(error).__name__
    )


def test_spans_that_are_not_closed_where_they_were_opened() -> None:
    """Held open past their handler, closed in another one, never closed, or used outside a run."""
    held: list[Any] = []

    def step(engine: Engine, batch: Any) -> None:
        span = handler.span("forgotten")
        span.__enter__()
        held.append(span)

    engine = Engine(step)
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda: held.append(handler.span("held").__enter__())
    )
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: [span.__exit__(None, None, None) for span in held]
    )
    handler = TraceHandler()
    with handler.span("before the first run"):
        pass
    handler.attach(engine)
    engine.run([1, 2], max_epochs=2)
    with handler.span("outside"):
        pass
    for span in held:
        span.__exit__(None, None, None)
        span.set_attribute("late", 1)
    names = [table_name for table_name in _names(recorded(handler)) if table_name in SPANS]
    assert names == ["held", "forgotten"] * 4


SPANS = {"held", "forgotten", "outside", "before the first run"}


def _names(table: Table) -> Iterator[str]:
    return (table.name(i).text for i in range(len(table)))


def test_very_deep_spans() -> None:
    """Recursion ends recording of the deepest ones, not the training."""

    def dive(depth: int) -> None:
        if depth:
            with handler.span(f"level {depth}"):
                dive(depth - 1)

    engine = Engine(lambda engine, batch: dive(100))
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2])
    table = recorded(handler)
    assert 20 < len(table.of_kind("span")) / 2 < 100


# Numbers


def scalars(table: Table) -> list[tuple[str, float]]:
    values = table.scalars["end"].copy().view("<f8").tolist()
    return [
        (table.names[int(row["name"])].text, value)
        for row, value in zip(table.scalars, values, strict=True)
    ]


def test_the_output_of_an_iteration() -> None:
    """``output_transform`` gives numbers by name, as for ignite's loggers."""
    engine = Engine(lambda engine, batch: (batch, torch.tensor(batch * 0.5)))
    handler = TraceHandler()
    handler.attach(engine, output_transform=lambda out: {"loss": out[1], "all": [out[0], "text"]})
    engine.run([1, 2])
    attributes = [
        dict(span.attributes or {}) for span in spans_named([*handler.spans()], "iteration")
    ]
    assert [each["ignite.scalar.loss"] for each in attributes] == [0.5, 1.0]
    assert scalars(recorded(handler)) == [
        ("loss", 0.5), ("all.0", 1.0), ("loss", 1.0), ("all.0", 2.0),
    ]  # fmt: skip


def test_a_number_alone_is_called_output() -> None:
    """And the handler's own transform is the default for the engines it is attached to."""
    engine = Engine(lambda engine, batch: batch)
    handler = TraceHandler(output_transform=lambda out: out)
    handler.attach(engine)
    engine.run([3, 4])
    assert scalars(recorded(handler)) == [("output", 3.0), ("output", 4.0)]


def test_metrics_at_the_end_of_an_epoch() -> None:
    """``state.metrics`` is recorded by itself, once the epoch's handlers have computed it."""
    engine = Engine(lambda engine, batch: float(batch))
    Average().attach(engine, "mean")
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3], max_epochs=2)
    (epoch, _) = spans_named([*handler.spans()], "epoch")
    assert epoch.attributes
    assert epoch.attributes["ignite.scalar.mean"] == 2.0
    assert scalars(recorded(handler)) == [("mean", 2.0)] * 2


def test_metrics_of_a_monai_evaluator() -> None:
    """The same for MONAI's engines."""
    training = Training()
    handler = TraceHandler()
    handler.attach(training.trainer)
    handler.attach(training.evaluator)
    training.trainer.run()
    found = scalars(recorded(handler))
    assert [name for name, _ in found] == ["mae", "mae"]
    assert found[-1][1] == training.evaluator.state.metrics["mae"]


def test_an_output_transform_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """One warning; the training and the recording go on."""
    engine = Engine(lambda engine, batch: batch)
    handler = TraceHandler()
    handler.attach(engine, output_transform=lambda out: {"loss": out["loss"]})
    with caplog.at_level(logging.WARNING, "firetrace"):
        assert engine.run([1, 2, 3]).iteration == 3
    assert [record.getMessage() for record in caplog.records] == [
        "firetrace: output_transform failed and is not used any more "
        "(TypeError: 'int' object is not subscriptable)"
    ]
    assert scalars(recorded(handler)) == []


# OpenTelemetry's context


@pytest.fixture
def exporter() -> Iterator[tuple[trace.Tracer, InMemorySpanExporter]]:
    """The program's own OpenTelemetry, whose spans we can look at."""
    found = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    yield provider.get_tracer("program"), found
    provider.shutdown()


def test_spans_of_the_program_nest_in_the_open_row(
    exporter: tuple[trace.Tracer, InMemorySpanExporter],
) -> None:
    """A span made inside a step is a child of the innermost one that is open there."""
    tracer, found = exporter

    def step(engine: Engine, batch: Any) -> None:
        with tracer.start_as_current_span("in the process function"):
            tracer.start_span("inner").end()

    engine = Engine(step)

    @engine.on(Events.EPOCH_COMPLETED)
    def save() -> None:
        tracer.start_span("in a handler").end()
        with handler.span("write"):
            tracer.start_span("in a span").end()

    handler = TraceHandler()
    handler.attach(engine)
    tracer.start_span("before").end()
    engine.run([1])
    tracer.start_span("after").end()
    ours = {span.context.span_id: span for span in handler.spans() if span.context}
    theirs = {span.name: span for span in found.get_finished_spans()}
    handler_name = save.__qualname__.replace(".<locals>", "")
    for name, parent in {
        "in the process function": "iteration", "in a span": "write", "in a handler": handler_name,
    }.items():  # fmt: skip
        span = theirs[name]
        assert span.parent
        assert ours[span.parent.span_id].name == parent
        assert ours[span.parent.span_id].context.trace_id == span.context.trace_id
    assert theirs["inner"].parent == theirs["in the process function"].context
    assert theirs["before"].parent is theirs["after"].parent is None


def test_a_guess_is_no_parent(exporter: tuple[trace.Tracer, InMemorySpanExporter]) -> None:
    """A phase that comes only every other time: the program's spans have a parent that is one."""
    tracer, found = exporter

    class Phase(EventEnum):
        OPTIMIZER_COMPLETED = "optimizer"

    def step(engine: Engine, batch: Any) -> None:
        if engine.state.iteration % 2:
            engine.fire_event(Phase.OPTIMIZER_COMPLETED)
        else:
            tracer.start_span("mine").end()

    engine, handler = Engine(step), TraceHandler()
    engine.register_events(*Phase)
    handler.attach(engine)
    engine.run(range(8))
    handler.close()
    ours = {span.context.span_id for span in handler.spans() if span.context}
    mine = found.get_finished_spans()
    assert len(mine) == 4
    assert all(span.parent and span.parent.span_id in ours for span in mine)


def test_log_records_carry_the_ids() -> None:
    """What a log handler asks for, OpenTelemetry's current span, knows the innermost open row."""
    seen: list[trace.SpanContext] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(trace.get_current_span().get_span_context())

    log = logging.getLogger("program")
    log.addHandler(Handler())
    engine = Engine(lambda engine, batch: log.warning("in the step"))
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2])
    ids = [span.context.span_id for span in spans_named([*handler.spans()], "iteration")]
    assert [context.span_id for context in seen] == ids
    assert all(context.trace_flags.sampled for context in seen)


def test_the_context_is_left_as_it_was_found() -> None:
    """Also by a run that raises, inside a span of the program's own, and by a nested run."""
    outer = trace.NonRecordingSpan(trace.SpanContext(1, 2, False))
    evaluator = plain_engine()
    engine = plain_engine()
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([1]))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: 1 / 0)
    handler = TraceHandler()
    handler.attach(engine)
    handler.attach(evaluator)

    def program() -> None:
        with trace.use_span(outer):
            before = context.get_current()
            with pytest.raises(ZeroDivisionError):
                engine.run([1, 2], max_epochs=2)
            assert context.get_current() is before

    contextvars.copy_context().run(program)


def test_what_a_handler_attaches_stays() -> None:
    """What the program itself leaves in the context after a run is there, and nothing of ours."""

    def program(traced: bool) -> tuple[Any, Any]:
        engine = plain_engine()
        engine.add_event_handler(
            Events.STARTED, lambda: context.attach(context.set_value("mine", 1)) and None
        )
        if traced:
            TraceHandler().attach(engine)
        engine.run([1])
        return context.get_value("mine"), trace.get_current_span().get_span_context()

    assert contextvars.copy_context().run(program, True) == contextvars.copy_context().run(
        program, False
    )


def test_the_bridge_can_be_left_out() -> None:
    """``context=False``: OpenTelemetry's current span is the program's own."""
    seen: list[Any] = []
    engine = Engine(lambda engine, batch: seen.append(trace.get_current_span()))
    handler = TraceHandler(context=False)
    handler.attach(engine)
    engine.run([1])
    assert seen == [trace.INVALID_SPAN]


# Parts of a run


def test_a_resumed_run_is_linked_to_the_interrupted_one() -> None:
    """One run id, two run spans, a link; the time between the calls is in neither."""
    engine = plain_engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    handler = TraceHandler()
    handler.attach(engine)
    engine.run([1, 2, 3])
    engine.run([1, 2, 3])
    first, second = spans_named([*handler.spans()], "run")
    assert first.attributes
    assert first.attributes["ignite.cut"] == "interrupt"
    assert first.end_time
    assert second.start_time
    assert first.end_time < second.start_time
    assert first.links == ()
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    recorded(handler)
