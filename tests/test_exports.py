"""What leaves firetrace: checked by the real readers, on a real training of the sample bundle."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from firetrace import TraceHandler
from firetrace.exporters.chrome.export import export_chrome
from firetrace.exporters.otlp.delivery import deliver
from firetrace.exporters.otlp.sender import ExportError, Sender, connect, protocol_for
from firetrace.exporters.spans import batches, journal_spans, readable_spans
from firetrace.tracer.ids import span_id, span_ids
from firetrace.tracer.journal import Flag
from firetrace.tracer.table import Table, read_table
from firetrace.tracer.writer import JournalWriter
from tests.support.otlp_server import OtlpGrpcServer, OtlpHttpServer, attributes
from tests.support.perfetto import PerfettoTrace
from tests.support.recordings import recorded
from tests.support.trainings import Training

STRANGE = 'a"b\\c\n\x1b[31m[bold]\u00e9\u6f22\U0001f600%d\x00'


@pytest.fixture(scope="module")
def sample(sample_run: Path) -> Table:
    """The sample bundle's training, read from its journal."""
    return read_table(sample_run)


@pytest.fixture
def unfinished(tmp_path: Path) -> Table:
    """A journal with strange names, an exception and open spans, as a killed writer leaves it."""
    writer = JournalWriter(tmp_path / "rank3.1", {"service.name": "x"}, min_free_bytes=0)
    pen, lane = writer.pen(), writer.lane(STRANGE, 1)
    now = writer.wall_ns
    run = pen.open(0, writer.name("run", "run"), lane, 0, 0, 0, 0, now)
    step = pen.open(run, writer.name("step", "step"), lane, 0, 1, 1, 0, now + 10)
    failed = pen.open(step, writer.name("handler", STRANGE), lane, Flag.ERROR, 1, 1, 0, now + 20)
    pen.close(failed, now + 30, Flag.ERROR | Flag.CUT)
    writer.note(
        "exception", row=failed, time=now + 30,
        **{"exception.type": "ValueError", "exception.message": STRANGE,
           "exception.stacktrace": STRANGE},
    )  # fmt: skip
    writer.note("end_reason", row=failed, reason="exception")
    table = read_table(writer.path)
    writer.close()
    return table


def expected(table: Table) -> Counter[tuple[str, str, int, int, int]]:
    """Every span of a journal as (parent's name, name, epoch, iteration, duration)."""
    parents = table.parents().tolist()
    return Counter(
        (
            table.name(parents[i]).text if parents[i] >= 0 else "",
            table.name(i).text,
            int(table.rows["epoch"][i]),
            int(table.rows["iteration"][i]),
            int(table.rows["end"][i] - table.rows["start"][i]),
        )
        for i in range(len(table))
    )


def test_perfetto_reads_the_sample_exactly(sample: Table, tmp_path: Path) -> None:
    """Its own trace processor reports no import error, and every parent and duration is ours.

    Slices nest by time within a thread; what an evaluator does is on a thread of its own.
    """
    path = tmp_path / "trace.json"
    assert export_chrome(sample, path) == len(sample)
    with PerfettoTrace(path) as trace:
        rows = trace.sql(
            "select s.name, s.dur, ifnull(p.name, '') as parent,"
            " extract_arg(s.arg_set_id, 'args.epoch') as epoch,"
            " extract_arg(s.arg_set_id, 'args.iteration') as iteration"
            " from slice s left join slice p on s.parent_id = p.id where s.category != 'mark'"
        )
        threads = trace.sql("select t.name from thread t where t.name is not null")
        processes = trace.sql("select name from process where name like 'rank%'")
    names = {thread["name"] for thread in threads}
    assert {"SupervisedTrainer", "SupervisedEvaluator"} <= names
    assert [process["name"].split()[:2] for process in processes] == [["rank", "0"]]
    found = Counter((r["parent"], r["name"], r["epoch"], r["iteration"], r["dur"]) for r in rows)
    ours = expected(sample)
    # A nested run is a root of its own thread: its parent is on the trainer's.
    for key in [key for key in ours if key[1] == "run"]:
        count = ours.pop(key)
        root = ("", *key[1:])
        ours[root] += count
    assert found == ours


