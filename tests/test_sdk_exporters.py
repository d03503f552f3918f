"""Chrome traces of programs that firetrace does not record, as Perfetto reads them."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExportResult,
)
from opentelemetry.trace import Link, SpanKind

from firetrace.exporters.sdk.chrome import DAY, ChromeTraceExporter
from firetrace.exporters.sdk.lanes import NOBODY, Interval, Layout
from tests.support.perfetto import PerfettoTrace
from tests.support.sdk import (
    PROCESSORS,
    STRANGE,
    Processor,
    Program,
    ancestors,
    assert_exact,
    in_parent,
    slices,
    span,
    span_id,
)


@PROCESSORS
def test_a_nested_program(processor: Processor, tmp_path: Path) -> None:
    """Parents, durations, arguments, events and the exception of a span are as OpenTelemetry's."""
    program = Program(ChromeTraceExporter(tmp_path / "trace.json"), processor)
    tracer = program.tracer(**{"service.name": "shop", "process.pid": 7})
    for _ in range(20):
        with tracer.start_as_current_span("request", kind=SpanKind.SERVER) as request:
            request.add_event("accepted", {"queue": 3})
            with (
                pytest.raises(ValueError, match="no"),
                tracer.start_as_current_span("pay", attributes={"price": 2.5, "tags": ["a", "b"]}),
            ):
                raise ValueError("no")
            with tracer.start_as_current_span("send"), tracer.start_as_current_span("post"):
                pass
    spans = program.end()
    found = slices(tmp_path / "trace.json")
    assert_exact(found, spans)
    assert in_parent(found, spans) == 1.0
    assert {(row["process"], row["thread"]) for row in found} == {("shop 7", "spans")}
    with PerfettoTrace(tmp_path / "trace.json") as loaded:
        pay = loaded.sql(
            "select i.name as event, extract_arg(i.arg_set_id, 'args.exception.message') as said,"
            " extract_arg(s.arg_set_id, 'args.price') as price,"
            " extract_arg(s.arg_set_id, 'args.tags[1]') as tag,"
            " extract_arg(s.arg_set_id, 'args.status') as status,"
            " extract_arg(s.arg_set_id, 'args.kind') as kind"
            " from slice i join slice s on i.parent_id = s.id where i.category = 'event'"
            " order by i.ts limit 2"
        )
    empty = {"said": None, "price": None, "tag": None}
    assert pay == [
        {"event": "accepted", **empty, "status": "UNSET", "kind": "SERVER"},
        {"event": "ValueError", "said": "no", "price": 2.5, "tag": "b", "status": "ERROR",
         "kind": "INTERNAL"},
    ]  # fmt: skip


