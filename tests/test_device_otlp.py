"""Device time by OpenTelemetry: each phase's span has what the device journal says of the phase."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from firetrace.exporters import devices
from firetrace.exporters.devices import COPIED, DEVICE, DURATION, OFFSET, UNRESOLVED
from firetrace.exporters.otlp.delivery import Cursor, Delivery, deliver
from firetrace.exporters.otlp.file import export_otlp_file
from firetrace.exporters.otlp.sender import Sender, connect
from firetrace.exporters.spans import journal_spans
from firetrace.tracer import stream
from firetrace.tracer.ids import span_id, span_ids
from firetrace.tracer.lock import lock_path
from firetrace.tracer.reader import lock_is_held
from firetrace.tracer.run import device_journal
from firetrace.tracer.table import read_table
from firetrace.tracer.writer import JournalWriter
from tests.support.device_exports import (
    LABEL_BYTES,
    Training,
    expected,
    of_device,
    program,
)
from tests.support.launching import MS, Recorded, finish, read
from tests.support.many import Journal, Plan, write
from tests.support.otlp_server import OtlpHttpServer, attributes
from tests.support.simulated import MadeTime, SimulatedGpu
from tests.test_otlp_file import parsed, spans_of
from tests.test_protobuf import assert_official, batches_of

ROOT = Path(__file__).parents[1]
SPLITS = pytest.mark.parametrize("split", [None, "run", "epoch", "step"])
Said = dict[int, dict[str, Any]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """On a clock that is made."""
    return SimulatedGpu(label="cuda:0", rate=1 + 20e-6, time=MadeTime(monkeypatch))


@pytest.fixture
def backend() -> Iterator[OtlpHttpServer]:
    with OtlpHttpServer() as server:
        yield server


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, every_batch: None) -> None:
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)


def trained(training: Training) -> Recorded:
    """Train, and read what was recorded; of the last steps not all is known."""
    gpu, last = training.gpu, 12

    def stop(engine: Engine) -> None:
        gpu.time.pass_by(2 * MS)  # of the next step something is left
        gpu.stuck = engine.state.iteration >= last - 2

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    training.trainer.run()
    return finish(training.handler, gpu)


def by_id(found: Recorded) -> Said:
    """What the spans are to say of the device, by span id."""
    seed = found.main.header.seed
    return {span_id(seed, row): about for row, about in expected(found).items()}


def said_by(spans: Any) -> Said:
    """What SDK spans say of the device, by span id."""
    return {span.context.span_id: about for span in spans if (about := of_device(span.attributes))}


def said_to(server: OtlpHttpServer) -> Said:
    """What was received says of the device, by span id; nothing came twice."""
    ids = [item.span.span_id for item in server.spans()]
    assert len(ids) == len(set(ids))
    found = {
        int.from_bytes(item.span.span_id, "big"): of_device(attributes(item.span.attributes))
        for item in server.spans()
    }
    return {id: about for id, about in found.items() if about}


def sender_to(server: OtlpHttpServer) -> Sender:
    return Sender(connect("http/protobuf", server.endpoint.removesuffix("/v1/traces")))


def ids_of(path: Path) -> set[int]:
    table = read_table(path)
    return set(span_ids(table.header.seed, table.numbers).tolist())


def ids_received(server: OtlpHttpServer) -> set[int]:
    return {int.from_bytes(item.span.span_id, "big") for item in server.spans()}


# Once it is over


def test_spans_say_what_the_device_journal_says(gpu: SimulatedGpu, tmp_path: Path) -> None:
    """Each phase with a row has duration, offset and device, or that they are not known."""
    training = Training(tmp_path / "run", gpu)
    found = trained(training)
    spans = {span.context.span_id: span for span in journal_spans(training.path) if span.context}
    assert said_by(spans.values()) == by_id(found)
    kinds = Counter(tuple(sorted(about)) for about in by_id(found).values())
    assert kinds.keys() == {
        (DEVICE, DURATION, OFFSET), (DEVICE, COPIED, DURATION, OFFSET), (DEVICE, UNRESOLVED),
        (DEVICE, COPIED, UNRESOLVED),
    }  # fmt: skip
    for id, about in by_id(found).items():
        assert about.get(COPIED) == (LABEL_BYTES if spans[id].name == "prepare_batch" else None)
    assert len(found.main) > 3 * len(by_id(found))
    types = {type(value) for about in said_by(spans.values()).values() for value in about.values()}
    assert types == {int, str, bool}  # no numpy in what goes to others' exporters
    (resource,) = {span.resource for span in spans.values()}
    assert {key: resource.attributes[key] for key in resource.attributes if key[:3] == "hw."} == {
        "hw.type": "gpu", "hw.id": "GPU-1", "hw.name": "cuda:0", "hw.model": "Simulated",
    }  # fmt: skip


@SPLITS
def test_every_way_out_says_the_same(
    gpu: SimulatedGpu, backend: OtlpHttpServer, tmp_path: Path, split: str | None
) -> None:
    """The network and the file; the messages are those of the official encoder."""
    training = Training(tmp_path / "run", gpu)
    found = trained(training)
    deliver(training.path, sender_to(backend), split)
    assert said_to(backend) == by_id(found)
    assert ids_received(backend) == ids_of(training.path)
    path = tmp_path / "run.jsonl"
    export_otlp_file(training.path, path, split=split)
    sent = {item.span.span_id: item.span for item in backend.spans()}
    assert spans_of(parsed(path.read_text())) == sent
    for batch in batches_of(training.path, split):
        assert_official(batch)
    assert {item.resource["hw.type"] for item in backend.spans()} == {"gpu"}


@SPLITS
def test_a_rank_has_links_and_device_time(
    backend: OtlpHttpServer, tmp_path: Path, split: str | None
) -> None:
    """Several journals tell of the spans of one: links of its steps, attributes of its phases."""
    begin = time.monotonic_ns() + 10**9
    write(tmp_path / "run", Plan(0, workers=0), begin)
    one = write(tmp_path / "run", Plan(1, workers=0, wrong_ns=5 * 10**9), begin).journal
    own = Journal(device_journal(one.path).with_suffix(""), {}, 5 * 10**9)
    lane, wanted = own.lane("cuda:1", 0), {}
    for index, (row, text) in enumerate(sorted(one.names.items())):
        if text == "get_batch":
            start = one.times[row][0] - 500 + 700 * (index % 3)  # clocks are compared to some us
            own.span(0, "device", text, lane, (row, 1), start, start + 10**index % 10**18)
            about = {DURATION: 10**index % 10**18, OFFSET: start - one.times[row][0]}
            wanted[span_id(one.writer.seed, row)] = {DEVICE: "cuda:1", **about}
    own.close()
    deliver(one.path, sender_to(backend), split)
    assert said_to(backend) == wanted
    assert {about[OFFSET] < 0 for about in wanted.values()} == {True, False}
    steps = [item.span for item in backend.spans() if item.span.name == "step"]
    kinds = Counter(
        attributes(link.attributes)["ignite.link"] for span in steps for link in span.links
    )
    assert kinds["rank 0"] == len(steps) > 0
    for batch in batches_of(one.path, split):
        assert_official(batch)


def test_a_long_journal_is_told_in_little_memory(
    gpu: SimulatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both journals are read side by side: no more is remembered than of a block or two."""
    monkeypatch.setattr(devices, "MOST_REMEMBERED", 700)
    monkeypatch.setattr(devices, "SLACK_NS", 20 * MS)
    training = Training(tmp_path / "run", gpu, steps=40, epochs=12, max_bytes=2**20)
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: gpu.time.pass_by(2 * MS)
    )
    training.trainer.run()
    found = finish(training.handler, gpu)
    assert found.main.meta.sparsest == 1
    assert len(found.device) > 3 * 700
    wanted = by_id(found)
    for _ in range(2):
        assert said_by(journal_spans(training.path)) == wanted


