"""How much of a batch was copied to a device, by what was given and what came back."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from operator import attrgetter
from typing import Any

#: What is looked at of a batch, at most: it may carry lists of whatever it was made from.
MOST = 64
#: So many classes are remembered.
MOST_TYPES = 256

#: In place of how to get at the parts of an object, as its base class has them.
NOTHING, TENSOR = "nothing", "a tensor"


class Copies:
    """Counts what is copied to one kind of device.

    Args:
        torch: the module.
        kind: the ``type`` of the ``torch.device``.
    """

    def __init__(self, torch: Any, kind: str) -> None:
        self._tensor = torch.Tensor
        # MONAI's tensors answer in Python, 20 us each, unless they are told not to.
        self._plainly = torch._C.DisableTorchFunctionSubclass
        self._is_there = attrgetter(f"is_{kind}")  # ten times as fast as ``device.type``
        self._types: dict[type, Any] = {torch.Tensor: TENSOR}

    def bytes(self, given: Iterable[Any], result: Any) -> int:
        """Bytes of the tensors in ``result`` that are on the device and were not in ``given``.

        0 where all of what was given was there before. Looked at are dicts, lists and tuples; what
        a class of the program's would answer is not asked.
        """
        before = self._tensors(given)
        if not before:
            return 0
        with self._plainly():
            is_there = self._is_there
            for each in before:
                if not is_there(each):
                    break
            else:
                return 0
            copied, known = 0, set(map(id, before))
            for each in self._tensors((result,)):
                if is_there(each) and id(each) not in known:
                    try:
                        copied += each.nbytes
                    except RuntimeError:  # where it has no one memory
                        copied += size(each)
        return copied

    def _tensors(self, values: Iterable[Any]) -> list[Any]:
        """The tensors in some objects, of their first parts."""
        found, waiting, types = [], list(values), self._types
        for each in waiting:  # which grows meanwhile
            its = type(each)
            parts = types[its] if its in types else self._look_at(its)
            if parts is TENSOR:
                found.append(each)
            elif parts is not NOTHING:
                waiting += islice(parts(each), MOST)
                if len(waiting) > MOST:
                    del waiting[MOST:]
        return found

    def _look_at(self, its: type) -> Any:
        """What is in the objects of a class."""
        if len(self._types) >= MOST_TYPES:
            self._types.clear()
        parts: Any = NOTHING
        if issubclass(its, self._tensor):
            parts = TENSOR
        elif issubclass(its, dict):
            parts = dict.values
        elif issubclass(its, list):
            parts = list.__iter__
        elif issubclass(its, tuple):
            parts = tuple.__iter__
        self._types[its] = parts
        return parts


def size(tensor: Any) -> int:
    """Bytes of a tensor that is not strided; 0 where that cannot be told."""
    try:
        return int(tensor._indices().nbytes + tensor._values().nbytes)
    except (RuntimeError, NotImplementedError, AttributeError):
        return 0
