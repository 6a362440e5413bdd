"""The sentence on a prompt's images and videos."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report


def sentences(report: Report, say: Language) -> list[str]:
    """How many tokens they take; nothing without any."""
    media = report.media
    if media is None:
        return []
    key = "answer_media_least" if media.marks_unknown else "answer_media"
    images = sum(item.kind == "image" for item in media.items)
    named = [
        say(f"answer_{kind}", count=number)
        for kind, number in (("image", images), ("video", len(media.items) - images))
        if number
    ]
    return [say(key, media=say("comma").join(named), tokens=media.context_tokens)]
