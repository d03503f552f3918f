"""Journals that are damaged: everything that can be looked at is, without an error or an end."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from firetrace.tracer.journal import FIRST_ROW, HEADER_BYTES, ROW_BYTES, ROW_DTYPE, Flag, Rows
from firetrace.tracer.table import read_table
from firetrace.tui.feed import Feed, Snapshot
from firetrace.tui.model.heat import Heat
from firetrace.tui.model.report import read_tree, report
from firetrace.tui.model.search import Matches
from firetrace.tui.model.tree import Tree
from firetrace.tui.text import print_report
from tests.support.made import IDS, THEN, MadeTraining, Plan, meta_lines, write_rows
from tests.support.truth import children, shape, walk
from tests.support.wild_journal import WildJournal

ABSURD = (0, 1, -1, 2**63 - 1, -(2**63), THEN, 2**62)
EXPLORE = settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def look_at_everything(path: Path) -> Tree:
    """All that the views ask for, of every span; each is there once."""
    tree = read_tree(path)
    found = report(tree)
    json.dumps(found.as_json())
    rows = (path.stat().st_size - HEADER_BYTES) // ROW_BYTES
    everything = []
    for number in walk(tree):
        everything.append(number)
        assert len(everything) <= rows
        span = tree.span(number)
        assert span is not None
        tree.label(span)
        tree.origin(number, tree.frame(number))
        tree.ancestors(number)
    assert len(set(everything)) == len(everything)
    for least in (0, 1, 7):
        lines = tree.lines({*everything, *range(300)}, least)
        assert [lines.at(line)[0] for line in range(len(lines))] == list(walk(tree, least))
    newest = tree.newest()
    assert newest is None or tree.span(newest[0]) is not None
    tree.errors()
    for steps in tree.digest.steps.values():
        Heat(steps).cells(20)
    for pattern in ("a", "step", "epoch 1", "x"):
        matches = Matches(tree, pattern)
        numbers = [matches.at(line)[0] for line in range(len(matches))]
        assert numbers == sorted(set(numbers))
        assert [matches.index(number) for number in numbers] == list(range(len(numbers)))
    return tree


class Damage:
    """Ways in which rows go wrong."""

    def __init__(self, seed: int, open_too: bool = True) -> None:
        self.random = random.Random(seed)
        self._open_too = open_too

    def bytes(self, data: bytearray) -> None:
        for _ in range(200):
            data[self.random.randrange(HEADER_BYTES, len(data))] = self.random.randrange(256)

    def _rows(self, data: bytearray, column: str, values: tuple[int, ...]) -> None:
        rows = np.frombuffer(data, ROW_DTYPE, offset=HEADER_BYTES)
        for _ in range(100):
            at = self.random.randrange(len(rows))
            if rows["end"][at] or (rows["start"][at] and self._open_too):
                rows[column][at] = self.random.choice(values)

    def parents(self, data: bytearray) -> None:
        self._rows(data, "parent", (1, 127, 128, 500, 900, 2000, 2**32 - 1))

    def own_parents(self, data: bytearray) -> None:
        rows = np.frombuffer(data, ROW_DTYPE, offset=HEADER_BYTES)
        for at in self.random.sample(range(len(rows)), 100):
            if rows["end"][at] or self._open_too:
                rows["parent"][at] = FIRST_ROW + at + self.random.choice((0, 1))

    def starts(self, data: bytearray) -> None:
        self._rows(data, "start", ABSURD)

    def ends(self, data: bytearray) -> None:
        self._rows(data, "end", ABSURD[not self._open_too :])

    def names(self, data: bytearray) -> None:
        self._rows(data, "name", (0, 1, 2, 3, 4, 5, 6, 999, 2**16 - 1))

    def lanes(self, data: bytearray) -> None:
        self._rows(data, "lane", (0, 1, 2, 77, 255))

    def flags(self, data: bytearray) -> None:
        self._rows(data, "flags", tuple(range(256)))

    def counts(self, data: bytearray) -> None:
        self._rows(data, "epoch", (0, 1, 2**32 - 1))
        self._rows(data, "iteration", (0, 1, 2**32 - 1))

    def cut(self, data: bytearray) -> None:
        del data[self.random.randrange(HEADER_BYTES, len(data)) :]

    def zeros(self, data: bytearray) -> None:
        begin = self.random.randrange(HEADER_BYTES, len(data))
        end = min(len(data), begin + 9000)
        data[begin:end] = bytes(end - begin)


KINDS = [name for name in vars(Damage) if not name.startswith("_")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_rows_are_no_error(tmp_path: Path, kind: str, seed: int) -> None:
    """Whatever is wrong with some rows, the others are shown, each once, without a warning."""
    journal = WildJournal(tmp_path, seed)
    journal.write(2500)
    journal.end()
    data = bytearray(journal.path.read_bytes())
    getattr(Damage(seed), kind)(data)
    journal.path.write_bytes(data)
    print_report(report(look_at_everything(journal.path)))
    feed = Feed(str(journal.path))
    assert isinstance(feed.poll(), Snapshot)
    feed.close()


@pytest.mark.parametrize("kind", ["parents", "own_parents", "flags", "ends"])
def test_what_is_left_of_damaged_rows_hangs_where_the_table_has_it(
    tmp_path: Path, kind: str
) -> None:
    """A span inside of one that makes no sense is not lost: it is its grandparent's, or a root."""
    journal = WildJournal(tmp_path, 1)
    journal.write(2500)
    journal.close_guesses()
    journal.end()
    data = bytearray(journal.path.read_bytes())
    getattr(Damage(5, open_too=False), kind)(data)
    journal.path.write_bytes(data)
    table = read_table(journal.path)
    expected, known = children(table), set(table.numbers.tolist())
    for number in expected.keys() - known - {0}:  # there is no such row
        expected[0] = sorted(expected[0] + expected.pop(number))
    assert shape(read_tree(journal.path)) == expected


