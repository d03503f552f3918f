"""What figures are taken in: an environment that configures nothing, and a line that names it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def unset_variables() -> None:
    """Drop what would configure firetrace or OpenTelemetry, here and in every child."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "FIRETRACE_")):
            del os.environ[name]


def without_pools() -> None:
    """One thread for arithmetic, once torch is imported: idle pools would not survive a fork."""
    os.environ.update(dict.fromkeys(POOLS, "1"))


def versions(packages: Iterable[str]) -> str:
    """The versions of those that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
