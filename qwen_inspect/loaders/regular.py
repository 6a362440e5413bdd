"""Reads files that are named by users, repositories and caches: regular files alone, and no more of them than a cap."""

from __future__ import annotations

import errno
import os
import stat

from ..typed import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path


def below_home(path: str) -> str:
    """`path` in the user's home folder; where there is none (no HOME, no entry for the user), a place that cannot exist."""
    home = os.path.expanduser("~")
    return os.path.join(os.devnull if home == "~" else home, path)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file for reading bytes; OSError for a pipe, device or directory, which could block or never end."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "not a regular file")
    return open(handle, "rb")


def read_regular(path: str | Path, *, cap: int) -> bytes:
    """A file's content, or its first `cap` + 1 bytes if it is longer; OSError as of `open_regular`."""
    with open_regular(path) as stream:
        return stream.read(cap + 1) or b""  # None of a file of /proc that has nothing to read now
