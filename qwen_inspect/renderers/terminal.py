"""Blocks -> text for a terminal: all of it no wider than the screen, if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from ..standard import re
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
    Shortened,
    Table,
    Tree,
    tree_lines,
)
from .characters import columns_of, width
from .screen import Screen, drawn
from .wrapping import JOINED, wrapped

# Control characters (category Cc), line separators (Zl, Zp) and format characters (Cf), which move the cursor, or reorder or hide
# text (Unicode TR 36, 3.1): printed as escapes, never sent to a terminal.
UNSAFE = (
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0001-\U000e007f]"
)

# Select Graphic Rendition (ECMA-48, 8.3.117) of the parts of a line.
HEADING, ANSWER, FAINT, COUNT, PLAIN = "1;36", "1", "2", "32", ""
Line = Sequence[tuple[str, str]]  # (text, its rendition)


def safe(text: str) -> str:
    """Escapes control, colour and bidirectional characters."""
    if text.isprintable():  # no character of these categories is
        return text
    return re.sub(UNSAFE, lambda match: match[0].encode("unicode_escape").decode(), text)


def render(blocks: Sequence[Block], screen: Screen | None = None) -> str:
    """Plain text, with empty lines between blocks. Without a screen, lines are as long as they are."""
    return (
        "\n\n".join("\n".join("".join(text for text, _ in line) for line in _lines(block, screen)) for block in blocks)
        + "\n"
    )


def render_in_colour(blocks: Sequence[Block], screen: Screen | None = None) -> str:
    """The same text with ANSI styles."""
    return "\n\n".join("\n".join(map(_painted, _lines(block, screen))) for block in blocks) + "\n"


def _painted(line: Line) -> str:
    return "".join(f"\x1b[{rendition}m{text}\x1b[0m" if rendition and text else text for text, rendition in line)


def _lines(block: Block, screen: Screen | None) -> Iterator[Line]:
    match block:
        case Heading(text=text):
            return _wrapped(f"=== {safe(text)}{' ' if screen is None else JOINED}===", screen, rendition=HEADING)
        case Answer(sentences=sentences):
            return (line for text in sentences for line in _wrapped(safe(text), screen, rendition=ANSWER))
        case Paragraph(text=text) | Folded(summary=text) | Live(text=text):
            return _wrapped(safe(text), screen)
        case Fields(rows=rows):
            return (
                line for label, value in rows for line in _wrapped(f"{safe(label)}: {safe(value)}", screen, indent="  ")
            )
        case Items(items=items, numbered=numbered):
            marks = [f"{index}. " if numbered else "- " for index in range(1, len(items) + 1)]
            return (
                line
                for mark, item in zip(marks, items, strict=True)
                for line in _wrapped(mark + safe(item), screen, indent=" " * len(mark))
            )
        case Table():
            return _table_lines(block, screen)
        case Tree(root=root):
            return _tree_lines(root, screen)
        case Code(text=text):
            return (
                line
                for text_line in map(safe, text.splitlines())
                for line in _wrapped(text_line, screen, indent=" " * (len(text_line) - len(text_line.lstrip()) + 2))
            )
        case Figure(text=text, file=file):
            return _wrapped(f"[{safe(text)}: {safe(file)}]", screen)


def _wrapped(text: str, screen: Screen | None, *, indent: str = "", rendition: str = PLAIN) -> Iterator[Line]:
    lines = [text] if screen is None else wrapped(text, screen.columns, indent=indent)
    return ([(line, rendition)] for line in lines)


def _table_lines(table: Table, screen: Screen | None) -> Iterator[Line]:
    text, left_out = drawn(table, [[_safe_cell(cell) for cell in row] for row in (table.columns, *table.rows)], screen)
    for line in text.split("\n"):
        yield [(line, PLAIN)]
    if left_out:
        yield from _wrapped(left_out, screen, rendition=FAINT)


def _safe_cell(cell: str) -> str:
    return Shortened(safe(cell), safe(cell.short)) if isinstance(cell, Shortened) else safe(cell)


def _tree_lines(root: Node, screen: Screen | None) -> Iterator[Line]:
    """A line for each node; too long ones wrap between the guides, if their short forms are too long as well."""
    nodes = [(guides, node.text, node.note, bool(node.children)) for guides, node in tree_lines(root)]
    if screen is None:
        return (line for node in nodes for line in _node_lines(*node, None))
    short = False
    if not screen.whole and any(
        width(f"{guides}{safe(text)}  {safe(note)}") > screen.columns for guides, text, note, _ in nodes
    ):
        short = any(isinstance(text, Shortened) for _, text, _, _ in nodes)
        nodes = [
            (guides, text.short if isinstance(text, Shortened) else text, note, has_children)
            for guides, text, note, has_children in nodes
        ]
    lines = [line for node in nodes for line in _node_lines(*node, screen.columns)]
    if short:
        lines += _wrapped(screen.say("screen_short"), screen, rendition=FAINT)
    return iter(lines)


def _node_lines(guides: str, text: str, note: str, has_children: bool, columns: int | None) -> Iterator[Line]:
    text, note = safe(text), f"  {safe(note)}" if note else ""
    if columns is None or width(guides + text + note) <= columns:
        yield [(guides, FAINT), (text, PLAIN), (note, COUNT)]
        return
    below = guides.replace("├── ", "│   ").replace("└── ", "    ") + ("│   " if has_children else "    ")
    room = max(columns - len(below), 1)
    lines: list[tuple[str, str]] = [(line, "") for line in wrapped(text, room)]
    if width(lines[-1][0] + note) <= room:
        lines[-1] = (lines[-1][0], note)
    else:
        lines += [("", line) for line in wrapped(note.lstrip(), room)]
    for index, (line, count) in enumerate(lines):
        yield [(below if index else guides, FAINT), (line, PLAIN), (count, COUNT)]


def cut_to(text: str, columns: int) -> str:
    """The beginning of `text` that fits into `columns`; all of it if columns < 1 (the terminal does not report its width)."""
    shown = safe(text)
    ends = accumulate(columns_of(character) for character in shown)
    return shown if columns < 1 else shown[: sum(end <= columns for end in ends)]
