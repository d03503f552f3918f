"""Handing on a part of a run: what is kept is right and whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.exporters.selection import Selection, Selector
from firetrace.tracer import stream
from firetrace.tracer.stream import blocks
from firetrace.tracer.table import Table, read_table
from firetrace.tui.cli import main
from tests.support.perfetto import PerfettoTrace
from tests.support.random_journal import RandomJournal
from tests.support.recordings import recorded
from tests.support.simulated import MadeTime

MS = 10**6


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three epochs of 20 steps, each validated; steps 7 and 33 are slow, 12 and 45 fail inside."""
    time = MadeTime(monkeypatch)

    def update(engine: Engine, batch: Any) -> None:
        if engine.state.iteration in (7, 33):
            time.pass_by(50 * MS)

    def fails(engine: Engine) -> None:
        with TRACE.span("inner"):
            if engine.state.iteration in (12, 45):
                raise ValueError("swallowed")

    trainer, evaluator = Engine(update), Engine(lambda engine, batch: None)
    TRACE = handler = TraceHandler()
    handler.attach(trainer)
    handler.attach(evaluator)

    @trainer.on(Events.ITERATION_COMPLETED)
    def try_it(engine: Engine) -> None:
        try:
            fails(engine)
        except ValueError:
            return

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        evaluator.run(range(5))

    trainer.run(range(20), max_epochs=3)
    return recorded(handler).path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)


def kept(journal: Path, **what: Any) -> list[Table]:
    with Selector(journal, Selection(**what)) as selector:
        return list(selector.select(blocks(journal)))


def names(found: Iterable[Table], kind: str) -> list[tuple[str, int]]:
    """Engine and iteration (of an epoch, its number) of each span of a kind."""
    field = "epoch" if kind == "epoch" else "iteration"
    return [
        (block.lane(at).engine, int(block.rows[field][at]))
        for block in found for at in block.of_kind(kind).tolist()
    ]  # fmt: skip


def assert_whole(found: list[Table]) -> None:
    numbers = {0, *(number for block in found for number in block.numbers.tolist())}
    for block in found:
        assert set(block.rows["parent"].tolist()) <= numbers


def test_epochs(journal: Path) -> None:
    """An epoch comes with its steps and with the validation that ran in it; so does the run."""
    found = kept(journal, from_epoch=2, to_epoch=2)
    trainer = found[0].lane(0).engine
    assert [number for engine, number in names(found, "epoch") if engine == trainer] == [2]
    assert len(names(found, "step")) == 25
    assert len(names(found, "run")) == 2
    assert_whole(found)
    assert len(names(kept(journal, from_epoch=2), "step")) == 50
    assert len(names(kept(journal, to_epoch=1), "step")) == 25


def test_slow_steps(journal: Path) -> None:
    """Whole steps that took long, and what encloses them."""
    found = kept(journal, slower_than_ns=40 * MS)
    assert [number for _, number in names(found, "step")] == [7, 33]
    assert [number for _, number in names(found, "iteration")] == [7, 33]
    assert_whole(found)
    whole = read_table(journal)
    steps = whole.of_kind("step")
    slow = whole.numbers[steps[whole.durations(steps) >= 40 * MS]]
    events = sum(int(np.count_nonzero(np.isin(block.rows["parent"], slow))) for block in found)
    assert events == np.count_nonzero(np.isin(whole.rows["parent"], slow))


def test_failed_steps(journal: Path) -> None:
    """Also those whose handlers have swallowed what was raised."""
    found = kept(journal, errors=True)
    assert [number for _, number in names(found, "step")] == [12, 45]
    assert_whole(found)


def test_a_time(journal: Path) -> None:
    """Steps that lie in a time, wholly, though only their edges do, with what encloses them."""
    whole = read_table(journal)
    steps = [at for at in whole.of_kind("step").tolist() if whole.rows["lane"][at] == 0]
    first, last = whole.rows[steps[4]], whole.rows[steps[8]]
    found = kept(journal, from_ns=int(first["end"]) - 1, to_ns=int(last["start"]) + 1)
    trainer = found[0].lane(0).engine
    assert [n for engine, n in names(found, "step") if engine == trainer] == [5, 6, 7, 8, 9]
    assert [n for engine, n in names(found, "epoch") if engine == trainer] == [1]
    assert_whole(found)
    inside = np.isin(whole.rows["parent"], whole.numbers[steps[4:9]])
    mine = np.concatenate([block.numbers for block in found])
    assert np.isin(whole.numbers[inside], mine).all()


def test_conditions_add_up(journal: Path) -> None:
    """Several conditions keep what meets all of them; none keeps everything."""
    assert [n for _, n in names(kept(journal, errors=True, from_epoch=2), "step")] == [45]
    assert sum(len(block) for block in kept(journal)) == len(read_table(journal))


def test_perfetto_gets_the_part(journal: Path, tmp_path: Path) -> None:
    """``firetrace export --to chrome`` with a range: only its slices, and no import error."""
    path = tmp_path / "part.json"
    words = ["--slower-than", "40ms", "--to-epoch", "1", str(journal)]
    assert main(["export", "--to", "chrome", "-o", str(path), *words]) == 0
    with PerfettoTrace(path) as trace:
        steps = trace.sql(
            "select extract_arg(arg_set_id, 'args.iteration') as n from slice where name = 'step'"
        )
    assert [row["n"] for row in steps] == [7]


def test_scalars_go_with_their_spans(tmp_path: Path) -> None:
    """Also where a span is in another block than its scalar."""
    random = RandomJournal(tmp_path, 2)
    random.write(4000)
    random.close()
    spans = set(read_table(random.path).numbers.tolist())
    for what in ({"to_epoch": 0}, {"errors": True}, {"slower_than_ns": 10**12}, {"to_epoch": 2}):
        found = kept(random.path, **what)
        numbers = {number for block in found for number in block.numbers.tolist()}
        parents = {each for block in found for each in block.scalars["parent"].tolist()}
        assert parents & spans <= numbers  # others are on guesses that proved wrong
        if what != {"to_epoch": 2}:
            assert not names(found, "step")


def test_an_empty_part(journal: Path) -> None:
    """An empty part is no error: the run alone is left."""
    found = kept(journal, from_epoch=99)
    assert names(found, "step") == []
    assert len(names(found, "run")) == 1
