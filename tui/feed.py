"""Follows a run: reads what is new and makes one immutable ``Snapshot`` of it each time.

No Textual: the app calls ``Feed.poll`` from its reader thread and hands on what comes out.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from firetrace.tracer.errors import FiretraceError, RunNotFoundError
from firetrace.tracer.journal import HEADER_BYTES, ROW_BYTES, Header
from firetrace.tracer.pages import Pages
from firetrace.tracer.run import base_directory, find_run, open_run, rank_of
from firetrace.tracer.stream import Stream
from firetrace.tracer.table import Table
from firetrace.tui.model.device import DeviceLane, DeviceSource
from firetrace.tui.model.digest import Digest
from firetrace.tui.model.pipeline import DataSources
from firetrace.tui.model.ranks import Ranks, Skew, skew
from firetrace.tui.model.report import Report, report, tree_of
from firetrace.tui.model.tree import Tree
from firetrace.tui.model.verdict import hanging
from firetrace.tui.model.workers import Worker

#: A path that is given may be no journal for a moment, while it is being made.
GRACE_S = 2.0
#: A long journal is shown as far as it has been read after this time, and again after each.
BOOT_S = 0.7
#: How often is looked for what follows a run that is over: it opens every run that is known.
LOOK_S = 1.0
#: How often all ranks are looked at, and for how many times as long as that took they are not.
RANKS_S, RANKS_REST = 1.0, 8
#: States that a run does not leave unless its program begins another one.
OVER = ("finished", "ended", "died")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A journal at one moment and everything that was computed from it."""

    report: Report
    tree: Tree
    path: Path  #: of the journal
    rank: str
    ranks: int  #: how many the run has
    now_ns: int  #: the present, Unix ns; of a run that is over, its last moment
    read: float = 1.0  #: how much of the file has been read; below 1 while a long one is opened
    notice: str = ""  #: what has become of the file: cut short, replaced, deleted
    skew: Skew | None = None  #: of all ranks, where there are several
    workers: tuple[Worker, ...] = ()  #: who makes batches, where that is recorded
    devices: tuple[DeviceLane, ...] = ()  #: what the devices do, where that is recorded

    @property
    def main_lane(self) -> int:
        """The lane of the main engine."""
        return self.report.main_lane

    @property
    def hanging(self) -> str:
        """What is open for far too long, in words; empty if nothing is."""
        running = self.report.state == "running"
        return hanging(self.report.incomplete, self.now_ns) if running else ""


@dataclass(frozen=True)
class Waiting:
    """There is no run yet."""

    reason: str


class Feed:
    """Follows one run: waits for it, reads it, moves on to its next attempt.

    Args:
        name: as for ``find_run``: a path, a run's name, or None for the newest.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._source: Source | None = None
        self._last: Snapshot | Waiting | None = None
        self._journals: tuple[Path, ...] = ()
        self._unreadable_since: float | None = None
        self._looked = 0.0
        self._watch: RankWatch | None = None
        #: Whether another journal may take the place of one that is over: nobody browses in it.
        self.may_move_on = True

    def close(self) -> None:
        """Close the journal."""
        self._watch = None
        if self._source is not None:
            self._source.close()
            self._source = None

    def poll(self) -> Snapshot | Waiting | None:
        """What is new; None if nothing is.

        Raises:
            FiretraceError: there is something, but no journal that can be read.
        """
        found = self._read() if self._source is not None or self._open() else self._wait()
        found = self._with_ranks(found)
        if found is not None:
            self._last = found
        return found

    @property
    def hurries(self) -> bool:
        """Whether the ranks are still to be looked at for the first time: it should not rest."""
        return self._watch is not None and self._watch.is_new

    def _with_ranks(self, found: Snapshot | Waiting | None) -> Snapshot | Waiting | None:
        """With what there is to say of all ranks, which is looked at after the first picture."""
        shown = found if found is not None else self._last
        if self._watch is None or not isinstance(shown, Snapshot) or self._last is None:
            return found
        changed = self._watch.look()
        if found is None and not changed:
            return None
        skew = self._watch.skew
        return replace(shown, skew=skew, ranks=max(shown.ranks, len(skew.rows) if skew else 0))

    def _wait(self) -> Waiting | None:
        where = self._name if self._name is not None else f"{base_directory()}"
        waiting = Waiting(f"no run in {where} yet")
        return None if self._last == waiting else waiting

    def _open(self) -> bool:
        """Open the run's newest journal; False while there is none."""
        try:
            run = find_run(self._name)
            self._source = Source(run.main, len(run.ranks))
        except FiretraceError as error:
            if self._is_to_come(error):
                return False
            raise
        except OSError as error:
            raise FiretraceError(f"{self._name}: {error.strerror or error}") from error
        self._journals = run.journals
        self._watch = RankWatch(run.path)
        self._unreadable_since = None
        return True

    def _is_to_come(self, error: Exception) -> bool:
        if self._name is None:
            return isinstance(error, RunNotFoundError) or self._in_grace()
        if not Path(self._name).exists():
            return os.sep in self._name
        return self._in_grace()

    def _in_grace(self) -> bool:
        now = time.monotonic()
        self._unreadable_since = self._unreadable_since or now
        return now - self._unreadable_since < GRACE_S

    def _read(self) -> Snapshot | None:
        assert self._source is not None
        source = self._source
        notice = source.what_became_of_it()
        if notice in (CUT_SHORT, REPLACED):
            try:
                self._source = Source(source.path, source.ranks, notice)
            except FiretraceError:
                pass  # not readable (yet): what was read stays on the screen
            else:
                source.close()
                source, self._last = self._source, None
        notice = notice or source.notice  # of one that replaced another it is said for good
        last = self._last if isinstance(self._last, Snapshot) else None
        try:
            changed = source.read()
            alive = source.stream.reader.alive()
        except OSError as error:
            raise FiretraceError(f"{source.path}: {error.strerror or error}") from error
        if last is None or changed or alive != last.tree.open.alive or notice != last.notice:
            return source.snapshot(last.tree if last is not None else None, notice)
        if not alive:
            if self.may_move_on:
                self._look_for_what_follows()
            return None
        if last.report.incomplete:  # only the clock moved on: open spans got longer
            return replace(last, now_ns=source.stream.reader.now_ns())
        return None

    def _look_for_what_follows(self) -> None:
        """A run that is resumed writes another journal; of no name, a newer run is meant too."""
        assert self._source is not None
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            run = open_run(self._source.path.parent)
            if self._name is None:
                newer = find_run(None)
                run = newer if newer.alive() else run
        except (FiretraceError, OSError):
            return  # removed while it is shown: what was read stays on the screen
        newest = run.main
        given_as_file = self._name is not None and Path(self._name).is_file()
        if newest == self._source.path or newest in self._journals or given_as_file:
            return
        try:
            source = Source(newest, len(run.ranks))
        except FiretraceError:
            return
        self.close()
        self._source, self._journals, self._last = source, run.journals, None
        self._watch = RankWatch(run.path)


