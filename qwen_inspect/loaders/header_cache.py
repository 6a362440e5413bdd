"""The cache of files fetched from hubs, by content hash: a second run requests only the listing.

Separate from the hub clients' own caches. Everything read back is checked as if it came from the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST_BYTES = 50_000_000
KEY = re.compile(r"[a-z0-9]+-[0-9a-f]{40,64}")


def folder() -> Path:
    """QWEN_INSPECT_CACHE, else qwen-inspect in XDG_CACHE_HOME or ~/.cache (XDG Base Directory Specification 0.8)."""
    if chosen := os.environ.get("QWEN_INSPECT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen-inspect"


def read(key: str) -> bytes | None:
    """The cached bytes for a content hash such as "sha256-..."; None if not cached."""
    return _read(_place("objects", key))


def holds(key: str) -> bool:
    """Whether the cache holds a content hash."""
    return _place("objects", key).is_file()


def write(key: str, content: bytes) -> None:
    """Caches `content`. A folder that cannot be written is no error: the next run fetches again."""
    _write(_place("objects", key), content)


def read_trace(name: str) -> bytes | None:
    """The trace that `write_trace` cached under `name`."""
    return _read(folder() / "traces" / name)


def write_trace(name: str, content: bytes) -> None:
    _write(folder() / "traces" / name, content)


def read_design(name: str) -> bytes | None:
    """The design that `write_design` cached under `name`."""
    return _read(folder() / "designs" / name)


def write_design(name: str, content: bytes) -> None:
    _write(folder() / "designs" / name, content)


def read_named(name: str) -> bytes | None:
    """A file about this machine, such as its calibration."""
    return _read(folder() / name)


def write_named(name: str, content: bytes) -> None:
    _write(folder() / name, content)


def listing_age_seconds(*names: str) -> float | None:
    """Seconds since a listing was cached; None if it was not, or if its time lies in the future."""
    try:
        age = time.time() - _place("listings", _listing_key(names)).stat().st_mtime
    except OSError:
        return None
    return age if age >= 0 else None


def read_listing(*names: str) -> Mapping[str, Any] | None:
    """The last listing of a repository's revision at an endpoint, as it was written."""
    content = _read(_place("listings", _listing_key(names)))
    try:
        listing = json.loads(content) if content else None
    except (ValueError, RecursionError):
        return None
    return listing if isinstance(listing, dict) else None


def write_listing(*names: str, listing: Mapping[str, Any]) -> None:
    _write(_place("listings", _listing_key(names)), json.dumps(listing).encode())


def _listing_key(names: tuple[str, ...]) -> str:
    return f"sha256-{hashlib.sha256(json.dumps(names).encode()).hexdigest()}"


def _place(kind: str, key: str) -> Path:
    if not KEY.fullmatch(key):
        raise ValueError(key)
    return folder() / kind / key


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= LARGEST_BYTES else None


def _write(path: Path, content: bytes) -> None:
    partial = f"{path}.{os.getpid()}.{threading.get_ident()}.partial"
    try:
        try:
            stream = open(partial, "wb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(partial, "wb")  # noqa: SIM115
        with stream:
            stream.write(content)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial)
