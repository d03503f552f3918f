"""The journal: what is written is what is read, whatever happens to the writer."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firetrace.tracer import journal, storage
from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import FIRST_ROW, Flag
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.storage import MappedPen, Pen, label_of, place_of
from firetrace.tracer.table import read_table, table
from firetrace.tracer.writer import BudgetSpentError, JournalWriter

BOTH = pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "pwrite"])


def make(folder: Path, mapped: bool = True, **settings: int) -> JournalWriter:
    return JournalWriter(
        folder / "rank0.1", {"service.name": "test"}, mapped=mapped, min_free_bytes=0, **settings
    )


@BOTH
def test_rows_come_back_as_written(tmp_path: Path, mapped: bool) -> None:
    """Every field of a row is read back, closed in place or whole, over several windows."""
    writer = make(tmp_path, mapped, max_bytes=2**20)
    pen = writer.pen()
    assert type(pen) is (MappedPen if mapped else Pen)
    name, lane = writer.name("step", "step"), writer.lane("trainer", 1)
    outer = pen.open(0, name, lane, 0, 0, 0, 0, 1000)
    count = 3 * (writer._window_bytes // 32)
    numbers = []
    for i in range(count):
        row = pen.open(outer, name, lane, 0, 1, i, 0, 2000 + i)
        pen.close(row, 3000 + i, Flag.ERROR if i % 2 else 0)
        numbers.append(row)
    pen.close(outer, 9_000_000, Flag.CUT)  # its window has long been unmapped
    writer.close()
    with JournalReader(writer.path) as reader:
        reader.poll()
        rows = reader.rows
    assert reader.numbers.tolist() == [outer, *numbers]
    assert (rows["start"][1:] == 2000 + np.arange(count)).all()
    assert (rows["end"][1:] == 3000 + np.arange(count)).all()
    assert (rows["iteration"][1:] == np.arange(count)).all()
    assert (rows["flags"][1:] == np.where(np.arange(count) % 2, Flag.ERROR, 0)).all()
    assert (rows["parent"][1:] == outer).all()
    assert (int(rows["end"][0]), int(rows["flags"][0])) == (9_000_000, Flag.CUT)


def test_both_storages_write_the_same_bytes(tmp_path: Path) -> None:
    """Mapped or not is an affair of the writer: the rows are the same to the byte."""
    written = []
    for mapped in (True, False):
        folder = tmp_path / str(mapped)
        folder.mkdir()
        writer = make(folder, mapped)
        pen = writer.pen()
        pen.roll()
        row = pen.next_row
        label, place = label_of(1, 2, 3), place_of(4, 5)
        pen.put_oeo(
            pen.target, row * 32 - pen.base,
            0, label, place, 7, row, label_of(9, 10, 11), place_of(12, 13), 14, 15,
            row, label, place, 7,
        )  # fmt: skip
        pen.next_row += 3
        pen.rename(row, 77)
        pen.reach(row, 88)
        pen.close(row, 99, Flag.CUT)
        writer.close()
        written.append(writer.path.read_bytes()[journal.HEADER_BYTES :])
    assert written[0] == written[1]
    assert struct.unpack("<IHBBIIqq", written[0][:32]) == (0, 77, 2, 3 | Flag.CUT, 4, 88, 99, 7)


@BOTH
def test_open_rows_are_visible_and_seen_to_close(tmp_path: Path, mapped: bool) -> None:
    """A reader beside the writer sees a row as open, later as closed, and reads it once."""
    writer = make(tmp_path, mapped)
    pen = writer.pen()
    with JournalReader(writer.path) as reader:
        row = pen.open(0, 0, 0, 0, 0, 0, 0, 5)
        assert reader.poll()
        assert reader.rows["end"].tolist() == [0]
        assert not reader.poll()
        pen.close(row, 9, 0)
        assert reader.poll()
        assert reader.rows["end"].tolist() == [9]
        pen.open(row, 0, 0, 0, 0, 0, 7, 6)
        assert reader.poll()
        assert reader.numbers.tolist() == [FIRST_ROW, FIRST_ROW + 1]
    writer.close()


def test_a_reader_beside_a_fast_writer_never_sees_a_torn_row(tmp_path: Path) -> None:
    """Rows that a tight loop writes are whole whenever a reader in another process looks."""
    program = (
        "import sys; from pathlib import Path\n"
        "from firetrace.tracer.writer import JournalWriter\n"
        "writer = JournalWriter(Path(sys.argv[1]) / 'rank0.1', {}, min_free_bytes=0)\n"
        "pen = writer.pen(); print('ready', flush=True)\n"
        "for i in range(1, 300_001):\n"
        "    row = pen.open(i % 7, i % 60_000, i % 200, 0, i, i, 0, i << 20)\n"
        "    pen.close(row, (i << 20) + 5, 0)\n"
        "print('done', flush=True); sys.stdin.readline(); writer.close()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=-1, stdout=-1, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    looks = 0
    with JournalReader(tmp_path / "rank0.1.rows") as reader:
        while len(reader.rows) < 300_000:
            reader.poll()
            looks += 1
            rows = reader.rows
            i = rows["start"] >> 20
            assert (rows["epoch"] == i).all()
            assert (rows["name"] == i % 60_000).all()
            closed = rows["end"] != 0
            assert (rows["end"][closed] == rows["start"][closed] + 5).all()
        assert looks > 10
    child.communicate("\n")


def test_alive_is_told_by_the_lock(tmp_path: Path) -> None:
    """A writer is alive until its process dies, also for one that was killed."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from firetrace.tracer.writer import JournalWriter\n"
        "writer = JournalWriter(Path(sys.argv[1]) / 'rank0.1', {}, min_free_bytes=0)\n"
        "pen = writer.pen(); a = pen.open(0, 0, 0, 0, 0, 0, 0, 5)\n"
        "b = pen.open(a, 0, 0, 0, 0, 0, 0, 6); pen.close(b, 8, 0)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=-1, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    with JournalReader(tmp_path / "rank0.1.rows") as reader:
        assert reader.alive() is True
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert reader.alive() is False
        reader.poll()
        assert reader.rows["end"].tolist() == [0, 8]
        assert reader.meta.ended is None


