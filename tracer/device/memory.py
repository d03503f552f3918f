"""What is allocated on a device."""

from __future__ import annotations

from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes of one device, as torch's allocator counts them for this process."""

    allocated: int  #: by tensors, now
    reserved: int  #: by the allocator, now: what ``nvidia-smi`` sees, roughly
    peak: int  #: the most that was allocated since the program began, or reset this
    failures: int = 0  #: how often there was not enough
