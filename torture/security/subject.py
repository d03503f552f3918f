"""Takes firetrace for a way in: by names, links, requests, environment, and what it installs."""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata

from bench.settings import Progress
from tests.support.otlp_server import OtlpHttpServer
from torture.result import Result
from torture.security.audited import betrayals
from torture.security.escapes import hurt_terminals
from torture.security.hostile import HostileJournal
from torture.security.intruder import hurt_page
from torture.security.sources import ROOT, hurt_sources
from torture.settings import Settings

SECONDS = 300
MARKER = "xYzzY"
#: Not of the environment that is pinned: what makes it, and what is built in it.
UNPINNED = {"pip", "setuptools", "wheel", "firetrace"}
#: What the machine tells anybody who asks.
OPEN_TO_ALL = ["/proc", "/sys", "/etc/localtime", "/usr/share/zoneinfo", "/usr/share/terminfo"]


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Try all of it."""
    progress("reading the sources")
    yield from hurt_sources()
    yield from hurt_environment()
    progress("names that are paths, addresses and code")
    yield from hurt_readers(settings)
    progress("asking the page of firetrace open")
    yield from hurt_page(settings)
    progress("secrets")
    yield from hurt_secrets(settings)
    progress("umask")
    yield from hurt_modes(settings)
    progress("links and pipes in the run's directory")
    yield from hurt_directories(settings)
    yield from hurt_terminals(settings, progress)


def hurt_environment() -> Iterator[Result]:
    """Everything that is installed is pinned, with the version that is installed."""
    result = Result("security", "distributions that are pinned")
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )  # fmt: skip
    known = {plain_name(name): version.strip() for name, version in pins.items()}
    for each in metadata.distributions():
        name = plain_name(each.metadata["Name"])
        if name in UNPINNED:
            continue
        result.tried += 1
        version = each.version.partition("+")[0]  # a build of the same version, for this machine
        if known.get(name) != version:
            result.failures.append(f"{name} {version} is pinned to {known.get(name, 'nothing')}")
    result.figures = f"{len(known)} pins"
    yield result


def plain_name(name: str) -> str:
    """A distribution's name as all its spellings have it in common."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hurt_readers(settings: Settings) -> Iterator[Result]:
    """Every command and the app, on a run whose texts are paths, addresses and code."""
    result = Result("security", "what a run's texts make it do")
    base = settings.workspace / "readers"
    bait, out = base / "bait", base / "out"
    for folder in (bait, out):
        folder.mkdir(parents=True)
    (bait / f"{MARKER}.py").write_text("open('ran', 'w')\n")
    texts = [
        f"{bait}/{MARKER}.py", f"file://{bait}/{MARKER}.py", f"http://127.0.0.1:9/{MARKER}",
        f"__import__('os').system('touch {bait}/{MARKER}1')", f"`touch {bait}/{MARKER}2`",
        f"; touch {bait}/{MARKER}3 #", f"$(touch {bait}/{MARKER}4)", f"{MARKER}: !!python/object",
        f"../../../../../../../..{bait}/{MARKER}.py", f"\\\\127.0.0.1\\{MARKER}",
        f"<img src=http://127.0.0.1:9/{MARKER}>", f"cos\nsystem\n(S'touch {bait}/{MARKER}5'\ntR.",
    ]  # fmt: skip
    before = sorted(bait.iterdir())
    for shift in (settings.seed,) if settings.short else range(len(texts)):
        folder = base / f"runs{shift}"
        turn = itertools.islice(itertools.cycle(texts), shift % len(texts), None)
        for name in ("run", "other"):
            HostileJournal(folder / name, lambda place, turn=turn: next(turn) + place)  # type: ignore[misc]
        done = subprocess.run(
            [sys.executable, "-m", "torture.security.audited", str(folder / "run"),
             str(folder / "other"), str(out), MARKER],
            env={**os.environ, "FIRETRACE_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            result.failures.append(done.stderr[-1000:])
            continue
        said = json.loads(done.stdout)
        python = [sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), str(ROOT), *sys.path]
        index = os.environ.get("XDG_STATE_HOME", "")
        allowed = [*OPEN_TO_ALL, *filter(None, python), f"{index}/firetrace"]
        result.failures += betrayals(said, [str(folder), *allowed], [str(out)])
        result.tried += int(said["events"])
    if sorted(bait.iterdir()) != before:
        result.failures.append(f"something in the run was executed: {sorted(bait.iterdir())}")
    result.figures = "events of Python's audit hook"
    yield result


# What trainings write

TRAIN = """\
import sys
from ignite.engine import Engine
from firetrace import TraceHandler
engine = Engine(lambda engine, batch: batch)
handler = TraceHandler(otlp_wait_s=20)
handler.attach(engine)
engine.run(range(50), max_epochs=3)
handler.close()
from firetrace.tracer.recording import close_all
close_all()
"""
LOOK = """\
import os
from firetrace.tui.cli import main
for name in ("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"):  # are there to be exported
    os.environ.pop(name, None)
out = sys.argv[-1]
for words in (["report", "--html", f"{out}/page.html"], ["export", "--to", "otlp-file", "-o",
              f"{out}/spans.jsonl"], ["export", "--to", "chrome", "-o", f"{out}/trace.json.gz"]):
    assert main(words) == 0
"""


def train(program: str, words: Sequence[str], umask: int, **environment: str) -> str:
    """Run a program to its end; what went wrong with it."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env={**os.environ, **environment}, umask=umask,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.stderr[-1000:] if done.returncode else ""


def hurt_secrets(settings: Settings) -> Iterator[Result]:
    """Markers in the environment, the headers, the address and the arguments are in no file."""
    result = Result("security", "files that could hold a secret")
    marker = f"hunter2{MARKER}"
    names = ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "PGPASSWORD", "OTEL_RESOURCE_ATTRIBUTES",
             "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_SERVICE_NAME", "FIRETRACE_UNKNOWN",
             "LS_COLORS", "HTTP_COOKIE", "http_proxy")  # fmt: skip
    secrets = dict.fromkeys(names, f"key={marker}")
    for is_down in (False, True):
        base = settings.workspace / f"secrets{is_down:d}"
        for name in ("runs", "state", "out"):
            (base / name).mkdir(parents=True)
        with OtlpHttpServer() as server:
            port = server.endpoint.split(":")[2].partition("/")[0]
            if is_down:
                server.stop()
            secrets |= {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{marker}:{marker}@127.0.0.1:{port}",
                "FIRETRACE_OTLP": "1", "FIRETRACE_OTLP_LINGER": "0.3", "no_proxy": "127.0.0.1",
                "FIRETRACE_DIR": str(base / "runs"), "XDG_STATE_HOME": str(base / "state"),
            }  # fmt: skip
            words = [f"--token={marker}", marker, str(base / "out")]
            if error := train(TRAIN + LOOK, words, -1, **secrets):
                result.failures.append(error)
            sent = [f"{headers}" for headers in server.headers]
            if not is_down and not any(marker in each for each in sent):
                result.failures.append("the headers did not reach the backend, nothing was tried")
        for path in base.rglob("*"):
            if path.is_file():
                result.tried += 1
                if marker.encode() in path.read_bytes():
                    result.failures.append(f"{path.relative_to(base)} holds a secret")
        logs = list(base.rglob("*.otlp.log"))
        if is_down and not logs:
            result.failures.append("the relay has told nothing of a backend that is down")
    yield result


def hurt_modes(settings: Settings) -> Iterator[Result]:
    """Files and folders have the mode that the umask gives, under each."""
    result = Result("security", "modes of files and folders")
    for umask in (0o027,) if settings.short else (0o077, 0o027, 0o022, 0o002):
        base = settings.workspace / f"umask{umask:03o}"
        (base / "out").mkdir(parents=True)
        given = {base, base / "out"}
        with OtlpHttpServer(fail_first=1, status=400) as server:
            error = train(
                TRAIN + LOOK, [str(base / "out")], umask, FIRETRACE_OTLP="1",
                OTEL_EXPORTER_OTLP_ENDPOINT=server.endpoint.removesuffix("/v1/traces"),
                FIRETRACE_DIR=str(base / "runs"), XDG_STATE_HOME=str(base / "state"),
            )  # fmt: skip
        result.failures += [error] if error else []
        found = [path for path in base.rglob("*") if path not in given]
        for path in found:
            result.tried += 1
            mode = stat.S_IMODE(path.lstat().st_mode)
            wanted = (0o777 if path.is_dir() else 0o666) & ~umask
            if mode != wanted:
                where = path.relative_to(base)
                result.failures.append(f"{where}: {mode:o} instead of {wanted:o} ({umask:03o})")
        suffixes = {path.name.partition(".")[2] for path in found}
        wanted_names = {"1.rows", "1.meta.jsonl", "1.lock", "1.otlp.lock", "1.otlp.json",
                        "1.otlp.log", "html", "json.gz", "jsonl"}  # fmt: skip
        if missing := wanted_names - suffixes:
            result.failures.append(f"nothing was tried with {sorted(missing)}")
    yield result


def hurt_directories(settings: Settings) -> Iterator[Result]:
    """Links and pipes under every name that firetrace may write."""
    results: dict[str, Result] = {}
    base = settings.workspace / "planted"
    with OtlpHttpServer() as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "torture.security.planted", str(base),
             server.endpoint.removesuffix("/v1/traces"), "http://127.0.0.1:9",
             *(["short"] if settings.short else [])],
            env={**os.environ, "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "FIRETRACE_OTLP": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said, errors = finish(process)
    for line in said.splitlines():
        what, planted, found = line.split("\t")
        title = f"links and pipes: {what}"
        result = results.setdefault(title, Result("security", title))
        result.tried += 1
        result.failures += [f"{planted}: {found}"] if found else []
    if process.returncode:
        failed = Result("security", "links and pipes", failures=[errors[-1000:]])
        yield failed
    yield from results.values()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it says until its end, which comes in time."""
    try:
        return process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()