def test_reading_one_s_own_journal_keeps_the_lock(tmp_path: Path) -> None:
    """The writer's own process may read its journal; others still see it alive."""
    writer = make(tmp_path)
    writer.pen().open(0, 0, 0, 0, 0, 0, 0, 5)
    assert read_table(writer.path).alive is True
    question = (
        "import sys; from firetrace.tracer.reader import JournalReader as R\n"
        "print(R(sys.argv[1]).alive())"
    )
    answer = subprocess.check_output([sys.executable, "-c", question, str(writer.path)], text=True)
    assert answer.strip() == "True"
    writer.close()
    assert read_table(writer.path).alive is False


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """An orphaned worker of a dead training does not make it look alive."""
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from firetrace.tracer.writer import JournalWriter\n"
        "writer = JournalWriter(Path(sys.argv[1]) / 'rank0.1', {}, min_free_bytes=0)\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(30); os._exit(0)\n"
        "print(child, flush=True); os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=-1, text=True)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.wait()
    parent.stdout.close()
    try:
        os.kill(orphan, 0)
        with JournalReader(tmp_path / "rank0.1.rows") as reader:
            assert reader.alive() is False
    finally:
        os.kill(orphan, signal.SIGKILL)


@BOTH
def test_the_budget_thins_steps_and_is_kept(tmp_path: Path, mapped: bool) -> None:
    """A writer that goes on for ever stays within its budget, and says how far it thinned."""
    budget = 2**20
    writer = make(tmp_path, mapped, max_bytes=budget)
    pen = writer.pen()
    kept = 0
    for step in range(1, 20 * budget // 320):  # steps of ten rows: twenty times the budget
        if step % writer.every == 0:
            kept += 1
            for _ in range(10):
                pen.open(0, 0, 0, 0, 0, step, 2, 1)
    writer.close()
    size = sum(f.stat().st_blocks * 512 for f in tmp_path.iterdir())
    assert size <= budget
    read = read_table(writer.path)
    levels = [line["every"] for line in read.meta.thinned]
    assert levels == sorted(levels)
    assert levels[0] == 2
    assert len(read) == 10 * kept
    assert len(read) * 32 > budget * 0.7  # it is used, too
    steps = 20 * budget // 320
    assert int(read.rows["iteration"][-1]) > 0.97 * steps  # the newest steps are there


def test_a_spent_budget_is_an_error_not_a_larger_file(tmp_path: Path) -> None:
    """What is never thinned may still not outgrow the budget."""
    writer = make(tmp_path, max_bytes=2**17)
    pen = writer.pen()

    def write_on() -> None:
        for _ in range(2**17):
            pen.open(0, 0, 0, 0, 0, 0, 2, 1)

    with pytest.raises(BudgetSpentError, match="131,072 bytes is spent"):
        write_on()
    assert writer.path.stat().st_size <= 2**17


@BOTH
def test_a_late_call_writes_to_nobody_else_s_file(tmp_path: Path, mapped: bool) -> None:
    """After close the descriptors may be the program's own files: nothing is written to them."""
    writer = make(tmp_path, mapped)
    pen = writer.pen()
    row = pen.open(0, 0, 0, 0, 0, 0, 0, 1)
    writer.close()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(tmp_path / f"own{i}", "wb")) for i in range(4)]
        for late in (
            lambda: writer.note("clock"),
            lambda: writer.name("event", "late"),
            lambda: pen.close(row, 2, 0),
            lambda: pen.open(0, 0, 0, 0, 0, 0, 0, 1),
        ):
            with pytest.raises(OSError):  # noqa: PT011 - of any kind
                late()
        assert all(os.fstat(file.fileno()).st_size == 0 for file in files)


