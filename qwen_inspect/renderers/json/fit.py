"""`fit` -> JSON: the keys of the card that decides stand at the top, for scripts that ask of one; `cards` has all."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...language import Language
from ...results.fit import CardAnswer, CardReach, Ends, FitReport, Largest, Suggestion
from .common import model_content

if TYPE_CHECKING:
    from ...results.serving import ServingReport


def content(found: FitReport | ServingReport, say: Language) -> dict[str, Any]:
    if isinstance(found, FitReport):
        told = fit_content(found, say)
    else:
        from .serving import serving_content

        told = serving_content(found, say)
    return {"model": model_content(found.report, say), **told}


def fit_content(found: FitReport, say: Language) -> dict[str, Any]:
    run = found.run
    cards = [_card(card, say) for card in found.cards]
    return {
        "engine": found.engine,
        "workload": {
            "mode": run.mode,
            "batch": run.batch,
            "prompt_tokens": run.prompt_tokens,
            "new_tokens": run.new_tokens if run.mode == "generate" else None,
            "attention": run.attention,
            "cache": run.cache if run.mode == "generate" else None,
            "padded": run.padded,
            "autocast": run.autocast,
            "load": run.loader,
        },
        **cards[found.deciding],
        "cards": cards,
        "assumptions": [say(message) for message in found.assumptions],
    }


def _card(card: CardAnswer, say: Language) -> dict[str, Any]:
    """Figures are those of the cautious end; `low_end` has what differs where the CUDA context is small."""
    required = card.requirement
    return {
        "gpu": {"name": card.gpu.name, "memory_bytes": card.gpu.memory_bytes, "available_from": card.gpu.origin},
        **_ends(card.high),
        "likely": card.likely,
        "at_most_bytes": required.most_bytes,
        "available_bytes": card.available_bytes,
        "kv_cache_tokens": card.cache_tokens,
        "terms": [{"term": term, "bytes": size_bytes} for term, size_bytes in required.terms],
        "context_bytes": {
            "low": required.context_low_bytes,
            "high": required.context_high_bytes,
            "measured": card.calibrated,
        },
        "lower_bound_only": not required.whole,
        "passes_by_release": card.passes_by_release,
        "low_end": _ends(card.low),
        "curve": [
            {
                "context_tokens": point.context_tokens,
                "max_batch": point.batch.value,
                "at_most_batch": point.batch.at_most,
            }
            for point in card.curve
        ],
        "suggestions": [suggestion_content(one, say) for one in card.suggestions],
        "notices": [say(message) for message in card.notices],
    }


def suggestion_content(one: Suggestion, say: Language) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "change": say(one.change),
        "required_bytes": one.required_bytes,
        "fits": one.fits,
        "likely": one.likely,
        "lower_bound_only": not one.whole,
    }


def _ends(ends: Ends) -> dict[str, Any]:
    return {
        "fits": ends.fits,
        "required_bytes": ends.required_bytes,
        "margin_bytes": ends.margin_bytes,
        **_largest("context_tokens", ends.context),
        **_largest("batch", ends.batch),
    }


def _largest(what: str, found: Largest) -> dict[str, Any]:
    return {f"max_{what}": found.value, f"at_most_{what}": found.at_most, f"{what}_bound": found.bound}


def reach_content(card: CardReach) -> dict[str, Any]:
    return {
        "gpu": {"name": card.gpu.name, "memory_bytes": card.gpu.memory_bytes},
        "available_bytes": card.available_bytes,
        **_largest("context_tokens", card.largest),
        "contexts": [asdict(one) for one in card.contexts],
    }
