"""Regular expressions of a repository: matched only where it is known that this takes no time to speak of."""

from __future__ import annotations

import re

from ..errors import MalformedError, UnsupportedError
from .reading import shown

LONGEST_PATTERN = 2_000
# What makes matching slow is one repetition inside another, or many in a row: those are refused.
NESTED_REPETITION = re.compile(r"\)[*+{]|[*+}][*+{]|\\[1-9]|\(\?[^:)]")
REPETITION = re.compile(r"(?<!\\)[*+{]")
MOST_REPETITIONS = 4


def safe_pattern(text: str) -> str:
    """`text`, a regular expression; UnsupportedError where it could match slowly, MalformedError where it is none."""
    slow = any(len(REPETITION.findall(branch)) > MOST_REPETITIONS for branch in _branches(text))
    if len(text) > LONGEST_PATTERN or NESTED_REPETITION.search(text) or slow:
        raise UnsupportedError("pattern_slow", found=shown(text))
    try:
        re.compile(text)
    except re.error:
        raise MalformedError("pattern_malformed", found=shown(text)) from None
    return text


def _branches(text: str) -> list[str]:
    """The alternatives at the top of a pattern: what one does not match, the next begins anew."""
    branches, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += character
    return branches
