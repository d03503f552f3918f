"""Locks that say "somebody is at work here"; the kernel releases them at death.

``lockf``, not ``flock``: it is not inherited by forks, so an orphaned worker cannot hold it.
"""

from __future__ import annotations

import os
from pathlib import Path

from firetrace.tracer.files import open_own


def lock_path(journal: Path) -> Path:
    """The file that is locked while somebody sends this journal."""
    return journal.with_suffix(".otlp.lock")


def take_lock(path: Path, certainly: bool = False) -> int:
    """Make a file and lock it. Returns its descriptor, which must stay open; close it to let go.

    Where there are no locks it is taken to be free, unless one wants to know it ``certainly``.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: the file cannot be made.
    """
    fd = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        import fcntl

        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # EACCES: POSIX allows this answer too
        os.close(fd)
        raise BlockingIOError(f"{path}: somebody else holds it") from error
    except (ImportError, OSError) as error:  # no locks here; nothing else is lost
        if certainly:
            os.close(fd)
            raise BlockingIOError(f"{path}: cannot be locked") from error
    return fd