def test_exporters_at_the_runs_end_and_spans_at_any_time(tmp_path: Path) -> None:
    """``TraceHandler(exporters=...)`` and ``handler.spans()``."""
    memory, gpu = InMemorySpanExporter(), SimulatedGpu(label="cuda:0")
    training = Training(tmp_path / "run", gpu, exporters=[memory])
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: gpu.synchronize())
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: gpu.synchronize())
    training.trainer.run()
    at_any_time = said_by(training.handler.spans())
    found = finish(training.handler, gpu)
    assert at_any_time == by_id(found)
    assert said_by(memory.get_finished_spans()) == by_id(found)


# While the training goes on


def test_a_provider_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans come when their device time is known, though they ended before that."""
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr("firetrace.exporters.provider.POLL_S", 0.01)
    gpu = SimulatedGpu(label="cuda:0")
    training = Training(tmp_path / "run", gpu, epochs=10_000, tracer_provider=provider)

    def until_told(engine: Engine) -> None:
        time.sleep(0.005)
        if engine.state.iteration % 10 == 0 and said_by(memory.get_finished_spans()):
            engine.terminate()

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, until_told)
    training.trainer.run()
    assert training.trainer.state.epoch < 10_000
    found = finish(training.handler, gpu)
    assert said_by(memory.get_finished_spans()) == by_id(found)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def relayed(backend: OtlpHttpServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Kill a training when some of it has been relayed; what was recorded."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.endpoint.removesuffix("/v1/traces"))
    monkeypatch.setenv("FIRETRACE_OTLP", "1")
    with subprocess.Popen(program("train_slowly", str(folder)), cwd=ROOT) as training:
        try:
            until(lambda: len(said_to(backend)) > 200)
            live = said_to(backend)
        finally:
            training.kill()
    path = folder / "rank0.1.rows"
    until(lambda: not lock_is_held(lock_path(path)))
    found = read(folder)
    assert all(UNRESOLVED not in about for about in live.values())
    return found


def test_a_relay_sends_device_time(
    backend: OtlpHttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the training goes on, exactly; after a kill what was not known is said to be so."""
    found = relayed(backend, tmp_path / "run", monkeypatch)
    assert said_to(backend) == by_id(found)
    assert ids_received(backend) == ids_of(tmp_path / "run" / "rank0.1.rows")
    assert {item.resource["hw.type"] for item in backend.spans()} == {"gpu"}


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Training]:
    """A training that goes on: 12 steps are done, the GPU has reached 4 of them."""
    gpu = SimulatedGpu(label="cuda:0")
    training = Training(tmp_path / "run", gpu, steps=12, epochs=1)

    def stop(engine: Engine) -> None:
        gpu.synchronize()
        gpu.stuck = engine.state.iteration >= 5

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    training.trainer.run()
    yield training
    training.handler.close()