@PROCESSORS
def test_threads(processor: Processor, tmp_path: Path) -> None:
    """Threads that their spans name are Perfetto's threads, and in each everything nests."""
    program = Program(ChromeTraceExporter(tmp_path / "trace.json"), processor)
    tracer = program.tracer()

    def work(name: str) -> None:
        named: dict[str, Any] = {"thread.name": name, "thread.id": threading.get_ident()}
        for _ in range(30):
            with (
                tracer.start_as_current_span("job", attributes=named),
                tracer.start_as_current_span("part", attributes=named),
            ):
                pass

    threads = [threading.Thread(target=work, args=(f"worker {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = program.end()
    found = slices(tmp_path / "trace.json")
    assert_exact(found, spans)
    assert in_parent(found, spans) == 1.0
    assert {row["thread"] for row in found} == {f"worker {i}" for i in range(4)}


@PROCESSORS
def test_threads_that_nobody_names(processor: Processor, tmp_path: Path) -> None:
    """Without a thread's name lanes keep apart what overlaps."""
    program = Program(ChromeTraceExporter(tmp_path / "trace.json"), processor)
    tracer = program.tracer()
    together = threading.Barrier(4)

    def work() -> None:
        for _ in range(30):
            with tracer.start_as_current_span("job"), tracer.start_as_current_span("part"):
                together.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = program.end()
    found = slices(tmp_path / "trace.json")
    assert_exact(found, spans)
    assert len({row["thread"] for row in found}) <= 8


async def serve(tracer: trace.Tracer, number: int) -> None:
    async def task(turn: int) -> None:
        with tracer.start_as_current_span("task"):
            for step in range(3):
                with tracer.start_as_current_span("step"):
                    await asyncio.sleep((number * 7 + turn * 3 + step) % 5 / 2000)

    with tracer.start_as_current_span("request"):
        await asyncio.gather(task(0), task(1))


@PROCESSORS
async def test_tasks_that_overlap(processor: Processor, tmp_path: Path) -> None:
    """Tasks of several traces in one thread: all there, none in a slice that is not its own."""
    program = Program(ChromeTraceExporter(tmp_path / "trace.json"), processor)
    tracer = program.tracer()
    await asyncio.gather(*(serve(tracer, i) for i in range(6)))
    spans = program.end()
    found = slices(tmp_path / "trace.json")
    assert_exact(found, spans)
    if processor is BatchSpanProcessor:  # it has whole traces: one of two tasks is in the request
        assert in_parent(found, spans) == (36 + 6) / (36 + 12)


def test_two_services(tmp_path: Path) -> None:
    """Each resource is a process, also where a trace goes through both."""
    program = Program(ChromeTraceExporter(tmp_path / "trace.json"))
    front = program.tracer(**{"service.name": "front"})
    back = program.tracer(**{"service.name": "back", "service.instance.id": "b1"})
    with front.start_as_current_span("ask"), back.start_as_current_span("answer"):
        pass
    spans = program.end()
    found = slices(tmp_path / "trace.json")
    assert_exact(found, spans)
    assert {row["name"]: row["process"] for row in found} == {"ask": "front", "answer": "back b1"}


@st.composite
def forests(draw: st.DrawFn) -> list[list[ReadableSpan]]:
    """Batches of spans of some traces, with children that outlive their parents and equal times.

    They come as they end, as they begin, or in any order; some never come.
    """
    spans: list[ReadableSpan] = []
    for number in range(1, draw(st.integers(1, 40)) + 1):
        before = draw(st.sampled_from(spans)) if spans and draw(st.integers(0, 4)) > 0 else None
        start, end = sorted(draw(st.tuples(st.integers(0, 30), st.integers(0, 30))))
        parent, of = 0, number
        if before is not None and before.context is not None:
            parent, of = before.context.span_id, before.context.trace_id
            if draw(st.integers(0, 3)):  # as is usual: in its parent
                low, high = before.start_time or 0, before.end_time or 0
                within = st.integers(low - 10**18, high - 10**18)
                start, end = sorted(draw(st.tuples(within, within)))
        threads = draw(st.sampled_from(["", "", "one", "two"]))
        attributes = {"thread.name": threads} if threads else {}
        spans.append(span(number, 10**18 + start, 10**18 + end, parent, of, attributes=attributes))
    order = draw(st.sampled_from(["end", "start", "any"]))
    if order == "end":
        spans.reverse()
        spans.sort(key=lambda each: each.end_time or 0)
    elif order == "start":
        spans.sort(key=lambda each: each.start_time or 0)
    else:
        spans = draw(st.permutations(spans))
    if draw(st.booleans()):
        spans = [each for each in spans if draw(st.integers(0, 5))]
    size = draw(st.integers(1, 12))
    return [spans[i : i + size] for i in range(0, len(spans), size)]


generated = settings(
    database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
#: Loading a file takes Perfetto half a second.
generated_files = settings(generated, max_examples=20, phases=[Phase.generate])


@generated_files
@given(runs=st.lists(forests(), min_size=8, max_size=8))
def test_generated_forests(runs: list[list[list[ReadableSpan]]], tmp_path: Path) -> None:
    """Whatever the spans, Perfetto has them all, and nothing lies in another trace's slice."""
    path = tmp_path / "trace.json"
    exporter = ChromeTraceExporter(path)
    spans = []
    for turn, batches in enumerate(runs):
        for batch in batches:
            moved = [moved_by(each, turn) for each in batch]
            assert exporter.export(moved) is SpanExportResult.SUCCESS
            spans += moved
    exporter.shutdown()
    assert_exact(slices(path), spans)


def moved_by(of: ReadableSpan, turn: int) -> ReadableSpan:
    """The same in traces, and at times, of another turn."""
    assert of.context is not None
    parent = of.parent.span_id + turn * 1000 if of.parent else 0
    number, trace_id = of.context.span_id + turn * 1000, of.context.trace_id + turn * 1000
    start, end = (of.start_time or 0) + turn * 20, (of.end_time or 0) + turn * 20
    return span(number, start, end, parent, trace_id, attributes=of.attributes)


@settings(generated, max_examples=300)
@given(batches=forests())
def test_generated_lanes(batches: list[list[ReadableSpan]], tmp_path: Path) -> None:
    """The same by a model of Perfetto, old and new: it may sort equal starts by length or not."""
    path = tmp_path / "trace.json"
    exporter = ChromeTraceExporter(path)
    for batch in batches:
        exporter.export(batch)
    exporter.shutdown()
    by_id = {span_id(each): each for batch in batches for each in batch}
    events = [event for event in json.loads(path.read_text()) if event["ph"] == "X"]
    assert len(events) == len(by_id)
    for longer_first in (False, True):
        lanes: dict[int, list[tuple[int, str]]] = {}
        for event in sorted(events, key=lambda e: (ns(e["ts"]), -longer_first * ns(e["dur"]))):
            row, id = lanes.setdefault(event["tid"], []), event["args"]["span_id"]
            start, end = ns(event["ts"]), ns(event["ts"]) + ns(event["dur"])
            # A slice without duration is there until something begins later.
            while row and row[-1][0] <= start and not row[-1][0] == start == end_start(row, by_id):
                row.pop()
            if row:
                assert end <= row[-1][0]
                assert row[-1][1] in ancestors(by_id[id], by_id)
            row.append((end, id))


def end_start(row: list[tuple[int, str]], by_id: dict[str, ReadableSpan]) -> int:
    """The start of the last slice of a row if it has no duration, as a time of the file."""
    of = by_id[row[-1][1]]
    return row[-1][0] if of.start_time == of.end_time else -1


def ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def test_parents_that_come_first(tmp_path: Path) -> None:
    """Spans in the order in which they began, in small batches, lie in their parents as well."""
    spans, now = [span(1, 0, 10**6)], 10
    for step in range(200):
        spans.append(span(2 + 3 * step, now, now + 100, 1))
        spans.append(span(3 + 3 * step, now + 1, now + 50, 2 + 3 * step))
        spans.append(span(4 + 3 * step, now + 60, now + 100, 2 + 3 * step))
        now += 110
    exporter = ChromeTraceExporter(tmp_path / "trace.json")
    for first in range(0, len(spans), 7):
        exporter.export(spans[first : first + 7])
    exporter.shutdown()
    found = slices(tmp_path / "trace.json")
    assert_exact(found, spans)
    assert in_parent(found, spans) == 1.0


def test_memory_does_not_grow() -> None:
    """Of a million spans' time only what can still matter is kept, even if parents never come."""
    layout = Layout()
    sizes = []
    for turn in range(400):
        batch = []
        for i in range(turn * 100, turn * 100 + 100):
            lost = (i + 1) << 64 | 1
            batch.append(Interval("thread", 10 * i, 10 * i + 25, (i + 1) << 64 | 2, lost))
            batch.append(Interval("thread", 10 * i, 10 * i + 5, i << 64 | 3, NOBODY))
        layout.place(batch)
        lanes = layout._groups["thread"]
        sizes.append((len(lanes), sum(len(lane.blocks) for lane in lanes), len(layout._homes)))
    assert max(sizes[200:]) <= max(sizes[:200])
    assert max(max(size) for size in sizes) < 5000
    assert len(layout._parents) < 10_000


def test_names_and_values_that_json_or_perfetto_spoil(tmp_path: Path) -> None:
    """Strange names are readable; NaN and huge numbers cost no argument; ours are told apart."""
    program = Program(ChromeTraceExporter(tmp_path / "trace.json"))
    tracer = program.tracer(**{"service.name": STRANGE})
    values = {
        "nan": float("nan"), "inf": float("inf"), "huge": 2**63, "text": STRANGE, "list": [1.5],
        "status": "mine", "none": [], "lone": "\ud800", STRANGE: 1,
    }  # fmt: skip
    with tracer.start_as_current_span(STRANGE, attributes=values) as current:  # type: ignore[arg-type]
        current.add_event(STRANGE, {"nan": float("nan")})
        current.add_event("long ago", timestamp=1)
    program.end()
    keys = ["nan", "inf", "huge", "text", "list[0]", "attribute.status", "status", "none", "lone"]
    asked = ", ".join(
        f"extract_arg(arg_set_id, 'args.{key}') as a{i}" for i, key in enumerate(keys)
    )
    with PerfettoTrace(tmp_path / "trace.json") as loaded:
        (row,) = loaded.sql(f"select name, {asked} from slice where category = 'tests'")
        events = loaded.sql("select name from slice where category = 'event' order by ts")
        processes = loaded.sql("select name from process where name is not null")
    shown = "a'b/c\u00b7\u00b7[31m\u00e9\u6f22\U0001f600%d\u00b7"
    assert row.pop("name") == shown
    assert list(row.values()) == [
        "nan", "inf", str(2**63), STRANGE.replace("\x00", "\u00b7"), 1.5, "mine", "UNSET", "[]", "?"
    ]  # fmt: skip
    assert [event["name"] for event in events] == ["long ago", shown]
    assert processes[0]["name"].startswith(shown)


def test_links_are_arrows(tmp_path: Path) -> None:
    """From a span that is in the file to a later one; to one that is not there, an argument."""
    linked, lost = span(1, 100, 200), span(2, 300, 400)
    assert linked.context is not None
    assert lost.context is not None
    later = span(3, 500, 600, of=2, links=[Link(linked.context), Link(lost.context)])
    exporter = ChromeTraceExporter(tmp_path / "trace.json")
    exporter.export([linked])
    exporter.export([later])
    exporter.shutdown()
    with PerfettoTrace(tmp_path / "trace.json") as loaded:
        arrows = loaded.sql(
            "select a.name as a, b.name as b from flow"
            " join slice a on slice_out = a.id join slice b on slice_in = b.id"
        )
        links = loaded.sql(
            "select extract_arg(arg_set_id, 'args.links[1]') as lost from slice where name = 's3'"
        )
    assert arrows == [{"a": "s1", "b": "s3"}]
    assert links == [{"lost": f"{1:032x}:{2:016x}"}]


def test_a_span_from_before_the_file(tmp_path: Path) -> None:
    """One that began more than a day before the first is cut there and says so."""
    now = 10**18
    exporter = ChromeTraceExporter(tmp_path / "trace.json")
    exporter.export([span(1, now, now + 10, 2)])
    exporter.export([span(2, now - DAY, now + 20, 3), span(3, now - DAY - 5, now + 30)])
    exporter.shutdown()
    with PerfettoTrace(tmp_path / "trace.json") as loaded:
        rows = loaded.sql(
            "select name, ts, dur, extract_arg(arg_set_id, 'args.began_before_ns') as before"
            " from slice order by name"
        )
    assert rows == [
        {"name": "s1", "ts": DAY, "dur": 10, "before": None},
        {"name": "s2", "ts": 0, "dur": DAY + 20, "before": None},
        {"name": "s3", "ts": 0, "dur": DAY + 30, "before": 5},
    ]
