"""`report`: parameters and layers, the cache, and what a card needs for the longest prompt."""

from __future__ import annotations

from ...language import Language
from ...results.whole import WholeReport
from . import memory, params, structure


def sentences(whole: WholeReport, say: Language) -> list[str]:
    report = whole.report
    size_sentence = structure.sentences(report, say)[0]
    disagree = [] if all(check.agrees for check in report.checks) else [*params.verdicts(report, say)][-1:]
    attention = [] if not report.settled else [structure.cache(report, say)]
    predicted = max(whole.memory, key=lambda prediction: prediction.run.prompt_tokens, default=None)
    needs = [] if predicted is None else memory.sentences(predicted, say)[:1]
    return [size_sentence, *disagree, *attention, *needs]
