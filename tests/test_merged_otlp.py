"""Spans of many processes sent by OTLP: what they are linked to, and what the command sends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from firetrace.exporters.chrome.run import export_run
from firetrace.exporters.journals import members, paths
from firetrace.exporters.otlp import run as otlp_run
from firetrace.exporters.otlp.delivery import Cursor, deliver
from firetrace.exporters.otlp.file import export_otlp_file
from firetrace.exporters.otlp.run import RunDelivery
from firetrace.exporters.otlp.sender import Sender, connect
from firetrace.exporters.spans import journal_spans
from firetrace.tracer import stream
from firetrace.tracer.ids import span_id
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tui.cli import main
from tests.support.many import Journal, Made, Plan, Process, three_ranks, write
from tests.support.otlp_server import OtlpHttpServer, attributes
from tests.support.perfetto import PerfettoTrace
from tests.test_otlp_file import parsed, spans_of
from tests.test_protobuf import assert_official, batches_of

SLICES = """
    select s.name, s.ts, s.dur, s.category, p.name as process, t.name as thread,
        extract_arg(s.arg_set_id, 'args.row') as row
    from slice s join thread_track k on s.track_id = k.id join thread t using (utid)
    join process p using (upid) where s.category != 'mark'
"""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Three ranks, one of which began twice and one is on another host, with workers."""
    return three_ranks(tmp_path / "a [bold]run")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpHttpServer]:
    """A receiver that the standard variables name."""
    with OtlpHttpServer() as server:
        base = server.endpoint.removesuffix("/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", base)
        yield server


def received(backend: OtlpHttpServer) -> dict[bytes, Span]:
    """What was received, by span id; nothing came twice."""
    spans = {item.span.span_id: item.span for item in backend.spans()}
    assert len(spans) == len(backend.spans())
    return spans


def links_of(span: Span, kind: str) -> list[tuple[bytes, bytes]]:
    """Trace and span ids to which a span has links of this kind."""
    return [
        (link.trace_id, link.span_id)
        for link in span.links
        if attributes(link.attributes)["ignite.link"] == kind
    ]


def id_of(journal: Journal, row: int) -> bytes:
    return span_id(journal.writer.seed, row).to_bytes(8, "big")


@pytest.mark.parametrize("split", ["auto", "run", "epoch"])
def test_links_are_to_the_ids_that_are_sent(
    made: Made, backend: OtlpHttpServer, split: str
) -> None:
    """Same-numbered steps of ranks 1 and 2 with those of rank 0's same attempt; batches, steps."""
    words = ["export", "--to", "otlp", "--split", split, str(made.folder)]
    assert main(words) == 0
    spans = received(backend)
    zero, first, _, third = made.processes.values()
    linked = 0
    for process in (first, third):
        pairs = [(row, zero.steps[key]) for key, row in process.steps.items()]
        pairs += [(row, zero.evaluations[key]) for key, row in process.evaluations.items()]
        for row, other in pairs:
            peer = spans[id_of(zero.journal, other)]
            ids = peer.trace_id, peer.span_id
            assert links_of(spans[id_of(process.journal, row)], "rank 0") == [ids]
            linked += 1
    assert sum(len(links_of(span, "rank 0")) for span in spans.values()) == linked
    used = 0
    for process in made.processes.values():
        for (number, batch), (own, row, step, _) in process.used.items():
            span, target = spans[id_of(own, row)], spans[id_of(process.journal, step)]
            assert links_of(span, "step") == [(target.trace_id, target.span_id)]
            said, of_step = attributes(span.attributes), attributes(target.attributes)
            assert (said["ignite.pass"], said["ignite.batch"]) == (number, batch)
            for key in ("ignite.epoch", "ignite.iteration"):
                assert said[key] == of_step[key]
            used += 1
    batches = [span for span in spans.values() if span.name == "batch"]
    assert sum(len(links_of(span, "step")) for span in batches) == used
    spare = [span for span in batches if not span.links]
    assert len(batches) == used + len(spare)
    assert all("ignite.iteration" not in attributes(span.attributes) for span in spare)
    traces = {span.trace_id for span in batches}
    assert len(traces) == len(batches)  # each is the root of its own
    assert not any(span.parent_span_id for span in batches)


