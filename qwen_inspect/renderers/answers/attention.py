"""`attention`: the kinds of layers, and the cache for one token and at the context."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report
from . import media, structure


def sentences(report: Report, say: Language) -> list[str]:
    kinds = say("answer_attention_of", name=report.ref.id, kinds=structure.kinds(report, say))
    return [kinds, structure.cache(report, say), *media.sentences(report, say)]
