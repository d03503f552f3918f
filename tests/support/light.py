"""A data pipeline of torch alone, for workers that have to load everything themselves."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset


def say(log: Path, name: str, id: int) -> None:
    """Note in the log that a transform (``name``) was called for a sample."""
    fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    thread = threading.current_thread().name.replace(" ", "_")
    os.write(fd, f"{os.getpid()} {thread} {time.monotonic_ns()} {name} {id}\n".encode())
    os.close(fd)


class Mark:
    """A transform that notes each of its calls."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, data: Any) -> Any:
        say(self.log, type(self).__name__, data["id"])
        return data | {"random": torch.rand(1)}


class Light(Dataset[Any]):
    """A data set without MONAI."""

    def __init__(self, count: int, transform: Any) -> None:
        self.count, self.transform = count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.transform({"id": index})
