"""How much of a batch was copied to a device, by what was given and what came back."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

#: What is looked at of a batch, at most: it may carry lists of whatever it was made from.
MOST = 64


def copied_bytes(batch: Any, result: Any, kind: str) -> int:
    """Bytes of the tensors in ``result`` that are on such a device and were not in ``batch``.

    0 where all of the batch was there before. Looked at are dicts, lists and tuples; what a class
    of the program's would answer is not asked.
    """
    torch = sys.modules["torch"]
    on_device = f"is_{kind}"  # ten times as fast as ``device.type``
    with torch._C.DisableTorchFunctionSubclass():  # MONAI's tensors answer in Python: 20 us each
        before, elsewhere = set[int](), False
        for each in tensors(batch, torch.Tensor):
            if getattr(each, on_device):
                before.add(id(each))
            else:
                elsewhere = True
        if not elsewhere:
            return 0
        copied = 0
        for each in tensors(result, torch.Tensor):
            if getattr(each, on_device) and id(each) not in before:
                copied += each.nbytes if each.layout is torch.strided else size(each)
        return copied


def tensors(value: Any, tensor: type) -> list[Any]:
    """The tensors in a batch, of its first parts."""
    found: list[Any] = []
    waiting = [value]
    for each in waiting:  # which grows meanwhile
        # A plain tensor is told at once; to ask of anything else whether it is one takes longest.
        if type(each) is tensor:
            found.append(each)
        elif isinstance(each, dict):
            waiting += islice(dict.values(each), MOST)
        elif isinstance(each, list):
            waiting += islice(list.__iter__(each), MOST)
        elif isinstance(each, tuple):
            waiting += islice(tuple.__iter__(each), MOST)
        elif isinstance(each, tensor):
            found.append(each)
        if len(waiting) > MOST:
            del waiting[MOST:]
    return found


def size(tensor: Any) -> int:
    """Bytes of a tensor that is not strided; 0 where that cannot be told."""
    try:
        return int(tensor._indices().nbytes + tensor._values().nbytes)
    except (RuntimeError, NotImplementedError, AttributeError):
        return 0