def test_perfetto_shows_what_the_user_noted(tmp_path: Path) -> None:
    """Attributes of a span of the user's own, and the optimizer's steps that were skipped."""
    training = Training()
    training.trainer.accumulation_steps = 2
    handler = TraceHandler()

    def augment() -> None:
        with handler.span("augment", cases=3, loss=float("nan"), names=["a", "b"]):
            pass

    training.trainer.add_event_handler(Events.ITERATION_STARTED, augment)
    handler.attach(training.trainer)
    training.trainer.run()
    table = recorded(handler)
    path = tmp_path / "trace.json"
    assert export_chrome(table, path) == len(table)
    with PerfettoTrace(path) as trace:
        (count,) = trace.sql("select count(*) as n from slice")
        noted = trace.sql(
            "select extract_arg(arg_set_id, 'args.cases') as cases,"
            " extract_arg(arg_set_id, 'args.loss') as loss,"
            " extract_arg(arg_set_id, 'args.names[1]') as name,"
            " extract_arg(arg_set_id, 'args.iteration') as iteration"
            " from slice where name = 'augment'"
        )
        skipped = trace.sql(
            "select extract_arg(arg_set_id, 'args.iteration') as iteration from slice"
            " where name = 'optimizer' and extract_arg(arg_set_id, 'args.skipped') order by ts"
        )
    assert count["n"] == len(table)
    assert noted == [
        {"cases": 3, "loss": "nan", "name": "b", "iteration": i + 1} for i in range(6)
    ]  # fmt: skip
    assert [row["iteration"] for row in skipped] == [1, 4]


def test_children_never_outlive_their_parents(sample: Table, tmp_path: Path) -> None:
    """Asked of the trace processor itself, over all slices."""
    path = tmp_path / "trace.json.gz"
    export_chrome(sample, path)
    with PerfettoTrace(path) as trace:
        (bad,) = trace.sql(
            "select count(*) as n from slice s join slice p on s.parent_id = p.id"
            " where s.ts < p.ts or s.ts + s.dur > p.ts + p.dur"
        )
        (all_,) = trace.sql("select count(*) as n from slice where category != 'mark'")
    assert (bad["n"], all_["n"]) == (0, len(sample))


def test_chrome_json_is_json_and_gzip_follows_the_name(sample: Table, tmp_path: Path) -> None:
    """Both forms hold the same events, and no half-written file is left under the name."""
    export_chrome(sample, tmp_path / "trace.json")
    export_chrome(sample, tmp_path / "trace.json.gz")
    text = (tmp_path / "trace.json").read_bytes()
    assert gzip.decompress((tmp_path / "trace.json.gz").read_bytes()) == text
    events = json.loads(text)
    assert len([e for e in events if e["ph"] in "XB"]) == len(sample)
    assert sorted(path.name for path in tmp_path.glob("trace*")) == ["trace.json", "trace.json.gz"]


def test_perfetto_keeps_open_spans_open(unfinished: Table, tmp_path: Path) -> None:
    """Open spans have no duration, strange names are text, the exception is in the arguments."""
    path = tmp_path / "trace.json"
    export_chrome(unfinished, path)
    with PerfettoTrace(path) as trace:
        slices = trace.sql("select name, dur, depth from slice order by ts")
        message = trace.sql(
            "select extract_arg(arg_set_id, 'args.exception.message') as m"
            " from slice where dur = 10"
        )
    assert [(s["name"], s["dur"], s["depth"]) for s in slices[:2]] == [
        ("run", -1, 0), ("step", -1, 1),
    ]  # fmt: skip
    name = slices[2]["name"]
    assert name.startswith("a'b/c")
    assert "[bold]\u00e9\u6f22\U0001f600%d" in name
    assert not any(ord(character) < 32 for character in name)
    assert "[bold]" in message[0]["m"]