class RankWatch:
    """Follows all ranks of a run, where there are several.

    Args:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ranks: Ranks | None = None
        self._next = 0.0  # when to look again
        self.skew: Skew | None = None
        self.is_new = self._several()

    def look(self) -> bool:
        """Look, now and then; return whether anything changed."""
        began = time.monotonic()
        if began < self._next:
            return False
        changed = self.is_new = False
        try:
            if self._ranks is None and self._several():
                self._ranks = Ranks(self._path)
            if self._ranks is not None and self._ranks.poll():
                self.skew, changed = skew(self._ranks), True
        except (FiretraceError, OSError):  # removed while it is shown: what was read stays
            changed = False
        took = time.monotonic() - began
        self._next = began + max(RANKS_S, RANKS_REST * took)
        return changed

    def _several(self) -> bool:
        return len({rank_of(each) for each in self._path.glob("rank*.rows")} - {None}) > 1


CUT_SHORT = "the journal was cut short: shown is what is left of it"
REPLACED = "the journal was replaced by another one"
DELETED = "the journal was deleted: shown is what was read before"


class Source:
    """A journal that is being read.

    Raises:
        JournalError: it cannot be read.
    """

    def __init__(self, path: Path, ranks: int, notice: str = "") -> None:
        self.path, self.ranks = path, ranks
        self.notice = notice  #: why it is read instead of what was there before
        self.stream = Stream(path)
        self._pages = Pages(self.stream.reader)
        self._digest = Digest(self.stream.reader.row)
        self._data = DataSources(path, self.stream.reader.header, self.stream.reader.meta)
        self._device = DeviceSource(path, self.stream.reader)
        self._blocks: Iterator[Table] | None = None
        self._newest = 0  # the highest row number that was seen

    def close(self) -> None:
        """Close the files; trees of it stay readable."""
        self.stream.close()
        self._data.close()
        self._device.close()

    def read(self) -> bool:
        """Take in what is new, for ``BOOT_S`` at most. Return whether anything changed."""
        until = time.monotonic() + BOOT_S
        before = self.stream.reader.numbers.tolist()
        changed = self._blocks is not None
        if self._blocks is None:
            self._blocks = self.stream.ended()
        for block in self._blocks:
            self._digest.add(block)
            self._newest = max(self._newest, int(block.numbers.max(initial=0)))
            changed = True
            if time.monotonic() > until:
                return True
        self._blocks = None
        changed |= self._data.read(until)
        with contextlib.suppress(OSError):  # of the device is shown what was read before
            changed |= self._device.read(until)
        return changed or self.stream.reader.numbers.tolist() != before

    def snapshot(self, before: Tree | None, notice: str) -> Snapshot:
        """Everything that is known now."""
        tree = tree_of(self._digest, self.stream, self._pages, before)
        rank = rank_of(self.path)
        read = 1.0
        if self._blocks is not None:
            whole = max(1, os.fstat(self.stream.reader.fileno()).st_size)
            read = self.stream.reader.position.windows * self.stream.reader.header.window_bytes
            read = min(0.99, read / whole)
        return Snapshot(
            report(tree, self._data, self._device), tree, self.path,
            str(rank) if rank is not None else self.path.stem,
            self.ranks, tree.now_ns, read, notice,
            workers=self._data.workers(), devices=self._device.lanes(),
        )  # fmt: skip

    def what_became_of_it(self) -> str:
        """What has happened to the file that its writer would not do; empty: nothing."""
        fd = self.stream.reader.fileno()
        try:
            if os.fstat(fd).st_size < (self._newest + 1) * ROW_BYTES:
                return CUT_SHORT
            same = os.path.samestat(os.stat(self.path), os.fstat(fd))
            head = Header.unpack(os.pread(fd, HEADER_BYTES, 0), self.path)
        except OSError:
            return DELETED
        except FiretraceError:
            return REPLACED
        return "" if same and head.seed == self.stream.reader.header.seed else REPLACED
