"""Blocks -> one self-contained HTML file: it opens from disk, has a light and a dark style, and is readable without scripts.

Text from a model is escaped, or put into a JSON island whose values the script writes to text nodes. The Content Security Policy
allows only the page's own scripts and styles, by hash, and no fetching.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import count as numbers
from itertools import takewhile
from pathlib import Path

from ..language import Language
from ..units import count
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
    below_title,
)
from .svg import PALETTE, escape, shown

LONG_TABLE = 200  # rows; a longer table is stored as JSON, and only its rows in view are drawn
SEARCHED_TABLE = 20  # rows; a longer table has a search field
LONG_CELL = 28  # bytes in UTF-8, about half of a phone's width; a table with a longer one is a list of cards there
OPEN_NODES = 80  # a larger tree is collapsed below its second level
ALIGNED = {"l": "left", "c": "middle", "r": "right"}
HERE = Path(__file__).parent
STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def render(blocks: Sequence[Block], say: Language) -> str:
    """The whole page, titled by the first heading."""
    blocks = below_title(blocks)
    title = next((block.text for block in blocks if isinstance(block, Heading)), "qwen-inspect")
    live = dict.fromkeys(block.name for block in blocks if isinstance(block, Live))
    style = _source("page.css") + (_series() if live else "")
    scripts = [_source("page.js"), *(_source(f"{name}.js") for name in live)]
    anchors = [f"s{number}" for number in range(len(blocks))]
    body = "\n".join(_block(block, anchor, say) for block, anchor in zip(blocks, anchors, strict=True))
    figures = [svg for block in blocks if isinstance(block, Figure) for svg in (block.svg, *block.narrower)]
    styles = [style, *(rules for svg in figures for rules in STYLE.findall(svg))]
    return f"""<!doctype html>
<html lang="{say.code}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(styles, scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{_contents(blocks, anchors, say)}<main>
{body}
</main>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _series() -> str:
    """CSS rules with the palette's colours, for the charts that a script draws."""
    light, dark = (
        "".join(f".live .f-{name}{{fill:{colours[scheme]}}}" for name, colours in PALETTE.items()) for scheme in (0, 1)
    )
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _source(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The Content-Security-Policy that allows exactly these styles and scripts.

    Source: W3C, Content Security Policy Level 3: a hash allows exactly that text; frame-ancestors is ignored in meta elements.
    """

    def allowed(contents: Sequence[str]) -> str:
        hashes = (b64encode(sha256(content.encode()).digest()).decode() for content in contents)
        return " ".join(dict.fromkeys(f"'sha256-{file_hash}'" for file_hash in hashes))

    return (
        f"default-src 'none'; style-src {allowed(styles)}; script-src {allowed(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _contents(blocks: Sequence[Block], anchors: Sequence[str], say: Language) -> str:
    links = [
        f'<li><a href="#{anchor}">{escape(block.text)}</a></li>'
        for block, anchor in zip(blocks, anchors, strict=True)
        if isinstance(block, Heading) and block.level == 2
    ]
    if len(links) < 3:
        return ""
    return f'<nav class="wider" aria-label="{escape(say("html_contents"))}"><ul>{"".join(links)}</ul></nav>\n'


def _block(block: Block, anchor: str, say: Language) -> str:
    match block:
        case Heading(text=text, level=level):
            return f'<h{level} id="{anchor}">{escape(text)}</h{level}>'
        case Answer(sentences=sentences):
            return f'<div class="answer">{"".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)}</div>'
        case Paragraph(text=text):
            return f"<p>{escape(text)}</p>"
        case Fields(rows=rows):
            pairs = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in rows)
            return f"<dl>{pairs}</dl>"
        case Items(items=items, numbered=numbered):
            kind = "ol" if numbered else "ul"
            return f"<{kind}>{''.join(f'<li>{escape(item)}</li>' for item in items)}</{kind}>"
        case Table():
            return _table(block, anchor, say)
        case Tree(root=root):
            return _tree(root, say)
        case Code(text=text):
            copy = (
                f'<button type="button" class="copy" data-done="{escape(say("html_copied"))}" hidden>'
                f"{escape(say('html_copy'))}</button>"
            )
            lines = "\n".join(map(escape, text.splitlines()))
            return (
                f'<div class="code">{copy}<div class="wider"><pre tabindex="0"><code>{lines}</code></pre></div></div>'
            )
        case Figure(svg=svg, text=text, narrower=narrower):
            return f"<figure>{''.join(_pictures(svg, *narrower))}<figcaption>{escape(text)}</figcaption></figure>"
        case Folded(summary=summary, table=table):
            return f"<details><summary>{escape(summary)}</summary>{_table(table, anchor, say)}</details>"
        case Live(name=name, content=content, text=text):
            island = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
            return (
                f'<div class="live {name}"><noscript><p>{escape(text)}</p></noscript>'
                f'<script type="application/json">{island}</script></div>'
            )


def _pictures(*svgs: str) -> Iterator[str]:
    """The layouts of a picture, widest first. By its class, the style sheet shows the one that suits the column's width."""
    widths = {1: ("wide medium narrow",), 2: ("wide medium", "narrow"), 3: ("wide", "medium", "narrow")}[len(svgs)]
    for svg, shown_at in zip(svgs, widths, strict=True):
        yield f'<div class="picture {shown_at}">{svg}</div>'


# --- tables


def _table(table: Table, anchor: str, say: Language) -> str:
    """Rows as HTML. Of a long table, only the first LONG_TABLE (for readers without scripts), and all rows as JSON."""
    body = table.rows[: len(table.rows) - table.totals]
    totals = table.rows[len(body) :]
    is_long = len(body) > LONG_TABLE
    kind = " long" if is_long else " cards" if _has_prose(table) else ""
    labels = table.columns if kind == " cards" else ()
    classes = [ALIGNED[letter] for letter in table.align]
    heads = "".join(
        f'<th class="{kind}" scope="col"><button type="button" disabled>{escape(column)}</button></th>'
        for column, kind in zip(table.columns, classes, strict=True)
    )
    search = ""
    if len(body) > SEARCHED_TABLE:
        pattern = escape(say("html_rows", shown="{shown}", total="{total}"))
        search = (
            f'<p class="search" hidden><label>{escape(say("html_search"))} <input type="search" autocomplete="off" '
            f'spellcheck="false"></label> <output data-pattern="{pattern}"></output></p>'
        )
    without = ""
    if is_long:
        notice = say("html_noscript", shown=count(LONG_TABLE), total=count(len(body)))
        without = f"<noscript><p>{escape(notice)}</p></noscript>"
    island = f'<script type="application/json">{_island(body)}</script>' if is_long else ""
    foot = f"<tfoot>{''.join(_row(row, classes, labels) for row in totals)}</tfoot>" if totals else ""
    rows = "".join(_row(row, classes, labels) for row in body[:LONG_TABLE])
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(", ".join(table.columns))}">'
    return (
        f'<div class="table{kind}" id="{anchor}">{search}{without}<div class="wider">{region}'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>{foot}</table></div></div>{island}</div>"
    )


