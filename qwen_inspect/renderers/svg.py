"""SVG elements shared by all figures: escaped text, text width, light and dark colours, and conversion to PNG.

Elements have the light colour as an attribute; a style rule overrides it in dark mode. A viewer without media queries (resvg,
most PNG converters) draws the light one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path

from ..errors import UnavailableError
from .characters import columns_of
from .terminal import safe

# (light, dark). Greys are GitHub's, so that figures blend into a README; series colours are Vega's tableau10.
PALETTE: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#0d1117"),
    "panel": ("#f6f8fa", "#151b23"),
    "block": ("#eef2f6", "#1c2430"),
    "edge": ("#8c959f", "#6e7681"),
    "grid": ("#d1d9e0", "#3d444d"),
    "ink": ("#1f2328", "#f0f6fc"),
    "muted": ("#59636e", "#a8b0b9"),
    "weights": ("#4c78a8", "#5b8cc4"),
    "buffers": ("#9ecae9", "#a9cfee"),
    "adapters": ("#2f4b7c", "#3f66a8"),
    "gathered": ("#72b7b2", "#83c5c0"),
    "cache": ("#54a24b", "#62b559"),
    "state": ("#88d27a", "#93d986"),
    "gradients": ("#b279a2", "#c08ab1"),
    "optimizer": ("#e45756", "#e86b6a"),
    "activations": ("#f58518", "#f2933a"),
    "workspace": ("#9d755d", "#b08a73"),
    "rounding": ("#bab0ac", "#8f8783"),
    "loader": ("#d8b5a5", "#a3877a"),
    "reserved_only": ("#d0d7de", "#3d444d"),
    "context": ("#6e7781", "#9198a1"),
    "measured": ("#b5179e", "#ff8fe6"),
    "embedding_fill": ("#fde8e4", "#4a2a26"),
    "attention_fill": ("#fdeed3", "#4a3716"),
    "mlp_fill": ("#dcebfb", "#1b3453"),
    "experts_fill": ("#e4e3fa", "#2d2b57"),
    "norm_fill": ("#eef7d9", "#30401a"),
    "head_fill": ("#d6f0ee", "#1a3f3d"),
}
# Fonts of desktops, phones and bare servers. A PNG is drawn with OWN_FONT where a machine has none of them.
FONTS = (
    "system-ui, -apple-system, 'Segoe UI', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', 'Noto Sans', "
    "'DejaVu Sans', 'Liberation Sans', Arial, sans-serif"
)
FONT_SIZE = 13

# Advance widths of DejaVu Sans, the widest of the usual families, in hundredths of an em; 64 for other ASCII characters.
ADVANCES = {
    character: advance
    for advance, characters in (
        (28, "ijl'"), (32, "IJ ,.·"), (36, "/:;\\|f-"), (40, "()[]!t"), (46, 'r"'), (52, "*_`–s"), (57, "?zcLFk"),
        (62, "vxyPTYaeo"), (70, "KABVXZCR"), (79, "UNHD&GOQ"), (84, "w#+<=>^~×≤→⊕−"), (87, "M"), (100, "%mW@—…"),
    )
    for character in characters
}  # fmt: skip
# Not allowed in XML 1.0 (2.2, Char): lone surrogates, which JSON permits, and two noncharacters.
NOT_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")
# Between words, and on each side of a CJK character unless closing punctuation follows.
BREAKS = re.compile(
    "(?<= )(?=[^ ])|(?<=[\u2e80-\u2fff\u3001-\ud7ff\uf900-\ufaff\uff00-\uffef])(?=[^ 、。，；：）！？])"
    "|(?<=[^ （])(?=[\u2e80-\u2fff\u3003-\ud7ff\uf900-\ufaff（])"
)
ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})
TEXTS = re.compile("<text[^>]*>([^<]*)</text>")
OWN_FONT = "Qwen Inspect Figures"  # in fonts/: Latin, Greek and the signs of formulas
PIXELS = 2  # of a PNG for each unit of the SVG


def shown(text: str) -> str:
    """`text` with control, format and non-XML characters escaped visibly."""
    return NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", safe(text))


def escape(text: str) -> str:
    """Escapes text for an element's content or a quoted attribute."""
    return shown(text).translate(ESCAPES)


def element(tag: str, *children: str, **attributes: object) -> str:
    """`<tag attribute="value">children</tag>`. children: markup. Values are escaped; None skips the attribute.

    Attribute names: `_` becomes `-`, and a trailing `_` is dropped (`class_`).
    """
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
                      for name, value in attributes.items() if value is not None)  # fmt: skip
    return f"<{tag}{written}>{''.join(children)}</{tag}>" if children else f"<{tag}{written}/>"


