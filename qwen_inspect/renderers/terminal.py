"""Blocks -> text for a terminal: prettytable's tables, a tree, and with rich, colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prettytable import PrettyTable

from .blocks import Block, Code, Fields, Heading, Items, Node, Paragraph, Table, Tree, tree_lines

if TYPE_CHECKING:
    from rich.tree import Tree as RichTree

# C0 and C1 controls, and the marks that reorder or hide text (Unicode TR 36, 3.1): shown, never sent to a terminal.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


WIDEST_CELL = 88  # longer sentences wrap; the names of tensors are shorter


def safe(text: str) -> str:
    """`text` with whatever could move the cursor, change colours or reorder it written out as an escape."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def render(blocks: Sequence[Block]) -> str:
    """Plain text; blocks are set apart by empty lines."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def render_in_colour(blocks: Sequence[Block]) -> str:
    """The same text with ANSI styles, the tree drawn by rich."""
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


def _table(table: Table) -> str:
    drawn = PrettyTable([safe(column) for column in table.columns])
    for column, letter in zip(drawn.field_names, table.align, strict=True):
        drawn.align[column] = letter  # type: ignore[assignment]  # prettytable wants the literal
    drawn.max_width = WIDEST_CELL
    body = len(table.rows) - table.totals
    for index, row in enumerate(table.rows):
        drawn.add_row([safe(cell) for cell in row], divider=index == body - 1 and table.totals > 0)
    return drawn.get_string()
