"""Writes results to files, completely or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import UsageError


def write_whole(destination: str, content: str | bytes, *, overwrite: bool) -> None:
    """Writes a file in one step; UsageError if it exists (unless `overwrite`) or cannot be written."""
    write_all_whole({destination: content}, overwrite=overwrite)


def write_all_whole(contents: Mapping[str, str | bytes], *, overwrite: bool) -> None:
    """Writes all files or none: each goes to a temporary file beside its destination first, then all are renamed.

    contents: destination -> content. Errors as of `write_whole`.
    """
    staged: dict[str, str] = {}
    destination = ""
    try:
        for destination, content in contents.items():
            path = Path(destination)
            if overwrite and os.path.lexists(path) and not os.path.isfile(path):
                raise UsageError("output_not_a_file", path=destination)
            if not overwrite and os.path.lexists(path):
                raise FileExistsError
            staged[destination] = _staged(path, content)
        for destination, written in staged.items():
            if overwrite:
                os.replace(written, destination)
            else:
                _put(written, Path(destination))
    except FileExistsError:
        raise UsageError("output_exists", path=destination) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            "output_unwritable", path=destination, reason=getattr(error, "strerror", None) or str(error)
        ) from None
    finally:
        for written in staged.values():
            Path(written).unlink(missing_ok=True)


def _staged(path: Path, content: str | bytes) -> str:
    """Writes `content` to a temporary file beside `path`, and returns its path."""
    handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:20]}.", suffix=".partial")
    try:
        with open(handle, "wb") as stream:
            stream.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
        os.chmod(written, 0o666 & ~_umask())
    except BaseException:
        Path(written).unlink(missing_ok=True)
        raise
    return written


def _put(written: str, path: Path) -> None:
    """Moves `written` to `path`; FileExistsError if a file appeared there. A link refuses to replace it, a rename would not."""
    try:
        os.link(written, path)
    except OSError as error:
        # Some file systems lack links (FAT, some network mounts).
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS) or os.path.lexists(path):
            raise
        os.rename(written, path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
