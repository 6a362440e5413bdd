"""`models`: how many, from the smallest to the largest."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.listing import CatalogEntry
from ...units import short_count


def sentences(entries: Sequence[CatalogEntry], say: Language) -> list[str]:
    counts = [entry.design.parameters.theory for entry in entries]
    if not counts:
        return [say("answer_models_none")]
    return [say("answer_models", count=len(counts), least=short_count(min(counts)), most=short_count(max(counts)))]
