"""Bad journals: every reader shows what is readable, or ends with one clear line.

Hypothesis puts damages together and finds the smallest one that does harm. No traceback, no hang,
no memory beyond twice the file: each batch runs in a child whose memory is limited to that and what
any journal takes, and each reading has a few seconds.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from bench.process import SampleError, forked
from bench.settings import Progress
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.run import open_run
from tests.support.recordings import record, record_failing
from tests.support.wild_journal import WildJournal
from torture.journals.commands import hurt_by_command
from torture.journals.damage import Damage, Files, damages
from torture.journals.huge import hurt_by_size
from torture.journals.readers import READERS
from torture.result import Result
from torture.settings import Settings

BATCH = 100
PATIENCE_S = 10
#: What reading any journal may take besides: buffers of a fixed size, pictures, tables.
MARGIN_BYTES = 64 * 2**20


class TooLongError(Exception):
    """A reader does not come to an end."""


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Damage journals and read them."""
    os.environ["FIRETRACE_DIR"] = str(settings.workspace / "made")
    sources = originals(settings.workspace, settings.seed)
    del os.environ["FIRETRACE_DIR"]
    results = {name: Result("a damaged journal", f"firetrace {name}") for name in READERS}
    batches = -(-settings.journals // BATCH)
    shown = refused = 0
    for batch in range(batches):
        progress(f"journals: {batch * BATCH:,} of {settings.journals:,}")
        folder = settings.workspace / f"batch{batch}"
        folder.mkdir()
        try:
            found = forked(_batch, sources, folder, settings.seed * 100_003 + batch)
        except SampleError as error:
            found = {"tried": {}, "failures": {"report": [str(error)]}, "shown": 0, "refused": 0}
        for name, result in results.items():
            result.tried += found["tried"].get(name, 0)
            result.failures += found["failures"].get(name, [])
        shown, refused = shown + found["shown"], refused + found["refused"]
    results["report"].figures = f"{shown:,} shown, {refused:,} refused in one line"
    yield from results.values()
    yield from hurt_by_command(settings, sources, progress)
    yield from hurt_by_size(settings, sources[0], progress)


def originals(folder: Path, seed: int) -> list[Path]:
    """Journals to damage: real ones, a failing one, wild ones."""
    found = [open_run(record(epochs=2, steps=6)).newest, open_run(record_failing()).newest]
    for number in range(3):
        place = folder / f"wild{number}"
        place.mkdir()
        wild = WildJournal(place, seed + number)
        wild.write(600)
        wild.end()
        found.append(wild.path)
    return found


def _batch(sources: list[Path], folder: Path, seed: int) -> dict[str, Any]:
    """Read ``BATCH`` damaged journals by every reader, in this process, which is a child."""
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("error")
    originals = [Files.read(source) for source in sources]
    tried = dict.fromkeys(READERS, 0)
    failures: dict[str, list[str]] = {}
    counts = {"shown": 0, "refused": 0}
    draw = random.Random(seed)

    for name in READERS:

        @hypothesis.seed(draw.randrange(2**32))
        @hypothesis.settings(
            max_examples=BATCH // len(READERS), database=None, deadline=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        @given(which=st.integers(0, len(originals) - 1), what=damages)
        def read(which: int, what: list[Damage]) -> None:
            journal = folder / "rank0.1.rows"
            files = originals[which].copy()
            for damage in what:
                damage(files)
            size = files.write(journal)
            tried[name] += 1  # noqa: B023
            try:
                signal.alarm(PATIENCE_S)
                limit_memory(resident() + 2 * size + MARGIN_BYTES)
                READERS[name](journal, folder)  # noqa: B023
                counts["shown"] += 1
            except FiretraceError as error:
                counts["refused"] += 1
                one_line(error)
            finally:
                signal.alarm(0)
                limit_memory(resource.RLIM_INFINITY)

        try:
            read()
        except BaseException as error:
            kept = _keep(folder, name, len(failures))
            failures.setdefault(name, []).append(f"{brief(error)}; kept in {kept}")
    return {"tried": tried, "failures": failures, **counts}


def one_line(error: FiretraceError) -> None:
    """What the user is told is one line."""
    if "\n" in str(error):
        raise ValueError("the reason has more than one line") from error


def _keep(folder: Path, name: str, number: int) -> str:
    """The smallest journal that does harm, where somebody can look at it."""
    kept = Path(os.environ.get("TMPDIR", "/tmp"), f"firetrace-bad-{time.time_ns()}")
    kept.mkdir()
    for file in ("rank0.1.rows", "rank0.1.meta.jsonl"):
        if (folder / file).exists():
            (kept / file).write_bytes((folder / file).read_bytes())
    return str(kept)


def brief(error: BaseException) -> str:
    """An exception and where it arose, in a line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torture/" not in f.filename]
    where = frames[-1] if frames else None
    ours = [f for f in frames if f.filename.rsplit("/", 2)[-2] in ("tracer", "tui", "model")]
    place = " <- ".join(
        f"{Path(f.filename).name}:{f.lineno}" for f in (where, *ours[-1:]) if f is not None
    )
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} ({place})"


def _too_long(*_: object) -> None:
    raise TooLongError(f"it takes longer than {PATIENCE_S} s")


def resident() -> int:
    """Bytes of address space that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limit_memory(most: int) -> None:
    """What this process may take; more is a ``MemoryError``."""
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
