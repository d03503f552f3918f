"""The relay: a process beside the training that sends the spans on as they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firetrace.tracer.ids import span_ids
from firetrace.tracer.lock import lock_path
from firetrace.tracer.reader import lock_is_held
from firetrace.tracer.relay import wanted
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tui.cli import main
from tests.support.otlp_server import OtlpHttpServer, attributes
from tests.support.recordings import record

ROOT = Path(__file__).parents[1]
SHORT = "r.record(epochs=3, steps=50)"
SLOW = "r.train_slowly()"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpHttpServer]:
    with OtlpHttpServer() as server:
        base = server.endpoint.removesuffix("/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", base)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20")
        yield server


@pytest.fixture
def down(backend: OtlpHttpServer, monkeypatch: pytest.MonkeyPatch) -> OtlpHttpServer:
    """One that is down. The exporter itself tries again for so long before the relay knows."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    backend.stop()
    return backend


def program(code: str) -> list[str]:
    return [sys.executable, "-c", f"from tests.support import recordings as r\n{code}"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "FIRETRACE_OTLP": "1", **more}


def run(code: str, **more: str) -> Path:
    """Run a training to its end; the journal."""
    subprocess.run(program(code), cwd=ROOT, env=environment(**more), check=True, timeout=200)
    return journal()


def journal() -> Path:
    (directory,) = Path(os.environ["FIRETRACE_DIR"]).iterdir()
    return open_run(directory).newest


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ids_of(path: Path) -> set[int]:
    table = read_table(path)
    return set(span_ids(table.header.seed, table.numbers).tolist())


def received_by(server: OtlpHttpServer) -> Counter[int]:
    return Counter(int.from_bytes(item.span.span_id, "big") for item in server.spans())


def idle(path: Path) -> bool:
    return not lock_is_held(lock_path(path))


def test_everything_arrives_when_the_training_ends(backend: OtlpHttpServer) -> None:
    """Its end waits for the relay; every span is there, once, and the relay is gone."""
    path = run(SHORT)
    assert idle(path)
    received = received_by(backend)
    assert set(received) == ids_of(path)
    assert sum(received.values()) == len(received)
    assert json.loads(path.with_suffix(".otlp.json").read_text())["done"] is True
    assert not path.with_suffix(".otlp.log").exists()


def test_spans_arrive_while_the_training_goes_on(backend: OtlpHttpServer) -> None:
    """They do not wait for its end; how soon they come, the bench measures."""
    with subprocess.Popen(
        program(SLOW), cwd=ROOT, env=environment(FIRETRACE_OTLP_LINGER="1")
    ) as training:
        try:
            until(lambda: len(backend.spans()) > 200)
            first = len(backend.spans())
            until(lambda: len(backend.spans()) > first)
            assert training.poll() is None
        finally:
            training.kill()


def test_the_rest_is_sent_after_a_kill(backend: OtlpHttpServer) -> None:
    """SIGKILL: what had ended is there, and what was open is there, marked incomplete."""
    with subprocess.Popen(program(SLOW), cwd=ROOT, env=environment()) as training:
        until(lambda: len(backend.spans()) > 100)
        training.kill()
    path = journal()
    until(lambda: idle(path))
    assert set(received_by(backend)) == ids_of(path)
    open_spans = {
        item.span.name for item in backend.spans()
        if attributes(item.span.attributes).get("ignite.incomplete")
    }  # fmt: skip
    table = read_table(path)  # between two steps none is open
    assert open_spans == {table.name(at).text for at in table.open_positions().tolist()}
    assert "run" in open_spans


def test_a_backend_that_is_down_loses_nothing(down: OtlpHttpServer) -> None:
    """The training ends without it, after a bounded wait; when it is back the rest is sent."""
    begun = time.monotonic()
    path = run(SHORT, FIRETRACE_OTLP_WAIT="0.2")
    assert time.monotonic() - begun < 120
    assert not idle(path)
    until(path.with_suffix(".otlp.log").exists)
    down.start()
    until(lambda: idle(path))
    received = received_by(down)
    assert set(received) == ids_of(path)
    assert sum(received.values()) - len(received) <= 1024  # a batch, if an answer took two seconds
    assert "Connection refused" in path.with_suffix(".otlp.log").read_text()


