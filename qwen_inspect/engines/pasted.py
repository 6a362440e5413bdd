"""Words and values of a command of vLLM or SGLang that was pasted. Options are spelled with hyphens or underscores."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from ..errors import UsageError
from ..units import GIB

LONGEST_COMMAND = 20_000
SET_BEFORE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)  # VAR=value before a program
SHELL_END = re.compile(r"\|\|?|&&?|;")
REDIRECTION = re.compile(r"(?:[0-9]*|&)>{1,2}(&?\S*)")


def words_of(line: str) -> list[str]:
    """As a shell splits them; UsageError for a line that is too long or that no shell reads."""
    if len(line) > LONGEST_COMMAND:
        raise UsageError("llama_cpp_command_long", most=LONGEST_COMMAND)
    try:
        return shlex.split(line.replace("\\\n", " "), comments=False)
    except ValueError:
        raise UsageError("llama_cpp_command_quotes") from None


def of_program(words: Sequence[str]) -> list[str]:
    """Without what a shell keeps for itself: redirections, and all behind a pipe, a semicolon or an ampersand."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if SHELL_END.fullmatch(word):
            break
        if (redirection := REDIRECTION.fullmatch(word)) is not None:
            if not redirection[1]:
                next(rest, None)  # the file
            continue
        kept.append(word.removesuffix(";"))
        if word.endswith(";"):
            break
    return kept


def each_option(
    words: Sequence[str], *, short: Mapping[str, str], valued: Callable[[str], bool], bare: Collection[str]
) -> Iterator[tuple[str, str | None]]:
    """(option, value), and ("", word) for what is no option.

    valued: whether an option has a value, else UsageError; bare: options without one. Any other has one where a word follows.
    """
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            yield "", word
            continue
        word, equals, value = word.partition("=")
        if equals:
            rest.insert(0, value)
        option = short.get(word, "--" + word.lstrip("-").replace("_", "-") if word.startswith("--") else word)
        if valued(option):
            if not rest:
                raise UsageError("llama_cpp_value_missing", option=option)
            yield option, rest.pop(0)
        elif option in bare or not rest or rest[0].startswith("-"):
            yield option, None
        else:
            yield option, rest.pop(0)


def read_count(option: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", value) or int(value) == 0:
        raise UsageError("vllm_count", option=option, found=value[:80])
    return int(value)


def read_tokens(option: str, value: str) -> int:
    """A number, with k, m, g (thousands) or K, M, G (1024s) behind. Source: human_readable_int of vLLM's arg_utils."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([kmgKMG]?)", value)
    if match is None:
        raise UsageError("llama_cpp_number", option=option, found=value[:80])
    letter = match[2]
    base = 1024 if letter.isupper() else 1000
    tokens = int(float(match[1]) * base ** ("kmg".index(letter.lower()) + 1 if letter else 0))
    return read_count(option, str(tokens))


def read_share(option: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{0,2}(\.[0-9]{1,12})?", value) or not 0 < float(value or 0) <= 1:
        raise UsageError("vllm_share", option=option, found=value[:80])
    return float(value)


def read_gib(option: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        raise UsageError("llama_cpp_number", option=option, found=value[:80])
    return int(float(value) * GIB)


def read_format(option: str, value: str) -> str:
    """Both 8-bit kinds are a byte; bfloat16 and float16 are as they say."""
    return "fp8" if value.startswith("fp8") else {"bf16": "bfloat16"}.get(value, value)


def read_dtype(value: str) -> str | None:
    """None for the model's own."""
    return None if value == "auto" else {"half": "float16", "float": "float32"}.get(value, value)