@st.composite
def rows_of_anything(draw: st.DrawFn) -> Rows:
    """A few rows that mostly make sense."""
    count = draw(st.integers(1, 12))
    rows = np.zeros(count, ROW_DTYPE)
    times = st.one_of(st.integers(THEN, THEN + 100), st.sampled_from(ABSURD))
    for at in range(count):
        rows[at] = (
            draw(st.one_of(st.integers(0, FIRST_ROW + count), st.just(0),
                           st.integers(FIRST_ROW, FIRST_ROW + at))),
            draw(st.integers(0, len(IDS))),
            draw(st.sampled_from((0, 0, 0, 1, 200))),
            draw(st.sampled_from((0, 0, 0, 1, 2, 3, 4, 8, 16, 24, 128, 255))),
            draw(st.integers(0, 3)),
            draw(st.integers(0, 5)),
            draw(times),
            draw(times),
        )  # fmt: skip
    return rows


@pytest.mark.filterwarnings("error")
@given(rows=rows_of_anything())
@EXPLORE
def test_any_few_rows_are_no_error(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> None:
    """The smallest journals that could trip anything."""
    path = tmp_path_factory.mktemp("rows") / "rank0.1.rows"
    look_at_everything(write_rows(path, rows))


LINES: list[Any] = [
    None, 5, [], "text", {}, {"type": None}, {"type": ["a"]}, {"type": "name"},
    {"type": "name", "id": "x", "kind": "step", "name": "a"},
    {"type": "name", "id": -1, "kind": "no kind", "name": None},
    {"type": "name", "id": 10**9, "kind": ["step"], "name": {}},
    {"type": "lane", "id": 0, "engine": None, "thread": [], "thread_id": "x"},
    {"type": "exception", "row": 130}, {"type": "exception", "row": None},
    {"type": "exception", "row": 131, "exception.type": None, "exception.message": ["x"] * 999},
    {"type": "end_reason", "row": 129, "reason": {}}, {"type": "link", "row": 1, "to": "x"},
    {"type": "thin", "every": None}, {"type": "thin", "every": "x"}, {"type": "thin"},
    {"type": "thin", "every": 1e300}, {"type": "stopped"}, {"type": "stopped", "reason": None},
    {"type": "end", "time": "x"}, {"type": "process", "resource": 7},
    {"type": "process", "resource": {"ignite.run.id": ["x"]}}, {"type": "traces", "split": []},
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("line", LINES, ids=lambda line: json.dumps(line)[:40])
def test_a_line_of_the_meta_file_that_makes_no_sense_is_no_error(tmp_path: Path, line: Any) -> None:
    """It is left out, or shown as what it is; the lines around it count."""
    rows = np.zeros(4, ROW_DTYPE)
    rows["start"], rows["end"] = THEN + np.arange(4), THEN + 10
    rows["name"] = [IDS["run"], IDS["epoch"], IDS["step"], IDS["phase"]]
    rows["parent"][1:] = FIRST_ROW + np.arange(3)
    path = write_rows(tmp_path / "rank0.1.rows", rows, [*meta_lines(), line, *meta_lines()])
    assert len(list(walk(look_at_everything(path)))) == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("field", ["max_epochs", "epoch_length", "max_iters"])
@pytest.mark.parametrize(
    "value", [None, 0, -3, True, 1.5, "x", [], 1, 10**12, 2**70, 10**400, float("nan"), 1e308]
)
def test_a_plan_that_makes_no_sense_is_no_error(tmp_path: Path, field: str, value: Any) -> None:
    """How far a run means to go may be anything; what is left is shown as a share of 0 to 1."""
    training = MadeTraining(tmp_path, Plan(epochs=2, steps=5))
    plan = {"max_epochs": 2, "epoch_length": 5, "max_iters": None, field: value}
    training.until(1, 5)
    training.writer.note("run", row=FIRST_ROW, **plan)
    for _ in range(4):
        found = report(read_tree(training.path)).progress
        assert found.fraction is None or 0 <= found.fraction <= 1
        assert found.eta_ns is None or found.eta_ns >= 0
        print_report(report(read_tree(training.path)))
        next(iter(training))
    training.writer.close()


@pytest.mark.filterwarnings("error")
@example(end=2**63 - 1)
@given(end=st.integers(THEN, 2**63 - 1))
@EXPLORE
def test_a_step_without_end_in_sight_is_no_error(
    tmp_path_factory: pytest.TempPathFactory, end: int
) -> None:
    """Two steps, of which one ends in another century."""
    rows = np.zeros(4, ROW_DTYPE)
    rows["start"], rows["end"] = THEN, [0, 0, THEN + 5, end]
    rows["name"] = [IDS["run"], IDS["epoch"], IDS["step"], IDS["step"]]
    rows["parent"] = [0, FIRST_ROW, FIRST_ROW + 1, FIRST_ROW + 1]
    look_at_everything(write_rows(tmp_path_factory.mktemp("x") / "rank0.1.rows", rows))


@pytest.mark.filterwarnings("error")
def test_scalars_of_any_bits_are_no_error(tmp_path: Path) -> None:
    """Infinities, NaN and denormals, on spans that are there and on none."""
    values = (float("nan"), float("inf"), -float("inf"), 5e-324, 1.7e308, 1.7e308, -0.0)
    rows = np.zeros(2000, ROW_DTYPE)
    rows["start"], rows["end"] = THEN, THEN + 1
    rows["name"][1:], rows["flags"][1:] = IDS["scalar"], Flag.SCALAR
    rows["parent"][1:1000] = FIRST_ROW
    for at in range(1, 2000):
        (rows["end"][at],) = struct.unpack("<q", struct.pack("<d", values[at % len(values)]))
    (scalar,) = report(look_at_everything(write_rows(tmp_path / "rank0.1.rows", rows))).scalars
    assert scalar.count == 1999


@pytest.mark.parametrize("cut", range(0, 33, 4))
def test_a_file_that_ends_in_the_middle_of_a_row(tmp_path: Path, cut: int) -> None:
    """What is whole is shown."""
    training = MadeTraining(tmp_path, Plan(epochs=1, steps=3)).finish()
    whole = len(read_table(training.path))
    data = training.path.read_bytes()
    training.path.write_bytes(data[: len(data) - cut])
    tree = look_at_everything(training.path)
    assert len(list(walk(tree))) == whole - -(-cut // ROW_BYTES)
