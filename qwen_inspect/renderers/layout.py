"""Parts of a diagram that know their size and can be combined without overlaps, whatever their content.

Data flows upwards, as in papers' figures: the first part of a `stack` is at the bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..values import dataclass, replace
from .svg import FONT_SIZE, element, fill, outline, path, text, text_width

SMALL = 12.0
PADDING = 8.0
LINE = 16.0
GAP = 20.0  # between the parts of a stack, with room for an arrow and its label
ASIDE = 10.0  # between parts side by side
BYPASS = 26.0  # beside a part, for the line around it
JOINT = 18.0  # the circle where two lines meet
HEAD = 5.0  # of an arrow
TAG = 16.0
COUNT_GAP = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Minimum size, and a function that draws the part at (left, top) with a width of at least its own.

    ports: width -> x positions, from the left edge, at which lines enter and leave. edge: label of the outgoing line.
    is_open: the incoming line continues inside, so no arrowhead is drawn at the lower edge.
    """

    width: float
    height: float
    draw: Callable[[float, float, float], Iterator[str]]
    ports: Callable[[float], Sequence[float]] = lambda width: (width / 2,)
    edge: str = ""
    is_open: bool = False


def with_edge(part: Part, edge: str) -> Part:
    return replace(part, edge=edge)


def label(content: str, *, bold: bool = False) -> Part:
    """A centred line of text."""

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        yield text(content, left + width / 2, top + LINE - 4, anchor="middle", bold=bold)

    return Part(width=text_width(content, bold=bold), height=LINE, draw=draw)


def box(title: str, colour: str, *, count: str = "", facts: Sequence[str] = (), tag: str = "", copies: int = 0) -> Part:
    """A box with a title, a count at its right, and lines of facts.

    tag: number in a circle before the title. copies: number of equal boxes whose edges are drawn behind it.
    """
    heading = (
        (TAG + 6 if tag else 0) + text_width(title, bold=True) + (COUNT_GAP + text_width(count, SMALL) if count else 0)
    )
    widest = max(heading, *(text_width(fact, SMALL) for fact in facts), 0)
    behind = 4.0 * copies

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        right, height = left + width - behind, LINE * (1 + len(facts)) + 2 * PADDING - 3
        for copy in range(copies, 0, -1):
            yield _edge_behind(left + 4 * copy, top + behind - 4 * copy, width - behind, height, colour)
        top += behind
        yield _rounded(left, top, width - behind, height, colour)
        baseline = top + PADDING + FONT_SIZE - 3
        start = left + PADDING
        if tag:
            yield from _tag(tag, start + TAG / 2, baseline - 4.5)
            start += TAG + 6
        yield text(title, start, baseline, bold=True)
        if count:
            yield text(count, right - PADDING, baseline, anchor="end", size=SMALL, colour="muted")
        for index, fact in enumerate(facts, 1):
            yield text(fact, left + PADDING, baseline + LINE * index, size=SMALL)

    height = LINE * (1 + len(facts)) + 2 * PADDING - 3 + behind
    return Part(width=widest + 2 * PADDING + behind, height=height, draw=draw)


def stack(*parts: Part) -> Part:
    """Parts from bottom to top, connected by upward arrows with the parts' edge labels."""

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        bottom = top + sum(part.height for part in parts) + GAP * (len(parts) - 1)
        for lower, upper in zip(parts, (*parts[1:], None), strict=True):
            yield from lower.draw(left, bottom - lower.height, width)
            bottom -= lower.height
            if upper is None:
                break
            at = lower.ports(width) if len(lower.ports(width)) > 1 else upper.ports(width)
            for port in at:
                yield from _arrow(left + port, bottom, bottom - GAP, headless=upper.is_open)
            if lower.edge:
                yield text(lower.edge, left + at[-1] + 8, bottom - GAP / 2 + 4, size=SMALL, colour="muted")
            bottom -= GAP

    edges = max((2 * (text_width(part.edge, SMALL) + 12) for part in parts if part.edge), default=0)
    return Part(
        width=max(edges, *(part.width for part in parts)),
        height=sum(part.height for part in parts) + GAP * (len(parts) - 1),
        draw=draw,
        ports=parts[0].ports,
        is_open=parts[0].is_open,
    )


def beside(*parts: Part) -> Part:
    """Side by side, bottoms aligned; lines extend lower parts to the top of the highest."""
    height = max(part.height for part in parts)
    gaps = ASIDE * (len(parts) - 1)

    def widths(width: float) -> list[float]:
        spare = (width - gaps - sum(part.width for part in parts)) / len(parts)
        return [part.width + spare for part in parts]

    def ports(width: float) -> list[float]:
        positions, left = [], 0.0
        for each in widths(width):
            positions.append(left + each / 2)
            left += each + ASIDE
        return positions

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        for part, each, port in zip(parts, widths(width), ports(width), strict=True):
            start = left + port - each / 2
            yield from part.draw(start, top + height - part.height, each)
            if part.height < height:
                yield path(f"M{left + port:.1f} {top + height - part.height:.1f}V{top:.1f}", "edge", 1.3)

    return Part(width=gaps + sum(part.width for part in parts), height=height, draw=draw, ports=ports)


