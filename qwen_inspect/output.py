"""Writing a result to a file: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UsageError


def write_whole(destination: str, text: str, *, overwrite: bool) -> None:
    """`text` in `destination`, put there in one step; UsageError where it exists (unless `overwrite`) or cannot be written."""
    path = Path(destination)
    try:
        handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".partial")
        try:
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            os.chmod(written, 0o666 & ~_umask())
            if overwrite:
                os.replace(written, path)
            else:
                os.link(written, path)  # unlike a rename, refuses to replace a file that appeared meanwhile
        finally:
            Path(written).unlink(missing_ok=True)
    except FileExistsError:
        raise UsageError("output_exists", path=destination) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            "output_unwritable", path=destination, reason=getattr(error, "strerror", None) or str(error)
        ) from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
