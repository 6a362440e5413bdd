"""Blocks -> Markdown (CommonMark with GitHub's tables). Cells are not padded, so that a new row does not change others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape as markup_escape
from urllib.parse import quote

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
    Paragraph,
    Table,
    Tree,
    below_title,
    tree_lines,
)
from .terminal import safe

# Characters that would start markup within a line: a bracket only before a possible link target, an underscore only at the
# edge of a word. Source: CommonMark 0.31, 2.4 and 6.2 to 6.4; `|` and `~` for GitHub's tables and strikethrough.
SPECIAL = re.compile(r"[\\`*<>|~&]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
SPECIAL_IN_LABEL = re.compile(rf"{SPECIAL.pattern}|[\[\]]")  # brackets must balance there: CommonMark 0.31, 6.3
# What GitHub links by itself: addresses, @names, #1, GH-1. A backslash stops its parser; names and numbers are looked for in the
# page that the parser made, where an empty comment parts them. Source: GFM 0.29, 6.9; github.com, "Autolinked references".
LINKED = re.compile(r"(?<=[a-z]):(?=//)|(?<=\bwww)\.|@|#(?=\d)|(?<=\bgh)-(?=\d)", re.IGNORECASE)
RULES = {"l": ":--", "c": ":-:", "r": "--:"}


def escape(text: str) -> str:
    """Escapes text for any place in a paragraph or a table cell."""
    return LINKED.sub(_unlinked, SPECIAL.sub(_escaped, safe(text)))


def _unlinked(match: re.Match[str]) -> str:
    return f"\\{match[0]}" if match[0] in ":." else f"{match[0]}<!-- -->"


def _escaped(match: re.Match[str]) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(match[0]) or f"\\{match[0]}"


def render(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_block(block) for block in below_title(blocks)) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text=text, level=level):
            return f"{'#' * level} {escape(text)}"
        case Answer(sentences=sentences):
            return "\n".join(
                f"> {escape(sentence)}" if index else f"> **{escape(sentence)}**"
                for index, sentence in enumerate(sentences)
            )
        case Paragraph(text=text):
            return escape(text)
        case Fields(rows=rows):
            return "\n".join(f"- **{escape(label)}**: {escape(value)}" for label, value in rows)
        case Items(items=items, numbered=numbered):
            return "\n".join(
                f"{index}. {escape(item)}" if numbered else f"- {escape(item)}" for index, item in enumerate(items, 1)
            )
        case Table(columns=columns, rows=rows, align=align, totals=totals):
            body = len(rows) - totals
            cells = [[escape(column) for column in columns], [RULES[letter] for letter in align]]
            for index, row in enumerate(rows):
                cells.append([f"**{escape(cell)}**" if index >= body and cell else escape(cell) for cell in row])
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case Tree(root=root):
            return _fenced(
                "\n".join(
                    f"{guides}{safe(node.text)}{'  ' + safe(node.note) if node.note else ''}"
                    for guides, node in tree_lines(root)
                ),
                "text",
            )
        case Code(text=text, language=language):
            return _fenced("\n".join(map(safe, text.splitlines())), language)
        case Figure(text=text, file=file):
            return f"![{SPECIAL_IN_LABEL.sub(_escaped, safe(text))}](<{quote(file)}>)"
        case Folded(summary=summary, table=table):
            # GitHub's details element. The blank lines end the HTML block, so the table is Markdown: CommonMark 0.31, 4.6
            return f"<details><summary>{markup_escape(safe(summary))}</summary>\n\n{_block(table)}\n\n</details>"
        case Live(text=text):
            return escape(text)


def _fenced(text: str, language: str) -> str:
    """Fenced code; the fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
