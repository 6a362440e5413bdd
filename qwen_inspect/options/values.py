"""Parses option values: functions for `type` of an option, with errors in the user's language."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..language import Language
from ..typed import TypeVar
from ..units import parse_size, parse_tokens
from .parser import ValueTextError

# What number formats are called elsewhere.
# Source: torch 2.13, torch.half, torch.float and torch.double; ggml's f16 and f32; vLLM 0.19, CacheDType, for fp8_e4m3; the rest
# is usage.
FORMAT_NAMES: Mapping[str, str] = {
    "bf16": "bfloat16",
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("fp32", "f32", "float", "single"), "float32"),
    **dict.fromkeys(("fp64", "f64", "double"), "float64"),
    **dict.fromkeys(("fp8_e4m3", "float8", "float8_e4m3fn", "f8"), "fp8"),
}
Value = TypeVar("Value")
Reader = Callable[[str], Value]


def reader(read: Reader[Value], error: str, say: Language) -> Reader[Value]:
    """A `type` for an option: `read`, with its ValueError replaced by the message `error`, formatted with `text`."""

    def checked(text: str) -> Value:
        try:
            return read(text)
        except ValueError:
            raise ValueTextError(say(error, text=text)) from None

    return checked


def positive(say: Language) -> Reader[int]:
    """A whole number above 0, with or without thousands separators."""
    return reader(parse_positive, "usage_positive", say)


def tokens(say: Language) -> Reader[int]:
    """A number of tokens, such as 32768 or 32k."""
    return reader(parse_tokens, "usage_tokens", say)


def probability(say: Language) -> Reader[float]:
    return reader(parse_probability, "usage_probability", say)


def size(say: Language) -> Reader[tuple[str, int]]:
    """A size such as 16GiB: as typed, and in bytes."""
    return reader(lambda text: (text, parse_size(text)), "usage_size", say)


def number_format(text: str) -> str:
    """A number format, or K's and V's as "K,V", by the names used here: "BF16" and "torch.bfloat16" -> "bfloat16"."""
    names = [name.strip().lower().removeprefix("torch.") for name in text.split(",")]
    return ",".join(FORMAT_NAMES.get(name, name) for name in names)


def parse_positive(text: str) -> int:
    digits = text.replace(",", "").replace("_", "")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18 or int(digits) == 0:
        raise ValueError
    return int(digits)


def parse_probability(text: str) -> float:
    """A number of 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError
    return value


def parse_share(text: str) -> float:
    """A fraction above 0 and at most 1."""
    if not 0 < (value := float(text)) <= 1:
        raise ValueError
    return value
