"""How much of a batch was copied to a device, by what was given and what came back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

#: Tensors of a batch that are looked at, at most.
MOST = 64


def copied_bytes(batch: Any, result: Any, kind: str) -> int:
    """Bytes of the tensors in ``result`` that are on such a device and were not in ``batch``.

    0 where all of the batch was there before.
    """
    torch = sys.modules["torch"]
    with torch._C.DisableTorchFunctionSubclass():  # MONAI's tensors answer in Python: 20 us each
        given = [each for each, _ in zip(tensors(batch, torch.Tensor), range(MOST), strict=False)]
        if all(each.device.type == kind for each in given):
            return 0
        before = {id(each) for each in given}
        came = zip(tensors(result, torch.Tensor), range(MOST), strict=False)
        return sum(
            each.nbytes for each, _ in came if each.device.type == kind and id(each) not in before
        )


def tensors(value: Any, tensor: type) -> Iterator[Any]:
    """The tensors in a batch: of dicts, lists and tuples of them."""
    if isinstance(value, tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each, tensor)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors(each, tensor)
