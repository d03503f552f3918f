"""Disks that are full or gone: what was recorded is whole, and the training does not notice."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.tracer.journal import FIRST_ROW
from firetrace.tracer.rows import ThreadTrack
from firetrace.tracer.table import read_table
from firetrace.tracer.writer import JournalWriter

BOTH = pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "pwrite"])


@contextmanager
def files_limited(size: int) -> Iterator[None]:
    """No file can become longer than so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    """A line for which there is no room is not there at all; later ones can be read."""
    writer = JournalWriter(tmp_path / "rank0.1", {}, min_free_bytes=0)
    meta = tmp_path / "rank0.1.meta.jsonl"
    with files_limited(meta.stat().st_size + 10), pytest.raises(OSError, match="short write"):
        writer.note("name", id=0, kind="span", name="x" * 100)
    writer.note("name", id=0, kind="span", name="there")
    writer.close()
    table = read_table(writer.path)
    assert table.meta.damaged == 0
    assert table.names[0].text == "there"


def test_what_found_no_room_is_said_when_space_was_given_back(tmp_path: Path) -> None:
    """Why recording stopped is noted at the latest when the journal is closed."""
    writer = JournalWriter(tmp_path / "rank0.1", {}, min_free_bytes=0)
    size = (tmp_path / "rank0.1.meta.jsonl").stat().st_size
    with files_limited(size), pytest.raises(OSError, match="too large"):
        writer.note_stop("the disk is full")
    writer.close()
    meta = read_table(writer.path).meta
    assert meta.stopped == "the disk is full"
    assert meta.ended is not None


@pytest.mark.parametrize("size", [0, 20, 3000])
def test_a_journal_that_cannot_be_made_leaves_nothing(tmp_path: Path, size: int) -> None:
    """Neither files nor open descriptors, which the training may need."""
    before = os.listdir("/proc/self/fd")
    with files_limited(size), pytest.raises(OSError, match=r"too large|short write"):
        JournalWriter(tmp_path / "rank0.1", {}, min_free_bytes=0)
    assert os.listdir("/proc/self/fd") == before
    assert not [*tmp_path.iterdir()]


@BOTH
def test_rows_end_where_there_is_no_room_to_say_why(tmp_path: Path, mapped: bool) -> None:
    """On a full disk nothing is left open, as if the training had died."""
    writer = JournalWriter(tmp_path / "rank0.1", {}, min_free_bytes=0, mapped=mapped)
    writer.note("long", text="x" * 10_000)  # so that the other file may still be written
    track = ThreadTrack(writer)
    name = writer.name("span", "x")
    for parent in (0, FIRST_ROW):
        track.stack.append(track.pen.open(parent, name, 0, 0, 0, 0, 0, writer.now_ns()))
    with files_limited((tmp_path / "rank0.1.meta.jsonl").stat().st_size):
        track.close(writer)
    writer.close()
    table = read_table(writer.path)
    assert len(table) == 2
    assert not len(table.open_positions())


def test_the_current_folder_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A training whose folder was removed goes on, with one warning."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    engine, calls = Engine(lambda engine, batch: batch), list[int]()
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: calls.append(1))
    handler = TraceHandler("run")
    handler.attach(engine)
    engine.run([1, 2, 3])
    handler.close()
    assert len(calls) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stopped recording" in caplog.text
