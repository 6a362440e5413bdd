"""Parses JSON from untrusted files, strictly by RFC 8259."""

from __future__ import annotations

import json
from typing import Any

from ..errors import MalformedError

LONGEST_JSON_BYTES = 50_000_000  # the index of 36,945 tensors takes 3.6 MB


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
    if len(content) > LONGEST_JSON_BYTES:
        raise MalformedError("json_over_cap", file=file, cap=LONGEST_JSON_BYTES)
    try:
        return json.loads(content.decode("utf-8"), parse_constant=no_number, parse_float=finite)
    except UnicodeDecodeError:
        raise MalformedError("json_not_utf8", file=file) from None
    except json.JSONDecodeError as error:
        raise MalformedError("json_invalid", file=file, line=error.lineno, column=error.colno) from None
    except (ValueError, RecursionError):
        raise MalformedError("json_unreasonable", file=file) from None