@pytest.mark.parametrize("kind", [OtlpHttpServer, OtlpGrpcServer], ids=["http", "grpc"])
def test_otlp_arrives_whole(sample: Table, kind: Any) -> None:
    """A server built on the official protobuf services gets every span once, with exact times."""
    with kind() as server:
        protocol = "grpc" if kind is OtlpGrpcServer else "http/protobuf"
        endpoint = server.endpoint.removesuffix("/v1/traces")
        sender = Sender(connect(protocol, endpoint))
        assert deliver(sample.path, sender, split="run").accepted == len(sample)
        sender.close()
        received = server.spans()
    assert len(received) == len(sample)
    by_id = {item.span.span_id: item for item in received}
    assert len(by_id) == len(received)
    runs = [item for item in received if item.span.name == "run" and not item.span.parent_span_id]
    assert len({item.span.trace_id for item in received}) == len(runs)
    found: Counter[tuple[str, str, int, int, int]] = Counter()
    for _, _, span in received:
        said = attributes(span.attributes)
        parent = by_id[span.parent_span_id].span if span.parent_span_id else None
        if parent is not None:
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
        duration = span.end_time_unix_nano - span.start_time_unix_nano
        epoch, iteration = int(str(said["ignite.epoch"])), int(str(said["ignite.iteration"]))
        found[parent.name if parent else "", span.name, epoch, iteration, duration] += 1
    assert found == expected(sample)
    starts = sorted(item.span.start_time_unix_nano for item in received)
    assert starts == sorted(sample.rows["start"].tolist())
    resource = received[0].resource
    assert resource["service.name"]
    assert resource["ignite.run.id"]
    assert {item.scope.name for item in received} == {"firetrace"}
    handler = next(i for i in received if i.span.name == "CheckpointSaver.metrics_completed")
    said = attributes(handler.span.attributes)
    assert str(said["code.file.path"]).endswith("checkpoint_saver.py")
    assert said["ignite.engine"] == "SupervisedEvaluator"


def test_ids_are_the_same_every_time(sample: Table) -> None:
    """Exporting twice gives the same spans."""
    first, second = (
        [(s.context.trace_id, s.context.span_id) for s in readable_spans(sample) if s.context]
        for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == len(sample)
    ids = span_ids(sample.header.seed, sample.numbers)
    assert (ids != 0).all()
    # The training, which hands them out one by one, knows the same.
    assert ids.tolist() == [span_id(sample.header.seed, n) for n in sample.numbers.tolist()]


def test_spans_feed_any_sdk_exporter(sample: Table) -> None:
    """Three lines from a journal to an exporter of the SDK's."""
    memory = InMemorySpanExporter()
    for batch in batches(journal_spans(sample.path)):
        memory.export(batch)
    assert len(memory.get_finished_spans()) == len(sample)
    assert all(span.to_json() for span in memory.get_finished_spans()[:50])


def test_an_open_span_is_sent_as_incomplete(unfinished: Table) -> None:
    """It ends when the journal does, and says that it did not end."""
    with OtlpHttpServer() as server:
        deliver(unfinished.path, Sender(connect("http/protobuf", server.endpoint)))
        received = {item.span.name: item.span for item in server.spans()}
    assert attributes(received["run"].attributes)["ignite.incomplete"] is True
    failed = received[STRANGE]
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert attributes(failed.events[0].attributes)["exception.type"] == "ValueError"
    assert attributes(failed.attributes)["ignite.cut"] == "exception"
    assert received["run"].end_time_unix_nano >= failed.end_time_unix_nano


def test_the_environment_names_service_and_resource(
    sample: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over our defaults."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=lab,host.name=elsewhere")
    resource = next(readable_spans(sample)).resource.attributes
    assert (resource["service.name"], resource["team"]) == ("mine", "lab")
    assert resource["host.name"] == "elsewhere"


def test_the_protocol_follows_variables_and_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 4317 means gRPC, others HTTP, unless the standard variable says it."""
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    assert protocol_for("http://localhost:4317") == "grpc"
    assert protocol_for("http://localhost:4318") == "http/protobuf"
    assert protocol_for(None) == "http/protobuf"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert protocol_for("http://localhost:4318") == "grpc"
    with pytest.raises(ExportError, match="'smoke' is unknown"):
        connect("smoke")
