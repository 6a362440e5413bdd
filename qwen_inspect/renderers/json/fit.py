"""`fit` -> JSON: the deciding card's keys at the top, for scripts that need one card; `cards` lists all."""

from __future__ import annotations

from ...language import Language
from ...results.fit import (
    Bound,
    CardAnswer,
    CardReach,
    Change,
    Ends,
    FitReport,
    Gpu,
    Largest,
    MediaBound,
    MediaLimit,
    MediaReach,
    Suggestion,
)
from ...results.gpu import Origin
from ...results.memory import Autocast, Cache, Loader, Mode
from ...typed import TYPE_CHECKING, Annotated, Literal
from .common import OfModelJSON, model_content
from .values import Count, Keywords, Positive, TypedDict

if TYPE_CHECKING:
    from ...results.llama_cpp import LlamaCppReport
    from ...results.serving import ServingReport
    from .llama_cpp import LlamaCppCommandJSON
    from .serving import ServingJSON


class NamedCardJSON(TypedDict):
    """A GPU."""

    name: str
    memory_bytes: Count


class CardNameJSON(NamedCardJSON):
    """A GPU, and the origin of `available_bytes`."""

    available_from: Origin


class LargestContextJSON(TypedDict):
    max_context_tokens: Count | None
    """The largest that fits; null if only a lower bound of the requirement is known. Likewise `max_batch`."""
    at_most_context_tokens: Count | None
    """A proven upper limit."""
    context_tokens_bound: Bound
    """The limit that a larger context exceeds."""


class LargestBatchJSON(TypedDict):
    max_batch: Count | None
    at_most_batch: Count | None
    batch_bound: Bound


class EndsJSON(LargestContextJSON, LargestBatchJSON):
    """Results for one end of the CUDA context's size range."""

    fits: bool | None
    """null if uncertain."""
    required_bytes: Count
    margin_bytes: int


class SuggestionJSON(TypedDict):
    """A change to the run, and the bytes required with it."""

    kind: Change
    change: str
    required_bytes: Count
    fits: bool | None
    likely: bool | None
    lower_bound_only: bool


class MediaReachJSON(TypedDict):
    """The largest image, the most images or the longest video that fits the card."""

    kind: MediaLimit
    """The largest square image, the largest of the requested one's ratio, the most of the requested one, the longest video."""
    count: Count
    """0 if not even the smallest fits; the other keys but `bound` are then null."""
    width: Positive | None
    height: Positive | None
    seconds: Positive | None
    """Of a video."""
    tokens: Positive | None
    required_bytes: Count | None
    bound: MediaBound
    """What stops more: memory, the context, the processor, which makes no more tokens of anything larger, or the search's end."""


class TermJSON(TypedDict):
    """A part of the allocator's bytes."""

    term: str
    bytes: Count


class ContextBytesJSON(TypedDict):
    """Bytes of the process outside the allocator."""

    low: Count
    high: Count
    measured: bool


class CurvePointJSON(TypedDict):
    """The largest batch at a context."""

    context_tokens: Count
    max_batch: Count | None
    at_most_batch: Count | None


class CardJSON(EndsJSON):
    """Results for one card, at the cautious end; `low_end` has the results for the smallest CUDA context."""

    gpu: CardNameJSON
    likely: bool | None
    """Whether it fits by the known bounds; null if they do not decide it."""
    at_most_bytes: Count | None
    available_bytes: Count
    kv_cache_tokens: Count | None
    """At the largest context that fits."""
    terms: list[TermJSON]
    context_bytes: ContextBytesJSON
    lower_bound_only: bool
    passes_by_release: bool | None
    """Whether a run that does not fit still completes, because the allocator releases cached segments."""
    low_end: EndsJSON
    curve: list[CurvePointJSON]
    suggestions: list[SuggestionJSON]
    notices: list[str]
    media: list[MediaReachJSON]
    """Of a run with images, videos or audio; its largest context and batch are not searched."""


class FitWorkloadJSON(TypedDict):
    """The run that should fit."""

    mode: Mode
    batch: Positive
    prompt_tokens: Positive
    new_tokens: Positive | None
    attention: str
    cache: Cache | None
    padded: bool
    autocast: Autocast | None
    load: Loader