def test_resume_sends_what_a_relay_could_not(down: OtlpHttpServer) -> None:
    """It gives up some time after the training has ended, and leaves a cursor behind."""
    path = run(SHORT, FIRETRACE_OTLP_WAIT="0", FIRETRACE_OTLP_LINGER="0.5")
    until(lambda: idle(path))
    assert "--resume" in path.with_suffix(".otlp.log").read_text()
    down.start()
    assert main(["export", "--to", "otlp", "--resume", str(path)]) == 0
    assert set(received_by(down)) == ids_of(path)


def test_another_relay_goes_on_where_one_was_killed(backend: OtlpHttpServer) -> None:
    """The relay's own death costs nothing: ``--resume`` sends at most one batch again."""
    with subprocess.Popen(program(SLOW), cwd=ROOT, env=environment()) as training:
        until(lambda: len(backend.spans()) > 100)
        path = journal()
        os.kill(relay_of(path), signal.SIGKILL)
        until(lambda: idle(path))
        until(lambda: stands_still(backend))
        training.kill()
    assert main(["export", "--to", "otlp", "--resume", str(path)]) == 0
    received = received_by(backend)
    assert set(received) == ids_of(path)
    assert sum(received.values()) - len(received) <= 1024


def stands_still(server: OtlpHttpServer) -> bool:
    """Whether nothing arrives for a second."""
    before = len(server.spans())
    time.sleep(1)
    return len(server.spans()) == before


def relay_of(path: Path) -> int:
    """The process that sends this journal."""
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                words = (each / "cmdline").read_bytes()
            except OSError:
                continue
            if b"firetrace.exporters.otlp.relay" in words and os.fsencode(path) in words:
                return int(each.name)
    raise AssertionError("no relay")


def test_a_pipe_behind_the_training_ends_with_it(down: OtlpHttpServer) -> None:
    """``train.py | tee log`` does not wait for the relay, which has nothing of the pipe open."""
    begun = time.monotonic()
    done = subprocess.run(
        program(SHORT), cwd=ROOT, env=environment(FIRETRACE_OTLP_WAIT="0"), timeout=200,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
    )  # fmt: skip
    assert time.monotonic() - begun < 120
    assert b"recording" not in done.stdout
    path = journal()
    assert not idle(path)
    os.kill(relay_of(path), signal.SIGTERM)
    until(lambda: idle(path))


def test_the_relay_is_nobodys_child(backend: OtlpHttpServer) -> None:
    """The program's own ``os.wait`` does not meet it, and it is in no group of the terminal's."""
    code = (
        "import os\n"
        "t = r.engines()\n"
        "t.run(range(3), max_epochs=1)\n"
        "try:\n    os.wait()\nexcept ChildProcessError:\n    print('no child')\n"
        "r.finish(t)"
    )
    done = subprocess.run(
        program(code), cwd=ROOT, env=environment(), timeout=200, capture_output=True, text=True
    )
    assert done.stdout == "no child\n"


