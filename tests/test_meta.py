"""The meta file: read piece by piece, in little memory, whatever is in it."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firetrace.tracer import meta
from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import MAX_ROW
from firetrace.tracer.meta import Meta
from firetrace.tracer.reader import JournalReader


def line(type: str, **fields: Any) -> bytes:
    return json.dumps({"type": type, **fields}).encode() + b"\n"


def read(path: Path, *lines: bytes) -> Meta:
    path.write_bytes(b"".join(lines))
    found = Meta(path)
    found.poll()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank0.1.meta.jsonl"


def test_notes_are_found_by_their_rows(path: Path) -> None:
    """Of several attributes all count, of anything else the last line; rows in any order."""
    found = read(
        path,
        line("attributes", row=300, attributes={"a": 1, "b": 1}),
        line("exception", row=200, **{"exception.type": "E"}),
        line("attributes", row=150, attributes={"c": 3}),
        line("attributes", row=300, attributes={"b": 2}),
        line("end_reason", row=200, reason="terminate"),
        line("link", row=200, to=150),
    )
    assert dict(found.attributes) == {150: {"c": 3}, 300: {"a": 1, "b": 2}}
    assert found.attributes.of(np.array([100, 300, 301], np.uint32)) == {300: {"a": 1, "b": 2}}
    assert (found.reasons[200], found.links[200]) == ("terminate", 150)
    assert [each["type"] for each in found.said_of(200)] == ["exception", "end_reason", "link"]
    assert 299 not in found.attributes
    assert found.attributes.get(299) is None
    assert found.damaged == 0


def test_what_is_added_later_is_read_later(path: Path) -> None:
    """Also what was noted since: each row once, in the order of the lines."""
    found = read(path, line("exception", row=500), line("exception", row=400))
    assert found.exceptions.since(0) == [500, 400]
    before = found.read_bytes
    with path.open("ab") as file:
        file.write(line("exception", row=450) + b'{"type": "exception", "row"')
    found.poll()
    assert found.exceptions.since(before) == [450]
    assert found.damaged == 0


DAMAGED = {
    "too deep": b"[" * 100_000,
    "a number without end": b'{"type": "end", "time": ' + b"9" * 5000 + b"}",
    "not a text": b"\xff\xfe",
    "no object": b"[1, 2]",
    "a row beyond all rows": line("exception", row=MAX_ROW + 1).strip(),
    "a row that is true": line("exception", row=True).strip(),
    "a name's id beyond all ids": line("name", id=2**16, kind="event", name="n").strip(),
    "a lane's id below all ids": line("lane", id=-1, engine="e", thread="t").strip(),
    "attributes that are none": line("attributes", row=200, attributes=[1]).strip(),
    "thinned to every word": line("thin", every="often", time=1).strip(),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_line_is_counted_and_left_out(path: Path, what: str) -> None:
    """What stands before it and after it is read."""
    found = read(
        path, line("end_reason", row=200, reason="a"), DAMAGED[what] + b"\n",
        line("end_reason", row=201, reason="b"),
    )  # fmt: skip
    assert found.damaged == 1
    assert dict(found.reasons) == {200: "a", 201: "b"}


@pytest.mark.parametrize("length", [50, 64, 65, 1000])
def test_a_line_that_is_too_long_is_one_damaged_line(
    path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it lies across the pieces that are read."""
    monkeypatch.setattr(meta, "PIECE_BYTES", 16)
    monkeypatch.setattr(meta, "LONGEST_LINE", 64)
    found = read(
        path, line("stopped", reason="a"), b"x" * length + b"\n", line("end", time=7)
    )  # fmt: skip
    assert (found.stopped, found.ended, found.damaged) == ("a", 7, 1)


def test_notes_take_little_memory(path: Path) -> None:
    """A hundred thousand take no more than 24 bytes each, and their lines are not held."""
    lines = [line("attributes", row=200 + i, attributes={"n": i}) for i in range(100_000)]
    path.write_bytes(b"".join(lines))
    del lines
    tracemalloc.start()
    found = Meta(path)
    found.poll()
    assert found.attributes[50_200] == {"n": 50_000}
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 24 * 100_000


def test_a_file_that_is_no_file_is_not_waited_for(tmp_path: Path, path: Path) -> None:
    """A pipe has no end, and nobody writes to it."""
    os.mkfifo(path)
    found = Meta(path)
    found.poll()
    assert not found.names
    rows = tmp_path / "rank0.1.rows"
    os.mkfifo(rows)
    with pytest.raises(JournalError, match=r"rank0\.1\.rows: is no regular file"):
        JournalReader(rows)


def test_what_was_said_stays_readable_when_the_file_is_gone(path: Path) -> None:
    """Its reader keeps it open; of one that was cut short, what is missing is missing."""
    found = read(
        path, line("end_reason", row=200, reason="a"), line("end_reason", row=201, reason="b")
    )
    with path.open("r+b") as file:
        file.truncate(len(line("end_reason", row=200, reason="a")))
    path.unlink()
    assert (found.reasons.get(200), found.reasons.get(201)) == ("a", None)


def test_what_is_said_of_a_devices_clock_and_of_phases_without_time(path: Path) -> None:
    """Anchors in their order; of each lane and reason how many, all threads together."""
    found = read(
        path,
        line("anchor", time=10, lane=0, error=3),
        line("anchor", time=20, lane=1, error=4),
        line("untimed", lane=0, reason="a graph is captured", count=3),
        line("untimed", lane=0, reason="a graph is captured", count=4),
        line("untimed", lane=1, reason="a graph is captured", count=5),
    )
    assert found.anchors == [meta.Anchor(10, 0, 3), meta.Anchor(20, 1, 4)]
    assert found.untimed == {(0, "a graph is captured"): 7, (1, "a graph is captured"): 5}
    assert found.damaged == 0


def test_of_endless_lines_about_devices_the_last_ones_are_kept(path: Path) -> None:
    """Damaged ones are counted."""
    many = 3 * meta.MOST_TIMED
    found = read(
        path,
        *(line("anchor", time=at, lane=0, error=1) for at in range(many)),
        *(line("untimed", lane=0, reason=f"{at}", count=1) for at in range(many)),
        line("anchor", time=1, lane=256, error=1),
        line("anchor", time=1, lane=0, error=-1),
        line("anchor", time=1, lane=0),
        line("untimed", lane=0, reason="x", count="many"),
        line("untimed", lane=True, reason="x", count=1),
    )
    assert found.damaged == 5
    assert meta.MOST_TIMED <= len(found.anchors) <= 2 * meta.MOST_TIMED
    assert found.anchors[-1].time_ns == many - 1
    assert meta.MOST_REASONS <= len(found.untimed) <= 2 * meta.MOST_REASONS
    assert (0, f"{many - 1}") in found.untimed
