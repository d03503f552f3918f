"""The files of the SDK exporters: OTLP JSON, and what forks, kills and full disks do to both."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExportResult,
)
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from firetrace.exporters.otlp.encoding import otlp_json_line
from firetrace.exporters.sdk.chrome import ChromeTraceExporter
from firetrace.exporters.sdk.otlp_file import OtlpFileExporter
from tests.support.sdk import (
    EXPORTERS,
    PROCESSORS,
    STRANGE,
    Exporter,
    Processor,
    Program,
    ancestors,
    count,
    parsed,
    run,
    slices,
    span,
    span_id,
)


@PROCESSORS
def test_otlp_lines_are_what_the_official_encoder_says(
    processor: Processor, tmp_path: Path
) -> None:
    """Every line passes protobuf's strict parser and is OpenTelemetry's own message."""
    path = tmp_path / "trace.jsonl"
    program = Program(OtlpFileExporter(path), processor)
    tracer = program.tracer(**{"service.name": "shop", "bytes": b"\x00\xff"})
    values = {"nan": float("nan"), "inf": float("-inf"), "big": 2**62, "text": STRANGE,
              "list": [1, 2], "yes": True, "bytes": b"\xff"}  # fmt: skip
    with tracer.start_as_current_span("first", kind=SpanKind.CLIENT) as first:
        pass
    link = Link(first.get_span_context(), {"why": "retry"})
    with (  # noqa: PT012 - the exception passes through all of them
        pytest.raises(ValueError, match="no"),
        tracer.start_as_current_span(STRANGE, attributes=values, links=[link]),  # type: ignore[arg-type]
        tracer.start_as_current_span("inner") as inner,
    ):
        inner.set_status(Status(StatusCode.ERROR, "bad"))
        raise ValueError("no")
    spans = program.end()
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    batches = [spans] if processor is BatchSpanProcessor else [[each] for each in spans]
    assert len(lines) == len(batches)
    for line, batch in zip(lines, batches, strict=True):
        wanted = encode_spans(batch).SerializeToString(deterministic=True)
        assert parsed(line).SerializeToString(deterministic=True) == wanted
        assert otlp_json_line(batch) == line
    (found,) = [
        each
        for line in lines
        for each in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
        if each["name"] == "inner"
    ]
    (ours,) = [each for each in spans if each.name == "inner"]
    assert found["spanId"] == span_id(ours)
    assert found["parentSpanId"] == next(ancestors(ours, {}))
    assert found["startTimeUnixNano"] == str(ours.start_time)
    assert found["status"] == {"message": "ValueError: no", "code": 2}
    assert found["kind"] == 1


def test_a_span_that_otlp_cannot_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out with a warning; the others of its batch are written."""
    exporter = OtlpFileExporter(tmp_path / "trace.jsonl")
    spans = [span(1, 1, 2), span(2, 3, 4, name="\ud800"), span(3, 5, 6)]
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    lines = (tmp_path / "trace.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"]
            for line in lines] == ["s1", "s3"]  # fmt: skip
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@EXPORTERS
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_a_killed_program(exporter: Exporter, zipped: str, tmp_path: Path) -> None:
    """After SIGKILL the file loads and has every span that ended, gzipped or not."""
    path = tmp_path / f"trace{exporter.SUFFIX}{zipped}"
    program = f"""
tracer = begin({exporter.__name__}({str(path)!r}))
with tracer.start_as_current_span("open"):
    for _ in range(50):
        with tracer.start_as_current_span("closed"):
            pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(tmp_path, program) == -signal.SIGKILL
    assert count(path) == 50


@EXPORTERS
def test_a_file_that_grows(exporter: Exporter, tmp_path: Path) -> None:
    """A reader that comes between sees what was flushed; ``flush_seconds`` lets spans wait."""
    path = tmp_path / f"trace{exporter.SUFFIX}.gz"
    growing = exporter(path)
    for number in range(1, 4):
        growing.export([span(number, number, number + 1)])
        assert count(path) == number
    growing.shutdown()
    assert count(path) == 3
    waiting = exporter(path, flush_seconds=3600)
    waiting.export([span(1, 1, 2)])
    assert path.read_bytes() == b""
    assert waiting.force_flush()
    assert count(path) == 1
    waiting.export([span(2, 3, 4)])
    waiting.shutdown()
    assert count(path) == 2


@EXPORTERS
@pytest.mark.parametrize("given", [True, False])
def test_a_fork(exporter: Exporter, given: bool, tmp_path: Path) -> None:
    """A child writes a file of its own, and nothing of its parent's, named or not."""
    path = repr(str(tmp_path / f"trace-a.b{exporter.SUFFIX}")) if given else ""
    program = f"""
tracer = begin({exporter.__name__}({path}))
with tracer.start_as_current_span("before"):
    pass
with tracer.start_as_current_span("around"):
    child = os.fork()
    for _ in range(3 if child else 5):
        with tracer.start_as_current_span("after"):
            pass
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    run(tmp_path, program)
    files = sorted(tmp_path.glob("trace-*"), key=lambda each: count(each))
    assert [count(each) for each in files] == [5, 5]  # the parent's: before, around, three after
    names = sorted(each.name for each in files)
    assert len(set(names)) == 2
    if given:
        assert f"trace-a.b{exporter.SUFFIX}" in names
    else:
        assert all(name.startswith("trace-shop-") for name in names)


def test_processes_that_inherit_the_variable(tmp_path: Path) -> None:
    """A program's children do not replace its file; what was there before is replaced."""
    (tmp_path / "trace.json").write_text("old")
    program = """
tracer = begin(ChromeTraceExporter())
with tracer.start_as_current_span("a"):
    if len(sys.argv) == 1:
        subprocess.run([sys.executable, __file__, "child"], check=True)
if len(sys.argv) == 1:
    with tracer.start_as_current_span("b"):
        pass
"""
    run(tmp_path, program, FIRETRACE_CHROME_FILE=str(tmp_path / "trace.json"))
    own, childs = sorted(tmp_path.glob("trace*.json"), key=lambda path: -len(path.name))[::-1]
    assert own.name == "trace.json"
    assert (count(own), count(childs)) == (2, 1)


