"""Figures of vLLM's logs that no source gives, kept by card, version and class for later predictions.

Only `fit --log` adds an entry. A damaged file, or one of another version, is no entry, and the next log replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from ..results.serving import ServedLog
from ..typed import Any
from . import header_cache

NAME = "vllm-logs.json"
VERSION = 1
MOST_ENTRIES, LONGEST_NAME, LARGEST_BYTES = 1000, 200, 1 << 50


def kept() -> tuple[ServedLog, ...]:
    content = header_cache.read_named(NAME)
    if not content:
        return ()
    try:
        stored = json.loads(content)
        entries = stored["entries"] if stored.get("version") == VERSION else []
        if stored.get("checksum") != _checksum(entries) or len(entries) > MOST_ENTRIES:
            return ()
        return tuple(map(_entry, entries))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()


def keep(log: ServedLog) -> None:
    """Adds an entry, or replaces the entry with the same key. A folder that cannot be written is no error."""
    _write([*(entry for entry in kept() if entry.key != log.key), log])


def forget(entries: Iterable[ServedLog]) -> None:
    forgotten = {entry.key for entry in entries}
    _write([entry for entry in kept() if entry.key not in forgotten])


def _write(entries: list[ServedLog]) -> None:
    rows = [{name: getattr(entry, name) for name in FIELDS} for entry in sorted(entries, key=str)[-MOST_ENTRIES:]]
    content = {"version": VERSION, "checksum": _checksum(rows), "entries": rows}
    header_cache.write_named(NAME, json.dumps(content, indent=1).encode())


def _checksum(rows: object) -> str:
    from hashlib import sha256

    return sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _entry(row: dict[str, Any]) -> ServedLog:
    for name, kind in FIELDS.items():
        value = row[name]
        optional = name in ("graphs_bytes", "total_bytes") and value is None
        if type(value) is not kind and not optional:
            raise ValueError(NAME)
        if (kind is str and len(value) > LONGEST_NAME) or (type(value) is int and abs(value) > LARGEST_BYTES):
            raise ValueError(NAME)
    return ServedLog(**{name: row[name] for name in FIELDS})


FIELDS: dict[str, type] = {
    **dict.fromkeys(("card", "version", "class_name", "date", "log"), str),
    **dict.fromkeys(("vocabulary", "ranks", "pipeline_ranks", "non_torch_bytes", "rounding_bytes"), int),
    **dict.fromkeys(("activation_beyond_bytes", "graphs_bytes", "total_bytes"), int),
    "eager": bool,
}
