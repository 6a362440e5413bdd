"""A table of text between lines: what prettytable draws, without its import of wcwidth, which takes as long as Python's start."""

from __future__ import annotations

from collections.abc import Container, Sequence

from .characters import width


def grid(rows: Sequence[Sequence[str]], align: Sequence[str], *, ruled_after: Container[int]) -> str:
    """The rows' cells, padded to their columns' widths, between lines. A cell's lines stand below one another.

    align: l, c or r for each column. ruled_after: the rows with a line below them.
    """
    split = [[cell.split("\n") for cell in row] for row in rows]
    widths = [max(width(line) for cell in column for line in cell) for column in zip(*split, strict=True)]
    rule = f"+{'+'.join('-' * (wide + 2) for wide in widths)}+"
    lines = [rule]
    for index, row in enumerate(split):
        for line in range(max(map(len, row))):
            texts = [cell[line] if line < len(cell) else "" for cell in row]
            padded = [_padded(text, wide, letter) for text, wide, letter in zip(texts, widths, align, strict=True)]
            lines.append(f"| {' | '.join(padded)} |")
        if index in ruled_after or index == len(split) - 1:
            lines.append(rule)
    return "\n".join(lines)


def _padded(text: str, wide: int, letter: str) -> str:
    empty = wide - width(text)
    left = {"l": 0, "c": empty // 2 + (empty & wide & 1), "r": empty}[letter]
    return f"{' ' * left}{text}{' ' * (empty - left)}"
