"""Readers whose journal is cut short, replaced or deleted under them, at random moments.

Each reads on while a thread appends to the journal and then damages it. Nothing may come of it but
errors that name the file; and the app's feed shows the journal again when it is back.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from bench.settings import Progress
from firetrace.tracer.errors import FiretraceError
from firetrace.tracer.journal import HEADER_BYTES, ROW_BYTES
from firetrace.tracer.pages import Pages
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.stream import Stream
from firetrace.tui.cli import main as command
from firetrace.tui.feed import Feed, Snapshot
from firetrace.tui.model.report import read_report
from torture.disks.victims import Plan, in_child, train
from torture.result import Result
from torture.settings import Settings

STEM = "rank0.1"
FILES = (".rows", ".meta.jsonl", ".lock")
LONGEST_S = 0.004  #: until the journal is damaged
PATIENCE_S = 60.0  #: for all that a child does
#: Polls of a feed in which a journal that is back has to be shown again.
POLLS = 200

Damage = Callable[[Path, random.Random, Path], None]


def shorten(path: Path, draw: random.Random, other: Path) -> None:
    """Cut it: to nothing, in the header, in the middle of a row, anywhere."""
    size = path.stat().st_size
    row = draw.randrange(size // ROW_BYTES + 1) * ROW_BYTES
    where = (0, draw.randrange(HEADER_BYTES), row + 13, draw.randrange(size + 1), row)
    os.truncate(path, min(size, draw.choice(where)))


def overwrite(path: Path, draw: random.Random, other: Path) -> None:
    """Write garbage over it, in place."""
    with open(path, "r+b") as file:
        file.seek(draw.choice((0, draw.randrange(path.stat().st_size + 1))))
        file.write(draw.randbytes(draw.choice((1, 40, 5000, 200_000))))


def replace_by_another(path: Path, draw: random.Random, other: Path) -> None:
    """Put another journal in its place."""
    new = path.with_name("new")
    shutil.copyfile(other.with_name(path.name), new)
    os.replace(new, path)


def delete(path: Path, draw: random.Random, other: Path) -> None:
    """Delete it, or its folder with it."""
    if draw.random() < 0.3:
        shutil.rmtree(path.parent)
    else:
        path.unlink()


def make_something_else(path: Path, draw: random.Random, other: Path) -> None:
    """Put a folder, a pipe, a device or a link that leads nowhere, or round, in its place."""
    path.unlink()
    what = draw.randrange(5)
    if what == 0:
        path.mkdir()
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.symlink_to("nowhere")
    elif what == 3:
        path.symlink_to(path.name)
    else:
        path.symlink_to(draw.choice(("/dev/null", "/dev/zero", ".")))


DAMAGES: dict[str, Damage] = {
    "cut short": shorten,
    "overwritten by garbage": overwrite,
    "replaced by another": replace_by_another,
    "deleted": delete,
    "replaced by no file": make_something_else,
}


class Looking(Protocol):
    """Somebody who looks at a journal again and again."""

    def look(self) -> None:
        """Once more."""

    def close(self) -> None:
        """Enough."""


class Report:
    """``firetrace report``, made anew each time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def look(self) -> None:
        """Make the report."""
        json.dumps(read_report(self.path).as_json())

    def close(self) -> None:
        """Nothing is open."""


class Command(Report):
    """The same as a user does it, who gets an exit code."""

    def look(self) -> None:
        """Run the command; it says in a line what is wrong, and never raises."""
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            try:
                code = command(["report", str(self.path.parent)])
            except FiretraceError as error:
                raise AssertionError(f"the command raises {error}") from error
        if code not in (0, 1) or len(errors.getvalue().splitlines()) != code:
            raise AssertionError(f"exit code {code}: {errors.getvalue()[-300:]}")


class Streaming:
    """What an export does."""

    def __init__(self, path: Path) -> None:
        self.stream = Stream(path)

    def look(self) -> None:
        """Take what has ended."""
        for _ in self.stream.ended():
            pass
        self.stream.last_ns()

    def close(self) -> None:
        """Take the rest."""
        self.stream.rest()
        self.stream.close()


