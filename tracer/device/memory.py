"""What is allocated on a device."""

from __future__ import annotations

from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes of one device, as torch's allocator counts them for this process."""

    allocated: int  #: by tensors, now
    reserved: int  #: by the allocator, now: what ``nvidia-smi`` sees, roughly
    peak: int  #: the most that was allocated since the program began, or reset this
    failures: int = 0  #: how often there was not enough


class Seen:
    """What was seen of a device's memory, by all threads that use it."""

    __slots__ = ("_message", "failures", "looked")

    def __init__(self, found: Memory | None) -> None:
        self.looked = 0  #: Unix ns, when it was looked at last
        self.failures = found.failures if found is not None else 0
        self._message = ""

    def is_new(self, found: Memory | None, message: str) -> bool:
        """Whether this failure has not been told of; one exception may pass several engines."""
        failures = found.failures if found is not None else self.failures
        before = self.failures, self._message
        self.failures, self._message = failures, message
        return found is None or before != (failures, message)
