"""The input of images.js: what images of several sizes and numbers take of a prompt, of the cache and of the card."""

from __future__ import annotations

from ..language import Language
from ..results.media import Media, Medium
from ..results.memory import MemoryReport
from ..units import count
from ..values import replace
from .blocks import Live

NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FIRST_SIDE = 1024
LARGEST_BATCH = 256


def images(memory: MemoryReport, stops: Media, say: Language) -> Live:
    """The block of the sliders. The page multiplies the bytes of one sequence, which stand in it, by the batch."""
    first = next(index for index, item in enumerate(stops.items) if item.typed.width >= FIRST_SIDE)
    content = {
        "stops": [_stop(item) for item in stops.items],
        "numbers": NUMBERS,
        "figures": [[_figures(memory, _several(stops, item, number)) for number in NUMBERS] for item in stops.items],
        "start": {"size": first, "number": 0, "batch": memory.run.batch},
        "most": {"batch": max(LARGEST_BATCH, memory.run.batch)},
        "labels": {
            "size": say("images_size"),
            "number": say("images_number"),
            "batch": say("field_batch"),
            "resized": say("images_resized"),
            "tokens": say("images_tokens"),
            "marks": say("images_marks"),
            "of_prompt": say("images_of_prompt"),
            "least_prompt": say("images_least_prompt"),
            "cache": say("images_cache"),
            "pixels": say("images_pixels"),
            "at_least": say("at_least", value="{value}"),
        },
    }
    return Live("images", content, say("images_noscript"))


def _several(stops: Media, item: Medium, number: int) -> Media:
    return replace(stops, items=(item,) * number)


def _stop(item: Medium) -> dict[str, object]:
    shape, typed = item.shape, item.typed
    return {
        "size": f"{count(typed.width)} × {count(typed.height)}",
        "resized": f"{count(shape.width)} × {count(shape.height)}",
        "tokens": shape.tokens,
        "marks": shape.marks,
    }


def _figures(memory: MemoryReport, media: Media) -> list[int | None]:
    """Tokens of the prompt, the least prompt, bytes of the cache and of the pixels: of one sequence; None: unknown."""
    report = memory.report
    known = report.settled and not report.cache.keeps_nothing and not report.cache.source_bytes_per_token
    cache = report.cache.size_bytes(tokens=media.context_tokens) if known else None
    return [media.context_tokens, max(media.context_tokens, media.least_tokens), cache, media.pixel_bytes]
