"""The commands themselves, and the app, on bad journals.

Exit code 0, or 1 with one clear line; never a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from bench.process import SampleError, forked
from bench.settings import Progress
from firetrace.tui.app import WatchApp
from firetrace.tui.cli import main
from torture.journals.damage import Damage, Files, damages
from torture.result import Result
from torture.settings import Settings

COMMANDS = (
    ["report"], ["report", "--json"], ["report", "--html", "page.html"],
    ["export", "--to", "chrome", "-o", "t.json"], ["export", "--to", "chrome", "-o", "t.json.gz"],
    ["export", "--to", "otlp-file", "-o", "t.jsonl"], ["list"], ["diff"],
)  # fmt: skip
KEYS = ("j", "l", "j", "enter", "escape", "e", "s", "2", "3", "4", "1", "+", "a", "n", "f")
PATIENCE_S = 60


def hurt_by_command(
    settings: Settings, sources: list[Path], progress: Progress
) -> Iterator[Result]:
    """Let each command, and the app, have some damaged journals."""
    commands = Result("a damaged journal", "the commands as they are typed")
    app = Result("a damaged journal", "the app, with keys pressed")
    journals = list(_damaged(settings, sources))
    for number, journal in enumerate(journals):
        progress(f"journals: commands, {number} of {len(journals)}")
        for words in COMMANDS:
            commands.tried += 1
            line = [*words, *([] if words == ["list"] else [str(journal)])]
            line += [str(journal)] if words == ["diff"] else []
            try:
                wrong = forked(_command, line, journal.parent)
            except SampleError as error:
                wrong = str(error)
            if wrong:
                commands.failures.append(f"firetrace {' '.join(words)}: {wrong}")
        app.tried += 1
        try:
            wrong = forked(_watch, journal)
        except SampleError as error:
            wrong = str(error)
        if wrong:
            app.failures.append(wrong)
    yield commands
    yield app


def _damaged(settings: Settings, sources: list[Path]) -> Iterator[Path]:
    draw, made = random.Random(settings.seed), list[Files]()
    originals = [Files.read(source) for source in sources]

    @hypothesis.seed(settings.seed)
    @hypothesis.settings(
        max_examples=settings.commands, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(which=st.integers(0, len(originals) - 1), what=damages)
    def damage(which: int, what: list[Damage]) -> None:
        files = originals[which].copy()
        for each in what:
            each(files)
        made.append(files)

    damage()
    for number, files in enumerate(draw.sample(made, min(len(made), settings.commands))):
        folder = settings.workspace / f"command{number}"
        folder.mkdir()
        files.write(folder / "rank0.1.rows")
        yield folder / "rank0.1.rows"


def _command(words: list[str], folder: Path) -> str:
    """What is wrong with what a command did; empty: nothing."""
    os.chdir(folder)
    signal.alarm(PATIENCE_S)
    said, shown = io.StringIO(), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            code = main(words)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    lines = said.getvalue().splitlines()
    if code not in (0, 1) or (code == 1 and len(lines) != 1) or "Traceback" in said.getvalue():
        return f"exit code {code}, {lines[:3]}"
    return ""


def _watch(journal: Path) -> str:
    """What is wrong with what the app did; empty: nothing."""
    signal.alarm(PATIENCE_S)

    async def look() -> str:
        app = WatchApp(str(journal))
        async with app.run_test(size=(100, 30)) as pilot:
            await pilot.pause(0.3)
            for key in KEYS:
                if app.is_running:
                    await pilot.press(key)
            await pilot.pause(0.1)
        return "" if app.return_value is None else str(app.return_value)

    with contextlib.redirect_stderr(io.StringIO()):
        try:
            said = asyncio.run(look())
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    return "more than one line" if "\n" in said else ""
