"""Reads a run again and again and makes one immutable ``Snapshot`` of it each time it changed.

No Textual: the app calls ``Feed.poll`` from its reader thread and hands on what comes out.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from firetrace.tracer.errors import FiretraceError, RunNotFoundError
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import Run, base_directory, find_run, open_run
from firetrace.tracer.table import Table, table
from firetrace.tui.model import Report, report
from firetrace.tui.tree import Tree

#: A run's directory is there a moment before its journal, and that before its header.
GRACE_S = 2.0
#: States that a run does not leave unless its program begins another one.
OVER = ("finished", "ended", "died")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A journal at one moment and everything that was computed from it."""

    table: Table
    report: Report
    tree: Tree
    rank: str
    now_ns: int  #: the present, Unix ns; of a run that is over, its last moment


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
        self._reader: JournalReader | None = None
        self._last: Snapshot | Waiting | None = None
        self._journals: tuple[Path, ...] = ()
        self._unreadable_since: float | None = None

    def close(self) -> None:
        """Close the journal."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def poll(self) -> Snapshot | Waiting | None:
        """What is new; None if nothing is.

        Raises:
            FiretraceError: there is something, but no journal that can be read.
        """
        found = self._read() if self._reader is not None or self._open() else self._wait()
        if found is not None:
            self._last = found
        return found

    def _wait(self) -> Waiting | None:
        where = self._name if self._name is not None else f"{base_directory()}"
        waiting = Waiting(f"no run in {where} yet")
        return None if self._last == waiting else waiting

    def _open(self) -> bool:
        """Open the run's newest journal; False while there is none."""
        try:
            run = find_run(self._name)
            self._reader = JournalReader(journal_to_show(run))
        except FiretraceError as error:
            if self._is_to_come(error):
                return False
            raise
        except OSError as error:
            raise FiretraceError(f"{self._name}: {error.strerror or error}") from error
        self._journals = run.journals
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
        assert self._reader is not None
        last = self._last if isinstance(self._last, Snapshot) else None
        try:
            changed = self._reader.poll()
            alive = self._reader.alive()
        except OSError as error:
            raise FiretraceError(f"{self._reader.path}: {error.strerror or error}") from error
        if last is None or changed or alive != last.table.alive:
            now = table(self._reader)
            rank = self._reader.path.stem.partition(".")[0].removeprefix("rank")
            return Snapshot(now, report(now), Tree.of(now), rank, now.last_ns())
        if not alive:
            self._look_for_next_attempt()
            return None
        if last.report.incomplete:  # only the clock moved on: open spans got longer
            return replace(last, now_ns=self._reader.now_ns())
        return None

    def _look_for_next_attempt(self) -> None:
        """A run that was resumed writes another journal into the same directory."""
        assert self._reader is not None
        try:
            run = open_run(self._reader.path.parent)
        except (FiretraceError, OSError):
            return  # removed while it is shown: what was read stays on the screen
        newest = journal_to_show(run)
        given_as_file = self._name is not None and Path(self._name).is_file()
        if newest == self._reader.path or newest in self._journals or given_as_file:
            return
        try:
            reader = JournalReader(newest)
        except FiretraceError:
            return  # its header is not written yet; the next poll sees it
        self.close()
        self._reader, self._journals, self._last = reader, run.journals, None


def journal_to_show(run: Run) -> Path:
    """The newest attempt of the lowest rank: all ranks do the same, and rank 0 logs."""

    def rank(journal: Path) -> int:
        text = journal.stem.partition(".")[0].removeprefix("rank")
        return int(text) if text.isdigit() else 1 << 30

    lowest = min(map(rank, run.journals))
    return [journal for journal in run.journals if rank(journal) == lowest][-1]
