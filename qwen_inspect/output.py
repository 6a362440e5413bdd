"""Writing a result to a file: whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .errors import UsageError


def write_whole(destination: str, content: str | bytes, *, overwrite: bool) -> None:
    """`content` in `destination`, put there in one step; UsageError where it exists (unless `overwrite`) or cannot be written."""
    path = Path(destination)
    written_bytes = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if overwrite and os.path.lexists(path) and not os.path.isfile(path):
        raise UsageError("output_not_a_file", path=destination)
    try:
        handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:20]}.", suffix=".partial")
        try:
            with open(handle, "wb") as stream:
                stream.write(written_bytes)
            os.chmod(written, 0o666 & ~_umask())
            if overwrite:
                os.replace(written, path)
            else:
                _put(written, path)
        finally:
            Path(written).unlink(missing_ok=True)
    except FileExistsError:
        raise UsageError("output_exists", path=destination) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            "output_unwritable", path=destination, reason=getattr(error, "strerror", None) or str(error)
        ) from None


def _put(written: str, path: Path) -> None:
    """`written` under its own name, unless a file appeared there meanwhile: a link refuses what a rename would replace."""
    try:
        os.link(written, path)
    except OSError as error:
        # Some file systems have no links (FAT, some network mounts).
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS) or os.path.lexists(path):
            raise
        os.rename(written, path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
