"""The images and videos of a prompt: sizes, grids and tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.model import Report
from ...typed import TYPE_CHECKING
from ...units import count, size
from ..blocks import Block, Heading, Items, Table

if TYPE_CHECKING:
    from ...results.media import Media, Medium, Rules


def media_blocks(report: Report, say: Language) -> Sequence[Block]:
    """A row for each image and video, and by which rules; nothing without any."""
    media = report.media
    if media is None:
        return []
    columns = ("medium", "resized", "grid", "tokens", "marks")
    rows = [_row(medium, say) for medium in media.items]
    total = [say("total"), "", "", count(media.tokens), count(media.marks)]
    return [
        Heading(say("heading_media")),
        Table([say(f"column_{name}") for name in columns], [*rows, total], "lrrrr", totals=1),
        Items([*rules(media, say), *_remarks(report, media, say)]),
    ]


def _row(medium: Medium, say: Language) -> list[str]:
    shape = medium.shape
    slices, rows, columns = shape.grid
    typed = medium.typed.text
    label = typed if medium.frames is None else say("media_frames_of", text=typed, frames=medium.frames)
    return [
        label,
        f"{shape.width} × {shape.height}",
        f"{slices} × {rows} × {columns}",
        count(shape.tokens),
        count(shape.marks),
    ]


def rules(media: Media, say: Language) -> list[str]:
    """By which processors, and whose numbers."""
    named = (("images", media.images), ("videos", media.videos))
    return [_rule(kind, used, say) for kind, used in named if used is not None]


def _rule(kind: str, rules: Rules, say: Language) -> str:
    source = say("media_defaults") if rules.file is None else rules.file
    return say(f"media_rules_{kind}", processor=rules.processor, source=source)


def _remarks(report: Report, media: Media, say: Language) -> list[str]:
    batch, remarks = report.workload.batch, [say("media_marks_unknown")] if media.marks_unknown else []
    if report.settled and not report.cache.keeps_nothing and not report.cache.source_bytes_per_token:
        cache_bytes = report.cache.size_bytes(tokens=media.context_tokens, batch=batch)
        remarks.append(say("media_cache", size=size(cache_bytes), tokens=media.context_tokens))
    return [*remarks, say("media_pixels", size=size(batch * media.pixel_bytes), dtype=media.pixel_dtype)]
