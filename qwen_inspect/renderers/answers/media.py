"""The sentence on a prompt's images, videos and audio."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report


def sentences(report: Report, say: Language) -> list[str]:
    """How many tokens they take; nothing without any."""
    media = report.media
    if media is None:
        return []
    key = ("answer_media_heard" if media.clips else "answer_media") + ("_least" if media.marks_unknown else "")
    images, clips = sum(item.kind == "image" for item in media.items), len(media.clips)
    named = [
        say(f"answer_{kind}", count=number)
        for kind, number in (("image", images), ("video", len(media.items) - images), ("audio", clips))
        if number
    ]
    return [say(key, media=say("comma").join(named), tokens=media.context_tokens)]
