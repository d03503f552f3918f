"""The feed: waits for a run, follows it, and stays calm when the files change under it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from firetrace.tracer import stream as streams
from firetrace.tracer.errors import FiretraceError
from firetrace.tui import feed as feeds
from firetrace.tui.feed import CUT_SHORT, DELETED, REPLACED, Feed, Snapshot, Waiting
from firetrace.tui.model.report import read_report, read_tree
from tests.support.made import MS, MadeTraining, Plan
from tests.support.recordings import record, record_killed
from tests.support.truth import shape
from tests.support.wild_journal import WildJournal


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a feed does now and then it does at each poll."""
    monkeypatch.setattr(feeds, "LOOK_S", -1.0)


def settled(feed: Feed) -> Snapshot:
    """What is shown when nothing is new any more."""
    last = None
    for _ in range(100):
        found = feed.poll()
        if found is None:
            break
        last = found
    else:
        raise AssertionError("there is always something new")
    assert isinstance(last, Snapshot)
    return last


def finished(folder: Path, steps: int = 20, stem: str = "rank0.1") -> Path:
    """The journal of a training of one epoch that is over."""
    folder.mkdir(exist_ok=True)
    return MadeTraining(folder, Plan(epochs=1, steps=steps), stem).finish().path


def move(path: Path, to: Path) -> None:
    """Put a journal where another one is, as a program does that writes beside and renames."""
    for suffix in (".meta.jsonl", ".lock", ".rows"):
        os.replace(path.with_suffix(suffix), to.with_suffix(suffix))


def test_a_finished_run_is_read_once() -> None:
    """The first poll has all of it, the next ones nothing; then it is the report's numbers."""
    directory = record()
    feed = Feed(str(directory))
    found = feed.poll()
    assert isinstance(found, Snapshot)
    assert found.report == read_report(found.path)
    assert (found.read, found.notice, found.rank, found.ranks) == (1.0, "", "0", 1)
    assert (found.hanging, found.main_lane) == ("", 0)
    assert [feed.poll() for _ in range(3)] == [None] * 3
    feed.close()


def test_waits_for_a_run_that_is_to_come(own_folders: Path) -> None:
    """It says so once, also when a directory is there and nothing in it; then there is a run."""
    feed = Feed(None)
    found = feed.poll()
    assert isinstance(found, Waiting)
    assert str(own_folders) in found.reason
    assert feed.poll() is None
    (own_folders / "later").mkdir(parents=True)
    assert feed.poll() is None
    path = finished(own_folders / "later")
    assert settled(feed).path == path
    feed.close()


def test_waits_for_a_path_but_not_for_a_name(tmp_path: Path) -> None:
    """A path may come to be; a name that no run has is an error."""
    feed = Feed(str(tmp_path / "later"))
    assert isinstance(feed.poll(), Waiting)
    path = finished(tmp_path / "later")
    assert settled(feed).path == path
    feed.close()
    with pytest.raises(FiretraceError, match="no-such-run"):
        Feed("no-such-run").poll()