def listed(*parts: Part) -> Part:
    """Parts from top to bottom, without arrows between them."""

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        for part in parts:
            yield from part.draw(left, top, width)
            top += part.height + GAP

    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    return Part(width=max(part.width for part in parts), height=height, draw=draw)


def residual(inner: Part) -> Part:
    """`inner` with a residual connection: a line around it, added to its output."""
    stub = 14.0

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        middle, joint, bottom = left + width / 2, top + JOINT / 2, top + JOINT + GAP + inner.height
        yield from inner.draw(left + BYPASS, top + JOINT + GAP, width - 2 * BYPASS)
        yield from _arrow(middle, bottom + stub, bottom)
        yield from _arrow(middle, top + JOINT + GAP, top + JOINT)
        around = left + width - BYPASS / 2
        yield path(
            f"M{middle:.1f} {bottom + stub - 2:.1f}H{around:.1f}V{joint:.1f}H{middle + JOINT / 2:.1f}", "edge", 1.3
        )
        yield _head(f"M{middle + JOINT / 2:.1f} {joint:.1f}l{HEAD} -3.5v7Z")
        yield element("circle", cx=middle, cy=joint, r=JOINT / 2, **fill("paper"))
        yield element("circle", cx=middle, cy=joint, r=JOINT / 2, **outline("edge", 1.3))
        yield path(f"M{middle - 5:.1f} {joint:.1f}h10M{middle:.1f} {joint - 5:.1f}v10", "ink", 1.3)

    return Part(width=inner.width + 2 * BYPASS, height=JOINT + GAP + inner.height + stub, draw=draw, is_open=True)


def frame(inner: Part, title: str, *, note: str = "", colour: str = "panel") -> Part:
    """A repeated part: `inner` in a border, with a title at the left of the outgoing line and a note at its right."""
    top_row = LINE + PADDING
    half = max(text_width(title, bold=True), text_width(note, SMALL)) + PADDING + 8

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        height = top_row + inner.height + PADDING
        yield _rounded(left, top, width, height, colour)
        baseline = top + PADDING + FONT_SIZE - 3
        yield text(title, left + PADDING, baseline, bold=True)
        if note:
            yield text(note, left + width - PADDING, baseline, anchor="end", size=SMALL, colour="muted")
        yield from inner.draw(left + PADDING, top + top_row, width - 2 * PADDING)
        middle = left + width / 2
        yield path(f"M{middle:.1f} {top + top_row:.1f}V{top:.1f}", "edge", 1.3)
        yield path(f"M{middle:.1f} {top + height:.1f}v{-PADDING:.1f}", "edge", 1.3)

    width = max(inner.width + 2 * PADDING, 2 * half)
    return Part(width=width, height=top_row + inner.height + PADDING, draw=draw, is_open=True)


def panel(inner: Part, title: str, *, tag: str) -> Part:
    """A bordered drawing with its title and the number that boxes refer to it by."""
    top_row = LINE + 2 * PADDING

    def draw(left: float, top: float, width: float) -> Iterator[str]:
        yield _rounded(left, top, width, top_row + inner.height + PADDING, "panel")
        baseline = top + PADDING + FONT_SIZE - 3
        yield from _tag(tag, left + PADDING + TAG / 2, baseline - 4.5)
        yield text(title, left + PADDING + TAG + 6, baseline, bold=True)
        yield from inner.draw(left + PADDING, top + top_row, width - 2 * PADDING)

    width = max(inner.width, TAG + 6 + text_width(title, bold=True)) + 2 * PADDING
    return Part(width=width, height=top_row + inner.height + PADDING, draw=draw)


def _rounded(left: float, top: float, width: float, height: float, colour: str) -> str:
    shape = {"x": left, "y": top, "width": width, "height": height, "rx": 6}
    return element("rect", **shape, **fill(colour)) + element("rect", **shape, **outline("edge"))


def _edge_behind(left: float, top: float, width: float, height: float, colour: str) -> str:
    """The visible upper and right edges of a box behind another one of equal size."""
    data = (
        f"M{left:.1f} {top + height / 2:.1f}v{6 - height / 2:.1f}q0-6 6-6h{width - 12:.1f}q6 0 6 6"
        f"v{height - 12:.1f}q0 6-6 6h{-width / 2:.1f}"
    )
    return element("path", d=data, **fill(colour)) + path(data, "edge")


def _tag(tag: str, x: float, y: float) -> Iterator[str]:
    yield element("circle", cx=x, cy=y, r=TAG / 2, **fill("ink"))
    yield text(tag, x, y + 4, anchor="middle", size=SMALL, colour="paper", bold=True)


def _arrow(x: float, start: float, end: float, *, headless: bool = False) -> Iterator[str]:
    yield path(f"M{x:.1f} {start:.1f}V{end:.1f}", "edge", 1.3)
    if not headless:
        yield _head(f"M{x:.1f} {end:.1f}l-3.5 {HEAD}h7Z")


def _head(data: str) -> str:
    return element("path", d=data, **fill("edge"))