def test_resources_say_rank_and_worker(made: Made, backend: OtlpHttpServer) -> None:
    """Of each journal: rank, world size, and of a worker's its number."""
    assert main(["export", "--to", "otlp", str(made.folder)]) == 0
    found = Counter(
        (item.resource["ignite.rank"], item.resource.get("ignite.worker")) for item in
        backend.spans()
    )  # fmt: skip
    expected = Counter[Any]()
    for path in paths(made.members):
        resource = read_table(path).meta.resource
        key = resource["ignite.rank"], resource.get("ignite.worker")
        expected[key] += len(read_table(path))
    assert found == expected
    assert {item.resource["ignite.world_size"] for item in backend.spans()} == {3}


def test_the_file_and_the_sdk_say_the_same(
    made: Made, backend: OtlpHttpServer, tmp_path: Path
) -> None:
    """OTLP JSON Lines of a run are what the network gets; so are the SDK's spans."""
    journals = [*paths(made.members)]
    assert main(["export", "--to", "otlp", str(made.folder)]) == 0
    path = tmp_path / "run.jsonl"
    export_otlp_file(journals, path)
    spans = received(backend)
    assert spans_of(parsed(path.read_text())) == spans
    for journal in journals:
        for own in journal_spans(journal):
            assert own.context is not None
            sent = spans[own.context.span_id.to_bytes(8, "big")]
            assert attributes(sent.attributes) == dict(own.attributes or {})
            assert [link.span_id for link in sent.links] == [
                link.context.span_id.to_bytes(8, "big") for link in own.links
            ]


