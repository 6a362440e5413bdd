"""Images, videos and audio -> JSON."""

from __future__ import annotations

from ...results.media import Clip, Media, MediaKind, Medium, Rules
from .values import Count, Positive, TypedDict


class RulesJSON(TypedDict):
    """By which rules images or videos are resized, or audio becomes spectrograms."""

    processor: str
    """The processor's or feature extractor's class in transformers."""
    file: str | None
    """The model's file that sets its numbers; null for those of the family's releases."""


class MediumJSON(TypedDict):
    """An image or a video."""

    kind: MediaKind
    typed: str
    width: Positive
    height: Positive
    frames: Positive | None
    """Sampled of a video; null for an image."""
    resized_width: Positive
    resized_height: Positive
    grid: list[Positive]
    """What passes through the tower one by one (pairs of frames, frames or tiles), rows and columns of patches."""
    tokens: Positive
    """That the tower gives the decoder."""
    marks: Count | None
    """Further tokens that the processor writes around and between them; null if the tokenizer decides."""


class ClipJSON(TypedDict):
    """Audio of the prompt."""

    typed: str
    seconds: float
    """Of the whole audio."""
    taken_seconds: float
    """Without what the processor cuts."""
    bins: Positive
    """Numbers of each frame of the spectrogram."""
    frames: Positive
    """Of the spectrogram that the tower gets, with padding."""
    tokens: Positive
    """That the tower gives the decoder."""
    marks: Count
    """Further tokens that the processor writes around them."""


class MediaJSON(TypedDict):
    """The images, videos and audio of each sequence."""

    tokens: Positive
    marks: Count
    """Those whose number is known."""
    context_tokens: Positive
    """Both: what all of it takes of the context."""
    pixel_bytes: Count
    """Of the pixels on the card, as the processor makes them."""
    feature_bytes: Count
    """Of the audio's spectrograms on the card."""
    images: RulesJSON | None
    videos: RulesJSON | None
    audio: RulesJSON | None
    items: list[MediumJSON]
    clips: list[ClipJSON]
    """Of audio."""


def media_content(media: Media | None) -> MediaJSON | None:
    if media is None:
        return None
    return {
        "tokens": media.tokens,
        "marks": media.marks,
        "context_tokens": media.context_tokens,
        "pixel_bytes": media.pixel_bytes,
        "feature_bytes": media.feature_bytes,
        "images": _rules(media.images),
        "videos": _rules(media.videos),
        "audio": _rules(media.audio),
        "items": [_medium(medium) for medium in media.items],
        "clips": [_clip(clip) for clip in media.clips],
    }


def _rules(rules: Rules | None) -> RulesJSON | None:
    return None if rules is None else {"processor": rules.processor, "file": rules.file}


def _medium(medium: Medium) -> MediumJSON:
    typed, shape = medium.typed, medium.shape
    return {
        "kind": medium.kind,
        "typed": typed.text,
        "width": typed.width,
        "height": typed.height,
        "frames": medium.frames,
        "resized_width": shape.width,
        "resized_height": shape.height,
        "grid": list(shape.grid),
        "tokens": shape.tokens,
        "marks": shape.marks,
    }


def _clip(clip: Clip) -> ClipJSON:
    seconds = float(clip.typed.seconds)
    return {
        "typed": clip.typed.text,
        "seconds": seconds,
        "taken_seconds": seconds if clip.cut_seconds is None else float(clip.cut_seconds),
        "bins": clip.bins,
        "frames": clip.frames,
        "tokens": clip.tokens,
        "marks": clip.marks,
    }