def _has_prose(table: Table) -> bool:
    """Whether a cell beside the first is too long for a column on a phone."""
    return any(len(cell.encode(errors="replace")) > LONG_CELL for row in table.rows for cell in row[1:])


def _row(row: Sequence[str], classes: Sequence[str], labels: Sequence[str]) -> str:
    """labels: the columns' names, if the row is shown as a card on a phone."""
    names = [f' data-label="{escape(label)}"' for label in labels[1:]] if labels else [""] * (len(row) - 1)
    cells = (
        f'<td class="{kind}"{name}>{escape(cell)}</td>'
        for cell, kind, name in zip(row, classes, ["", *names], strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _island(rows: Sequence[Sequence[str]]) -> str:
    """All rows as JSON, by column. `<` is escaped, so that no cell can close the script element."""
    columns = [_packed([shown(cell) for cell in column]) for column in zip(*rows, strict=True)]
    return json.dumps(columns, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _packed(cells: Sequence[str]) -> dict[str, object]:
    """A column in compact form; page.js unpacks it.

    With few distinct cells: "values", and each row's index into them, "indices". Otherwise each cell as the length of the prefix
    "shared" with the cell before, and the "rest".
    """
    distinct = dict(zip(dict.fromkeys(cells), numbers(), strict=False))
    if len(distinct) * 4 < len(cells):
        return {"values": list(distinct), "indices": [distinct[cell] for cell in cells]}
    shared = [_shared(before, cell) for before, cell in zip(["", *cells], cells, strict=False)]
    return {"shared": shared, "rest": [cell[length:] for cell, length in zip(cells, shared, strict=True)]}


def _shared(before: str, cell: str) -> int:
    """Length of the common prefix, up to the first character beyond U+FFFF, which JavaScript counts as two."""
    alike = takewhile(lambda pair: pair[0] == pair[1] <= "\uffff", zip(before, cell, strict=False))
    return sum(1 for _ in alike)


# --- trees


def _tree(root: Node, say: Language) -> str:
    deep = _nodes(root) > OPEN_NODES
    buttons = "".join(
        f'<button type="button" data-open="{state}">{escape(say(key))}</button>'
        for state, key in (("1", "html_open_all"), ("", "html_close_all"))
    )
    return f'<div class="tree"><p class="folding" hidden>{buttons}</p><ul>{"".join(_node(root, 2 if deep else 99))}</ul></div>'


def _nodes(node: Node) -> int:
    return 1 + sum(map(_nodes, node.children))


def _node(node: Node, open_levels: int) -> Iterator[str]:
    note = f' <span class="note">{escape(node.note)}</span>' if node.note else ""
    line = f"<code>{escape(node.text)}</code>{note}"
    if not node.children:
        yield f"<li>{line}</li>"
        return
    yield f"<li><details{' open' if open_levels > 0 else ''}><summary>{line}</summary><ul>"
    for child in node.children:
        yield from _node(child, open_levels - 1)
    yield "</ul></details></li>"
