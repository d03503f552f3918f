"""Writes files that are whole when they appear under their name."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to; under its name when the block ends, nowhere if it fails.

    What is there and is no regular file, such as ``/dev/stdout`` or a pipe, is written to as it is.

    Raises:
        OSError: it cannot be written; its ``filename`` is the path.
    """
    as_it_is = is_device(path)
    if not as_it_is:
        path = Path(os.path.realpath(path))  # a link stays one
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # A name that nobody knows, and made anew: what has been put there is not written through.
    random = f"{path.name[:40]}.{secrets.token_hex(4)}.part"
    part = path if as_it_is else path.with_name(random)
    try:
        with open(part, "wb" if as_it_is else "xb") as file:
            yield file
        if not as_it_is:
            os.replace(part, path)
    except BaseException as error:
        if not as_it_is:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def is_device(path: Path) -> bool:
    """Whether this is a device, a pipe or an open file of this process's (``/dev/stdout``)."""
    path = path.absolute()
    for _ in range(40):
        if path.parts[1:2] in (("dev",), ("proc",)) and path.parts[1:3] != ("dev", "shm"):
            return True
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return path.exists() and not path.is_file() and not path.is_dir()