class FitKeysJSON(CardJSON):
    engine: Literal["transformers"]
    workload: FitWorkloadJSON
    cards: Annotated[list[CardJSON], Keywords(minItems=1)]
    assumptions: list[str]


class FitJSON(OfModelJSON, FitKeysJSON):
    """`fit` of a run with transformers. The deciding card's keys are at the top."""


class ContextFitJSON(TypedDict):
    """Whether a run with this context fits."""

    context_tokens: Count
    required_bytes: Count | None
    fits: bool | None


class CardReachJSON(LargestContextJSON):
    """The largest context of a model on one card."""

    gpu: NamedCardJSON
    available_bytes: Count
    contexts: list[ContextFitJSON]


def content(
    report: FitReport | ServingReport | LlamaCppReport, say: Language
) -> FitJSON | ServingJSON | LlamaCppCommandJSON:
    model = model_content(report.report, say)
    if isinstance(report, FitReport):
        return {"model": model, **fit_content(report, say)}
    from ...results.llama_cpp import LlamaCppReport

    if isinstance(report, LlamaCppReport):
        from .llama_cpp import llama_cpp_content

        return {"model": model, **llama_cpp_content(report, say)}
    from .serving import serving_content

    return {"model": model, **serving_content(report, say)}


def fit_content(report: FitReport, say: Language) -> FitKeysJSON:
    run = report.run
    cards = [_card(card, say) for card in report.cards]
    return {
        "engine": "transformers",
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
        **cards[report.deciding],
        "cards": cards,
        "assumptions": [say(message) for message in report.assumptions],
    }


def _card(card: CardAnswer, say: Language) -> CardJSON:
    required = card.requirement
    return {
        "gpu": card_name(card.gpu),
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
        "suggestions": [suggestion_content(suggestion, say) for suggestion in card.suggestions],
        "notices": [say(message) for message in card.notices],
        "media": [_media(reach) for reach in card.media],
    }


def _media(reach: MediaReach) -> MediaReachJSON:
    medium = reach.medium
    return {
        "kind": reach.kind,
        "count": reach.count,
        "width": getattr(medium, "width", None),
        "height": getattr(medium, "height", None),
        "seconds": None if medium is None or medium.seconds is None else int(medium.seconds),
        "tokens": reach.tokens,
        "required_bytes": reach.required_bytes,
        "bound": reach.bound,
    }


def card_name(gpu: Gpu) -> CardNameJSON:
    return {"name": gpu.name, "memory_bytes": gpu.memory_bytes, "available_from": gpu.origin}


def suggestion_content(suggestion: Suggestion, say: Language) -> SuggestionJSON:
    return {
        "kind": suggestion.kind,
        "change": say(suggestion.change),
        "required_bytes": suggestion.required_bytes,
        "fits": suggestion.fits,
        "likely": suggestion.likely,
        "lower_bound_only": not suggestion.whole,
    }


def _ends(ends: Ends) -> EndsJSON:
    return {
        "fits": ends.fits,
        "required_bytes": ends.required_bytes,
        "margin_bytes": ends.margin_bytes,
        **largest_context(ends.context),
        **largest_batch(ends.batch),
    }


def largest_context(largest: Largest) -> LargestContextJSON:
    return {
        "max_context_tokens": largest.value,
        "at_most_context_tokens": largest.at_most,
        "context_tokens_bound": largest.bound,
    }


def largest_batch(largest: Largest) -> LargestBatchJSON:
    return {"max_batch": largest.value, "at_most_batch": largest.at_most, "batch_bound": largest.bound}


def reach_content(card: CardReach) -> CardReachJSON:
    return {
        "gpu": {"name": card.gpu.name, "memory_bytes": card.gpu.memory_bytes},
        "available_bytes": card.available_bytes,
        **largest_context(card.largest),
        "contexts": [
            {"context_tokens": fit.context_tokens, "required_bytes": fit.required_bytes, "fits": fit.fits}
            for fit in card.contexts
        ],
    }
