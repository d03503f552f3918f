"""OpenTelemetry ids of a journal's spans: derived from its random seed and the rows' numbers.

So exporting twice gives the same spans, the training knows a span's id before anyone exports it,
and no random number of the program's is drawn. A journal is one trace.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


def trace_id(seed: bytes) -> int:
    """The journal's 128-bit trace id."""
    return int.from_bytes(seed, "big") or 1


def span_id(seed: bytes, number: int) -> int:
    """The 64-bit id of a row: splitmix64's finaliser over seed and number.

    It is a bijection, so ids of one journal differ; 0, which OpenTelemetry forbids, becomes 1.
    """
    z = int.from_bytes(seed[:8], "little") + number * _GOLDEN & _MASK
    z = (z ^ z >> 30) * _FIRST & _MASK
    z = (z ^ z >> 27) * _SECOND & _MASK
    return (z ^ z >> 31) or 1


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
