"""Names that try to break an output, and what must hold of it all the same."""

from __future__ import annotations

import unicodedata

from markdown_it import MarkdownIt

# What a terminal obeys, and what reorders or hides text.
UNSEEN = ("Cc", "Cf", "Zl", "Zp")

HOSTILE_NAMES = [
    "a|b",
    "a\\|b",
    "a\\",
    "|",
    "||||",
    "<script>alert(1)</script>",
    "<!-- comment",
    "&lt;&#124;&vert;",
    "a\nb",
    "a\r\nb",
    "\n| x | y | z | v | w |\n",
    "\n\n# heading\n",
    "\n```\n",
    "a\tb\x0b\x0cc",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://example.com\x07link\x1b]8;;\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m\x9d0;title\x9c",
    "\0",
    "\x7f\x08\x08\x08",
    "层.自注意力.权重",
    "한국어 日本語 ﾊﾝｶｸ Ｗｉｄｅ",
    "\u202egnp.exe\u202c",
    "\u2066isolated\u2069\u200f\u200e\u061c",
    "\u2028line\u2029paragraph\x85next",
    "zero\u200bwidth\u200djoined\ufeff",
    "soft\u00adhyphen\u180e",
    "tags\U000e0041\U000e0042\U000e007f",
    "\ufff9anchor\ufffatext\ufffb",
    "`code`",
    "``` fence",
    "``",
    "*bold* _under_ __both__ ~~struck~~",
    "[link](http://example.com) ![image](x.png) [a][b]",
    "\\[escaped\\]",
    "$math$ #hash",
    "e\u0301" * 20,
    "👩‍👩‍👧‍👦🏳️‍🌈",
    " ",
    "  padded  ",
    "",
    "{name}",
    "%s%n",
    "--option",
    "=cmd()",
    "x" * 10_000,
    "层" * 3_000,
    "word " * 500,
]


def assert_is_safe(text: str) -> None:
    unseen = {character for character in text if unicodedata.category(character) in UNSEEN}
    assert unseen <= {"\n"}


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The cells of each table's rows, heading first, as a Markdown reader shows them."""
    tables: list[list[list[str]]] = []
    cell = False
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        match token.type:
            case "table_open":
                tables.append([])
            case "tr_open":
                tables[-1].append([])
            case "th_open" | "td_open" | "th_close" | "td_close":
                cell = token.nesting == 1
            case "inline" if cell:
                # Empty comments part what GitHub would link.
                children = [child for child in token.children or [] if child.content != "<!-- -->"]
                assert {child.type for child in children} <= {"text", "strong_open", "strong_close"}
                tables[-1][-1].append("".join(child.content for child in children))
    return tables
