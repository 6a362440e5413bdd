"""Parses option values: functions for argparse's `type`, with errors in the user's language."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from ..language import Language
from ..units import parse_size, parse_tokens

Value = TypeVar("Value")
Reader = Callable[[str], Value]


def reader(read: Reader[Value], error: str, say: Language) -> Reader[Value]:
    """A `type` for argparse: `read`, with its ValueError replaced by the message `error`, formatted with `text`."""

    def checked(text: str) -> Value:
        try:
            return read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(say(error, text=text)) from None

    return checked


def positive(say: Language) -> Reader[int]:
    """A whole number above 0, with or without thousands separators."""
    return reader(parse_positive, "usage_positive", say)


def tokens(say: Language) -> Reader[int]:
    """A number of tokens, such as 32768 or 32k."""
    return reader(parse_tokens, "usage_tokens", say)


def size(say: Language) -> Reader[tuple[str, int]]:
    """A size such as 16GiB: as typed, and in bytes."""
    return reader(lambda text: (text, parse_size(text)), "usage_size", say)


def parse_positive(text: str) -> int:
    digits = text.replace(",", "").replace("_", "")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18 or int(digits) == 0:
        raise ValueError
    return int(digits)
