"""Data is recorded beside others: batches in batches, recordings, children, other programs."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.transforms import Compose
from torch.utils.data import DataLoader

from firetrace import TraceHandler
from firetrace.tracer.run import data_journals, open_run
from tests.support.pipelines import (
    Crop,
    Load,
    Map,
    Program,
    engine,
    read_data,
    record,
)

ROOT = Path(__file__).resolve().parent.parent


def test_a_batch_within_a_batch() -> None:
    """A data set that iterates over a loader itself: the outer batch goes on after it."""

    def scenario(p: Program) -> None:
        chain = Compose([Crop(p.log)])

        def with_more(item: Any) -> Any:
            for _ in DataLoader(Map(2, chain), 1):
                pass
            return chain(item)

        p.engine().run(DataLoader(Map(4, with_more), 2))

    recorded = record(scenario)
    (data,) = recorded.data
    rows, table = data.table.rows, data.table
    assert 0 not in {int(rows["epoch"][i]) for i in range(len(table))}
    assert recorded.counts("batch") == Counter(batch=2 + 4 * 2)


def test_what_is_called_outside(own_folders: Path) -> None:
    """A transform of another object than a data set's is no span, also in its place in memory."""
    chain, seen = Compose([Load(own_folders.parent / "log")]), []

    def step(engine: Engine, batch: Any) -> None:
        for _ in range(50):  # ids are used again
            Load(own_folders.parent / "log")({"id": 0})
        seen.append(batch)

    trainer = Engine(step)
    handler = TraceHandler(data=True)
    handler.attach(trainer)
    for _ in range(5):
        trainer.run(DataLoader(Map(2, Load(own_folders.parent / "log")), 2), max_epochs=1)
        trainer.run(DataLoader(Map(2, chain), 2), max_epochs=1)
    handler.close()
    assert handler.directory is not None
    (path,) = data_journals(open_run(handler.directory).main)
    table = read_data(path).table
    assert sum(table.name(i).text == "Load" for i in range(len(table))) == 20


def test_two_recordings(tmp_path: Path) -> None:
    """The first one has the data; when both are over, torch and the classes are as before."""
    from torch.utils.data import _DatasetKind
    from torch.utils.data._utils import worker

    before = worker._worker_loop, _DatasetKind.create_fetcher, vars(Map)["__getitem__"]
    handlers = [TraceHandler(tmp_path / name, data=True) for name in "ab"]
    engines = [engine(), engine()]
    for handler, each in zip(handlers, engines, strict=True):
        handler.attach(each)
    loader = DataLoader(Map(4, Load(tmp_path / "log")), 2, num_workers=1)
    gate = threading.Event()
    second = threading.Thread(target=engines[1].run, args=(loader,))
    engines[0].add_event_handler(Events.STARTED, second.start)
    engines[1].add_event_handler(Events.COMPLETED, lambda: gate.wait(30))
    engines[0].run(loader)  # ends while the other one runs
    gate.set()
    second.join(30)
    for handler in handlers:
        handler.close()
    assert len([*(tmp_path / "a").glob("*data*.rows")]) in (1, 2)
    assert not [*(tmp_path / "b").glob("*data*.rows")]
    assert before == (worker._worker_loop, _DatasetKind.create_fetcher, vars(Map)["__getitem__"])


def test_children_of_the_program_s_own(tmp_path: Path) -> None:
    """A forked child's loaders are not its parent's; its own recording has them, in its files."""

    def child(record_too: bool, exit: Any) -> None:
        loader = DataLoader(Map(4, Load(tmp_path / "log")), 2, num_workers=1)
        assert len([*loader]) == 2  # without an engine: nobody's
        if record_too:
            other = engine()
            own = TraceHandler(tmp_path / "run", data=True)
            own.attach(other)
            other.run(loader)
            own.close()
        exit.set()

    context = multiprocessing.get_context("fork")
    trainer = engine()
    handler = TraceHandler(tmp_path / "run", data=True)
    handler.attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED(once=1))
    def fork() -> None:
        for record_too in (False, True):
            done = context.Event()
            process = context.Process(target=child, args=(record_too, done), daemon=False)
            process.start()
            process.join(60)
            assert done.is_set()
            assert process.exitcode == 0

    trainer.run(DataLoader(Map(4, Load(tmp_path / "log")), 2))
    handler.close()
    of = {path.name: read_data(path).table for path in (tmp_path / "run").glob("*.data*.rows")}
    assert sorted(of) == ["rank0.1.data0.rows", "rank0.2.data0.rows"]
    for table in of.values():
        assert len(table.of_kind("batch")) == 2
        assert len(table.meta.passes) == 1


def test_closed_while_workers_live(tmp_path: Path) -> None:
    """In the midst of an epoch: they go on, and so does the training."""
    trainer, handler = engine(), TraceHandler(tmp_path / "run", data=True)
    handler.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), handler.close)
    for workers in (2, 0):
        loader = DataLoader(Map(16, Load(tmp_path / "log")), 2, num_workers=workers)
        assert trainer.run(loader, max_epochs=2).iteration == 16
    for path in (tmp_path / "run").glob("*.rows"):
        read_data(path)
    lines = (tmp_path / "run" / "rank0.1.meta.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["type"] == "loading" for line in lines) == 1


PROGRAM = """\
import sys
from pathlib import Path
import torch
from ignite.engine import Engine
from torch.utils.data import DataLoader
from tests.support.light import Light, Mark

def study(log, workers):
    torch.manual_seed(3)
    seen = []
    engine = Engine(lambda engine, batch: seen.append(str(batch)))
    engine.run(DataLoader(Light(6, Mark(log)), 2, shuffle=True, num_workers=workers), max_epochs=2)
    print(seen, torch.rand(2).tolist(), flush=True)

if __name__ == "__main__":
    log = Path(sys.argv[1])
    study(log, 1)
    import multiprocessing
    child = multiprocessing.get_context("spawn").Process(target=study, args=(log, 0))
    child.start()
    child.join(60)
    print(child.exitcode)
"""


def test_an_unchanged_program(tmp_path: Path) -> None:
    """``firetrace run --data``: its data is recorded, and that of a child that it spawns."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    words = [str(script), str(tmp_path / "log")]
    how: dict[str, Any] = {
        "capture_output": True, "text": True, "timeout": 100,
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
    }  # fmt: skip
    theirs = subprocess.run([sys.executable, *words], **how)
    command = [sys.executable, "-m", "firetrace.tui.cli", "run", "-q", "--data", "-o",
               str(tmp_path / "run")]  # fmt: skip
    ours = subprocess.run([*command, *words], **how)
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr)
    assert ours.returncode == theirs.returncode == 0
    found = {path.name: read_data(path).table for path in (tmp_path / "run").glob("*.data*.rows")}
    assert sorted(found) == ["rank0.1.data0.rows", "rank0.2.data0.rows"]
    for table in found.values():
        names = Counter(table.name(i).text for i in range(len(table)))
        assert names == Counter(batch=6, sample=12, Mark=12, default_collate=6)
