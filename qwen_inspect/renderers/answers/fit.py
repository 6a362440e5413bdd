"""`fit`: whether it fits, the largest context and batch, and the cheapest change that makes it fit."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.fit import CardAnswer, FitReport, Largest, Suggestion
from ...results.llama_cpp import LlamaCppReport
from ...results.serving import EngineCard, LlamaCppReserve, ServingReport, VllmReserve
from ...units import count, size
from ..document.common import reach, shown_range
from ..document.fit import media_most
from . import between, within
from .cards import named
from .memory import workload


def sentences(report: FitReport | ServingReport | LlamaCppReport, say: Language) -> list[str]:
    if isinstance(report, LlamaCppReport):
        from . import llama_cpp

        return llama_cpp.sentences(report, say)
    if isinstance(report, ServingReport):
        return _serving(report, say)
    name, run = report.report.ref.id, workload(report.run, say)
    if len(report.cards) > 1:
        deciding = report.cards[report.deciding]
        each = say("answer_fit_each", name=name, run=run, verdicts=_each(report.cards, say))
        return [each, _reach_each(report.cards, say), *_change(deciding, say, on=deciding.gpu.name)]
    (card,) = report.cards
    required, available = _required(card, say), size(card.available_bytes)
    values = {"name": name, "run": run, "card": card.gpu.name, "required": required, "available": available}
    return [
        say(f"answer_fit_{judged(card)}", **values),
        _reach(card, say),
        *_change(card, say),
        *_because(report, card, say),
    ]


def _because(report: FitReport, card: CardAnswer, say: Language) -> list[str]:
    """Why it is not known whether the run fits; empty if it is known."""
    if report.refusal is None or judged(card) != "unknown":
        return []
    return [say("answer_because", reason=within(say(report.refusal.message)))]


def judged(card: CardAnswer) -> str:
    """yes, no, may (only with a small CUDA context), likely or unknown."""
    if card.high.fits is False and card.low.fits:
        return "may"
    if card.high.fits is None:
        return "likely" if card.likely else "unknown"
    return "yes" if card.high.fits else "no"


def _required(card: CardAnswer, say: Language) -> str:
    """Both ends of the requirement; its bounds if only those are known."""
    if card.requirement.whole:
        return between(card.low.required_bytes, card.high.required_bytes, say)
    return between(card.low.required_bytes, card.requirement.most_bytes, say)


def _each(answers: Sequence[CardAnswer], say: Language) -> str:
    """The cards by verdict."""
    cards_of: dict[str, list[str]] = {}
    for card in answers:
        cards_of.setdefault(judged(card), []).append(named(card.gpu, say))
    parts = [
        say(f"answer_fit_each_{verdict}", cards=say("list_comma").join(cards_of[verdict]))
        for verdict in ("yes", "likely", "may", "unknown", "no")
        if verdict in cards_of
    ]
    return say("semicolon").join(parts)


def _reach_each(answers: Sequence[CardAnswer], say: Language) -> str:
    values = (f"{card.gpu.name} {_known(card.high.context, say)}" for card in answers)
    return say("answer_reach_each", values=say("comma").join(values))


def _reach(card: CardAnswer, say: Language) -> str:
    if card.media:
        reached = (
            say(f"answer_media_{found.bound}", what=media_most(found, say), kind=say(f"media_limit_{found.kind}"))
            for found in card.media
        )
        return say("answer_media_reach", reaches=say("semicolon").join(reached))
    if card.high.context.at_most == card.high.batch.at_most == 0:
        return say("answer_reach_none")
    return say("answer_reach", context=_known(card.high.context, say), batch=_known(card.high.batch, say))


def _known(largest: Largest, say: Language) -> str:
    return say("answer_unknown") if largest.value is None and largest.at_most is None else reach(largest, say)


def _change(card: CardAnswer, say: Language, *, on: str | None = None) -> list[str]:
    """The first change that makes it fit; if that is a smaller workload or not certain, also the first certain other one."""
    if card.high.fits is not False:
        return []
    possible = [suggestion for suggestion in card.suggestions if suggestion.fits is not False]
    helpful = [suggestion for suggestion in possible if suggestion.likely] or possible
    if not helpful:
        return [say("answer_no_change")]
    first = helpful[0]
    shown = [first]
    if first.kind in ("context", "batch") or not first.fits:
        others = [other for other in helpful[1:] if other.kind not in ("context", "batch", first.kind)]
        shown += sorted(others, key=lambda other: not other.fits)[:1]
    changes = say("answer_or").join(_changed(suggestion, say) for suggestion in shown)
    return [say("answer_change", changes=changes) if on is None else say("answer_change_on", changes=changes, card=on)]


def _changed(suggestion: Suggestion, say: Language) -> str:
    required = size(suggestion.required_bytes)
    if not suggestion.whole:
        required = say("at_least", value=required)
    key = {True: "answer_changed", None: "answer_changed_likely" if suggestion.likely else "answer_changed_perhaps"}
    return say(key[suggestion.fits or None], change=say(suggestion.change), required=required)


# --- serving engines


def _serving(report: ServingReport, say: Language) -> list[str]:
    card, serving = report.cards[report.deciding], report.serving
    where = say("serving_budget_card") if card.gpu is None else named(card.gpu, say)
    high, low = card.answer.high.fits, card.answer.low.fits
    verdict = "may" if high is False and low else {True: "yes", False: "no", None: "unknown"}[high]
    content = [
        say(
            f"answer_serve_{verdict}",
            engine=f"{serving.engine} {report.version}",
            name=report.report.ref.id,
            batch=serving.batch,
            tokens=report.context_tokens,
            card=where,
        ),
        *_capacity(card, report, say),
    ]
    return [*content, *_change(card.answer, say, on=where if len(report.cards) > 1 else None)]


def _capacity(card: EngineCard, report: ServingReport, say: Language) -> list[str]:
    match card.reserve:
        case VllmReserve(least=least, most=most):
            tokens = shown_range(least.tokens, most.tokens, count, say)
            times = [f"{end.concurrency:,.2f}" for end in (least, most)]
            many = times[0] if times[0] == times[1] else say("size_range", low=times[0], high=times[1])
            return [say("answer_vllm", tokens=tokens, concurrency=many, context=report.context_tokens)]
        case LlamaCppReserve() as reserve:
            layers = {"offloaded": reserve.offloaded, "layers": reserve.layers, "most": reserve.most_offloaded}
            content = [say("answer_llama_cpp", host=size(reserve.host_bytes), **layers)]
            content += [_reach(card.answer, say)] if reserve.offloaded else []
            if reserve.host_experts:
                content.append(say("answer_llama_cpp_moe", count=count(reserve.host_experts)))
            return content
    return [_reach(card.answer, say)]
