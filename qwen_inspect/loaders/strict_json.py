"""Parses JSON from untrusted files, strictly by RFC 8259."""

from __future__ import annotations

import json

from ..errors import MalformedError
from ..typed import Any

# The index of 36,945 tensors takes 3.6 MB and has as many values; in a header a tensor has 8. Text that is not ASCII takes up to
# four times its bytes.
LONGEST_JSON_BYTES, LONGEST_WIDE_BYTES = 50_000_000, 10_000_000
MOST_VALUES = 600_000
DEEPEST = 64


def no_number(word: str) -> None:
    """Refuses NaN and Infinity, which Python's parser accepts and JSON excludes (RFC 8259, 6)."""
    raise ValueError(word)


def finite(text: str) -> float:
    """A finite float; ValueError for 1e999."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def parse_json(content: bytes, *, file: str) -> Any:
    """Parses UTF-8 JSON of at most LONGEST_JSON_BYTES; MalformedError says what is wrong."""
    check_amount(content, file=file)
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=no_number, parse_float=finite)
    except UnicodeDecodeError:
        raise MalformedError("json_not_utf8", file=file) from None
    except json.JSONDecodeError as error:
        raise MalformedError("json_invalid", file=file, line=error.lineno, column=error.colno) from None
    except (ValueError, RecursionError):
        raise MalformedError("json_unreasonable", file=file) from None
    if not _is_shallow(value):
        raise MalformedError("json_unreasonable", file=file)
    return value


def check_amount(content: bytes, *, file: str) -> None:
    """MalformedError for JSON of more bytes or values than a model has: parsed, it would take many times its bytes."""
    cap = LONGEST_JSON_BYTES if content.isascii() else LONGEST_WIDE_BYTES
    if len(content) > cap:
        raise MalformedError("json_over_cap", file=file, cap=cap)
    if content.count(b",") + content.count(b"[") + content.count(b"{") > MOST_VALUES:
        raise MalformedError("json_values", file=file, most=MOST_VALUES)


def _is_shallow(value: Any) -> bool:
    """Whether a value is nested at most DEEPEST deep, so that whatever walks through it may recurse."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False
