"""Shapes of spans that are told by a few columns alone, for who encodes many at once.

Such spans have ended well, and nothing more is noted of them: one in its parent's trace, and one
that begins a trace and is linked to its parent; then both again, linked to a peer as well; last one
in its parent's trace of which another journal tells attributes. All others are 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firetrace.exporters.devices import DEVICE
from firetrace.exporters.told import Told

CHILD, ROOT, PEER_CHILD, PEER_ROOT, TIMED = 1, 2, 3, 4, 5
#: By shape: whether such a span has a parent, and how many links.
FORMS = {
    CHILD: (True, 0), ROOT: (False, 1), PEER_CHILD: (True, 1), PEER_ROOT: (False, 2),
    TIMED: (True, 0),
}  # fmt: skip
LINKED = PEER_CHILD, PEER_ROOT


class Plain(NamedTuple):
    """A block's spans: one entry a span."""

    shape: npt.NDArray[np.int64]  #: one of ``FORMS``, or 0
    traces: list[int]  #: trace ids
    parent_traces: list[int]  #: those of the parents
    peers: dict[int, tuple[int, int]]  #: by position: trace and span id of its peer
    told: dict[int, dict[str, Any]]  #: by position: what is told of a ``TIMED`` span


class Shapes:
    """Finds the shapes of spans of which other journals tell more."""

    def __init__(self) -> None:
        self._kind = ""  # of the peers in shapes

    def add(
        self, shape: npt.NDArray[np.int64], numbers: npt.NDArray[np.uint32], told: dict[int, Told]
    ) -> tuple[dict[int, tuple[int, int]], dict[int, dict[str, Any]]]:
        """Set the shapes of a block's spans of which something is told.

        Returns ``peers`` and ``told`` as ``Plain`` has them.
        """
        peers: dict[int, tuple[int, int]] = {}
        more: dict[int, dict[str, Any]] = {}
        if not told:
            return peers, more
        linked = (each.kind for each in told.values() if each.kind)
        self._kind = self._kind or next(linked, "")
        positions = np.searchsorted(numbers, np.array([*told], np.uint32))
        shapes = shape[positions].tolist()
        for index, (at, was, each) in enumerate(
            zip(positions.tolist(), shapes, told.values(), strict=True)
        ):
            attributes, shapes[index] = each.attributes, 0
            if not each.kind:
                if (
                    was == CHILD
                    and attributes
                    and all(key.startswith(DEVICE) for key in attributes)
                ):
                    more[at], shapes[index] = attributes, TIMED
            elif was and each.kind == self._kind and not attributes:
                peers[at], shapes[index] = (each.trace_id, each.span_id), PEER_CHILD - CHILD + was
        shape[positions] = shapes
        return peers, more


def without_told(attributes: list[Any], keys: list[str]) -> list[Any]:
    """Of an example of a ``TIMED`` span its attributes without those that are told, given keys."""
    return [each for each, key in zip(attributes, keys, strict=True) if not key.startswith(DEVICE)]
