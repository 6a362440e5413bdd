"""The kinds of block in a document. Text is raw: each renderer escapes it, once, for its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..typed import Any
from ..values import dataclass


class Shortened(str):
    """Text with a shorter form, for screens that are too narrow for it."""

    __slots__ = ("short",)

    short: str

    def __new__(cls, text: str, short: str) -> Shortened:
        created = super().__new__(cls, text)
        created.short = short
        return created


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; the document's title is at level 1."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """The command's answer in one to three sentences: the document's first block. Pages show it below the title."""

    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One or more sentences."""

    text: str


@dataclass(frozen=True, slots=True)
class Fields:
    """Labelled values, one per line."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Items:
    """A list of sentences, numbered from 1 if `numbered`."""

    items: Sequence[str]
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns. align: a letter per column, l, c or r. totals: number of last rows, which are set apart as sums.

    expendable: groups of columns (by index) that a screen too narrow for the table leaves out, in this order.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str
    totals: int = 0
    expendable: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A line of a tree: its text, a note beside it, and its children."""

    text: str
    note: str
    children: Sequence[Node]


@dataclass(frozen=True, slots=True)
class Tree:
    """A node and its descendants, drawn with guides."""

    root: Node


@dataclass(frozen=True, slots=True)
class Code:
    """Verbatim lines. language: for Markdown's syntax highlighting."""

    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture. svg: markup from this package, not escaped again. text: its description.

    file: the name that Markdown links to; the caller writes the file beside the Markdown. narrower: the same picture laid out for
    narrower columns of an HTML page, the widest first, at most two.
    """

    svg: str
    text: str
    file: str
    narrower: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Folded:
    """A collapsed table under its summary; a terminal shows only the summary."""

    summary: str
    table: Table


@dataclass(frozen=True, slots=True)
class Live:
    """An interactive part of an HTML page, drawn by the script `name`.js from `content`. text: shown without scripts."""

    name: str
    content: Mapping[str, Any]
    text: str


Block = Heading | Answer | Paragraph | Fields | Items | Table | Tree | Code | Figure | Folded | Live


def below_title(blocks: Sequence[Block]) -> Sequence[Block]:
    """The blocks with the answer moved below the document's title."""
    match blocks:
        case [Answer() as answer, Heading(level=1) as title, *others]:
            return [title, answer, *others]
    return blocks


def tree_lines(root: Node) -> list[tuple[str, Node]]:
    """(guides, node) of every line of the tree."""
    lines = [("", root)]

    def add(node: Node, before: str) -> None:
        for child in node.children:
            last = child is node.children[-1]
            lines.append((before + ("└── " if last else "├── "), child))
            add(child, before + ("    " if last else "│   "))

    add(root, "")
    return lines