@pytest.mark.parametrize("content", [b"", b"no journal", b"FIRETRC\n\x09" + bytes(5000)])
def test_what_is_no_journal_is_an_error_after_a_while(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one that is being made; when it has had its time, the error names the file."""
    path = tmp_path / "rank0.1.rows"
    path.write_bytes(content)
    feed = Feed(str(path))
    assert isinstance(feed.poll(), Waiting)
    monkeypatch.setattr(feeds, "GRACE_S", -1.0)
    with pytest.raises(FiretraceError, match="rank0"):
        feed.poll()


def test_follows_a_journal_that_grows(tmp_path: Path) -> None:
    """Each poll has the steps so far; in the end all is as if it had been read at once."""
    training = MadeTraining(tmp_path, Plan(epochs=2, steps=10, validation=500 * MS))
    feed = Feed(str(training.path))
    for iteration in range(1, 11):
        training.until(1, iteration)
        found = feed.poll()
        assert isinstance(found, Snapshot)
        assert found.report.steps == iteration
        assert found.report.state == "running"
        assert shape(found.tree) == shape(read_tree(training.path))
    training.finish()
    found = settled(feed)
    assert found.report == read_report(training.path)
    assert found.report.state == "finished"
    feed.close()


def test_only_the_clock_of_open_spans_goes_on(tmp_path: Path) -> None:
    """Without new rows a living run's picture is the same, at a later moment."""
    training = MadeTraining(tmp_path, Plan())
    training.until(1, 3)
    feed = Feed(str(training.path))
    first, second = feed.poll(), feed.poll()
    assert isinstance(first, Snapshot)
    assert isinstance(second, Snapshot)
    assert second.report is first.report
    assert second.tree is first.tree
    assert second.now_ns > first.now_ns
    training.writer.close()
    over = settled(feed)
    assert over.report.state == "died"
    assert over.now_ns == training.now
    feed.close()


def test_a_killed_run_is_shown_as_it_was() -> None:
    """What was open then is open still, at the last moment that is known."""
    found = settled(Feed(str(record_killed())))
    assert found.report.state == "died"
    assert found.now_ns == found.tree.now_ns > 0
    assert found.hanging == ""
    assert len(found.report.incomplete) >= 4


def test_says_what_hangs(tmp_path: Path) -> None:
    """Of a living run: what has been open for far longer than its like; an hour ago it began."""
    training = MadeTraining(tmp_path, Plan())
    training.until(1, 3)
    step = training.opened(129, "step", "step", 1, 4)
    training.opened(step, "phase", "forward", 1, 4)
    feed = Feed(str(training.path))
    found = feed.poll()
    assert isinstance(found, Snapshot)
    assert "in forward of Trainer's iteration 4" in found.hanging
    training.writer.close()
    assert settled(feed).hanging == ""
    feed.close()


@pytest.mark.parametrize("seed", range(2))
def test_a_long_journal_is_shown_while_it_is_read(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block a poll: what has been read rises to the whole, which is that of a single read."""
    journal = WildJournal(tmp_path, seed)
    journal.write(8000)
    journal.end()
    whole = read_tree(journal.path)
    monkeypatch.setattr(streams, "BLOCK_WINDOWS", 1)
    monkeypatch.setattr(feeds, "BOOT_S", -1.0)
    feed = Feed(str(journal.path))
    snapshots = []
    while (found := feed.poll()) is not None:
        assert isinstance(found, Snapshot)
        snapshots.append(found)
        number = int(found.tree.children(0)[0])
        found.tree.lines({number}, 1)
    read = [each.read for each in snapshots]
    assert len(read) > 4
    assert read == sorted(read)
    assert read[0] < 0.5
    assert read[-1] == 1.0
    assert all(share < 1 for share in read[:-1])
    spans = [each.report.spans for each in snapshots]
    assert spans == sorted(spans)
    assert spans[-1] == whole.digest.spans + len(whole.open)
    assert shape(snapshots[-1].tree) == shape(whole)
    last = snapshots[-1].report
    again = read_report(journal.path)
    assert (last.steps, last.epochs, last.duration_ns) == (again.steps, again.epochs,
                                                           again.duration_ns)  # fmt: skip
    assert last.phases.keys() == again.phases.keys()
    feed.close()


def test_moves_on_to_the_next_attempt(tmp_path: Path) -> None:
    """When the process is over and its program goes on in another one, that one is shown."""
    first = finished(tmp_path)
    feed = Feed(str(tmp_path))
    assert settled(feed).path == first
    assert feed.poll() is None
    second = MadeTraining(tmp_path, Plan(epochs=1), "rank0.2")
    second.until(1, 7)
    for _ in range(3):
        found = feed.poll()
    assert isinstance(found, Snapshot)
    assert (found.path, found.report.steps, found.notice) == (second.path, 7, "")
    second.finish()
    assert settled(feed).report.steps == 50
    feed.close()


def test_a_file_that_was_asked_for_stays(tmp_path: Path) -> None:
    """Whoever names a journal wants this one, not the next attempt; nor while they look closely."""
    first = finished(tmp_path)
    feed, closely = Feed(str(first)), Feed(str(tmp_path))
    closely.may_move_on = False
    for each in (feed, closely):
        assert settled(each).path == first
    finished(tmp_path, stem="rank0.2")
    for each in (feed, closely):
        assert [each.poll() for _ in range(3)] == [None] * 3
    closely.may_move_on = True
    assert settled_after_none(closely).path.stem == "rank0.2"


def settled_after_none(feed: Feed) -> Snapshot:
    """The same, where the first poll only finds that there is something else."""
    assert feed.poll() is None
    return settled(feed)


def test_the_lowest_rank_is_shown(tmp_path: Path) -> None:
    """All ranks do the same; each one can be asked for by its file."""
    one = finished(tmp_path, 30, "rank1.1")
    zero = finished(tmp_path, 20, "rank0.1")
    finished(tmp_path, 10, "rank10.1")
    found = settled(Feed(str(tmp_path)))
    assert (found.path, found.rank, found.ranks, found.report.steps) == (zero, "0", 3, 20)
    found = settled(Feed(str(one)))
    assert (found.rank, found.report.steps) == ("1", 30)


@pytest.mark.parametrize("keep", [0, 30, 100, 4096, 4096 + 32 * 40 + 7, 4096 + 32 * 100])
def test_a_journal_that_is_cut_short_under_it(tmp_path: Path, keep: int) -> None:
    """What is left is shown, with a notice, once; without a header what was read stays."""
    path = finished(tmp_path)
    feed = Feed(str(path))
    before = settled(feed)
    os.truncate(path, keep)
    found = settled(feed)
    assert found.notice == CUT_SHORT
    if keep < 100:
        assert found.report.steps == before.report.steps
    else:
        assert found.report.spans == max(0, (keep - 4096) // 32)
        assert shape(found.tree) == shape(read_tree(path))
    assert [feed.poll() for _ in range(3)] == [None] * 3
    before.tree.lines({128, 129}, 0)  # an old picture can be looked at still
    before.tree.children(131)
    feed.close()


@pytest.mark.parametrize("alive", [True, False])
def test_a_journal_that_is_replaced_by_another(tmp_path: Path, alive: bool) -> None:
    """Renamed over the one that is shown: the new one is shown, and followed, with a notice."""
    path = finished(tmp_path, 30)
    feed = Feed(str(tmp_path))
    before = settled(feed)
    (tmp_path / "other").mkdir()
    other = MadeTraining(tmp_path / "other", Plan(epochs=1, steps=40))
    other.until(1, 10)
    if not alive:
        other.writer.close()
    move(other.path, path)
    found = feed.poll()
    assert isinstance(found, Snapshot)
    assert (found.notice, found.report.steps) == (REPLACED, 10)
    assert before.report.steps == 30
    assert len(before.tree.lines({128, 129}, 1)) == 32  # its file is open still
    if alive:
        other.until(1, 40)
        other.finish()
        found = settled(feed)
        assert (found.notice, found.report.steps, found.report.state) == (REPLACED, 40, "finished")
    assert [feed.poll() for _ in range(3)] == [None] * 3
    feed.close()


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_a_journal_that_is_written_over_in_place(tmp_path: Path, steps: int) -> None:
    """As ``cp`` does, which empties it first: the other one is shown, wherever it was caught."""
    path = finished(tmp_path, 20)
    other = finished(tmp_path / "other", steps)
    feed = Feed(str(path))
    settled(feed)
    data = other.read_bytes()
    shutil.copyfile(other.with_suffix(".meta.jsonl"), path.with_suffix(".meta.jsonl"))
    found: list[Snapshot] = []
    with open(path, "wb", buffering=0) as file:
        for begin in range(0, len(data), 3000):
            file.write(data[begin : begin + 3000])
            new = feed.poll()
            found += [new] if isinstance(new, Snapshot) else []
    for _ in range(3):
        new = feed.poll()
        found += [new] if isinstance(new, Snapshot) else []
    assert new is None
    assert found[-1].report.steps == steps
    assert found[-1].notice in (REPLACED, CUT_SHORT)
    assert found[-1].report.spans == read_report(path).spans
    feed.close()


def test_a_journal_that_is_written_over_at_once(tmp_path: Path) -> None:
    """Of the same length and in the same file: its seed tells that it is another one."""
    path, other = finished(tmp_path, 20), finished(tmp_path / "other", 20)
    feed = Feed(str(path))
    before = settled(feed)
    with open(path, "r+b") as file:
        file.write(other.read_bytes())
    found = settled(feed)
    assert found.notice == REPLACED
    assert found.tree.span(128) != before.tree.span(128)
    feed.close()


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_journal_that_is_deleted(tmp_path: Path, what: str) -> None:
    """What was read stays, with a notice; what comes in its place is shown."""
    path = finished(tmp_path / "run")
    feed = Feed(str(tmp_path / "run"))
    before = settled(feed)
    if what == "file":
        path.unlink()
    else:
        shutil.rmtree(tmp_path / "run")
    found = feed.poll()
    assert isinstance(found, Snapshot)
    assert found.notice == DELETED
    assert found.report == before.report
    assert shape(found.tree) == shape(before.tree)
    assert [feed.poll() for _ in range(3)] == [None] * 3
    other = finished(tmp_path / "other", 33)
    (tmp_path / "run").mkdir(exist_ok=True)
    move(other, path)
    found = settled(feed)
    assert (found.report.steps, found.notice) == (33, REPLACED)
    feed.close()


def test_after_a_replacement_the_next_attempt_is_found(tmp_path: Path) -> None:
    """A notice is no reason to stop looking for what follows."""
    path = finished(tmp_path, 30)
    feed = Feed(str(tmp_path))
    settled(feed)
    move(finished(tmp_path / "other", 10), path)
    assert settled(feed).notice == REPLACED
    finished(tmp_path, 12, "rank0.2")
    found = settled_after_none(feed)
    assert (found.report.steps, found.notice) == (12, "")
    feed.close()


def test_a_feed_that_was_closed_can_be_closed_again(tmp_path: Path) -> None:
    """Also before it was ever asked; and no descriptor is left open."""
    feed = Feed(str(finished(tmp_path)))
    feed.close()
    before = len(os.listdir("/proc/self/fd"))
    found = feed.poll()
    feed.close()
    feed.close()
    del found
    feed = Feed(None)
    assert len(os.listdir("/proc/self/fd")) == before
