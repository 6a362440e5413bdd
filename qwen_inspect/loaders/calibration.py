"""GPU memory measured outside the model (CUDA context, cuBLAS workspace), stored for later predictions.

An entry holds for one card and its library versions. Only `memory --device cuda` writes entries, after a complete run.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..digests import sha256_hex
from ..standard import json, loads
from ..typed import TYPE_CHECKING, Any
from . import header_cache

if TYPE_CHECKING:
    from ..results.measurement import Calibration

NAME = "calibration.json"
VERSION = 1


def find(gpu: str, versions: Iterable[tuple[str, str]]) -> Calibration | None:
    """The newest entry for this card, torch and transformers, and for this driver if `versions` names one."""
    of_card = [entry for entry in _read() if entry.gpu.casefold() == gpu.casefold()]
    if not of_card:
        return None  # before `versions` is read: that takes as long as the rest of a short command
    wanted = dict(versions)
    matches = [
        entry
        for entry in of_card
        if (entry.torch, entry.transformers) == (wanted.get("torch"), wanted.get("transformers"))
        and wanted.get("driver", entry.driver) == entry.driver
    ]
    return max(matches, key=lambda entry: entry.date, default=None)


def keep(measured: Calibration) -> None:
    """Adds an entry, or replaces the entry with the same key."""
    from dataclasses import asdict

    others = [entry for entry in _read() if _key(entry) != _key(measured)]
    entries = [asdict(entry) for entry in sorted([*others, measured], key=_key)]
    content = {"version": VERSION, "checksum": _checksum(entries), "entries": entries}
    header_cache.write_named(NAME, json.dumps(content, indent=1).encode())


def _key(entry: Calibration) -> tuple[str, str, str, str]:
    return entry.gpu, entry.driver, entry.torch, entry.transformers


def _checksum(entries: object) -> str:
    return sha256_hex(json.dumps(entries, sort_keys=True).encode())


def _read() -> list[Calibration]:
    """The stored entries; none if the file is damaged or another version's, which the next measurement then replaces.

    Files of the first versions have no checksum.
    """
    content = header_cache.read_named(NAME)
    try:
        stored = loads(content or b"{}")
        if stored.get("version") != VERSION:
            return []
        if stored.get("checksum", _checksum(stored["entries"])) != _checksum(stored["entries"]):
            return []
        return [_entry(entry) for entry in stored["entries"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _entry(fields: dict[str, Any]) -> Calibration:
    from ..results.measurement import Calibration

    sizes = fields["context_bytes"], fields["workspace_bytes"]
    names = fields["gpu"], fields["driver"], fields["torch"], fields["transformers"], fields["date"]
    if not all(type(size) is int and 0 <= size < 1 << 50 for size in sizes):
        raise ValueError(NAME)
    if not all(isinstance(name, str) and len(name) < 200 for name in names):
        raise ValueError(NAME)
    return Calibration(**{name: fields[name] for name in Calibration.__slots__})
