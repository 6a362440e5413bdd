"""The few kinds of block that a document is made of. Text is raw: each renderer escapes it, once, for its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of what follows, the document's own at level 1."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or several."""

    text: str


@dataclass(frozen=True, slots=True)
class Fields:
    """Labelled values, one a line."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Items:
    """A list of sentences, numbered from 1 where `numbered`."""

    items: Sequence[str]
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns. `align` holds one letter a column: l, c or r. The last `totals` rows are set apart."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str
    totals: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A line of a tree: its text, what is said beside it, and its children."""

    text: str
    note: str
    children: Sequence[Node]


@dataclass(frozen=True, slots=True)
class Tree:
    """A node and all below it, drawn with guides."""

    root: Node


@dataclass(frozen=True, slots=True)
class Code:
    """Lines shown as they are, in a named language where Markdown may colour it."""

    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture, made by this package alone: `svg` is markup and is not escaped again. `text` says what it shows.

    file: the name under which Markdown finds it; who writes the Markdown writes the file beside it.
    """

    svg: str
    text: str
    file: str


@dataclass(frozen=True, slots=True)
class Folded:
    """A table that is shown when its summary is opened; a terminal, which cannot open anything, shows the summary alone."""

    summary: str
    table: Table


@dataclass(frozen=True, slots=True)
class Live:
    """A part of a page that its own script draws: `content` is what the script of that `name` reads. text: what else is shown."""

    name: str
    content: Mapping[str, Any]
    text: str


Block = Heading | Paragraph | Fields | Items | Table | Tree | Code | Figure | Folded | Live


def tree_lines(root: Node) -> list[tuple[str, Node]]:
    """Every node of a tree with the guides that stand before it."""
    lines = [("", root)]

    def add(node: Node, before: str) -> None:
        for child in node.children:
            last = child is node.children[-1]
            lines.append((before + ("└── " if last else "├── "), child))
            add(child, before + ("    " if last else "│   "))

    add(root, "")
    return lines
