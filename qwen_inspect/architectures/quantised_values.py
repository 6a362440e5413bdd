"""The values of a `quantization_config`, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import MalformedError, UnsupportedError
from ..typed import Any
from .reading import integer, optional_integer, shown

MOST_PATTERNS = 100_000

MOST_RULES = 1_000


def require_few(rules: Mapping[str, Any], key: str) -> None:
    """Raises UnsupportedError for more than MOST_RULES rules, each of which is matched with each module."""
    if len(rules) > MOST_RULES:
        raise UnsupportedError("quantised_rules", key=key, found=len(rules), most=MOST_RULES)


def require_choice(key: str, value: object, choices: Sequence[object]) -> None:
    """Raises UnsupportedError unless `value` is one of `choices`."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise UnsupportedError("quantised_option_unsupported", key=key, found=shown(value), known=names)


def read_bits(declared: Mapping[str, Any], choices: tuple[int, ...], *, key: str = "bits") -> int:
    bits = integer(declared, key, at_most=64)
    require_choice(key, bits, choices)
    return bits


def read_group_size(declared: Mapping[str, Any]) -> int | None:
    """`group_size`; None for -1 or null: all input features share a group."""
    if declared.get("group_size") == -1:
        return None
    return optional_integer(declared, "group_size", at_least=1)


def is_block(block: object) -> bool:
    return (
        isinstance(block, Sequence)
        and len(block) == 2
        and all(type(side) is int and 0 < side < 1 << 20 for side in block)
    )


def read_names(declared: Mapping[str, Any], key: str) -> list[str]:
    names = declared.get(key)
    if names is None:
        return []
    if not isinstance(names, list) or len(names) > MOST_PATTERNS or not all(isinstance(name, str) for name in names):
        raise MalformedError("quantised_names", key=key, found=shown(names))
    return names
