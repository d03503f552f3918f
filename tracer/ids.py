"""OpenTelemetry ids of a journal's spans: derived from its random seed and the rows' numbers.

So exporting twice gives the same spans, the training knows a span's ids before anyone exports it,
and no random number of the program's is drawn. Which trace a span is in is told by
``firetrace.tracer.traces``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class Row(NamedTuple):
    """What of a row says where it stands."""

    parent: int
    kind: str
    epoch_number: int
    flags: int = 0


def trace_id(seed: bytes, split: int = 0, anchor: int = 0, part: int = 0) -> int:
    """A 128-bit trace id: of the trace that begins at a row.

    Args:
        seed: the journal's, 16 bytes.
        split: how the journal is split into traces, as a number below 4.
        anchor: number of the row with which the trace begins.
        part: which of the pieces of a trace that would have grown too large; below 2**30.
    """
    which = split << 62 | part << 32 | anchor
    high = _mixed(int.from_bytes(seed[:8], "little") ^ _FIRST, which)
    low = _mixed(int.from_bytes(seed[8:], "little"), which)
    return high << 64 | low or 1


def span_id(seed: bytes, number: int) -> int:
    """The 64-bit id of a row: splitmix64's finaliser over seed and number.

    It is a bijection, so ids of one journal differ; 0, which OpenTelemetry forbids, becomes 1.
    """
    return _mixed(int.from_bytes(seed[:8], "little"), number) or 1


def _mixed(base: int, number: int) -> int:
    z = base + number * _GOLDEN & _MASK
    z = (z ^ z >> 30) * _FIRST & _MASK
    z = (z ^ z >> 27) * _SECOND & _MASK
    return z ^ z >> 31


def span_ids(seed: bytes, numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """``span_id`` of many rows."""
    low = np.uint64(int.from_bytes(seed[:8], "little"))
    with np.errstate(over="ignore"):
        z: npt.NDArray[np.uint64] = low + numbers.astype(np.uint64) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
        z = z ^ (z >> np.uint64(31))
    z[z == 0] = 1
    return z


def remote_parent(traceparent: object) -> tuple[int, int] | None:
    """Trace id and span id that a W3C ``traceparent`` names; None: it is not one."""
    match = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if match is None:
        return None
    ids = int(match[1], 16), int(match[2], 16)
    return ids if all(ids) else None
