"""What time it was in one process's journal when it was a given time in another's.

On one host that is exact: both are monotonic times, each with its own anchor. Between hosts it is
what was measured while they ran (``offset`` lines), with an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firetrace.tracer.journal import Header
from firetrace.tracer.meta import Meta

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """How to turn a journal's times into those of a reference journal.

    ``error_ns`` is 0 where it is exact, and None where nothing is known: then nothing is shifted.
    """

    at_ns: Ints  #: times of the journal, rising, Unix ns
    offsets_ns: Ints  #: what to add then; in between in proportion
    error_ns: int | None

    @property
    def offset_ns(self) -> int:
        """What to add, at the last time that it was measured."""
        return int(self.offsets_ns[-1])

    def shift(self, times: npt.ArrayLike) -> Ints:
        """Times of the journal, Unix ns, as times of the reference; 0, which is no time, stays."""
        given = np.asarray(times, np.int64)
        if len(self.offsets_ns) == 1:
            more = np.full(given.shape, self.offsets_ns[0], np.int64)
        else:
            first = int(self.at_ns[0])  # floats of Unix ns are good to a quarter of a microsecond
            more = np.rint(np.interp(given - first, self.at_ns - first, self.offsets_ns))
            more = more.astype(np.int64)
        return np.where(given == 0, 0, given + more)


def aligned(header: Header, meta: Meta, reference: Header) -> Alignment:
    """How the times of a journal become those of the reference, which may be the journal itself."""
    if header.seed == reference.seed:
        return _constant(0, 0)
    if header.boot_id and header.boot_id == reference.boot_id:
        own = header.wall_ns - header.monotonic_ns
        return _constant(reference.wall_ns - reference.monotonic_ns - own, 0)
    measured = sorted(
        (each for each in meta.offsets if each.to == reference.seed.hex()),
        key=lambda each: each.time_ns,
    )
    if not measured:
        return _constant(0, None)
    return Alignment(
        np.array([each.time_ns for each in measured], np.int64),
        np.array([each.offset_ns for each in measured], np.int64),
        max(each.error_ns for each in measured),
    )


def _constant(offset: int, error: int | None) -> Alignment:
    return Alignment(np.zeros(1, np.int64), np.array([offset], np.int64), error)