class Reading:
    """A reader and its pages."""

    def __init__(self, path: Path) -> None:
        self.reader = JournalReader(path)
        self.pages = Pages(self.reader)

    def look(self) -> None:
        """Read what is new, and something old."""
        self.reader.poll()
        for number in self.reader.numbers[-3:].tolist():
            self.pages.row(number)
            self.pages.real(number)
            self.pages.after(number // 2, 2**62)
        self.pages.window(1)
        for noted in (self.reader.meta.runs, self.reader.meta.reasons):
            noted.of(noted.rows())

    def close(self) -> None:
        """Close it; its pages stay."""
        self.reader.close()
        self.pages.window(0)


class Watching:
    """What the app does."""

    def __init__(self, path: Path) -> None:
        self.feed = Feed(str(path))
        self.feed.poll()
        self.steps = -1

    def look(self) -> None:
        """Poll. Once it shows something it may not give up, whatever the error says."""
        try:
            found = self.feed.poll()
        except FiretraceError as error:
            raise AssertionError(f"the app leaves: {error}") from error
        if isinstance(found, Snapshot):
            self.steps = found.report.steps

    def close(self) -> None:
        """Leave."""
        self.feed.close()


LOOKERS: tuple[Callable[[Path], Looking], ...] = (Report, Command, Streaming, Reading, Watching)


def read_torn(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Take journals away from readers."""
    whole, other = (settings.workspace / name / f"{STEM}.rows" for name in ("whole", "other"))
    for path in (whole, other):
        in_child(lambda: train(Plan(path.parent, epochs=1)))  # noqa: B023
    count = 1 if settings.short else 20
    for suffix in FILES:
        for name, damage in DAMAGES.items():
            what = f"reading, while the {suffix.rpartition('.')[2]} file is {name}"
            what = what.replace("jsonl", "meta")
            progress(f"disks: {what}")
            folder = settings.workspace / "torn"
            torn = Torn(whole, other, folder, suffix, damage, random.Random(settings.seed))
            answer = in_child(lambda: torn.rounds(count), PATIENCE_S)  # noqa: B023
            result = Result("disks", what)
            if answer.status:
                doing = (folder / "doing").read_text()
                result.failures.append(f"{answer.status}: {doing} {answer.stderr[-300:]}")
                result.tried = 1
            else:
                result.tried, found = answer.answer["tried"], answer.answer["failures"]
                result.failures += found
                result.figures = f"errors told: {answer.answer['told']}"
            if answer.stderr.strip():
                result.failures.append(f"on stderr: {answer.stderr[-300:]}")
            yield result
            shutil.rmtree(folder, ignore_errors=True)


class Torn:
    """Journals that are damaged in one way."""

    def __init__(
        self, whole: Path, other: Path, folder: Path, suffix: str, damage: Damage,
        draw: random.Random,
    ) -> None:  # fmt: skip
        self.whole, self.other, self.folder = whole, other, folder
        self.suffix, self.damage, self.draw = suffix, damage, draw
        self.steps = read_report(whole).steps
        self.told = 0

    def rounds(self, count: int) -> dict[str, Any]:
        """So many of each reader."""
        failures: Counter[str] = Counter()
        tried = 0
        for number in range(count):
            for looker in LOOKERS:
                self.folder.mkdir(exist_ok=True)
                (self.folder / "doing").write_text(f"{looker.__name__}, round {number}")
                try:
                    self.round(self.folder / f"{tried}" / f"{STEM}.rows", looker)
                except Exception as error:
                    failures[f"{looker.__name__}: {type(error).__name__}: {error}"[:300]] += 1
                tried += 1
        return {"tried": tried, "failures": [*failures.elements()], "told": self.told}

    def round(self, path: Path, looker: Callable[[Path], Looking]) -> None:
        """A journal that grows and is damaged while somebody looks."""
        self.put(path)
        data = self.whole.read_bytes()
        cut = self.draw.randint(HEADER_BYTES, len(data))
        os.truncate(path, cut)
        moments = sorted(self.draw.uniform(0, LONGEST_S) for _ in range(3))
        failed: list[Exception] = []

        def hurt() -> None:
            began = time.monotonic()
            try:
                for moment in moments[:2]:
                    time.sleep(max(0.0, began + moment - time.monotonic()))
                    with open(path, "ab") as file:
                        file.write(data[cut : cut + len(data) // 3])
                time.sleep(max(0.0, began + moments[2] - time.monotonic()))
                self.damage(path.with_name(STEM + self.suffix), self.draw, self.other)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=hurt)
        looking = looker(path)
        thread.start()
        while thread.is_alive():
            self.look(looking.look)
        thread.join()
        if failed:
            raise failed[0]
        for _ in range(3):
            self.look(looking.look)
        if not isinstance(looking, Watching):
            self.look(looking.close)
            self.look(lambda: looker(path).look())
        else:
            self.put_back(path, looking)

    def put_back(self, path: Path, looking: Watching) -> None:
        """A journal that is whole again is shown again."""
        shutil.rmtree(path.parent, ignore_errors=True)
        looking.look()
        self.put(path)
        looking.steps = -1
        for _ in range(POLLS):
            looking.look()
            if looking.steps == self.steps:
                looking.close()
                return
        raise AssertionError(f"{looking.steps} steps of {self.steps} after it was put back")

    def look(self, action: Callable[[], None]) -> None:
        """Errors that name the file are all that there may be."""
        try:
            action()
        except FiretraceError as error:
            if STEM not in str(error) and str(self.folder) not in str(error):
                raise AssertionError(f"an error that names no file: {error}") from error
            self.told += 1

    def put(self, path: Path) -> None:
        """Put the whole journal there."""
        path.parent.mkdir()
        for suffix in FILES:
            shutil.copyfile(self.whole.with_name(STEM + suffix), path.with_name(STEM + suffix))