def _number(value: object) -> str:
    """Floats rounded to a tenth, which is precise enough and keeps files small and equal on every machine."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def fill(colour: str) -> dict[str, object]:
    return {"class": f"f-{colour}", "fill": PALETTE[colour][0]}


def outline(colour: str, width: float = 1) -> dict[str, object]:
    """Attributes for a stroke without fill."""
    return {"class": f"s-{colour}", "fill": "none", "stroke": PALETTE[colour][0], "stroke_width": width}


def rectangle(x: float, y: float, width: float, height: float, colour: str, **attributes: object) -> str:
    return element("rect", x=x, y=y, width=width, height=height, **fill(colour), **attributes)


def path(data: str, colour: str, width: float = 1, **attributes: object) -> str:
    return element("path", d=data, **outline(colour, width), **attributes)


def text(
    content: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    size: float = FONT_SIZE,
    colour: str = "ink",
    bold: bool = False,
) -> str:
    """A line of text with its baseline at `y`; `x` is its start, middle or end, by `anchor`."""
    return element(
        "text",
        escape(content),
        x=x,
        y=y,
        **fill(colour),
        font_size=None if size == FONT_SIZE else size,
        text_anchor=None if anchor == "start" else anchor,
        font_weight=600 if bold else None,
    )


def text_width(content: str, size: float = FONT_SIZE, *, bold: bool = False) -> float:
    """Upper bound of a line's width, from DejaVu Sans, the widest usual font. Other characters count 1.1 em, combining ones 0."""
    return sum(_advance(character, bold) for character in shown(content)) * size / 100


def _advance(character: str, bold: bool) -> float:
    advance: float
    if character.isascii() or character in ADVANCES:
        advance = ADVANCES.get(character, 64)
        return 1.05 * advance + 7 if bold else advance  # DejaVu Sans Bold's, to 2 hundredths
    return 110 if columns_of(character) > 0 else 0


def fitted(content: str, width: float, size: float = FONT_SIZE, *, bold: bool = False) -> str:
    """`content`; if wider than `width`, its beginning and end around an ellipsis."""
    if text_width(content[:1000], size, bold=bold) <= width and len(content) <= 1000:
        return content
    line = shown(content[:1000] + content[-1000:] if len(content) > 2000 else content)
    length = len(line)
    while length and text_width(cut := _around(line, length), size, bold=bold) > width:
        length = min(length - 1, int(length * 0.9))
    return cut if length else "…"


def _around(line: str, length: int) -> str:
    return f"{line[: (length + 1) // 2]}…{line[len(line) - length // 2 :]}"


def wrapped(content: str, width: float, size: float = FONT_SIZE, *, bold: bool = False) -> list[str]:
    """`content` in lines of at most `width`, broken at spaces and beside CJK characters; a longer word is shortened."""
    lines = [""]
    for word in BREAKS.split(content):
        if text_width((lines[-1] + word).rstrip(), size, bold=bold) > width and lines[-1]:
            lines.append("")
        lines[-1] += word
    return [fitted(line.rstrip(), width, size, bold=bold) for line in lines]


def picture(width: float, height: float, *children: str, title: str, role: str = "img") -> str:
    """The whole SVG file. title: for screen readers and as tooltip. role: "group" if its parts can be focused one by one."""
    body = rectangle(0, 0, width, height, "paper") + "".join(children)
    rules = [f".f-{name}{{fill:{dark}}}" for name, (_, dark) in PALETTE.items() if f'"f-{name}"' in body]
    rules += [f".s-{name}{{stroke:{dark}}}" for name, (_, dark) in PALETTE.items() if f'"s-{name}"' in body]
    return (
        element(
            "svg",
            element("title", escape(title)),
            element("style", f"@media (prefers-color-scheme:dark){{{''.join(rules)}}}"),
            body,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {_number(width)} {_number(height)}",
            width=width,
            height=height,
            role=role,
            font_family=FONTS,
            font_size=FONT_SIZE,
        )
        + "\n"
    )


# --- PNG -----------------------------------------------------------------------------------------------------------


def png(svg: str) -> bytes:
    """The picture as PNG, in light colours, PIXELS pixels per unit. Raises UnavailableError without the `png` extra."""
    try:
        import resvg_py
    except ImportError as error:
        raise UnavailableError("extra_missing", package=error.name, extra="png") from None
    fonts = [str(file) for file in sorted((Path(__file__).parent / "fonts").glob("*.ttf"))]
    drawn = resvg_py.svg_to_bytes(
        svg_string=svg, zoom=PIXELS, font_files=fonts, font_family=OWN_FONT, sans_serif_family=OWN_FONT
    )
    return bytes(drawn)


def missing_glyphs(svg: str) -> str:
    """The characters of the picture's text for which this machine has no font, so that resvg draws boxes or nothing.

    resvg does not report it. So each is compared with a noncharacter, which no font has (Unicode 16, 23.7).
    """
    characters = {character for content in TEXTS.findall(svg) for character in unescape(content)}
    no_glyph = png(_sample("\U0010ffff"))
    return "".join(
        sorted(
            character
            for character in characters
            if columns_of(character) > 0 and not character.isspace() and png(_sample(character)) == no_glyph
        )
    )


def _sample(character: str) -> str:
    return picture(20, 20, text(character, 0, 15), title="")
