"""The module tree as a treemap: areas are proportional to parameters, frames are modules that contain others.

Source: Bruls, Huizing and van Wijk 2000, "Squarified Treemaps".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..language import Language
from ..results.model import Report
from ..spec import Module
from ..typed import NamedTuple
from ..units import short_count
from ..values import dataclass
from .blocks import Figure
from .svg import element, escape, picture, rectangle, text, text_width

# For a desktop's column, a tablet's and a phone's; the letters are as large in each.
SIZES = ((980.0, 560.0), (700.0, 520.0), (360.0, 560.0))
HEADER, PADDING, LINE = 19.0, 3.0, 16.0
SWATCH = 12.0
SMALL = 12.0
MOST_PARTS = 600
DEPTHS = (99, 3, 2)  # the whole tree; down to layers; down to the decoder's children
COLOURS = {
    "embedding": "embedding_fill",
    "attention": "attention_fill",
    "linear_attention": "attention_fill",
    "mlp": "mlp_fill",
    "router": "experts_fill",
    "experts": "experts_fill",
    "shared_expert": "experts_fill",
    "norm": "norm_fill",
    "lm_head": "head_fill",
}


class Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Area:
    """A module of the picture. path: its full name. component: the row of the statistics that sets its colour."""

    path: str
    class_name: str
    parameters: int
    component: str | None
    children: tuple[Area, ...]


def parameter_treemap(report: Report, say: Language) -> Figure:
    """The treemap; every part has a title and can be focused by keyboard in an HTML page."""
    root = areas(report.tree)
    widest, *narrower = (_treemap(root, report, say, width, height) for width, height in SIZES)
    return Figure(widest, say("treemap_caption", parameters=root.parameters), "treemap.svg", narrower)


def _treemap(root: Area, report: Report, say: Language, width: float, height: float) -> str:
    legend, below = _legend(root, say, width, height)
    svg = picture(
        width,
        height + below,
        element("g", *_parts(root, Box(0, 0, width, height), root.parameters, say), class_="treemap"),
        *legend,
        title=say("treemap_title", name=report.ref.id),
        role="group",
    )
    # Roving tabindex: Tab reaches the first part, arrow keys the others.
    return svg.replace('tabindex="-1"', 'tabindex="0"', 1)


def _legend(root: Area, say: Language, width: float, top: float) -> tuple[list[str], float]:
    """(marks, height) of a legend below `top`: each component's colour, its name and its share."""
    parameters: Counter[str] = Counter()
    for component, count in _components(root):
        parameters[component] += count
    marks: list[str] = []
    x, y = 6.0, top + LINE + 4
    for component in filter(parameters.__contains__, COLOURS):
        share = f" · {100 * parameters[component] / root.parameters:.2f}%"
        label = say(f"component_{component}") + share
        wide = SWATCH + 6 + text_width(label, SMALL) + 16
        if x > 6 and x + wide - 16 > width - 6:
            x, y = 6.0, y + LINE + 3
        marks.append(rectangle(x, y - SWATCH + 2, SWATCH, SWATCH, COLOURS[component]))
        marks.append(text(label, x + SWATCH + 6, y, size=SMALL))
        x += wide
    return marks, y - top + 10 if marks else 0.0


def _components(area: Area) -> Iterator[tuple[str, int]]:
    if not area.children and area.component is not None:
        yield area.component, area.parameters
    for child in area.children:
        yield from _components(child)


def areas(tree: Module) -> Area:
    """The modules with parameters, to the deepest of DEPTHS with at most MOST_PARTS parts.

    A module with a single part is replaced by that part, whose path names both.
    """
    depths = (_area(tree, "", None, 1, depth) for depth in DEPTHS)
    return next((area for area in depths if _count(area) <= MOST_PARTS), _area(tree, "", None, 1, 0))


