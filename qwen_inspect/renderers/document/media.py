"""The images, videos and audio of a prompt: sizes, grids and tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.model import Report
from ...typed import TYPE_CHECKING
from ...units import count, size
from ...values import replace
from ..blocks import Block, Heading, Items, Table

if TYPE_CHECKING:
    from ...results.media import Clip, Media, Medium, Rules


def media_blocks(report: Report, say: Language) -> Sequence[Block]:
    """A row for each image, video and clip of audio, and by which rules; nothing without any."""
    media = report.media
    if media is None:
        return []
    seen, heard = replace(media, clips=()), replace(media, items=())
    return [
        *_table("heading_media", ("resized", "grid"), [_row(medium, say) for medium in seen.items], seen, say),
        *_table("heading_audio", ("taken", "frames"), [_clip_row(clip, say) for clip in heard.clips], heard, say),
        Items([*rules(media, say), *_remarks(report, media, say)]),
    ]


def _table(
    heading: str, columns: tuple[str, str], rows: Sequence[Sequence[str]], media: Media, say: Language
) -> Sequence[Block]:
    """Of one kind of media, with the sum of its tokens; nothing without rows."""
    if not rows:
        return []
    names = [say(f"column_{name}") for name in ("medium", *columns, "tokens", "marks")]
    total = [say("total"), "", "", count(media.tokens), count(media.marks)]
    return [Heading(say(heading)), Table(names, [*rows, total], "lrrrr", totals=1)]


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


def _clip_row(clip: Clip, say: Language) -> list[str]:
    taken = clip.typed.seconds if clip.cut_seconds is None else clip.cut_seconds
    frames = f"{count(clip.frames)} × {count(clip.bins)}"
    return [clip.typed.text, say("seconds_of", seconds=float(taken)), frames, count(clip.tokens), count(clip.marks)]


def rules(media: Media, say: Language) -> list[str]:
    """By which processors, and whose numbers."""
    named = (("images", media.images), ("videos", media.videos), ("audio", media.audio))
    return [_rule(kind, used, say) for kind, used in named if used is not None]


def _rule(kind: str, rules: Rules, say: Language) -> str:
    source = say("media_defaults") if rules.file is None else rules.file
    return say(f"media_rules_{kind}", processor=rules.processor, source=source)


def _remarks(report: Report, media: Media, say: Language) -> list[str]:
    batch, remarks = report.workload.batch, [say("media_marks_unknown")] if media.marks_unknown else []
    if report.settled and not report.cache.keeps_nothing and not report.cache.source_bytes_per_token:
        cache_bytes = report.cache.size_bytes(tokens=media.context_tokens, batch=batch)
        remarks.append(say("media_cache", size=size(cache_bytes), tokens=media.context_tokens))
    for clip in media.clips:
        if clip.cut_seconds is not None:
            remarks.append(say("audio_cut", text=clip.typed.text, seconds=float(clip.cut_seconds)))
    if media.items:
        remarks.append(say("media_pixels", size=size(batch * media.pixel_bytes), dtype=media.pixel_dtype))
    if media.clips:
        remarks.append(say("media_features", size=size(batch * media.feature_bytes), dtype=media.feature_dtype))
    return remarks
