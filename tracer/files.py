"""Opens files in a run's directory, where anybody may have put something else under their names."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, by default for reading. A pipe, on which one waits for ever, is none.

    The user's umask makes the mode of one that is made.

    Raises:
        OSError: it is something else, or cannot be opened.
    """
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    fd = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return fd


def open_own(path: Path, flags: int) -> int:
    """Open a file that is ours by its name: not what a link under that name leads to.

    Raises:
        OSError: it is a link, or no regular file; or it cannot be opened.
    """
    return open_regular(path, flags | getattr(os, "O_NOFOLLOW", 0))