def _area(module: Module, prefix: str, inherited: str | None, copies: int, depth: int) -> Area:
    """prefix, inherited: the parent's path and component. copies: the parent's repetitions. depth: levels to descend."""
    copies *= module.repeats
    component = module.component or inherited
    path = f"{prefix}.{module.label}" if prefix else module.label
    children = [
        _area(child, path, component, copies, depth - 1) for child in module.children if child.parameters and depth > 0
    ]
    if len(children) == 1 and not module.tensors:
        return children[0]
    ordered = tuple(sorted(children, key=lambda child: (-child.parameters, child.path)))
    class_name = module.class_name if module.repeats == 1 else f"{module.repeats} × {module.class_name}"
    return Area(path, class_name, copies // module.repeats * module.parameters, component, ordered)


def _count(area: Area) -> int:
    return 1 + sum(map(_count, area.children))


def _parts(area: Area, box: Box, total: int, say: Language) -> Iterator[str]:
    for child, place in zip(area.children, squarified([part.parameters for part in area.children], box), strict=True):
        yield _part(child, child.path.removeprefix(f"{area.path}."), place, total, say)


def _part(area: Area, name: str, box: Box, total: int, say: Language) -> str:
    """A part as an SVG group. name: relative to the enclosing frame."""
    share = f"{100 * area.parameters / total:.2f}%"
    named = say("treemap_part", path=area.path, class_name=area.class_name, parameters=area.parameters, share=share)
    inside: list[str] = []
    room = box.width - 2 * PADDING - 6
    words = (name, short_count(area.parameters), share)
    is_frame = bool(area.children) and min(box.width, box.height) > 12
    colour = "panel" if is_frame else COLOURS.get(area.component or "", "block")
    label = _label(words, room, bold=is_frame)
    if is_frame and (not label or box.height <= HEADER + 24):
        within = Box(box.x + 2, box.y + 2, box.width - 4, box.height - 4)
        inside += _parts(area, within, total, say)
    elif is_frame:
        inside.append(text(label, box.x + 6, box.y + 14, size=SMALL, bold=True))
        below = Box(box.x + PADDING, box.y + HEADER, box.width - 2 * PADDING, box.height - HEADER - PADDING)
        inside += _parts(area, below, total, say)
    elif label and box.height > 2 * LINE + 6:
        inside.append(text(name, box.x + 6, box.y + 15, size=SMALL))
        lines = [line for line in words[1:] if text_width(line, SMALL) < room]
        for index, line in enumerate(lines[: int((box.height - 22) // LINE)], 1):
            inside.append(text(line, box.x + 6, box.y + 15 + LINE * index, size=SMALL, colour="muted"))
    elif label and box.height > LINE + 2:
        inside.append(text(label, box.x + 6, box.y + min(15, box.height - 4), size=SMALL))
    return element(
        "g",
        element("title", escape(named)),
        rectangle(box.x + 0.5, box.y + 0.5, max(box.width - 1, 0.2), max(box.height - 1, 0.2), colour, rx=2),
        *inside,
        tabindex=-1,
        role="img",
    )


def _label(words: Sequence[str], room: float, *, bold: bool) -> str:
    """As many words, from the first, as fit into `room`; "" if not even the first does: the part's title names it."""
    lines = (" · ".join(words[:some]) for some in range(len(words), 0, -1))
    return next((line for line in lines if text_width(line, SMALL, bold=bold) <= room), "")


def squarified(values: Sequence[int], box: Box) -> list[Box]:
    """Rectangles that fill `box`, one per value, with areas proportional to the values and nearly square.

    values: in decreasing order.
    """
    places: list[Box] = []
    left = list(values)
    while left:
        scale = box.width * box.height / sum(left)
        side = min(box.width, box.height)
        row = 1
        while row < len(left) and _worst(left[: row + 1], side, scale) <= _worst(left[:row], side, scale):
            row += 1
        thickness = sum(left[:row]) * scale / side if side else 0.0
        along = 0.0
        for value in left[:row]:
            length = value * scale / thickness if thickness else 0.0
            upright = box.width >= box.height
            places.append(
                Box(box.x, box.y + along, thickness, length)
                if upright
                else Box(box.x + along, box.y, length, thickness)
            )
            along += length
        if box.width >= box.height:
            box = Box(box.x + thickness, box.y, max(box.width - thickness, 0.0), box.height)
        else:
            box = Box(box.x, box.y + thickness, box.width, max(box.height - thickness, 0.0))
        left = left[row:]
    return places


def _worst(row: Sequence[int], side: float, scale: float) -> float:
    """The largest aspect ratio in a row along `side`."""
    thickness = sum(row) * scale / side if side else 0.0
    if not thickness:
        return float("inf")
    return max(max(thickness**2 / (value * scale), value * scale / thickness**2) for value in row)
