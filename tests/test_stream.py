"""Reading a journal block by block, going on from a position, and splitting it into traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from firetrace.exporters.spans import journal_spans, readable_spans
from firetrace.tracer import stream as streams
from firetrace.tracer.ids import Row
from firetrace.tracer.reader import Position
from firetrace.tracer.stream import Stream, blocks
from firetrace.tracer.table import Table, read_table
from firetrace.tracer.traces import (
    MOST_SPANS,
    SPLITS,
    Lineage,
    chosen_split,
    trace_of,
    traces_of,
)
from firetrace.tracer.writer import JournalWriter
from tests.support.many import Journal
from tests.support.random_journal import RandomJournal

SEEDS = pytest.mark.parametrize("seed", range(4))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK_WINDOWS", 2)


@pytest.fixture
def journal(tmp_path: Path, seed: int) -> Iterator[RandomJournal]:
    made = RandomJournal(tmp_path, seed)
    yield made
    made.close()


def numbers_of(found: Iterable[Table]) -> list[int]:
    return [number for block in found for number in block.numbers.tolist()]


@SEEDS
def test_blocks_together_are_the_table(journal: RandomJournal) -> None:
    """Rows, parents and scalars are those of the table that is read at once, parents first."""
    journal.write(6000)
    whole, found = read_table(journal.path), list(blocks(journal.path))
    assert len(found) > 3
    order = np.argsort(np.concatenate([block.numbers for block in found]))
    rows = np.concatenate([block.rows for block in found])[order]
    assert np.array_equal(rows, whole.rows)
    assert sum(len(block.scalars) for block in found) == len(whole.scalars)
    seen = {0}
    for block in found:
        for number, parent in zip(
            block.numbers.tolist(), block.rows["parent"].tolist(), strict=True
        ):
            assert parent in seen
            seen.add(number)


@SEEDS
def test_blocks_of_a_growing_journal_are_of_one_moment(
    journal: RandomJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens after the first block was read shows in none."""
    journal.write(3000)
    journal.now = journal.writer.now_ns() + 10**9  # what comes now is not past
    before = read_table(journal.path)
    found = []
    for block in blocks(journal.path):
        found.append(block)
        journal.write(400)
    rows = np.concatenate([block.rows for block in found])
    numbers = np.concatenate([block.numbers for block in found])
    rows, numbers = rows[np.argsort(numbers)], np.sort(numbers)
    assert np.array_equal(numbers, before.numbers[np.isin(before.numbers, numbers)])
    voided = np.setdiff1d(before.numbers, numbers)  # a guess that proved wrong meanwhile
    assert set(voided.tolist()) <= set(before.numbers[before.rows["end"] == 0].tolist())
    assert np.array_equal(rows["end"], before.rows["end"][np.isin(before.numbers, numbers)])


@SEEDS
def test_a_span_comes_once_when_it_has_ended(journal: RandomJournal) -> None:
    """However the writing and the reading take turns; with it come all of its scalars."""
    found: list[int] = []
    scalars: Counter[int] = Counter()
    with Stream(journal.path) as stream:
        for _ in range(20):
            journal.write(journal.random.randrange(900))
            for block in stream.ended():
                found += block.numbers.tolist()
                here = Counter(block.scalars["parent"].tolist())
                assert all(
                    here[number] == journal.scalars.get(number, 0)
                    for number in block.numbers.tolist()
                )
                scalars += here
        assert sorted(found) == sorted(journal.ended)
        rest = stream.rest()
        assert set(rest.numbers.tolist()) == journal.open
    assert len(found) == len(set(found))


@SEEDS
def test_another_stream_goes_on_after_any_span(journal: RandomJournal, seed: int) -> None:
    """From the position after a span, a new stream gives what the first had not given, once."""
    journal.write(3000)
    given: list[int] = []
    positions: list[tuple[int, Position]] = []
    with Stream(journal.path) as stream:
        for turn in range(3):
            for block in stream.ended():
                for index, number in enumerate(block.numbers.tolist()):
                    given.append(number)
                    if index % 97 == seed or index == len(block) - 1:
                        positions.append((len(given), stream.position_after(number)))
                positions.append((len(given), stream.position))
            if turn < 2:
                journal.write(2000)
    for count, position in positions:
        with Stream(journal.path, position) as later:
            rest = numbers_of(later.ended())
        assert sorted(given[:count] + rest) == sorted(journal.ended)


