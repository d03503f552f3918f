"""A run begins: its directory, what this process is called in it, and what is known of it."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firetrace.tracer.run import (
    base_directory,
    default_name,
    file_name,
    index_path,
    unused_directory,
)
from firetrace.tracer.world import Meeting, World, agreed


def begin(
    directory: Path | None, name: str | None, world: World, meeting: Meeting | None = None
) -> tuple[Path, dict[str, Any]]:
    """Make the directory of a run that begins, or find what another rank has made.

    Returns:
        The directory and the process's resource attributes.

    Raises:
        OSError: it cannot be made.
    """
    name = name or default_name()
    if directory is None and meeting is not None:
        directory = base_directory() / file_name(agreed(meeting, unused_directory(name).name), 120)
    if directory is None:
        start = time.strftime("%Y%m%d-%H%M%S")
        base = base_directory()
        base.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            suffix = "" if attempt == 1 else f"-{attempt}"
            directory = base / f"{start}-{file_name(name)}{suffix}"
            try:
                directory.mkdir()
                break
            except FileExistsError:
                continue
    else:
        directory = Path(directory).absolute()
        directory.mkdir(parents=True, exist_ok=True)
    assert directory is not None
    _remember(directory)
    about = resource(directory, name)
    if world.size > 1:
        about |= {"ignite.rank": world.rank, "ignite.world_size": world.size}
    return directory, about


def stems(directory: Path, rank: int) -> Iterator[Path]:
    """Names for this process's journal, to be tried until one is free: a new attempt each."""
    return (directory / f"rank{rank}.{attempt}" for attempt in range(1, 100_000))


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resource(directory: Path, name: str) -> dict[str, Any]:
    """OpenTelemetry resource attributes of this process. No arguments, no environment."""
    from importlib.metadata import PackageNotFoundError, version  # 25 ms; who reads needs none

    try:
        own_version = version("firetrace")
    except PackageNotFoundError:
        own_version = "unknown"
    return {
        "service.name": name,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "host.name": socket.gethostname(),
        "host.arch": platform.machine(),
        "os.type": platform.system().lower(),
        "process.pid": os.getpid(),
        "process.cpu.count": processors(),
        "process.executable.path": sys.executable,
        "process.runtime.name": platform.python_implementation().lower(),
        "process.runtime.version": platform.python_version(),
        "telemetry.distro.name": "firetrace",
        "telemetry.distro.version": own_version,
        "ignite.run.id": directory.name,
    }


def _remember(directory: Path) -> None:
    """List the run in the user's index; a convenience that may fail without harm."""
    try:
        index = index_path()
        index.parent.mkdir(parents=True, exist_ok=True)
        with open(index, "a", encoding="utf-8") as file:
            file.write(json.dumps({"path": str(directory), "start": time.time_ns()}) + "\n")
    except OSError:
        return
