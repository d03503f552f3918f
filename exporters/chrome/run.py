"""One Chrome trace of many journals: every rank is a process, its workers are threads of it.

So are the lanes of its device journal, between the engines and the workers.

An older attempt of a rank is a process of its own. All times are those of the lowest rank's newest
journal; how far a process's may be off is said in its name. Journals come one after the other, so
what is in memory is one of them, and of one that has data journals 16 bytes a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from firetrace.exporters.chrome.arrows import Arrows, Rank
from firetrace.exporters.chrome.columns import NUMBERED_DATA, encoded
from firetrace.exporters.chrome.devices import DeviceEvents
from firetrace.exporters.chrome.export import pieces, write_all
from firetrace.exporters.chrome.journal import JournalEvents, base_of
from firetrace.exporters.chrome.tracks import TIDS_A_PROCESS, Process, run_of
from firetrace.exporters.clocks import Clock, clock_of
from firetrace.exporters.journals import Member, paths
from firetrace.exporters.selection import Kept, Selection, Selector, of_batches, selector_of
from firetrace.exporters.steps import Steps, Used
from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import MAX_LANES
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.stream import blocks
from firetrace.tracer.table import Table, table

FLOWS = 2**32  #: ids of arrows that a journal can have: its row numbers


def export_run(
    members: Sequence[Member],
    path: Path,
    selection: Selection | None = None,
    progress: Callable[[int], Any] = lambda done: None,
) -> int:
    """Write journals as one Chrome trace; gzipped if the name ends in ``.gz``.

    The file appears under its name when it is whole. Returns the number of spans written.

    Args:
        members: the journals, at least one.
        path: where to.
        selection: what to write of each rank's journal; of data journals what its steps used.
        progress: is told after each block how many spans have been written.

    Raises:
        JournalError: a journal cannot be read.
        OSError: the file cannot be written.
    """
    count = 0

    def told(done: int) -> None:
        nonlocal count
        count = done
        progress(done)

    write_all(_pieces(members, selection or Selection(), told), path)
    return count


def _pieces(
    members: Sequence[Member], selection: Selection, told: Callable[[int], Any]
) -> Iterator[bytes]:
    if len(members) == 1 and not members[0].data and members[0].device is None:
        only = members[0].path
        with selector_of(only, selection) as selector:
            yield from pieces(selector.select(blocks(only)), told)
        return
    trace = _Trace(members, selection, told)
    yield b"["
    texts = trace.texts()
    yield next(texts)[1:]
    yield from texts
    yield b"\n]\n"


class _Trace:
    """Makes the events of many journals."""

    def __init__(
        self, members: Sequence[Member], selection: Selection, told: Callable[[int], Any]
    ) -> None:
        self._members, self._selection, self._told = members, selection, told
        self._attempts = Counter(member.rank for member in members)
        self._clocks, self._base = _clocks(members)
        self._pids = _pids(members)
        most = max(2 + len(member.data) for member in members) * MAX_LANES
        self._tids = TIDS_A_PROCESS
        while self._tids <= max(most, *self._pids.values()):
            self._tids *= 10
        self._done = self._journals = 0

    def texts(self) -> Iterator[bytes]:
        """The events, each after a comma."""
        for order, member in enumerate(self._members):
            with JournalReader(member.path) as reader:
                reader.meta.poll()
                steps = Steps(reader.row)
                process = self._process(order, member, reader)
                events = JournalEvents(process)
                kept = Kept() if self._selection and member.device is not None else None
                yield encoded(process.head())
                with Selector(member.path, self._selection) as selector:
                    for block in selector.select(blocks(member.path)):
                        if member.data:
                            steps.add(block)
                        if kept is not None:
                            kept.add(block)
                        yield from self._block(events, block)
                    yield from events.rest(block, self._base)
                self._done += events.count
                reader.meta.poll()
                rank = Rank(reader, steps, events.tracks.tids, process.clock)
                threads = events.tracks.threads
                if member.device in self._clocks:
                    shown = self._below(process, threads, member.device)
                    device = DeviceEvents(member.device, shown, rank, kept)
                    yield from self._device(device)
                    threads = device.threads
                for path in member.data:
                    shown = self._below(process, threads, path)
                    made = JournalEvents(shown, NUMBERED_DATA)
                    yield from self._data(path, shown, made, rank)
                    self._done += made.count
                    threads = made.tracks.threads

    def _below(self, process: Process, threads: int, path: Path) -> Process:
        """Where another journal of a rank's process is shown."""
        clock = self._clocks[path]
        return replace(process, name="", threads=threads, flow=self._flow(), clock=clock)

    def _process(self, order: int, member: Member, reader: JournalReader) -> Process:
        attempt = f" attempt {member.attempt}" if self._attempts[member.rank] > 1 else ""
        clock, pid = self._clocks[member.path], self._pids[member.path]
        about = f" ({clock})" if str(clock) else ""
        name = f"rank {member.rank}{attempt} {run_of(reader.meta, reader.path)}{about}"
        return Process(pid, name, order, pid * self._tids + 1, 0, self._flow(), clock)

    def _flow(self) -> int:
        """What is added to the row numbers of a journal, so that no two arrows have one id."""
        self._journals += 1
        return (self._journals - 1) * FLOWS

    def _device(self, events: DeviceEvents) -> Iterator[bytes]:
        try:
            for text in events.texts(self._base):
                yield text
                self._told(self._done + events.count)
        except JournalError:  # it was there when it was chosen
            pass
        self._done += events.count

    def _data(
        self, path: Path, shown: Process, events: JournalEvents, rank: Rank
    ) -> Iterator[bytes]:
        arrows = None
        for block in blocks(path):
            if arrows is None:
                used = Used(
                    rank.steps, rank.reader.header, rank.reader.meta, block.header, block.meta
                )
                arrows = Arrows(shown, used, rank, events.tracks.tids)
            kept = of_batches(block, used) if self._selection else block
            yield from self._block(events, kept)
            yield encoded(arrows.of(kept, self._base))
        yield from events.rest(kept, self._base)

    def _block(self, events: JournalEvents, block: Table) -> Iterator[bytes]:
        yield from events.of(block, self._base)
        self._told(self._done + events.count)