@SEEDS
def test_places_are_the_same_one_by_one(journal: RandomJournal) -> None:
    """Columns and single rows agree, also where a parent is in another block."""
    journal.write(5000)
    whole = read_table(journal.path)
    index = {number: at for at, number in enumerate(whole.numbers.tolist())}

    def look_up(number: int) -> Row:
        row = whole.rows[index[number]]
        return Row(int(row["parent"]), whole.name(index[number]).kind, int(row["epoch"]))

    alone = Lineage(look_up)
    for block in blocks(journal.path):
        places = Lineage(look_up).places(block)
        for split in SPLITS:
            anchors, parts = traces_of(split, block.numbers, places)
            for at, number in enumerate(block.numbers.tolist()):
                place = alone.place(number)
                assert place == tuple(int(column[at]) for column in places)
                assert trace_of(split, number, place) == (anchors[at], parts[at])


@SEEDS
@pytest.mark.parametrize("split", SPLITS)
def test_a_trace_is_whole_and_bounded(journal: RandomJournal, split: str) -> None:
    """A span has its parent in its own trace, or is a root with a link to it; both ways alike."""
    journal.write(9000)
    table = read_table(journal.path)
    spans = {span.context.span_id: span for span in readable_spans(table, split=split)}
    assert Counter(span.context.trace_id for span in spans.values()).most_common(1)[0][1] < (
        MOST_SPANS
    )
    parents = dict(zip(spans, table.rows["parent"].tolist(), strict=True))
    by_number = dict(zip(table.numbers.tolist(), spans.values(), strict=True))
    for id, span in spans.items():
        expected = by_number.get(parents[id])
        if span.parent is not None:
            assert expected
            assert span.parent == expected.context
            assert span.parent.trace_id == span.context.trace_id
        else:
            links = [link.context for link in span.links]
            assert links == ([expected.context] if expected else [])
            assert (span.attributes or {})["ignite.run.id"] == "r"
    streamed = {span.context.span_id: span.to_json() for span in journal_spans(table.path, split)}
    assert streamed == {id: span.to_json() for id, span in spans.items()}


def test_what_lies_outside_of_steps_is_bounded_too(tmp_path: Path) -> None:
    """Many epochs with much at their ends, and a handler that makes spans without end."""
    for name, epochs, beside in (("many", 200, 90), ("one", 1, 25_000)):
        writer = JournalWriter(tmp_path / name, {}, min_free_bytes=0)
        pen, lane = writer.pen(), writer.lane("Engine", 1)
        label = {kind: writer.name(kind, kind) for kind in ("run", "epoch", "step", "span")}
        run = pen.open(0, label["run"], lane, 0, 0, 0, 0, 1000)
        for number in range(1, epochs + 1):
            epoch = pen.open(run, label["epoch"], lane, 0, number, 0, 0, 1000)
            step = pen.open(epoch, label["step"], lane, 0, number, 1, 0, 1000)
            rows = [step, *(
                pen.open(epoch, label["span"], lane, 0, number, 1, 0, 1000) for _ in range(beside)
            ), epoch]  # fmt: skip
            for row in rows:
                pen.close(row, 2000, 0)
        pen.close(run, 2000, 0)
        writer.close()
        table = read_table(writer.path)
        sizes = Counter(span.context.trace_id for span in readable_spans(table, split="step"))
        assert sizes.most_common(1)[0][1] < MOST_SPANS
        assert sum(sizes.values()) == len(table)


@pytest.mark.parametrize(
    ("plan", "split"),
    [
        ((2, 40, None), "run"), ((None, None, 80), "run"), ((20, 90, None), "epoch"),
        ((20, 5000, None), "step"), ((None, None, None), "step"), ((3, None, None), "step"),
        ((None, 50, None), "epoch"), ((1, None, 10_000), "step"),
    ],
)  # fmt: skip
def test_auto_depends_on_how_far_a_run_means_to_go(
    plan: tuple[int | None, int | None, int | None], split: str
) -> None:
    """One trace if it fits, else one an epoch if that fits, else one a step."""
    assert chosen_split(*plan) == split


def test_a_journal_whose_writer_is_gone_is_read_to_its_end(tmp_path: Path) -> None:
    """Also where its host's clock was ahead of ours: nothing in it will change any more."""
    journal = Journal(tmp_path / "rank0.1", {}, wrong_ns=10**13, boot_id="elsewhere")
    lane = journal.lane("Trainer", 1)
    run = journal.span(0, "run", "run", lane, (0, 0), journal.begun, journal.begun + 10**9)
    journal.span(run, "epoch", "epoch", lane, (1, 0), journal.begun, journal.begun + 10**9)
    journal.close()
    with Stream(journal.path) as stream:
        assert sum(len(block) for block in stream.ended()) == 2
