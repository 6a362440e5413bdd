"""Where an SVG of ours puts things: the boxes of its texts and rectangles, read back by an XML parser."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from qwen_inspect.renderers.svg import FONT_SIZE, text_width

SVG = "{http://www.w3.org/2000/svg}"
ASCENT, DESCENT = 0.8, 0.22  # of the letters that figures use, in em


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float
    content: str = ""

    def overlaps(self, other: Box) -> bool:
        slack = 0.2  # coordinates are written to a tenth
        return (
            self.left < other.right - slack
            and other.left < self.right - slack
            and self.top < other.bottom - slack
            and other.top < self.bottom - slack
        )

    def within(self, other: Box) -> bool:
        slack = 0.2
        return (
            self.left >= other.left - slack
            and self.top >= other.top - slack
            and self.right <= other.right + slack
            and self.bottom <= other.bottom + slack
        )


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    known = {"title", "style", "rect", "path", "circle", "text", "g", "svg"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= known
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]
    return root


def page(root: ElementTree.Element) -> Box:
    return Box(0, 0, float(root.attrib["width"]), float(root.attrib["height"]))


def text_boxes(root: ElementTree.Element) -> list[Box]:
    return [_text_box(element) for element in root.iter(f"{SVG}text")]


def _text_box(element: ElementTree.Element) -> Box:
    given = element.attrib
    size, content = float(given.get("font-size", FONT_SIZE)), element.text or ""
    width = text_width(content, size, bold="font-weight" in given)
    left = float(given["x"]) - width * {"start": 0, "middle": 0.5, "end": 1}[given.get("text-anchor", "start")]
    baseline = float(given["y"])
    return Box(left, baseline - ASCENT * size, left + width, baseline + DESCENT * size, content)


def rectangles(root: ElementTree.Element) -> list[Box]:
    found = []
    for element in root.iter(f"{SVG}rect"):
        x, y, width, height = (float(element.attrib[name]) for name in ("x", "y", "width", "height"))
        found.append(Box(x, y, x + width, y + height))
    return found


def assert_nothing_overlaps_or_is_cut(svg: str) -> None:
    """Each text lies on the page, and touches no other."""
    root = parsed(svg)
    boxes = text_boxes(root)
    for box in boxes:
        assert box.within(page(root)), box
    for index, box in enumerate(boxes):
        for other in boxes[:index]:
            assert not box.overlaps(other), (box, other)
