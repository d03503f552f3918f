"""The journals of a run that are handed on together: those of its ranks, with their workers'."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from firetrace.tracer.errors import JournalError
from firetrace.tracer.journal import HEADER_BYTES, ROW_BYTES
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import (
    Run,
    attempt_of,
    data_journals,
    device_journal,
    is_rank,
    rank_of,
)


@dataclass(frozen=True)
class Member:
    """A rank's journal, those of the batches that were made for it, and that of device time."""

    path: Path
    data: tuple[Path, ...] = ()
    device: Path | None = None

    @property
    def rank(self) -> int:
        """Which rank it is; 0 where its name says none."""
        return rank_of(self.path) or 0

    @property
    def attempt(self) -> int:
        """Which attempt of that rank it is."""
        return attempt_of(self.path)


def members(
    run: Run, ranks: Sequence[Collection[int]] | None = None, workers: bool = True
) -> tuple[Member, ...]:
    """The journals of a run, by rank and attempt.

    Args:
        run: as ``find_run`` finds it; of one that was named by its file it is that journal alone.
        ranks: only those in one of these; None: all.
        workers: with the data journals.
    """
    found = (
        Member(path, data_journals(path) if workers else (), _device_of(path))
        for path in run.journals
        if ranks is None or any((rank_of(path) or 0) in some for some in ranks)
    )
    return tuple(sorted(found, key=lambda each: (each.rank, each.attempt, each.path.name)))


def _device_of(journal: Path) -> Path | None:
    device = device_journal(journal)
    return device if is_rank(journal) and device.exists() else None


def paths(members: Sequence[Member], devices: bool = False) -> Iterator[Path]:
    """All journals, a rank's before its workers'; ``devices``: those of device time, too."""
    for member in members:
        yield member.path
        if devices and member.device is not None:
            yield member.device
        yield from member.data


def about(journal: Path) -> int:
    """How many spans a journal has at most.

    Raises:
        OSError: it cannot be looked at.
    """
    return max(0, journal.stat().st_size - HEADER_BYTES) // ROW_BYTES


def rank_journal(data: Path) -> Path:
    """The journal of the rank for which a data journal's batches were made."""
    return data.with_name(re.sub(r"\.data\d+\.rows$", ".rows", data.name, flags=re.ASCII))


def readable(
    found: Sequence[Member], told: Callable[[str], object] = lambda line: None
) -> tuple[Member, ...]:
    """Those journals that can be read; of the others ``told`` is called with the reason.

    Raises:
        JournalError: none can be read.
    """
    reasons: dict[Path, JournalError] = {}
    for path in paths(found, devices=True):
        try:
            JournalReader(path).close()
        except JournalError as error:
            reasons[path] = error
    kept = tuple(
        Member(
            each.path,
            tuple(path for path in each.data if path not in reasons),
            None if each.device in reasons else each.device,
        )
        for each in found
        if each.path not in reasons
    )
    if not kept and reasons:
        raise next(iter(reasons.values()))
    for reason in reasons.values():
        told(f"{reason}; left out")
    return kept
