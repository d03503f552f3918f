"""Trainings, exports and readers in folders where somebody has put links and pipes.

``python -m torture.security.planted FOLDER ENDPOINT DOWN [short]`` tries one after the other in
this process and prints a line for each: what was tried, and what went wrong with it. What waits for
ever on a pipe is interrupted and told.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

PRECIOUS = b"somebody's work of years\n"
JOURNAL = ("rows", "rows.new", "meta.jsonl", "lock")
SENDING = ("otlp.lock", "otlp.json", "otlp.part", "otlp.log", "otlp.log.1")
SECONDS = 30  #: for each; none takes more than four where nothing hangs
KINDS = ("link", "dangling", "pipe")


class HangsError(BaseException):
    """Something waits for ever. No ``except OSError`` may take it."""


def plant(at: Path, kind: str) -> None:
    """Put a link to a precious file, one to nowhere, or a pipe there."""
    (at.parent / "precious").write_bytes(PRECIOUS)
    if kind == "pipe":
        os.mkfifo(at)
    else:
        at.symlink_to(at.parent / ("precious" if kind == "link" else "nowhere"))


def harm(folder: Path) -> Iterator[str]:
    """What has happened to what the links lead to."""
    if (folder / "nowhere").exists():
        yield "made a file behind a link"
    if (folder / "precious").read_bytes() != PRECIOUS:
        yield "wrote through a link"


def train(folder: Path, **how: Any) -> Path:
    """A short training of three epochs; its journal. Raises if it does not go on to its end."""
    from ignite.engine import Engine

    from firetrace import TraceHandler

    engine = Engine(lambda engine, batch: batch)
    handler = TraceHandler(folder, **how)
    handler.attach(engine)
    state = engine.run(range(20), max_epochs=3)
    handler.close()
    if state.iteration != 60:
        raise AssertionError(f"the training ended at {state.iteration}")
    # Of what was planted, none is a journal.
    return max(folder.glob("rank*.rows"), key=lambda path: path.is_file() and path.stat().st_size)


def whole(journal: Path) -> Iterator[str]:
    """Whether a training of ``train`` is there."""
    from firetrace.tracer.table import read_table

    table = read_table(journal)
    steps = sum(table.meta.names[int(name)].kind == "step" for name in table.rows["name"])
    if steps != 60:
        yield f"{steps} of 60 steps were recorded"


def command(*words: object, code: int | None = 0) -> Iterator[str]:
    """Run the command; complain of another exit code than this (None: whatever it is)."""
    from firetrace.tui.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as no:
        found = main([str(word) for word in words])
    if code is not None and found != code:
        yield f"{words[0]}: exit code {found}: {no.getvalue()[-300:]}"


class Cases:
    """All that is tried, each in a folder of its own."""

    def __init__(self, folder: Path, endpoint: str, down: str, short: bool) -> None:
        self.folder, self.endpoint, self.down, self.short = folder, endpoint, down, short

    def all(self) -> Iterator[tuple[str, Callable[[Path, str], Iterator[str]], str]]:
        """Name, what to do in a folder where something was planted, and where that lies."""
        for suffix in JOURNAL:
            yield "recording", self.record, f"rank0.1.{suffix}"
        for suffix in SENDING[:3]:
            yield "export --resume", self.resume, f"rank0.1.{suffix}"
        for suffix in ("otlp.log",) if self.short else SENDING:
            yield "relay", self.relay, f"rank0.1.{suffix}"
        for name in ("out.json.part", "out.json.gz.part", "page.html.part", "out.jsonl.part"):
            yield "export", self.export, name
        for suffix in ("rows", "meta.jsonl", "lock", "otlp.lock", "otlp.json"):
            yield "reading", self.read, f"rank0.2.{suffix}"

    def record(self, folder: Path, name: str) -> Iterator[str]:
        """A training, in a folder where its journal's files may be taken."""
        journal = train(folder)
        yield from whole(journal)

    def resume(self, folder: Path, name: str) -> Iterator[str]:
        """Send a run, whose cursor and lock may be taken: it is sent, or one line says why not."""
        (folder / name).rename(folder / "aside")
        journal = train(folder)
        (folder / "aside").rename(folder / name)
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self.endpoint
        yield from command("export", "--to", "otlp", "--resume", journal, code=None)

    def relay(self, folder: Path, name: str) -> Iterator[str]:
        """A training with a relay that has much to say: its backend is down."""
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self.down
        os.environ["FIRETRACE_OTLP_LINGER"] = "0.3"
        journal = train(folder, otlp=True, otlp_wait_s=0)
        yield from whole(journal)
        from firetrace.tracer.lock import lock_path
        from firetrace.tracer.reader import lock_is_held

        while lock_path(journal).is_file() and lock_is_held(lock_path(journal)):
            time.sleep(0.05)

    def export(self, folder: Path, name: str) -> Iterator[str]:
        """Exports, where their temporary file's name may be taken."""
        journal, out = train(folder / "run"), folder / name.removesuffix(".part")
        if out.suffix == ".html":
            yield from command("report", "--html", out, journal)
        else:
            to = "otlp-file" if out.suffix == ".jsonl" else "chrome"
            yield from command("export", "--to", to, "-o", out, journal)
        if not out.is_file() or out.stat().st_size < 500:
            yield "nothing was written"

    def read(self, folder: Path, name: str) -> Iterator[str]:
        """Look at a run in whose folder such things lie; what of it is damaged is said."""
        if not (folder / name).is_symlink():  # a journal of which only this is not as it should be
            (folder / name).rename(folder / "aside")
            os.environ["RANK"] = "0"
            journal = train(folder)
            for file in list(folder.glob(f"{journal.stem}.*")):
                file.rename(folder / file.name.replace("rank0.1", "rank0.2"))
            (folder / name).unlink(missing_ok=True)
            (folder / "aside").rename(folder / name)
        else:
            train(folder)
        for words in (["report"], ["export", "--to", "chrome", "-o", folder / "out.json"]):
            yield from command(*words, folder, code=None)
        for run in (["list"], ["prune", "--keep", "0", "--dry-run"]):
            yield from command(*run)


def try_one(act: Callable[[Path, str], Iterator[str]], folder: Path, name: str) -> list[str]:
    """What went wrong; it gets some seconds."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        found = list(act(folder, name))
    except HangsError as error:
        found = [f"hung for {SECONDS} s at {error}"]
    except Exception as error:
        found = [f"{type(error).__name__}: {error}"]
    signal.setitimer(signal.ITIMER_REAL, 0)
    return [*found, *harm(folder)]


def main(arguments: list[str]) -> int:
    """See the module."""
    import ignite.handlers  # noqa: F401  # what is slow to import is not what is timed

    import firetrace.tui.cli  # noqa: F401

    base = Path(arguments[0])

    def hangs(number: int, frame: FrameType | None) -> None:
        code = frame.f_code if frame is not None else None
        raise HangsError(f"{code.co_filename}:{code.co_name}" if code is not None else "")

    signal.signal(signal.SIGALRM, hangs)
    cases = Cases(base, arguments[1], arguments[2], arguments[3:] == ["short"])
    for number, (what, act, name) in enumerate(cases.all()):
        for kind in KINDS:
            folder = base / f"{number}-{kind}" / "run"
            folder.mkdir(parents=True)
            os.environ["FIRETRACE_DIR"] = str(folder.parent)
            os.environ["XDG_STATE_HOME"] = str(folder.parent)
            plant(folder / name, kind)
            found = try_one(act, folder, name)
            print(f"{what}\t{kind} at {name}\t{'; '.join(found)}".replace("\n", " "), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
