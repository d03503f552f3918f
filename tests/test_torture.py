"""The torture can fail: what it looks for is found where it has been planted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.settings import Progress
from firetrace.tracer.journal import FIRST_ROW, ROW_DTYPE
from firetrace.tracer.recording import Recording, close_all
from firetrace.tracer.run import open_run
from firetrace.tracer.table import Table, read_table
from tests.support.recordings import record
from tests.support.unchanged import observe
from torture import __main__ as command
from torture.checks import problems
from torture.faults import WAY, _injected, _visited, is_ours
from torture.firehose import Firehose, Witness, lost
from torture.journals import subject as journals
from torture.programs import PROGRAMS
from torture.result import Result, complaints, render
from torture.settings import Settings
from torture.sites import Site, Visit
from torture.threads import Seen


@pytest.fixture
def table() -> Table:
    return read_table(open_run(record(epochs=2, steps=4)).newest)


def changed(table: Table, column: str, at: int, value: int) -> Table:
    rows = table.rows.copy()
    rows[column][at] = value
    return replace(table, rows=rows)


def test_a_sound_journal_has_no_problems(table: Table) -> None:
    """So what is found below has been planted."""
    assert problems(table) == []


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("end", 0, "open in a parent that has ended"),
        ("end", 2**62, "end after their parent"),
        ("start", 1, "begin before their parent"),
        ("end", 5, "end before they begin"),
        ("parent", 129 * 10**6, "a parent that is not there"),
        ("name", 60_000, "names are unknown"),
        ("lane", 200, "lanes are unknown"),
    ],
)
def test_rows_that_break_a_promise_are_found(
    table: Table, column: str, value: int, what: str
) -> None:
    """One span, somewhere in the middle."""
    found = problems(changed(table, column, len(table) // 2, value))
    assert any(what in each for each in found), found


def test_rows_that_are_there_twice_are_found(table: Table) -> None:
    """Two rows with one number have one span id, too."""
    numbers = table.numbers.copy()
    numbers[10] = numbers[9]
    found = problems(replace(table, numbers=numbers))
    assert any("row numbers are there twice" in each for each in found)
    assert any("span ids are there twice" in each for each in found)


LOSSES: dict[str, Callable[[Table, int], Table]] = {
    "have no span": lambda table, at: replace(
        table,
        rows=np.delete(table.rows, slice(at, at + 50)),
        numbers=np.delete(table.numbers, slice(at, at + 50)),
    ),
    "that returned are open": lambda table, at: changed(table, "end", at, 0),
    "have other times": lambda table, at: changed(table, "start", at, 2**61),
    "are of other iterations": lambda table, at: changed(table, "iteration", at, 7),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_span_that_is_lost_is_found(tmp_path: Path, what: str) -> None:
    """The witness noted every call of its handler; the journal is held against that."""
    witness = Witness(200)
    Firehose([witness], steps=100).run(tmp_path)
    close_all()
    table = read_table(tmp_path / "rank0.1.rows")
    expected, missing, wrong = lost(table, [witness])
    assert (missing, wrong) == (0, [])
    assert expected > 1000
    calls = [at for at in range(len(table)) if table.name(at).text == "Witness"]
    _, _, wrong = lost(LOSSES[what](table, calls[50]), [witness])
    assert any(what in each for each in wrong), wrong


def test_a_torn_row_is_found() -> None:
    """What was seen as ended has to be so in the end."""
    final = np.zeros(FIRST_ROW + 3, ROW_DTYPE)
    final["start"][FIRST_ROW:], final["end"][FIRST_ROW:] = 5, (7, 8, 9)
    seen = Seen()
    rows = final[FIRST_ROW:].copy()
    rows["end"][1], rows["name"][2] = 0, 3
    seen.note(np.arange(FIRST_ROW, FIRST_ROW + 3), rows)
    assert (seen.count(), seen.torn(final)) == (2, 1)


def test_an_exception_that_reaches_the_training_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the guard every other fault is the training's; with it none is."""
    program, how = PROGRAMS["events"]
    untraced = observe(program, WAY, None)
    sites = [Site(*site) for site, _ in _visited(program, how)]
    some = [Visit(site, 1) for site in sites if "Recorder." in site.function and is_ours(site)]
    some = random.Random(0).sample(some, 5)
    assert all(not _injected(program, how, visit, untraced) for visit in some)

    def unguarded(self: Recording, action: Callable[..., Any], *args: Any) -> Any:
        return action(*args)

    monkeypatch.setattr(Recording, "guarded", unguarded)
    assert any(_injected(program, how, visit, untraced) for visit in some)


def test_a_reader_that_fails_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_folders: Path
) -> None:
    """One that raises, and one that takes too much memory."""

    def raises(journal: Path, folder: Path) -> None:
        raise KeyError("no such row")

    def gorges(journal: Path, folder: Path) -> None:
        bytearray(2**28)

    monkeypatch.setattr(journals, "READERS", {"raises": raises, "gorges": gorges})
    monkeypatch.setattr(journals, "_keep", lambda *_: "")
    sources = journals.originals(tmp_path, 0)
    found = journals._batch(sources, tmp_path, 0)
    (first,), (second,) = found["failures"]["raises"], found["failures"]["gorges"]
    assert first.startswith("KeyError")
    assert second.startswith("MemoryError")


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (Result("disks", "full", 3), 0),
        (Result("disks", "full", 3, ["a span was lost"]), 1),
        (Result("disks", "full"), 1),
        (Result("disks", "full", skipped="needs root"), 0),
    ],
)
def test_the_exit_code_says_whether_all_held(
    result: Result, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nothing was tried and nobody says why."""

    def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
        yield result

    monkeypatch.setattr("torture.disks.subject.hurt", hurt)
    assert command.main(["disks", "--short"]) == code
    shown = capsys.readouterr().out
    assert result.verdict in shown
    assert ("FAILED:" in shown) == bool(code)
    assert "| full" in render([result])
    assert bool(complaints([result])) == bool(code)
