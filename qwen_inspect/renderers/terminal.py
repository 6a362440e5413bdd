"""Blocks -> text for a terminal: tables by prettytable; with colour, trees by rich."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prettytable import PrettyTable
from wcwidth import wcwidth

from .blocks import (
    Answer,
    Block,
    Code,
    Fields,
    Figure,
    Folded,
    Heading,
    Items,
    Live,
    Node,
    Paragraph,
    Table,
    Tree,
    tree_lines,
)

if TYPE_CHECKING:
    from rich.tree import Tree as RichTree

# Control characters (category Cc), line separators (Zl, Zp) and format characters (Cf), which move the cursor, or reorder or hide
# text (Unicode TR 36, 3.1): printed as escapes, never sent to a terminal.
UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0001-\U000e007f]"
)


WIDEST_CELL = 88  # longer sentences wrap; tensor names are shorter


def safe(text: str) -> str:
    """Escapes control, colour and bidirectional characters."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def render(blocks: Sequence[Block]) -> str:
    """Plain text, with empty lines between blocks."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def render_in_colour(blocks: Sequence[Block]) -> str:
    """The same text with ANSI styles; rich draws the tree."""
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    console = Console(file=StringIO(), force_terminal=True, color_system="standard", width=10_000, highlight=False)
    for index, block in enumerate(blocks):
        if index:
            console.print()
        match block:
            case Heading():
                console.print(Text(_block(block), style="bold cyan"))
            case Answer():
                console.print(Text(_block(block), style="bold"))
            case Tree(root=root):
                console.print(_grown(root))
            case _:
                console.print(Text(_block(block)))
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue()


def _grown(node: Node) -> RichTree:
    from rich.text import Text
    from rich.tree import Tree as RichTree

    tree = RichTree(
        Text.assemble(safe(node.text), (f"  {safe(node.note)}" if node.note else "", "green")), guide_style="dim"
    )
    for child in node.children:
        tree.children.append(_grown(child))
    return tree


def _block(block: Block) -> str:
    match block:
        case Heading(text=text):
            return f"=== {safe(text)} ==="
        case Answer(sentences=sentences):
            return "\n".join(map(safe, sentences))
        case Paragraph(text=text):
            return safe(text)
        case Fields(rows=rows):
            return "\n".join(f"{safe(label)}: {safe(value)}" for label, value in rows)
        case Items(items=items, numbered=numbered):
            return "\n".join(
                f"{index}. {safe(item)}" if numbered else f"- {safe(item)}" for index, item in enumerate(items, 1)
            )
        case Table():
            return _table(block)
        case Tree(root=root):
            return "\n".join(
                f"{guides}{safe(node.text)}{'  ' + safe(node.note) if node.note else ''}"
                for guides, node in tree_lines(root)
            )
        case Code(text=text):
            return "\n".join(map(safe, text.splitlines()))
        case Figure(text=text, file=file):
            return f"[{safe(text)}: {safe(file)}]"
        case Folded(summary=summary):
            return safe(summary)
        case Live(text=text):
            return safe(text)


def _broken(cell: str) -> str:
    """Splits words wider than WIDEST_CELL, because prettytable is slow at it."""
    if len(cell) <= WIDEST_CELL // 2:
        return cell
    return " ".join(_cut(word) if len(word) > WIDEST_CELL // 2 else word for word in cell.split(" "))


def _cut(word: str) -> str:
    if word.isascii():  # Its width is its length, because `safe` has escaped control characters.
        return "\n".join(word[start : start + WIDEST_CELL] for start in range(0, len(word), WIDEST_CELL))
    pieces: list[str] = []
    piece: list[str] = []
    width = 0
    for character in word:
        wide = max(wcwidth(character), 0)
        if width + wide > WIDEST_CELL:
            pieces.append("".join(piece))
            piece, width = [], 0
        piece.append(character)
        width += wide
    return "\n".join([*pieces, "".join(piece)])


def cut_to(text: str, columns: int) -> str:
    """The beginning of `text` that fits into `columns`; all of it if columns < 1 (the terminal does not report its width)."""
    shown = safe(text)
    ends = accumulate(max(wcwidth(character), 0) for character in shown)
    return shown if columns < 1 else shown[: sum(end <= columns for end in ends)]


def _table(table: Table) -> str:
    drawn = PrettyTable([safe(column) for column in table.columns])
    for column, letter in zip(drawn.field_names, table.align, strict=True):
        drawn.align[column] = letter  # type: ignore[assignment]  # prettytable wants the literal
    drawn.max_width = WIDEST_CELL
    body = len(table.rows) - table.totals
    for index, row in enumerate(table.rows):
        drawn.add_row([_broken(safe(cell)) for cell in row], divider=index == body - 1 and table.totals > 0)
    return drawn.get_string()
