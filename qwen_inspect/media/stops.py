"""The images that a page's slider goes through, as the model's processor resizes them."""

from __future__ import annotations

from ..errors import QwenInspectError
from ..loaders.processors import read_processors
from ..loaders.resolve import Access
from ..results.media import Media, Request, Typed
from ..results.model import Report
from .counting import media_of
from .processors import PROCESSOR_FILES

SIDES = (
    224,
    336,
    448,
    560,
    672,
    768,
    896,
    1024,
    1280,
    1536,
    1792,
    2048,
    2560,
    3072,
    3584,
    4096,
)  # of squares, in pixels


def image_stops(report: Report, access: Access) -> Media | None:
    """A square image of each of SIDES; None for a model that sees none, or whose processor is not known or cannot be read: a page
    is shown without these sliders, and `--image` says why.
    """
    config = report.config or {}
    if "vision_config" not in config:
        return None
    request = Request(typed=tuple(Typed(text=f"{side}x{side}", width=side, height=side) for side in SIDES))
    try:
        return media_of(config, read_processors(report.ref, PROCESSOR_FILES, access), request)
    except QwenInspectError:
        return None
