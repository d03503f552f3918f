"""Engines in several threads as fast as they can, beside readers that open and close all the time.

One reader is ``JournalReader``, another maps the file, as a program in another language might, and
keeps to what the format's page says. Whatever either took for ended must be in the finished
journal, to the byte.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.process import begin
from bench.settings import Progress
from firetrace.tracer.journal import FIRST_ROW, HEADER_BYTES, ROW_BYTES, ROW_DTYPE, Rows
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.recording import close_all
from torture.checks import read
from torture.children import await_child, has_ended
from torture.firehose import Firehose, Witness, lost
from torture.result import Result
from torture.settings import Settings

THREADS = 4
EVENTS_A_STEP = 7  #: of the firehose: fetch, iteration, two phases


def hurt(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Read while it is written, with both storages."""
    for mapped in (True, False):
        storage = "mapped" if mapped else "pwrite"
        progress(f"threads: {settings.events:,} events, {storage}")
        yield from _beside(settings, settings.workspace / storage, mapped)


class Seen:
    """The rows that a reader took for ended, each as it was when it was first seen so."""

    def __init__(self) -> None:
        self.looks = 0
        self._known = np.zeros(0, bool)
        self._rows = np.empty(0, ROW_DTYPE)

    def note(self, numbers: npt.NDArray[np.int64], rows: Rows) -> None:
        """Take in what was seen at one look."""
        self.looks += 1
        if not len(numbers):
            return
        if (top := int(numbers.max()) + 1) > len(self._known):
            room = max(top, 2 * len(self._known))
            self._known = np.concatenate([self._known, np.zeros(room - len(self._known), bool)])
            self._rows = np.concatenate([self._rows, np.empty(room - len(self._rows), ROW_DTYPE)])
        over = (rows["end"] != 0) & ~self._known[numbers]
        self._rows[numbers[over]], self._known[numbers[over]] = rows[over], True

    def count(self) -> int:
        """How many rows were seen ended."""
        return int(self._known.sum())

    def torn(self, final: Rows) -> int:
        """How many of them are not in the finished journal as they were seen."""
        at = np.flatnonzero(self._known)
        there = at[at < len(final)]
        return len(at) - len(there) + int((self._rows[there] != final[there]).sum())


def by_reader(journal: Path, seen: Seen) -> None:
    """Open it as every command does."""
    with JournalReader(journal) as reader:
        reader.poll()
        seen.note(reader.numbers.astype(np.int64), reader.rows)


def by_mapping(journal: Path, seen: Seen) -> None:
    """Map it, to its last row; what is there at the first look is whole at the second."""
    with journal.open("rb") as file:
        file.seek(HEADER_BYTES)
        data = file.read()
        starts = np.frombuffer(data[: len(data) // ROW_BYTES * ROW_BYTES], ROW_DTYPE)["start"]
        if not starts.any():
            return
        size = HEADER_BYTES + (int(np.flatnonzero(starts)[-1]) + 1) * ROW_BYTES
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as memory:
            first = np.frombuffer(memory[HEADER_BYTES:], ROW_DTYPE)
            rows = np.frombuffer(memory[HEADER_BYTES:], ROW_DTYPE)
    there = np.flatnonzero((first["start"] != 0) & (first["end"] != 0))
    seen.note(there + FIRST_ROW, rows[there])


def _beside(settings: Settings, folder: Path, mapped: bool) -> Iterator[Result]:
    steps = -(-settings.events // (EVENTS_A_STEP * THREADS))
    witnesses = [Witness(2 * steps + 100) for _ in range(THREADS)]

    def train() -> None:
        Firehose(witnesses, mapped=mapped, steps=steps).run(folder)
        close_all()

    child = begin(train)
    ways = {"JournalReader": (by_reader, Seen()), "a mapping": (by_mapping, Seen())}
    journal = folder / "rank0.1.rows"
    await_child(child, journal.exists)
    over = False
    while not over:
        over = has_ended(child)
        for look, seen in ways.values():
            look(journal, seen)
    table, wrong = read(journal)
    final = np.zeros(FIRST_ROW, ROW_DTYPE)
    data = journal.read_bytes()[HEADER_BYTES:]
    final = np.concatenate([final, np.frombuffer(data, ROW_DTYPE)])
    expected = missing = 0
    if table is not None:
        expected, missing, problems = lost(table, witnesses)
        wrong += problems
    events = sum(len(witness.times()) for witness in witnesses) * EVENTS_A_STEP
    what = f"{THREADS} threads, {'mapped' if mapped else 'pwrite'}"
    yield Result(
        "as fast as possible", f"events of {what}", events, wrong,
        f"spans lost: {missing:,} of {expected:,}",
    )  # fmt: skip
    for name, (_, seen) in ways.items():
        torn = seen.torn(final)
        yield Result(
            "as fast as possible", f"looks of {name}, {what}", seen.looks,
            [f"{torn} rows were seen torn"] if torn else [],
            f"rows seen torn: {torn} of {seen.count():,}",
        )  # fmt: skip
