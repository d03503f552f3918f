"""Which batches are copied to a device, and how much of them: by what is given and what comes back.

A batch is looked at before it is prepared and after, not in every step if steps are short.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from firetrace.tracer.blame import raised_by_signal_handler

#: Batches are looked at this often: to see what was copied takes some 10 us.
EVERY_NS = 20_000_000
#: So many batches of a step are told apart.
MOST_BATCHES = 512
#: What is looked at of a batch, at most: it may carry lists of whatever it was made from.
MOST = 64
CONTAINERS = dict, list, tuple

#: The tensors that a sparse one is made of, by its layout: ``nbytes`` is that of the dense one.
_ROWS, _COLUMNS = "crow_indices col_indices values", "ccol_indices row_indices values"
SPARSE = {
    "sparse_coo": "_indices _values", "sparse_csr": _ROWS, "sparse_bsr": _ROWS,
    "sparse_csc": _COLUMNS, "sparse_bsc": _COLUMNS,
}  # fmt: skip


#: Which batch of a step it is: the phase, and how many were prepared before.
Which = tuple[str, int]
#: Where a batch is: the ids of its tensors that are on the device (None: all are). Or, of one that
#: is not looked at, whether the same one of an earlier step was copied.
Look = tuple[Which, "set[int] | None"] | bool


class Batches:
    """The batches that one engine prepares.

    Args:
        kind: the ``type`` of the ``torch.device`` that they are for.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._copies: Copies | None = None
        self._looked = self._looked_in = 0  # Unix ns, and the step in which they were looked at
        self._step = self._count = 0  # the last one that has any, and how many
        self._copied: dict[Which, bool] = {}  # when each was looked at

    def look(
        self, phase: str, step: int, now: int, args: Iterable[Any], more: Mapping[str, Any]
    ) -> Look:
        """A batch is about to be prepared from these arguments."""
        if step != self._step:
            self._step, self._count = step, 0
        which = phase, self._count
        self._count = min(self._count + 1, MOST_BATCHES)
        copied = self._copied.get(which)
        if copied is not None and step != self._looked_in and now - self._looked < EVERY_NS:
            return copied
        self._looked_in, self._looked = step, now
        if self._copies is None:
            torch = sys.modules.get("torch")
            if torch is None:
                return False
            self._copies = Copies(torch, self._kind)
        return which, self._copies.there([*args, *more.values()])

    def copied(self, which: Which, there: set[int] | None, result: Any) -> int:
        """How many bytes of a batch that was looked at were copied."""
        size = 0
        if there is not None and self._copies is not None:
            size = self._copies.bytes(there, result)
        self._copied[which] = size > 0
        return size


class Copies:
    """Counts what is copied to one kind of device.

    Nothing of the program's is asked, and no class of its own is kept: that may hold a batch.

    Args:
        torch: the module.
        kind: the ``type`` of the ``torch.device``.
    """

    def __init__(self, torch: Any, kind: str) -> None:
        tensor = self._tensor = torch.Tensor
        self._kind = kind
        # MONAI's tensors answer in Python, 20 us each, unless they are told not to; so do modes.
        self._plainly = torch._C.DisableTorchFunction
        self._device, self._bytes, self._layout = (
            each.__get__ for each in (tensor.device, tensor.nbytes, tensor.layout)
        )
        self._sparse = {
            getattr(torch, layout): [getattr(tensor, part) for part in parts.split()]
            for layout, parts in SPARSE.items()
            if hasattr(torch, layout)
        }

    def there(self, given: Iterable[Any]) -> set[int] | None:
        """The ids of the tensors that are on the device; None: all are. In dicts, lists, tuples."""
        found, all_there = set[int](), True
        with self._plainly():
            for each in self._tensors(given):
                if self._device(each).type == self._kind:
                    found.add(id(each))
                else:
                    all_there = False
        return None if all_there else found

    def bytes(self, there: set[int], result: Any) -> int:
        """Bytes of the tensors in ``result`` that are on the device and were not there before."""
        copied = 0
        with self._plainly():
            for each in self._tensors((result,)):
                if self._device(each).type == self._kind and id(each) not in there:
                    copied += self.size(each)
        return copied

    def size(self, tensor: Any) -> int:
        """Bytes of a tensor; 0 where that cannot be told."""
        try:
            parts = self._sparse.get(self._layout(tensor))
            if parts is None:
                return int(self._bytes(tensor))
            return sum(self._bytes(part(tensor)) for part in parts)
        except (RuntimeError, AttributeError) as error:
            if raised_by_signal_handler(error):
                raise
            return 0

    def _tensors(self, values: Iterable[Any]) -> list[Any]:
        """The tensors in some objects, of their first parts."""
        found, waiting, tensor = [], list(values), self._tensor
        for each in waiting:  # which grows meanwhile
            its = type(each)
            if its is tensor or issubclass(its, tensor):
                found.append(each)
            elif issubclass(its, CONTAINERS):
                if issubclass(its, dict):
                    parts: Any = dict.values(each)
                else:
                    parts = (list if issubclass(its, list) else tuple).__iter__(each)
                waiting += islice(parts, MOST)
                if len(waiting) > MOST:
                    del waiting[MOST:]
        return found
