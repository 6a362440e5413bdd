"""Checks a repository's regular expressions: only patterns that cannot match slowly are accepted."""

from __future__ import annotations

import re

from ..errors import MalformedError, UnsupportedError
from .reading import shown

LONGEST_PATTERN = 2_000
# Nested repetitions, and many in a row, make matching slow: both are refused.
NESTED_REPETITION = re.compile(r"\)[*+{]|[*+}][*+{]|\\[1-9]|\(\?[^:)]")
REPETITION = re.compile(r"(?<!\\)[*+{]")
MOST_REPETITIONS = 4


def safe_pattern(text: str) -> str:
    """`text`, if it is a safe regular expression; UnsupportedError if it could match slowly, MalformedError if invalid."""
    slow = any(len(REPETITION.findall(branch)) > MOST_REPETITIONS for branch in _branches(text))
    if len(text) > LONGEST_PATTERN or NESTED_REPETITION.search(text) or slow:
        raise UnsupportedError("pattern_slow", found=shown(text))
    try:
        re.compile(text)
    except re.error:
        raise MalformedError("pattern_malformed", found=shown(text)) from None
    return text


def _branches(text: str) -> list[str]:
    """The top-level alternatives of a pattern; each is matched from the start, so that their repetitions do not multiply."""
    branches, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += character
    return branches
