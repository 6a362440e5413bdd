"""Refuses configurations with numbers that no model has, before anything loops over them."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import MalformedError
from ..typed import Any
from .reading import LARGEST_SIZE, MOST_LAYERS, shown

# Far above every released model; layers and experts are looped over.
MOST_EXPERTS, MOST_ENTRIES = 8_192, 10_000
MOST_POSITIONS = 1 << 28
DEEPEST = 20
COUNTS = ("layer", "block", "depth", "stage", "repeat", "codebook", "level", "branch", "stack")


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raises MalformedError for a number, list length or nesting depth in `config` that no model has."""

    def check(key: str, value: object, depth: int) -> None:
        if depth > DEEPEST:
            raise MalformedError("generic_too_deep", most=DEEPEST)
        if isinstance(value, Mapping):
            for name, inner in value.items():
                check(str(name), inner, depth + 1)
        elif isinstance(value, list):
            if len(value) > MOST_ENTRIES:
                raise MalformedError("generic_too_long", key=shown(key), found=len(value), most=MOST_ENTRIES)
            for inner in value:
                check(key, inner, depth + 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            most = _most(key)
            if abs(value) > most:
                raise MalformedError("config_out_of_range", key=shown(key), found=shown(value), least=-most, most=most)

    check("", dict(config), 0)


def _most(key: str) -> int:
    key = key.lower()
    if any(part in key for part in ("size", "dim", "rank", "token", "_id", "vocab", "channel")):
        return LARGEST_SIZE
    if "expert" in key or "head" in key:
        return MOST_EXPERTS
    if any(part in key for part in COUNTS):
        return MOST_LAYERS
    return MOST_POSITIONS if "position" in key else LARGEST_SIZE
