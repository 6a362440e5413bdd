"""The columns of a terminal that characters take, by Python's own table of Unicode: `import wcwidth` takes 40 ms."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from unicodedata import category, east_asian_width

EMOJI = (
    "\ufe0f"  # variation selector 16: the character before it is drawn as a picture, which is wide (Unicode TR 51, 2.4)
)


@cache
def columns_of(character: str) -> int:
    """2 for a wide character (Unicode Standard Annex 11: W and F), 0 for one that is drawn over another, else 1."""
    if category(character) in ("Mn", "Me", "Mc", "Cc", "Cf", "Zl", "Zp"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def width(text: str) -> int:
    """Columns that `text` takes, without control characters."""
    if text.isascii():
        return len(text)
    coloured = (
        sum(columns_of(before) == 1 for before, after in pairwise(text) if after == EMOJI) if EMOJI in text else 0
    )
    return sum(map(columns_of, text)) + coloured
