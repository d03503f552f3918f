"""A coverage-guided fuzzer (atheris) for what parses a journal: meta file, header, rows.

It keeps the inputs that reach code that none has reached before, and changes those further; what
it runs is in ``targets.py``. Whatever is raised that is no ``FiretraceError``, or takes 10 s or
1 GiB, is a failure; the input is kept.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bench.settings import Progress
from torture.journals.subject import originals
from torture.result import Result
from torture.settings import Settings

SECONDS_AN_INPUT, MEGABYTES = 10, 1024
TARGETS = ("meta", "header", "rows")


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Run the fuzzer on each target."""
    if find_spec("atheris") is None:
        for target in TARGETS:
            yield Result("coverage-guided fuzzing", target, skipped="atheris is not here")
        return
    os.environ["FIRETRACE_DIR"] = str(settings.workspace / "made")
    sources = originals(settings.workspace, settings.seed)
    del os.environ["FIRETRACE_DIR"]
    for target in TARGETS:
        progress(f"fuzz: {target}, {settings.fuzz_seconds} s")
        folder = settings.workspace / target
        folder.mkdir()
        for number, source in enumerate(sources):
            (folder / f"seed{number}").write_bytes(_part(target, source))
        yield _fuzz(target, folder, settings)


def _part(target: str, source: Path) -> bytes:
    if target == "meta":
        return source.with_suffix(".meta.jsonl").read_bytes()
    data = source.read_bytes()
    return data[:160] if target == "header" else data[4096 : 4096 + 32 * 400]


def _fuzz(target: str, folder: Path, settings: Settings) -> Result:
    result = Result("coverage-guided fuzzing", f"the {target}")
    kept = Path(tempfile.gettempdir(), f"firetrace-bad-{time.time_ns()}-")
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else settings.workspace
    with tempfile.TemporaryDirectory(prefix="firetrace-fuzz-", dir=memory) as written:
        done = subprocess.run(
            [
                sys.executable, "-m", "torture.journals.targets", target, str(folder),
                f"-max_total_time={settings.fuzz_seconds}", f"-seed={settings.seed + 1}",
                f"-timeout={SECONDS_AN_INPUT}", f"-rss_limit_mb={MEGABYTES}", "-max_len=16384",
                f"-artifact_prefix={kept}", "-print_final_stats=1", "-verbosity=1",
            ],
            env={**os.environ, "TMPDIR": written},
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    runs = re.findall(r"^stat::number_of_executed_units:\s*(\d+)", done.stderr, re.M)
    reached = re.findall(r"\bcov: (\d+)", done.stderr)
    result.tried = int(runs[-1]) if runs else 0
    result.figures = f"{reached[-1] if reached else 0} branches reached"
    if done.returncode:
        what = re.findall(r"^(?:=+ .*ERROR.*|\w*(?:Error|Exception)\b.*)$", done.stderr, re.M)
        result.failures.append(
            f"{what[0] if what else done.stderr[-300:]}; exit code {done.returncode}, see {kept}*"
        )
    return result
