"""What this machine's GPUs were measured to take besides the model, kept for later predictions on the same card and libraries.

Nothing is in it that was not measured here: `memory --device cuda` writes an entry after a whole run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import header_cache

if TYPE_CHECKING:
    from ..results.measurement import Calibration

NAME = "calibration.json"
VERSION = 1


def find(gpu: str, versions: Iterable[tuple[str, str]]) -> Calibration | None:
    """The newest entry of this card whose torch and transformers are these; of the same driver, where `versions` tells it."""
    of_card = [one for one in _read() if one.gpu.casefold() == gpu.casefold()]
    if not of_card:
        return None  # without asking for versions, which takes as long as the rest of a short command
    wanted = dict(versions)
    found = [
        one
        for one in of_card
        if (one.torch, one.transformers) == (wanted.get("torch"), wanted.get("transformers"))
        and wanted.get("driver", one.driver) == one.driver
    ]
    return max(found, key=lambda one: one.date, default=None)


def keep(measured: Calibration) -> None:
    """Adds an entry, in the place of one with the same key."""
    others = [one for one in _read() if _key(one) != _key(measured)]
    entries = [asdict(one) for one in sorted([*others, measured], key=_key)]
    header_cache.write_named(NAME, json.dumps({"version": VERSION, "entries": entries}, indent=1).encode())


def _key(one: Calibration) -> tuple[str, str, str, str]:
    return one.gpu, one.driver, one.torch, one.transformers


def _read() -> list[Calibration]:
    """What was kept; a file that this version did not write is as good as none, and is replaced by the next measurement."""
    content = header_cache.read_named(NAME)
    try:
        kept = json.loads(content or b"{}")
        if kept.get("version") != VERSION:
            return []
        return [_entry(one) for one in kept["entries"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _entry(one: dict[str, Any]) -> Calibration:
    from ..results.measurement import Calibration

    sizes = one["context_bytes"], one["workspace_bytes"]
    names = one["gpu"], one["driver"], one["torch"], one["transformers"], one["date"]
    if not all(type(size) is int and 0 <= size < 1 << 50 for size in sizes):
        raise ValueError(NAME)
    if not all(isinstance(name, str) and len(name) < 200 for name in names):
        raise ValueError(NAME)
    return Calibration(**{name: one[name] for name in Calibration.__slots__})
