"""What may go wrong with the recording of data, in any process: the training does not notice."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import Compose
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from firetrace import TraceHandler
from firetrace.tracer.data import files, pipeline
from firetrace.tracer.data.pipeline import Pipeline
from firetrace.tracer.journal import Flag
from tests.support.pipelines import (
    Crop,
    Fails,
    Load,
    Map,
    Program,
    engine,
    read_data,
    record,
)

# Failures of the program


def run_into_failure(engine: Engine, log: Path, workers: int) -> None:
    chain = Compose([Load(log), Fails(log), Crop(log)])
    engine.run(DataLoader(Map(8, chain), 2, num_workers=workers), max_epochs=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_that_raises(workers: int, tmp_path: Path) -> None:
    """The same exception comes out, and what it passed through is marked."""
    if not workers:
        recorded = record(lambda p: run_into_failure(p.engine(), p.log, 0), raises="RuntimeError")
        (data,) = recorded.data
    else:  # a worker's exception is a text, which has our frames as well
        stories, handler, traced = [], TraceHandler(tmp_path / "run", data=True), engine()
        handler.attach(traced)
        for each in (engine(), traced):
            with pytest.raises(RuntimeError) as caught:
                run_into_failure(each, tmp_path / "log", workers)
            lines = str(caught.value).splitlines()
            lines = [line.partition("<")[0] for line in lines]  # objects' addresses
            stories.append([line for line in lines if not line.startswith("  ")])
        assert stories[0] == stories[1]
        handler.close()
        data = read_data(tmp_path / "run" / "rank0.1.data0.rows")
    failed = Counter(
        data.table.name(i).text
        for i in range(len(data.table)) if data.table.rows["flags"][i] & Flag.ERROR
    )  # fmt: skip
    assert failed == Counter(batch=1, sample=1, Compose=1, Fails=1)


class Kills:
    """Kills the worker that makes this sample, once."""

    def __init__(self, mark: Path, signal: int) -> None:
        self.mark, self.signal = mark, signal

    def __call__(self, data: Any) -> Any:
        if data["id"] == 3 and multiprocessing.parent_process() and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.signal)
        return data


@pytest.fixture
def found_by_looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker that is gone is missed when its batch does not come.

    Torch's handler of SIGCHLD raises as well, wherever the program is at that moment.
    """
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", True)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("found_by_looking")
def test_a_worker_that_is_killed() -> None:
    """The program sees the same; the next worker goes on in the file and ends what was open."""

    def scenario(p: Program) -> None:
        chain = Compose([Load(p.log), Kills(p.stage.folder / "mark", signal.SIGKILL), Crop(p.log)])
        loader = DataLoader(Map(8, chain), 2, num_workers=1)
        try:
            p.engine("killed").run(loader)
        except RuntimeError as error:
            p.stage.note(str(error)[:17])
        torch.manual_seed(5)
        p.engine().run(loader, max_epochs=2)

    recorded = record(scenario)
    (data,) = recorded.data
    cut = [i for i in range(len(data.table)) if data.table.rows["flags"][i] & Flag.CUT]
    assert [data.table.name(i).text for i in cut] == ["batch", "sample", "Compose", "Kills"]
    reasons = {data.table.meta.reasons.get(int(data.table.numbers[i])) for i in cut}
    assert reasons == {"process died"}


# Failures of firetrace's own


class Limits:
    """From a sample on, no file of the worker can grow, as on a full disk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: Any) -> Any:
        if data["id"] == 2 and multiprocessing.parent_process() is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))
        return data


def only_ids(samples: list[Any]) -> Any:
    """Torch shares the memory of tensors by files, too, which could not grow."""
    return {"id": [sample["id"] for sample in samples]}


class Late:
    """Called late, so that its name is not known when the disk is full."""

    def __call__(self, data: Any) -> Any:
        return data


class Sometimes:
    """Uses its transform from a sample on."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, data: Any) -> Any:
        return self.transform(data) if data["id"] > 2 else data


@pytest.mark.parametrize("size", [0, 4200, 12_000])
def test_a_worker_without_disk(size: int) -> None:
    """It makes its batches to the end; its journal says why it stopped, later ones keep quiet."""

    def scenario(p: Program) -> None:
        chain = Compose([Limits(size), Sometimes(Late())])
        loader = DataLoader(Map(400, chain), 100, num_workers=1, collate_fn=only_ids)
        p.engine().run(loader, max_epochs=3)

    recorded = record(scenario)
    (data,) = recorded.data
    if size:  # else there was no room to say so
        assert data.table.meta.stopped is not None
        assert len(data.table.meta.passes) == 1


def test_names_that_find_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cannot be written, samples are made."""
    for failing in ("sample", "collate", "transform", "batch"):

        def scenario(p: Program, failing: str = failing) -> None:
            original = pipeline.Pipeline._new_name

            def name(self: Pipeline, kind: str, text: str) -> int:
                if kind == failing:
                    raise OSError("the disk is full")
                return original(self, kind, text)

            with monkeypatch.context() as patch:
                patch.setattr(pipeline.Pipeline, "_new_name", name)
                p.engine().run(DataLoader(Map(8, Compose([Crop(p.log)])), 2))

        (line,) = record(scenario, said=True).said
        assert "it goes on" in line


def test_an_unwritable_directory(tmp_path: Path) -> None:
    """The rank's journal is there, those of data cannot be made: one line a worker says it."""

    def scenario(p: Program) -> None:
        trainer = p.engine()

        def block(engine: Engine) -> None:
            for number in range(8):  # root may write into any directory
                folder = p.stage.folder / "journal" / f"rank0.1.data{number}.rows.new"
                folder.mkdir(parents=True, exist_ok=True)

        trainer.add_event_handler(Events.STARTED, block)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "MOST_FILES", 8)
            trainer.run(DataLoader(Map(8, Compose([Crop(p.log)])), 2))

    recorded = record(scenario, said=True)
    assert recorded.data == []
    assert len(recorded.said) == 1
    assert recorded.rank.table.meta.stopped is None


def test_the_budget_thins_batches() -> None:
    """Fewer and fewer batches are recorded, whole; the data is the same."""

    def scenario(p: Program) -> None:
        p.engine().run(DataLoader(Map(600, Compose([Load(p.log), Crop(p.log)])), 2), max_epochs=2)

    recorded = record(scenario, max_bytes=2**16)
    (data,) = recorded.data
    count = recorded.counts("batch")["batch"]
    assert 20 < count < 400
    assert data.table.meta.sparsest > 1
    assert recorded.counts()["Crop"] == 2 * count
    assert recorded.counts("sample")["sample"] == 2 * count


def test_every_nth_batch() -> None:
    """As of the steps."""

    def scenario(p: Program) -> None:
        p.engine().run(DataLoader(Map(16, Compose([Crop(p.log)])), 2, num_workers=1))

    recorded = record(scenario, every=4)
    assert recorded.counts("batch") == Counter(batch=2)
    assert recorded.counts("sample") == Counter(sample=4)
