"""What is left on the disk: as many files as there were workers at a time, all of them whole."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events
from monai.transforms import Compose
from torch.utils.data import DataLoader

from firetrace.tracer.data.files import Place, StoppedError, open_journal
from firetrace.tracer.data.pipeline import Pipeline
from firetrace.tracer.lock import take_lock
from firetrace.tracer.table import read_table
from tests.support.pipelines import (
    Crop,
    Map,
    Program,
    read_data,
    record,
)

ROOT = Path(__file__).resolve().parent.parent


def place(folder: Path, **more: Any) -> Place:
    settings: dict[str, Any] = {"max_bytes": 2**24, "min_free_bytes": 0, "mapped": None, "every": 1}
    return Place(folder / "rank0.1", {}, **settings | more)


def one_batch(of: Pipeline) -> None:
    """A batch with nothing in it."""
    id = of.begin_pass(1, 0, 1, "Map")
    begun = of.begin_batch(id, 1, "worker 0")
    assert begun is not None
    track, height, outer = begun
    track.end(height, outer)


def test_no_more_files_than_workers() -> None:
    """Whatever number of epochs, of two loaders in turn."""

    def scenario(p: Program) -> None:
        chain = Compose([Crop(p.log)])
        trainer, evaluator = p.engine("trainer"), p.engine("evaluator")
        loader = DataLoader(Map(4, chain), 2, num_workers=2)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(loader))
        trainer.run(DataLoader(Map(8, chain), 2, num_workers=2), max_epochs=6)

    recorded = record(scenario)
    assert 2 <= len(recorded.data) <= 4
    assert sum(len(each.table.meta.passes) for each in recorded.data) == 24
    recorded.check_links()
    names = sorted(path.name for path in (recorded.folder).parent.glob("*"))
    assert names == []  # the harness has removed it


def make_and_exit(folder: Path, ready: Any, go: Any) -> None:
    of = Pipeline(place(folder), 0)
    ready.release()
    go.wait()
    for _ in range(3):
        one_batch(of)
    of.close()


def test_processes_race_for_files(tmp_path: Path) -> None:
    """Each gets one of its own; nothing is lost, and the next ones go on in them."""
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        ready, go = context.Semaphore(0), context.Event()
        racing = [context.Process(target=make_and_exit, args=(tmp_path, ready, go))
                  for _ in range(8)]  # fmt: skip
        for each in racing:
            each.start()
        for _ in racing:
            ready.acquire()
        go.set()
        for each in racing:
            each.join(30)
            assert each.exitcode == 0
    tables = [read_data(path).table for path in sorted(tmp_path.glob("*.rows"))]
    assert len(tables) <= 8
    assert sum(len(table.of_kind("batch")) for table in tables) == 3 * 8 * 3


def die_in_a_batch(folder: Path) -> None:
    of = Pipeline(place(folder), 0)
    one_batch(of)
    id = of.begin_pass(1, 0, 1, "Map")
    begun = of.begin_batch(id, 1, "worker 0")
    assert begun is not None
    begun[0].open(of.name("sample", "sample"))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The rows file of a worker that was killed in a sample."""
    child = multiprocessing.get_context("fork").Process(target=die_in_a_batch, args=(tmp_path,))
    child.start()
    child.join(30)
    (rows,) = tmp_path.glob("*.rows")
    return rows


def damage(rows: Path, how: str) -> None:
    meta = rows.with_suffix(".meta.jsonl")
    lines = meta.read_text().splitlines(keepends=True)
    if how == "half a line":
        meta.write_text("".join(lines) + '{"type": "na')
    elif how == "a name is missing":
        named = [i for i, line in enumerate(lines) if '"name"' in line]
        meta.write_text("".join(line for i, line in enumerate(lines) if i != named[0]))
    elif how == "no meta":
        meta.unlink()
    elif how == "a link":
        meta.rename(rows.parent / "elsewhere")
        meta.symlink_to(rows.parent / "elsewhere")
    elif how == "no rows":
        rows.unlink()
    elif how == "another boot":
        data = rows.read_bytes()
        start = data.index(b'"boot_id": "') + 12
        rows.write_bytes(data[:start] + b"x" + data[start + 1 :])
    elif how == "cut short":
        os.truncate(rows, 30)
    else:
        with open(rows, "r+b") as file:
            file.seek(0)
            file.write(b"garbage!")


@pytest.mark.parametrize(
    "how",
    ["half a line", "a name is missing", "no meta", "a link", "no rows", "another boot",
     "cut short", "garbage"],
)  # fmt: skip
def test_a_damaged_predecessor_stays_as_it_is(left: Path, how: str) -> None:
    """The next worker has a journal of its own, and nothing is left open or locked."""
    damage(left, how)
    before = {each.name: each.read_bytes() for each in left.parent.glob("*data0*")}
    descriptors = len(os.listdir("/proc/self/fd"))
    of = Pipeline(place(left.parent), 0)
    one_batch(of)
    of.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert {each.name: each.read_bytes() for each in left.parent.glob("*data0*")} == before
    table = read_data(left.with_name("rank0.1.data1.rows")).table
    assert len(table.of_kind("batch")) == 1


def test_garbage_rows_of_a_predecessor_are_gone_on_with(left: Path) -> None:
    """They are no spans; those that are new are."""
    with open(left, "r+b") as file:
        file.seek(4096 + 32 * 100)
        file.write(os.urandom(32 * 50))
    of = Pipeline(place(left.parent), 0)
    one_batch(of)
    of.close()
    assert read_table(left).meta.ended is not None


def test_where_nothing_can_be_locked(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lives cannot be told there: nobody's file is gone on with."""

    def refuse(fd: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    of = Pipeline(place(left.parent), 0)
    one_batch(of)
    of.close()
    assert sorted(path.name for path in left.parent.glob("*.rows")) == [
        "rank0.1.data0.rows", "rank0.1.data1.rows",
    ]  # fmt: skip


def test_a_live_one_s_file_is_left_alone(tmp_path: Path) -> None:
    """Held by another process."""
    (tmp_path / "rank0.1.data0.lock").touch()
    code = (
        "import sys, time; from pathlib import Path; from firetrace.tracer.lock import take_lock; "
        "take_lock(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "rank0.1.data0.lock"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BlockingIOError):
            take_lock(tmp_path / "rank0.1.data0.lock")
        writer = open_journal(place(tmp_path), {})
        writer.close()
        holder.kill()
    assert writer.path.name == "rank0.1.data1.rows"


def test_who_had_to_stop_is_not_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has been said once; a run of many epochs must not say it with each worker."""
    first = Pipeline(place(tmp_path), 0)
    one_batch(first)
    first.give_up(OSError("the disk is full"))
    with pytest.raises(StoppedError):
        open_journal(place(tmp_path), {})
    second = Pipeline(place(tmp_path), 1)
    assert second.begin_pass(1, 0, 1, "Map") == 0
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert len([*tmp_path.glob("*.rows")]) == 1