def test_the_floor_of_free_space_is_kept(tmp_path: Path) -> None:
    """A journal takes no space that has to stay free for the training."""
    writer = JournalWriter(tmp_path / "rank0.1", {}, min_free_bytes=2**60)
    with pytest.raises(BudgetSpentError, match="kept free for the training"):
        writer.pen().open(0, 0, 0, 0, 0, 0, 0, 1)


def test_a_full_disk_is_an_error_at_a_window_s_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapped storage reserves before it maps: no store can fail later."""

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    writer = make(tmp_path)
    pen = writer.pen()
    monkeypatch.setattr(storage, "reserve", full)
    with pytest.raises(OSError, match="No space left"):
        pen.open(0, 0, 0, 0, 0, 0, 0, 1)


def test_threads_do_not_mix_rows(tmp_path: Path) -> None:
    """Four threads write at once; every row is there once, and a table has them in order."""
    writer = make(tmp_path)
    each = 20_000

    def write(thread: int) -> None:
        pen = writer.pen()
        for i in range(each):
            pen.open(0, thread, 0, 0, 0, i, 2, 1)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    with JournalReader(writer.path) as reader:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            reader.poll()
        reader.poll()
        grown = table(reader)
    writer.close()
    for number in range(4):
        mine = grown.rows[grown.rows["name"] == number]
        assert mine["iteration"].tolist() == list(range(each))
    assert (np.diff(grown.numbers.astype(np.int64)) > 0).all()


def test_void_rows_hand_their_children_up(tmp_path: Path) -> None:
    """A guess that proved wrong is no span; its children belong to its parent."""
    writer = make(tmp_path)
    pen = writer.pen()
    top = pen.open(0, 0, 0, 0, 0, 0, 0, 1)
    guess = pen.open(top, 0, 0, Flag.GUESS, 0, 0, 0, 2)
    inner = pen.open(guess, 0, 0, Flag.GUESS, 0, 0, 0, 2)
    child = pen.open(inner, 0, 0, 0, 0, 0, 4, 3)
    pen.close(inner, 5, Flag.VOID)
    pen.close(guess, 5, Flag.VOID)
    pen.close(top, 6, 0)
    writer.close()
    read = read_table(writer.path)
    assert read.numbers.tolist() == [top, child]
    assert read.parents().tolist() == [-1, 0]


def test_names_are_kept_apart_from_markup_and_never_wrap_around(tmp_path: Path) -> None:
    """Any text is a name; when there are no ids left, names fold into "other"."""
    writer = make(tmp_path)
    strange = "a\n\x1b[31m\0\ud800[bold]" + "x" * 10_000
    id = writer.name("event", strange)
    assert writer.name("event", strange) == id
    for number in range(70_000):
        last = writer.name("event", f"event {number}")
    assert last == writer.name("event", "other")
    assert last < journal.MAX_NAMES
    for number in range(400):
        lane = writer.lane("engine", number)
    assert lane == journal.MAX_LANES - 1
    writer.close()
    names = read_table(writer.path).names
    assert names[id].text.startswith("a\n\x1b[31m\0")
    assert len(names[id].text) <= 1000
    names[id].text.encode()


def test_a_journal_that_is_found_has_its_header(tmp_path: Path) -> None:
    """Whoever looks while journals are being made opens each the moment it is there."""
    stems = [tmp_path / f"rank0.{attempt}" for attempt in range(1, 101)]

    def look() -> int:
        for stem in stems:
            path = stem.with_name(stem.name + ".rows")
            while not path.exists():
                pass
            JournalReader(path).close()
        return len(stems)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(look)
        for stem in stems:
            JournalWriter(stem, {}).close()
        assert found.result(60) == 100


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a firetrace journal"),
        (b"something else entirely, and long enough to be a header of some kind" * 9, "not a"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """The error names the file and says what is wrong with it."""
    path = tmp_path / "rank0.1.rows"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JournalError, match=f"rank0.1.rows: .*{reason}"):
        JournalReader(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    """A journal of a later firetrace is not misread."""
    writer = make(tmp_path)
    writer.close()
    data = bytearray(writer.path.read_bytes())
    data[8] = 9
    writer.path.write_bytes(data)
    with pytest.raises(JournalError, match="journal version 9; this firetrace reads version 1"):
        JournalReader(writer.path)


def test_a_journal_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Cut anywhere, also within a row or a meta line, what is whole is shown."""
    writer = make(tmp_path)
    pen = writer.pen()
    writer.name("step", "step")
    for i in range(100):
        pen.open(0, 0, 0, 0, 0, i, 2, 1)
    writer.close()
    rows, meta = writer.path.read_bytes(), writer.path.with_suffix(".meta.jsonl").read_bytes()
    for cut in (1, 31, 32, 33, 500, 3199):
        writer.path.write_bytes(rows[:-cut])
        writer.path.with_suffix(".meta.jsonl").write_bytes(meta[:-cut])
        read = read_table(writer.path)
        assert len(read) == 100 - -(-cut // 32)
        assert read.meta.damaged == 0


def test_rows_that_make_no_sense_are_counted_and_left_out(tmp_path: Path) -> None:
    """A parent that comes later, an end before its start: said, not shown."""
    writer = make(tmp_path)
    pen = writer.pen()
    good = pen.open(0, 0, 0, 0, 0, 0, 9, 5)
    pen.open(good + 50, 0, 0, 0, 0, 0, 9, 5)
    pen.open(good, 0, 0, 0, 0, 0, 3, 5)
    writer.close()
    with open(writer.path.with_suffix(".meta.jsonl"), "ab") as meta:
        meta.write(b'{"type": "name"}\n{not json\n[]\n')
    read = read_table(writer.path)
    assert read.numbers.tolist() == [good]
    assert (read.damaged, read.meta.damaged) == (2, 3)


def test_the_file_system_decides_on_mapping() -> None:
    """Only file systems on which a reserved page can be written are mapped."""
    assert storage.mount_of(Path("/proc"))[0] == "proc"
    assert "proc" not in storage.MAPPABLE
    assert not storage.MAPPABLE & {"nfs", "nfs4", "fuse", "lustre", "btrfs", "zfs", "overlay"}


def test_steps_are_thinned_before_the_floor_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where less than the budget is free above it, that is the budget; later it may be more."""
    free = 2**23

    def usage(path: Path) -> Any:
        taken = sum(file.stat().st_size for file in tmp_path.iterdir())
        return shutil._ntuple_diskusage(2**40, 0, 2**19 + free - taken)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    writer = JournalWriter(tmp_path / "rank0.1", {}, max_bytes=2**25, min_free_bytes=2**19)
    pen, step = writer.pen(), 0
    while writer.every < 16:
        step += 1
        if step % writer.every == 0:
            pen.open(0, 0, 0, 0, 0, step, 2, 1)
    assert usage(tmp_path).free > 2**19
    free = 2**30  # somebody has made room
    for _ in range(2 * 8192):
        pen.open(0, 0, 0, 0, 0, step, 2, 1)
    assert writer.every == 1
    writer.close()
    meta = read_table(writer.path).meta
    assert meta.sparsest >= 16
    assert meta.thinned[-1]["every"] == 1


def test_a_deleted_journal_does_not_go_on_growing(tmp_path: Path) -> None:
    """Nobody will ever read it, and what it takes cannot be seen."""
    writer = make(tmp_path)
    pen = writer.pen()
    writer.path.unlink()
    with pytest.raises(FileNotFoundError, match="was deleted"):
        pen.open(0, 0, 0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(("epoch", "iteration"), [(2**32, 0), (0, 2**32), (-1, 0)])
def test_a_count_that_does_not_fit_is_an_error(epoch: int, iteration: int) -> None:
    """Never a number that has wrapped around."""
    with pytest.raises(OverflowError, match="do not fit into a row"):
        place_of(epoch, iteration)


def test_what_is_folded_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More names, and more engines, than have ids of their own."""
    writer = make(tmp_path)
    for number in range(journal.MAX_NAMES + 10):
        writer.name("event", f"event {number}")
    for number in range(300):
        writer.lane("engine", number)
    writer.close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "more names than" in said[0]
    assert "more engines and threads than" in said[1]


def test_windows_of_an_absurd_size_take_no_memory(tmp_path: Path) -> None:
    """A damaged header may name any size; what is read is what the file has."""
    writer = make(tmp_path)
    writer.pen().open(0, 0, 0, 0, 0, 0, 3, 1)
    writer.close()
    data = bytearray(writer.path.read_bytes())
    data[20:24] = (2**31).to_bytes(4, "little")
    writer.path.write_bytes(data)
    tracemalloc.start()
    with JournalReader(writer.path) as reader:
        reader.poll()
        assert reader.numbers.tolist() == [FIRST_ROW]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def test_a_hole_and_rows_without_a_number_are_passed_over(tmp_path: Path) -> None:
    """A file of a terabyte with three rows; one of them lies where rows have no numbers."""
    writer = make(tmp_path)
    writer.pen().open(0, 0, 0, 0, 0, 0, 3, 1)
    writer.close()
    row = writer.path.read_bytes()[journal.HEADER_BYTES :][:32]
    with writer.path.open("r+b") as file:
        for number in (journal.MAX_ROW, journal.MAX_ROW + 1):
            file.seek(number * 32)
            file.write(row)
        file.truncate(2**40)
    found = read_table(writer.path)
    assert found.numbers.tolist() == [FIRST_ROW, journal.MAX_ROW]
    assert found.parents().tolist() == [-1, -1]


def test_many_open_rows_are_looked_at_together(tmp_path: Path) -> None:
    """Near and far ones: each is seen to close, none is taken for another."""
    writer = make(tmp_path, max_bytes=2**25)
    pens = [writer.pen() for _ in range(3)]
    opened = [(pen, pen.open(0, 0, 0, 0, 0, i, 0, 1 + i)) for i in range(9000) for pen in pens]
    with JournalReader(writer.path) as reader:
        reader.poll()
        for pen, row in opened[::7]:
            pen.close(row, 10_000 + row, Flag.CUT)
        assert reader.poll()
        closed = {row for _, row in opened[::7]}
        for number, found in zip(reader.numbers.tolist(), reader.rows.tolist(), strict=True):
            flags, end = found[3], found[6]
            assert (flags, end) == ((Flag.CUT, 10_000 + number) if number in closed else (0, 0))
    writer.close()