def test_who_follows_makes_the_same_links(
    made: Made, backend: OtlpHttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans sent as they end, resumed in the middle, have the links of a later export."""
    rank = made.folder / "rank2.1.rows"
    whole = {span.context.span_id: span.links for span in journal_spans(rank) if span.context}
    sender = Sender(connect("http/protobuf", backend.endpoint.removesuffix("/v1/traces")))
    cursor = Cursor(rank)
    table = read_table(rank)
    cursor.write(position_after(rank, int(table.numbers[len(table) // 2])), sender.sent)
    cursor.close()
    monkeypatch.setattr(otlp_run, "LOOK_S", 0.0)
    delivery = RunDelivery(lambda: [rank], lambda: sender, resume=True)
    assert delivery.follow(threading.Event())
    spans = received(backend)
    assert 0 < len(spans) < len(whole)
    for id, span in spans.items():
        links = whole[int.from_bytes(id, "big")]
        assert [link.span_id for link in span.links] == [
            link.context.span_id.to_bytes(8, "big") for link in links
        ]


def position_after(journal: Path, number: int) -> Any:
    with stream.Stream(journal) as source:
        for _ in source.ended():
            continue
        return source.position_after(number)


def test_a_step_that_is_not_there_yet_has_no_link(tmp_path: Path) -> None:
    """A live rank 0: its open step counts when its iteration has begun; a void one never."""
    folder, begin = tmp_path / "run", time.monotonic_ns()
    one = write(folder, Plan(1, epochs=1, steps=3, workers=0), begin)
    zero = Journal(folder / "rank0.1", {})
    lane, writer = zero.lane("Trainer", 1), zero.writer
    run = zero.span(0, "run", "run", lane, (0, 0), begin, 0)

    def linked() -> list[int]:
        return [
            int((span.attributes or {})["ignite.iteration"])  # type: ignore[arg-type]
            for span in journal_spans(one.journal.path)
            if any((link.attributes or {})["ignite.link"] == "rank 0" for link in span.links)
        ]

    assert linked() == []
    step = zero.span(run, "step", "step", lane, (1, 1), begin + 1, 0)
    assert linked() == []
    inner = zero.span(step, "iteration", "iteration", lane, (1, 1), begin + 2, 0)
    assert linked() == [1]
    for row in (inner, step):
        zero.pen.close(row, begin + 9 + zero.wall_ns, 0)
    void = zero.span(run, "step", "step", lane, (1, 2), begin + 10, 0)
    zero.pen.close(void, begin + 11 + zero.wall_ns, 16)
    assert linked() == [1]
    writer.close()


def test_a_split_journal_is_delivered_alone(made: Made, backend: OtlpHttpServer) -> None:
    """A rank's journal by itself has the same links as with the others."""
    rank = made.folder / "rank2.1.rows"
    deliver(rank, Sender(connect("http/protobuf", backend.endpoint.removesuffix("/v1/traces"))))
    linked = [span for span in received(backend).values() if links_of(span, "rank 0")]
    assert len(linked) == 12 + 4


@pytest.mark.parametrize("split", [None, "run", "epoch", "step"])
def test_messages_with_links_are_the_official_encoders(made: Made, split: str | None) -> None:
    """Steps with a peer, batches and what is in them, byte for byte."""
    for journal in paths(made.members):
        count = 0
        for batch in batches_of(journal, split):
            assert_official(batch)
            count += len(batch)
        assert count == len(read_table(journal))


def spans_in(process: Process, workers: bool = True) -> int:
    return sum(len(each.times) for each in (process.journal, *process.data * workers))


def test_resume_goes_on_in_each_journal(made: Made, backend: OtlpHttpServer) -> None:
    """A second --resume finds nothing to do; each journal has a cursor of its own."""
    for _ in range(2):
        assert main(["export", "--to", "otlp", "--resume", str(made.folder)]) == 0
    assert len(received(backend)) == sum(map(spans_in, made.processes.values()))
    assert len([*made.folder.glob("*.otlp.json")]) == 12


def test_all_are_followed(made: Made, backend: OtlpHttpServer) -> None:
    """Also what begins later; it ends when all have ended."""
    live = Journal(made.folder / "rank3.1", {"ignite.rank": 3})
    run = live.span(0, "run", "run", live.lane("Trainer", 1), (0, 0), live.begun, live.begun + 5)
    codes: list[int] = []
    words = ["--to", "otlp", "--follow", str(made.folder)]
    thread = threading.Thread(target=lambda: codes.append(follow(words)))
    thread.start()
    before = sum(map(spans_in, made.processes.values()))
    until(lambda: len(backend.spans()) == before)
    assert thread.is_alive()
    live.close()
    thread.join(60)
    assert codes == [0]
    assert id_of(live, run) in received(backend)


def follow(words: list[str]) -> int:
    """The command in a thread, where there are no signals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        return main(["export", *words])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_backend_that_gives_up_is_asked_no_more(made: Made, backend: OtlpHttpServer) -> None:
    """What is left of the run is not tried, and the exit code says so."""
    backend.stop()
    words = ["export", "--to", "otlp", "--patience", "1ms", str(made.folder)]
    begin = time.monotonic()
    assert main(words) == 1
    assert time.monotonic() - begin < 60


TRAINING = """
import sys
from ignite.engine import Engine, Events
from firetrace import TraceHandler

trainer = Engine(lambda engine, batch: None)
evaluator = type("Evaluator", (Engine,), {})(lambda engine, batch: None)
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run([1, 2]))
handler = TraceHandler(directory=sys.argv[1])
handler.attach(trainer)
handler.attach(evaluator)
trainer.run(range(10), max_epochs=3)
handler.close()
"""


def test_two_real_processes_are_one_trace(tmp_path: Path, backend: OtlpHttpServer) -> None:
    """Recorded by two processes at a time: all in one trace, steps linked one to one."""
    folder = tmp_path / "real"
    local = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(folder)],
            env={**os.environ, **local, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    assert [process.wait(100) for process in processes] == [0, 0]
    path = tmp_path / "t.json"
    some = members(open_run(folder), workers=False)
    assert export_run(some, path) == sum(len(read_table(each.path)) for each in some)
    with PerfettoTrace(path) as trace:
        found = Counter(row["process"] for row in trace.sql(SLICES))
    assert found == {
        f"rank {each.rank} real": len(read_table(each.path)) for each in some
    }  # fmt: skip
    assert main(["export", "--to", "otlp", "--no-workers", str(folder)]) == 0
    spans = received(backend)
    linked = {span.span_id: links_of(span, "rank 0") for span in spans.values()}
    pairs = [(spans[own], spans[to[0][1]]) for own, to in linked.items() if to]
    assert len(pairs) == 30 + 6
    for own, peer in pairs:
        said, other = attributes(own.attributes), attributes(peer.attributes)
        for key in ("ignite.engine", "ignite.iteration", "ignite.epoch", "ignite.kind"):
            assert said[key] == other[key]
    assert len({peer.span_id for _, peer in pairs}) == len(pairs)


def test_a_part_of_a_run_can_be_followed(made: Made, backend: OtlpHttpServer) -> None:
    """Which batches belong to it is known when its rank has ended; then they are sent."""
    words = ["--to", "otlp", "--from-epoch", "2", str(made.folder)]
    assert main(["export", *words]) == 0
    once = received(backend)
    with OtlpHttpServer() as other:
        endpoint = other.endpoint.removesuffix("/v1/traces")
        assert follow([*words, "--follow", "--endpoint", endpoint]) == 0
        assert received(other) == once
    assert {span.name for span in once.values()} >= {"batch", "step", "collate"}
