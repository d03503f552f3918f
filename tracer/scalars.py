"""Numbers of a training: what ``output_transform`` gives for an iteration, an epoch's metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST = 100  # of one event


def numbers(name: str, value: Any, may_synchronise: bool) -> Iterator[tuple[str, float]]:
    """Every number in ``value``, with a name: ``loss``, ``loss.0``, ``dice.liver``.

    Args:
        name: of a single number.
        value: a number, a tensor or an array of one, or a mapping or sequence of them.
        may_synchronise: whether a tensor on a device may be read, which waits for the device.
    """
    for index, found in enumerate(_numbers(name, value, may_synchronise)):
        if index >= MOST:
            return
        yield found


def _numbers(name: str, value: Any, may_synchronise: bool) -> Iterator[tuple[str, float]]:
    if isinstance(value, (bool, int, float)):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _numbers(f"{name}.{key}" if name else str(key), each, may_synchronise)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for index, each in enumerate(value):
            yield from _numbers(f"{name}.{index}" if name else str(index), each, may_synchronise)
    elif hasattr(value, "item") and getattr(value, "size", None) is not None:
        device = getattr(getattr(value, "device", None), "type", "cpu")
        count = value.numel() if hasattr(value, "numel") else value.size
        if count == 1 and (may_synchronise or device == "cpu"):
            yield from _numbers(name, value.item(), may_synchronise)
