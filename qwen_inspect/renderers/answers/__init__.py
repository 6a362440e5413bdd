"""Each command's answer in one to three sentences, for a document's first block and JSON's `answer`. A module per command."""

from __future__ import annotations

from ...language import Language
from ...standard import import_module
from ...typed import Any
from ...units import size


def sentences(command: str, subject: Any, say: Language) -> list[str]:
    """The answer of `command`. subject: the value that the command computed, such as a Report or a FitReport."""
    answer: list[str] = import_module(f"{__name__}.{command}").sentences(subject, say)
    return answer


def between(low_bytes: int, high_bytes: int | None, say: Language) -> str:
    """15.96 to 16.70 GiB; a single size if both ends are equal; "at least" if there is no upper end."""
    low, high = size(low_bytes), size(high_bytes)
    if high_bytes is None:
        return say("at_least", value=low)
    if low == high:
        return low
    number, _, unit = low.partition(" ")
    return say("size_range", low=number if high.endswith(f" {unit}") else low, high=high)


def within(message: str) -> str:
    """A message to stand at the end of a sentence: without a period of its own."""
    return message.rstrip(".。")


def text(command: str, subject: Any, say: Language) -> str:
    """The answer as one string."""
    return say("answer_joint").join(sentences(command, subject, say))
