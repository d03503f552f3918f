"""Small file systems to be hurt, each in a mount of its own, and what may happen to them.

Whoever is not root, or has no program that makes one, gets an ``UnavailableError`` that says so.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
MIB = 2**20
#: The smallest that there can be of each; a filler takes what is too much.
SIZES = {"tmpfs": 4 * MIB, "ext4": 16 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}
MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"],
}  # fmt: skip
FILLER = "filler"
SHUT_DOWN = 0x8004587D  #: the ioctl of ext4 and xfs that lets a file system fail from now on
ANYBODY = 65534


class UnavailableError(Exception):
    """Something cannot be tried here; the text says why, for the table."""


def program(name: str) -> str:
    """The path of a program.

    Raises:
        UnavailableError: it is not installed.
    """
    found = shutil.which(name, path=PROGRAMS)
    if found is None:
        raise UnavailableError(f"no {name}")
    return found


def command(*words: str | Path) -> None:
    """Run a program quietly.

    Raises:
        UnavailableError: it is not there, or fails.
    """
    line = [program(str(words[0])), *map(str, words[1:])]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"refused by {words[0]}")


@contextmanager
def mounted(
    kind: str, workspace: Path, options: str = "", make: Sequence[str] = (), size: int = 0
) -> Iterator[Path]:
    """A new, empty file system that everybody may write to; unmounted in the end.

    Args:
        kind: one of ``SIZES``.
        workspace: a folder for the mount point and the image.
        options: more of ``mount``'s.
        make: more of the words for the program that makes it.
        size: bytes; 0: a small one.

    Raises:
        UnavailableError: it cannot be made here.
    """
    if os.geteuid() != 0:
        raise UnavailableError("needs root")
    size = size or SIZES[kind]
    point, image = workspace / f"{kind}-mount", workspace / f"{kind}.img"
    point.mkdir(exist_ok=True)
    more = f",{options}" if options else ""
    try:
        if kind == "tmpfs":
            command("mount", "-t", kind, "-o", f"size={size}{more}", "firetrace-torture", point)
        else:
            with open(image, "wb") as file:
                file.truncate(size)
            command(*MAKERS[kind], *make, image)
            # The loop device of ``-o loop`` goes by itself when its mount does.
            try:
                command("mount", "-t", kind, "-o", f"loop{more}", image, point)
            except UnavailableError as error:
                raise UnavailableError(f"the kernel has no {options or kind}") from error
        try:
            point.chmod(0o777)
            yield point
        finally:
            with suppress(UnavailableError):
                command("umount", "-l", point)
    finally:
        image.unlink(missing_ok=True)
        with suppress(OSError):
            point.rmdir()


def cleared(place: Path) -> Path:
    """The place, with nothing in it, and the space of what was there free."""
    for child in place.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != "lost+found":
            child.unlink()
    if place.is_mount() and place.name.startswith(("xfs", "btrfs")):  # they free it later
        with suppress(UnavailableError):
            command("sync", "-f", place)
    return place


def fill(folder: Path, leave: int = 0) -> None:
    """Write a file until nothing more fits; then give back ``leave`` bytes.

    It is the work of another program: nobody's fault if it does not come to its end.
    """
    path, piece = folder / FILLER, 64 * MIB
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        size = os.fstat(fd).st_size
        while piece >= 512:
            try:
                os.posix_fallocate(fd, size, piece)
                size += piece
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                piece //= 2
        if leave:
            os.ftruncate(fd, max(0, size - leave))
    finally:
        os.close(fd)


def use_up_inodes(folder: Path, leave: int = 0) -> None:
    """Make empty files until there can be no more; then remove ``leave`` of them."""
    made: list[Path] = []
    with suppress(OSError):
        while True:
            path = folder / f"{FILLER}{len(made)}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o666))
            made.append(path)
    for path in made[len(made) - leave :]:
        path.unlink()


def use_up_descriptors(leave: int = 0) -> list[int]:
    """Open what this process may still open, but for ``leave``; returns the descriptors."""
    held: list[int] = []
    with suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    for fd in held[len(held) - leave :]:
        os.close(fd)
    return held[: len(held) - leave]


def shut_down(place: Path) -> None:
    """Let a file system of ext4 or xfs fail with EIO, as if its disk were gone."""
    import fcntl

    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUT_DOWN, struct.pack("I", 1))  # 1: with its log written
    finally:
        os.close(fd)


def make_read_only(place: Path) -> None:
    """Let ext4 (mounted with ``errors=remount-ro``) find an error while files are open."""
    device = os.stat(place).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")


@contextmanager
def quota(workspace: Path, limit: int) -> Iterator[Path]:
    """A folder in which only so many bytes can be written, though the disk has room.

    Raises:
        UnavailableError: neither ext4 nor btrfs can do that here.
    """
    with ExitStack() as stack:
        try:
            place = stack.enter_context(mounted("ext4", workspace, "usrquota", ("-O", "quota")))
            limit_user(place, limit)
        except UnavailableError as error:
            try:
                place = stack.enter_context(mounted("btrfs", workspace)) / "limited"
                command("btrfs", "subvolume", "create", place)
                command("btrfs", "quota", "enable", place)
                command("btrfs", "qgroup", "limit", str(limit), place)
                place.chmod(0o777)
            except UnavailableError as second:
                raise UnavailableError(f"ext4: {error}; btrfs: {second}") from second
        yield place


def limit_user(place: Path, limit: int) -> None:
    """Let ``ANYBODY`` write no more than so many bytes on a file system with user quotas."""
    import ctypes

    device = next(
        line.split()[0]
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split()[1] == str(place)
    )
    blocks = limit // 1024
    # struct dqblk: hard and soft limit of blocks, bytes used, of inodes the same, two times, valid
    what = struct.pack("<8QI4x", blocks, blocks, 0, 0, 0, 0, 0, 0, 1)
    set_user_quota = 0x800008 << 8
    call = ctypes.CDLL(None, use_errno=True).quotactl
    if call(set_user_quota, device.encode(), ANYBODY, what):
        raise UnavailableError(f"quotactl: {os.strerror(ctypes.get_errno())}")