def test_following_by_hand(backend: OtlpHttpServer) -> None:
    """``export --follow`` beside a training sends what ends, and the rest when it has ended."""
    with subprocess.Popen(program(SLOW), cwd=ROOT, env=environment(FIRETRACE_OTLP="0")) as training:
        until(lambda: any(Path(os.environ["FIRETRACE_DIR"]).glob("*/*.rows")))
        words = [sys.executable, "-m", "firetrace.tui.cli", "export", "--to", "otlp", "--follow"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
            until(lambda: len(backend.spans()) > 100)
            training.kill()
            said, _ = following.communicate(timeout=200)
    assert following.returncode == 0
    path = journal()
    received = received_by(backend)
    assert set(received) == ids_of(path)
    assert sum(received.values()) == len(received)
    assert f"{len(received):,} spans sent and acknowledged" in said


def test_prune_leaves_what_is_being_sent(down: OtlpHttpServer) -> None:
    """The training is over, its backend down: the run is not old yet."""
    path = run(SHORT, FIRETRACE_OTLP_WAIT="0")
    assert main(["prune", "--keep", "0"]) == 0
    assert path.exists()
    down.start()
    until(lambda: idle(path))
    assert set(received_by(down)) == ids_of(path)
    assert main(["prune", "--keep", "0"]) == 0
    assert not path.parent.exists()


def test_the_relay_imports_nothing_of_the_trainings_folder(
    backend: OtlpHttpServer, tmp_path: Path
) -> None:
    """A ``random.py`` beside the training is the training's."""
    for name in ("random", "logging", "queue", "requests"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    script = tmp_path / "scripts" / "train.py"
    script.parent.mkdir()
    script.write_text("from tests.support import recordings as r\nr.record(epochs=1, steps=9)\n")
    subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)),
        check=True, timeout=200,
    )  # fmt: skip
    path = journal()
    assert set(received_by(backend)) == ids_of(path)


@pytest.mark.parametrize(("name", "value"), [("executable", None), ("frozen", True)])
def test_a_program_that_is_no_python(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is recorded and told; started again it would train again."""
    monkeypatch.setattr(sys, name, value, raising=False)
    monkeypatch.setenv("FIRETRACE_OTLP", "1")
    assert len(read_table(open_run(record(epochs=1, steps=3)).newest)) > 10
    assert "--resume" in caplog.text


def test_children_of_a_guess_wait_for_it(backend: OtlpHttpServer) -> None:
    """In the first iteration nobody knows whether it has a phase: no parent is one that is none."""
    code = (
        "import time\n"
        "from ignite.engine import Engine\n"
        "from firetrace import TraceHandler\n"
        "h = TraceHandler()\n"
        "def update(engine, batch):\n"
        "    with h.span('mine'):\n        time.sleep(0.3)\n"
        "    time.sleep(1.5)\n"
        "e = Engine(update)\nh.attach(e)\ne.run([1])\n"
    )
    path = run(code)
    spans = [item.span for item in backend.spans()]
    ids = {span.span_id for span in spans}
    assert {span.parent_span_id for span in spans} <= {b"", *ids}
    assert {int.from_bytes(id, "big") for id in ids} == ids_of(path)


def test_an_endpoint_alone_starts_nothing(
    backend: OtlpHttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the handler's word or ``FIRETRACE_OTLP``; ``OTEL_SDK_DISABLED`` overrules both."""
    assert not wanted(None)
    assert wanted(True)
    monkeypatch.setenv("FIRETRACE_OTLP", "1")
    assert wanted(None)
    assert not wanted(False)
    monkeypatch.setenv("FIRETRACE_OTLP", "0")
    assert not wanted(None)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not wanted(True)
    path = run(SHORT, FIRETRACE_OTLP="0")
    assert not lock_path(path).exists()


def test_a_caller_is_the_parent_of_the_run(backend: OtlpHttpServer) -> None:
    """``TRACEPARENT``: the run is a child of the caller's span, in the caller's trace."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    path = run(SHORT, TRACEPARENT=f"00-{trace}-{span}-01")
    spans = [item.span for item in backend.spans()]
    (run_span,) = [each for each in spans if each.parent_span_id.hex() == span]
    assert (run_span.name, run_span.trace_id.hex()) == ("run", trace)
    assert read_table(path).meta.split == "epoch"
    epochs = [each for each in spans if each.name == "epoch" and not each.parent_span_id]
    assert len(epochs) == 3
    assert trace not in {each.trace_id.hex() for each in epochs}
    assert all(each.links[0].span_id == run_span.span_id for each in epochs)
