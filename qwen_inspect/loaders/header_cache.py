"""The cache of what was fetched from hubs and learnt of models: a second run requests only the listing.

Separate from the hub clients' own caches. A kept file begins with a checksum of its name and content: damage is found, and the
file dropped. What a hub sent is kept under its hash if it is what the hash names, else under where it came from, so that no
server can answer for another's repository. Everything read back is checked as if it came from the network.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

from ..digests import sha256_hex
from ..standard import json, re
from ..typed import Any
from .regular import below_home, read_regular

LARGEST_BYTES = 50_000_000
KEY = r"[a-z0-9]+-[0-9a-f]{40,64}"


def is_key(text: str) -> bool:
    """Whether a hub may list a file with such a content hash."""
    return re.fullmatch(KEY, text) is not None


def folder(*place: str) -> str:
    """QWEN_INSPECT_CACHE, else qwen-inspect in XDG_CACHE_HOME or ~/.cache (XDG Base Directory Specification 0.8), or a
    place in it.
    """
    if chosen := os.environ.get("QWEN_INSPECT_CACHE"):
        return os.path.join(chosen, *place)
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or below_home(".cache"), "qwen-inspect", *place)


def read(*place: str, key: str) -> bytes | None:
    """What is kept of a file that a hub lists with a content hash (`key`); None if nothing intact is.

    place: where it is listed: hub, endpoint, repository, name.
    """
    sent = _read(_place("objects", _key_at(place, key)))
    return _read(_place("objects", key)) if sent is None else sent


def holds(*place: str, key: str) -> bool:
    """Whether something is kept of a file, intact or not."""
    return any(os.path.isfile(_place("objects", name)) for name in (key, _key_at(place, key)))


def write(*place: str, key: str, content: bytes) -> None:
    """Keeps the file, or the part of it, that a hub sent.

    A folder that cannot be written is no error: the next run fetches again.
    """
    _write(_place("objects", key if _is_content(key, content) else _key_at(place, key)), content)


def _key_at(place: tuple[str, ...], key: str) -> str:
    return f"at-{sha256_hex(json.dumps([*place, key]).encode())}"


def _is_content(key: str, content: bytes) -> bool:
    """Whether `content` is the whole file that a hash names. Source: git's documentation, "Git Internals - Git Objects"."""
    from hashlib import sha1

    kind, _, digest = key.partition("-")
    if kind == "git":
        return sha1(b"blob %d\0" % len(content) + content).hexdigest() == digest
    return kind == "sha256" and sha256_hex(content) == digest


def read_trace(name: str) -> bytes | None:
    """The trace that `write_trace` cached under `name`."""
    return _read(folder("traces", name))


def write_trace(name: str, content: bytes) -> None:
    _write(folder("traces", name), content)


def read_design(name: str) -> bytes | None:
    """The design that `write_design` cached under `name`."""
    return _read(folder("designs", name))


def write_design(name: str, content: bytes) -> None:
    _write(folder("designs", name), content)


def read_named(name: str) -> bytes | None:
    """A file about this machine, such as its calibration, as it was written."""
    return _content(folder(name))


def write_named(name: str, content: bytes) -> None:
    _replace(folder(name), content)


def listing_age_seconds(*names: str) -> float | None:
    """Seconds since a listing was cached; None if it was not, or if its time lies in the future."""
    try:
        age = time.time() - os.stat(_place("listings", _listing_key(names))).st_mtime
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
    return f"sha256-{sha256_hex(json.dumps(names).encode())}"


def _place(kind: str, key: str) -> str:
    if not is_key(key):
        raise ValueError(key)
    return folder(kind, key)


def _read(path: str) -> bytes | None:
    """What `_write` kept at `path`. Anything else is dropped: damaged, or kept by a version that wrote no checksum."""
    kept = _content(path)
    if kept is None:
        return None
    checksum, _, content = kept.partition(b"\n")
    if checksum == _checksum(path, content):
        return content
    with contextlib.suppress(OSError):
        os.unlink(path)
    return None


def _write(path: str, content: bytes) -> None:
    _replace(path, b"\n".join((_checksum(path, content), content)))


def _checksum(path: str, content: bytes) -> bytes:
    return sha256_hex("{}/{}\n".format(*path.split(os.sep)[-2:]).encode() + content).encode()


def _content(path: str) -> bytes | None:
    try:
        content = read_regular(path, cap=LARGEST_BYTES)
    except OSError:
        return None
    return content if len(content) <= LARGEST_BYTES else None


def _replace(path: str, content: bytes) -> None:
    from threading import get_ident

    partial = f"{path}.{os.getpid()}.{get_ident()}.partial"
    try:
        try:
            stream = open(partial, "wb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            stream = open(partial, "wb")  # noqa: SIM115
        with stream:
            stream.write(content)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial)
