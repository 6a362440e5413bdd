"""Text in columns of a terminal: its display width, and lines of at most so many columns, broken between words."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from ..standard import re
from .characters import columns_of, width

JOINED = "\xa0"
# No line of Chinese starts with the first or ends with the second (GB/T 15834-2011, 5.1.1).
NEVER_FIRST = frozenset("，。、；：？！）】》」』〉〕”’…—·％),.;:?!%]}" + JOINED)
NEVER_LAST = frozenset("（【《「『〈〔“‘([{")
# Compiled where they are first used, for most text fits as it is.
UNITS = ("B", *(f"{prefix}{binary}B" for prefix in "KMGT" for binary in ("", "i")))
AFTER = r"(?<=[/._=&?,-])"  # where a word wider than a line is broken


def _words(text: str) -> list[str]:
    """The words of a text; a number stays with its unit."""
    words = text.split(" ")
    if "B" in text:
        for place in range(len(words) - 1, 0, -1):
            if words[place - 1][-1:].isdecimal() and _begins_with_unit(words[place]):
                words[place - 1 : place + 1] = [f"{words[place - 1]}{JOINED}{words[place]}"]
    return words


def _begins_with_unit(word: str) -> bool:
    ends = [word[len(unit) :][:1] for unit in UNITS if word.startswith(unit)]
    return any(not (end.isalnum() or end == "_") for end in ends)


def units(text: str) -> Iterable[str]:
    """The pieces of `text` that are not broken: words, and single Chinese characters with their punctuation."""
    for word in _words(text):
        yield from _parts(word)


def wrapped(text: str, columns: int, *, indent: str = "") -> list[str]:
    """Lines of at most `columns`, `indent` before all but the first. Only a word wider than a line is broken itself."""
    if width(text) <= columns:
        return [text.replace(JOINED, " ")]
    lines: list[str] = []
    line, taken = "", 0
    for word in _words(text):
        space = " " if taken else ""
        for part in _parts(word):
            wide = width(part)
            if taken + len(space) + wide > columns and taken > len(indent):
                lines.append(line)
                line, taken, space = indent, len(indent), ""
            if taken + wide > columns:
                *whole, part = _broken(part, columns - len(indent))
                lines += [
                    before + piece for before, piece in zip([line + space, *[indent] * len(whole)], whole, strict=False)
                ]
                line, taken, space, wide = indent, len(indent), "", width(part)
            line += space + part
            taken += len(space) + wide
            space = ""
    return [line.replace(JOINED, " ") for line in [*lines, line]]


def _parts(word: str) -> list[str]:
    if word.isascii():  # nothing is wide
        return [word]
    parts = [word[0]]
    for before, after in pairwise(word):
        wide = 2 in (columns_of(before), columns_of(after))
        if wide and after not in NEVER_FIRST and before not in NEVER_LAST and columns_of(after):
            parts.append(after)
        else:
            parts[-1] += after
    return parts


def _broken(word: str, columns: int) -> list[str]:
    """A word wider than `columns`, broken after its punctuation, else anywhere."""
    lines = [""]
    taken = 0
    for piece in re.split(AFTER, word):
        wide = width(piece)
        if taken + wide > columns and taken:
            lines.append("")
            taken = 0
        if wide <= columns:
            lines[-1] += piece
            taken += wide
            continue
        for character in piece:
            wide = columns_of(character)
            if taken + wide > columns:
                lines.append("")
                taken = 0
            lines[-1] += character
            taken += wide
    return lines