def _pids(members: Sequence[Member]) -> dict[Path, int]:
    """The process of each rank's journal, as Perfetto is told: a rank's newest is rank + 1."""
    newest = {member.rank: member.path for member in members}  # they rise by attempt
    pids = {path: rank + 1 for rank, path in newest.items()}
    older = [member.path for member in members if member.path not in pids]
    return pids | {path: pid for pid, path in enumerate(older, max(pids.values()) + 1)}


def _clocks(members: Sequence[Member]) -> tuple[dict[Path, Clock], int]:
    """The clock of each journal, and the earliest time that any has, by the reference's."""
    lowest = [member.path for member in members if member.rank == members[0].rank]
    attempts = [JournalReader(path) for path in lowest]
    for reader in attempts:
        reader.meta.poll()
    reference = attempts[-1].header
    others = [(reader.header, reader.meta) for reader in attempts]
    clocks: dict[Path, Clock] = {}
    begins: list[int] = []
    for member in members:
        for path in paths([member], devices=True):
            try:
                reader = JournalReader(path)
            except JournalError:
                if path != member.device:
                    raise
                continue  # it was there when it was chosen
            with reader:
                reader.poll(1)
                if path == member.path:
                    header = reader.header
                    clock = clock_of(header, reader.meta, reference, others)
                else:  # of the same host
                    to_rank = clock_of(reader.header, reader.meta, header)
                    clock = Clock((*to_rank.ways, *clocks[member.path].ways))
                clocks[path] = clock
                base = base_of(table(reader)) if path != member.device else None
                if base is not None:
                    begins.append(clock.time(base))
    return clocks, max(min(begins, default=0), 0)