@EXPORTERS
def test_names_of_files(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a path: service and pid in the current folder; a folder takes such a name, too."""
    monkeypatch.chdir(tmp_path)
    plain = exporter()
    assert plain.path is None
    plain.shutdown()
    assert list(tmp_path.iterdir()) == []
    for turn in ("", "-2"):  # pids come again
        again = exporter()
        again.export([span(1, 1, 2)])
        again.shutdown()
        assert again.path == tmp_path / f"trace-x-{os.getpid()}{turn}{exporter.SUFFIX}"
    (tmp_path / "traces").mkdir()
    monkeypatch.setenv(exporter.VARIABLE, "traces")
    inside = exporter()
    inside.export([span(1, 1, 2)])
    inside.shutdown()
    assert inside.path == tmp_path / "traces" / f"trace-x-{os.getpid()}{exporter.SUFFIX}"


@EXPORTERS
def test_after_shutdown(exporter: Exporter, tmp_path: Path) -> None:
    """Spans are refused, and the file stays as it is; a second shutdown does nothing."""
    path = tmp_path / f"trace{exporter.SUFFIX}"
    ended = exporter(path)
    ended.export([span(1, 1, 2)])
    ended.shutdown()
    before = path.read_bytes()
    assert ended.export([span(2, 1, 2)]) is SpanExportResult.FAILURE
    assert not ended.force_flush()
    ended.shutdown()
    assert path.read_bytes() == before
    if exporter is ChromeTraceExporter:
        json.loads(before)


@EXPORTERS
@pytest.mark.parametrize("path", ["/dev/full", "/proc/none/trace.json"])
def test_a_file_that_cannot_be_written(
    exporter: Exporter, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Spans are lost with one warning, and the program hears nothing of it."""
    program = Program(exporter(path))
    tracer = program.tracer()
    for _ in range(3):
        with tracer.start_as_current_span("a"):
            pass
    assert program.exporter.export([span(1, 1, 2)]) is SpanExportResult.FAILURE
    program.end()
    assert len(caplog.records) == 1
    assert f"spans are lost, as {path} cannot be written" in caplog.text


class Telling(logging.Handler):
    """A program whose logging makes spans."""

    def __init__(self, tracer: trace.Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def emit(self, record: logging.LogRecord) -> None:
        with self.tracer.start_as_current_span("log"):
            pass


def test_a_span_that_ends_while_one_is_written(tmp_path: Path) -> None:
    """In the same thread (a logging or signal handler makes it) it is lost, and nothing hangs."""
    program = Program(ChromeTraceExporter("/dev/full"))
    tracer = program.tracer()
    handler = Telling(tracer)
    logging.getLogger("firetrace").addHandler(handler)
    try:
        with tracer.start_as_current_span("a"):
            pass
    finally:
        logging.getLogger("firetrace").removeHandler(handler)
    assert {each.name for each in program.end()} == {"a", "log"}


@EXPORTERS
def test_a_disk_that_is_full_for_a_while(exporter: Exporter, tmp_path: Path) -> None:
    """What was cut off is taken back, and what comes later is whole again."""
    path = tmp_path / f"trace{exporter.SUFFIX}"
    program = f"""
import logging
logging.disable()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tracer = begin({exporter.__name__}({str(path)!r}))
def work(name):
    for _ in range(10):
        with tracer.start_as_current_span(name):
            pass
full = 40
resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
work("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
work("kept")
full = os.path.getsize({str(path)!r}) + 40
resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
work("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
work("kept")
"""
    run(tmp_path, program)
    assert count(path) == 20
    if exporter is ChromeTraceExporter:
        assert {row["thread"] for row in slices(path)} == {"spans"}
        json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("firetrace_chrome", "trace-program-*.json"),
        ("firetrace_otlp_file", "trace-program-*.jsonl"),
    ],
)
def test_opentelemetrys_launcher(name: str, pattern: str, tmp_path: Path) -> None:
    """``OTEL_TRACES_EXPORTER`` finds both by the names that firetrace's installation says."""
    # What the package opentelemetry-distro adds: the launcher alone does not set the SDK up.
    distro = tmp_path / "a_distro-1.dist-info"
    distro.mkdir()
    (distro / "METADATA").write_text("Metadata-Version: 2.1\nName: a_distro\nVersion: 1\n")
    (distro / "entry_points.txt").write_text(
        "[opentelemetry_configurator]\n"
        "configurator = opentelemetry.sdk._configuration:_OTelSDKConfigurator\n"
    )
    (tmp_path / "program.py").write_text(
        "from opentelemetry import trace\n"
        "with trace.get_tracer('t').start_as_current_span('a'):\n    pass\n"
    )
    launcher = Path(sys.executable).with_name("opentelemetry-instrument")
    done = subprocess.run(
        [launcher, sys.executable, "program.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OTEL_TRACES_EXPORTER": name, "OTEL_METRICS_EXPORTER": "none",
             "OTEL_LOGS_EXPORTER": "none",
             "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = tmp_path.glob(pattern)
    assert count(path) == 1