def deliver_on(training: Training, server: OtlpHttpServer) -> None:
    """Send what can be sent by now, as the relay does, and go on from its cursor."""
    cursor = Cursor(training.path)
    delivery = Delivery(training.path, sender_to(server), cursor)
    assert delivery.once()
    delivery.close()
    cursor.close()


def test_what_is_waited_for_comes_later_and_once(stuck: Training, backend: OtlpHttpServer) -> None:
    """Cursors know of it: whoever goes on sends it, and nothing else again."""
    for _ in range(2):
        deliver_on(stuck, backend)
    before = said_to(backend)
    phases = {id for id, about in before.items() if UNRESOLVED not in about}
    assert before.keys() == phases
    names = Counter(item.span.name for item in backend.spans())
    assert names["step"] == 12 + 2  # others do not wait
    assert names["forward"] < 12
    stuck.gpu.stuck = False
    found = finish(stuck.handler, stuck.gpu)
    for _ in range(2):
        deliver_on(stuck, backend)
    assert said_to(backend) == by_id(found)
    assert ids_received(backend) == ids_of(stuck.path)
    assert all(UNRESOLVED not in about for about in said_to(backend).values())


@pytest.mark.parametrize("limit", ["WAIT_NS", "LONGEST_WAIT_NS"])
def test_nothing_is_waited_for_too_long(
    stuck: Training, backend: OtlpHttpServer, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """After 2 s, if the training has looked at the device twice since; at most half a minute."""
    monkeypatch.setattr(devices, limit, 0)
    deliver_on(stuck, backend)
    said = said_to(backend)
    found = read_rows(stuck)
    missing = found - {id for id, about in said.items() if UNRESOLVED in about}
    if limit == "LONGEST_WAIT_NS":
        assert not missing
    else:  # of the last steps the training may still hear
        assert 0 < len(missing) < len(found)
    assert all(about == {DEVICE: "cuda:0", UNRESOLVED: True} or COPIED in about
               for about in said.values() if UNRESOLVED in about)  # fmt: skip
    finish(stuck.handler, stuck.gpu)
    deliver_on(stuck, backend)
    assert ids_received(backend) == ids_of(stuck.path)
    said_to(backend)


def test_a_row_that_is_just_being_written(
    backend: OtlpHttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase has ended, its row is not there: who looks just then waits for it."""
    monkeypatch.setattr(devices, "WRITTEN_NS", 20 * 10**9)
    rank, own = (JournalWriter(tmp_path / f"rank0.1{name}", {}) for name in ("", ".device"))
    pen, now = rank.pen(), rank.now_ns()
    numbers = rank.lane("Trainer", 1), 0, 1, 1, 0, now
    step = pen.open(0, rank.name("step", "step"), *numbers)
    row = pen.open(step, rank.name("phase", "forward"), *numbers)
    for each in (row, step):
        pen.close(each, now + MS, 0)
    delivery = Delivery(tmp_path / "rank0.1.rows", sender_to(backend))
    assert delivery.once()
    assert [item.span.name for item in backend.spans()] == ["step"]
    there = own.pen()
    written = there.open(0, own.name("device", "forward"), own.lane("cuda:0", 0), 0, row, 1, 0, 1)
    shift_ns = own.wall_ns - own.monotonic_ns - rank.wall_ns + rank.monotonic_ns
    there.settle(written, now + shift_ns + 5, now + shift_ns + 12)
    assert delivery.once()
    told = {DEVICE: "cuda:0", DURATION: 7, OFFSET: 5}
    assert said_to(backend) == {span_id(rank.seed, row): told}
    delivery.close()
    for writer in (own, rank):
        writer.close()


def read_rows(training: Training) -> set[int]:
    """The phases whose rows are open, by span id."""
    table = read_table(device_journal(training.path))
    numbers = table.rows["epoch"][table.open_positions()]
    assert len(numbers) > 20
    return set(span_ids(read_table(training.path).header.seed, numbers).tolist())


def test_the_resource_is_told_when_it_is_known(backend: OtlpHttpServer, tmp_path: Path) -> None:
    """The GPU is found when the first engine that uses it runs; what comes then says which."""
    gpu = SimulatedGpu(label="cuda:0")
    training = Training(tmp_path / "run", gpu)
    plain = Engine(lambda engine, batch: None)
    gpu.kind = "xpu"
    training.handler.attach(plain)
    plain.run([1])
    delivery = Delivery(training.path, sender_to(backend))
    assert delivery.once()
    first = len(backend.spans())
    training.trainer.run()
    found = finish(training.handler, gpu)
    assert delivery.once()
    assert delivery.rest()
    delivery.close()
    assert first
    assert all(item.resource["hw.type"] == "gpu" for item in backend.spans()[first:])
    assert {id: about for id, about in said_to(backend).items() if UNRESOLVED not in about} == {
        id: about for id, about in by_id(found).items() if UNRESOLVED not in about
    }
