"""What an engine reserves -> JSON: the keys of the deciding card stand at the top, as those of `fit` without an engine do."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from ...language import Language
from ...results.serving import Capacity, EngineCard, LlamaCppReserve, ServingReport, VllmReserve
from .common import OfModelJSON
from .fit import CardNameJSON, EndsJSON, SuggestionJSON, card_name, largest_batch, largest_context, suggestion_content
from .values import Count, Keywords, Number, Positive, TypedDict

Engine = Literal["vllm", "llama.cpp"]


class ReservedJSON(TypedDict):
    """A part of what the engine takes of a card; `most_bytes` is null where no source gives an end."""

    term: str
    least_bytes: Count
    most_bytes: Count | None
    sources: list[str]
    """Where a range was published; none for a formula's figure."""


class CapacityJSON(TypedDict):
    """What a KV budget holds on each rank."""

    kv_budget_bytes: int
    blocks: Count
    kv_cache_tokens: Count
    sequence_blocks: Count
    """Of a sequence of the requested length."""
    max_concurrency: Number
    """As vLLM prints it."""
    most_context_tokens: Count | None
    """Of one sequence alone, whatever the model's limit; null where windows leave it without end."""


class VllmJSON(TypedDict):
    """vLLM on one rank, at both ends of what it takes beside the cache."""

    cache_dtype: str
    utilization: Annotated[float, Keywords(exclusiveMinimum=0, maximum=1)] | None
    requested_bytes: Count | None
    """`utilization` of the card; null where the KV budget was given."""
    block_bytes: Count
    block_tokens: Count
    groups: Count
    """Of layers, each of which takes blocks for itself."""
    low: CapacityJSON
    high: CapacityJSON


class LlamaCppJSON(TypedDict):
    """llama.cpp with `ngl` of `layers` on the card, the output layer counted as one of them."""

    ngl: Count
    layers: Count
    cells: Count
    """Of all sequences, each padded."""
    cache_type_k: str
    cache_type_v: str
    host_bytes: Count
    """Weights, cache and states in the host's memory."""
    at_most_ngl: Count


class EngineCardJSON(EndsJSON):
    """A card's answer at the cautious end, where the most is taken beside the cache."""

    gpu: CardNameJSON | None
    """null where vLLM's KV budget was given in place of a card."""
    available_bytes: Count
    kv_cache_tokens: Count | None
    terms: list[ReservedJSON]
    lower_bound_only: bool
    vllm: VllmJSON | None
    llama_cpp: LlamaCppJSON | None
    suggestions: list[SuggestionJSON]


class ServingWorkloadJSON(TypedDict):
    """What is to be served."""

    batch: Positive
    context_tokens: Positive
    tp: Positive


class ServingKeysJSON(EngineCardJSON):
    engine: Engine
    engine_version: str
    """Whose source the figures follow."""
    workload: ServingWorkloadJSON
    cards: Annotated[list[EngineCardJSON], Keywords(minItems=1)]
    assumptions: list[str]


class ServingJSON(OfModelJSON, ServingKeysJSON):
    """`fit --engine`. The keys of the card that decides stand at the top."""


def serving_content(report: ServingReport, say: Language) -> ServingKeysJSON:
    serving = report.serving
    cards = [_card(card, say) for card in report.cards]
    return {
        "engine": cast(Engine, serving.engine),
        "engine_version": report.version,
        "workload": {"batch": serving.batch, "context_tokens": report.context_tokens, "tp": serving.ranks},
        **cards[report.deciding],
        "cards": cards,
        "assumptions": [say(message) for message in report.assumptions],
    }


def _card(card: EngineCard, say: Language) -> EngineCardJSON:
    high, reserve = card.answer.high, card.reserve
    return {
        "gpu": None if card.gpu is None else card_name(card.gpu),
        "fits": high.fits,
        "required_bytes": high.required_bytes,
        "available_bytes": card.answer.available_bytes,
        "margin_bytes": high.margin_bytes,
        **largest_context(high.context),
        **largest_batch(high.batch),
        "kv_cache_tokens": reserve.cache_tokens,
        "terms": [
            {
                "term": term.name,
                "least_bytes": term.least_bytes,
                "most_bytes": term.most_bytes,
                "sources": list(term.sources),
            }
            for term in reserve.terms
        ],
        "lower_bound_only": not card.answer.requirement.whole,
        "vllm": _vllm(reserve) if isinstance(reserve, VllmReserve) else None,
        "llama_cpp": _llama_cpp(reserve) if isinstance(reserve, LlamaCppReserve) else None,
        "suggestions": [suggestion_content(suggestion, say) for suggestion in card.suggestions],
    }


def _vllm(reserve: VllmReserve) -> VllmJSON:
    return {
        "cache_dtype": reserve.cache_format,
        "utilization": reserve.utilization,
        "requested_bytes": reserve.requested_bytes,
        "block_bytes": reserve.block_bytes,
        "block_tokens": reserve.block_tokens,
        "groups": reserve.groups,
        "low": _capacity(reserve.least),
        "high": _capacity(reserve.most),
    }


def _capacity(end: Capacity) -> CapacityJSON:
    return {
        "kv_budget_bytes": end.budget_bytes,
        "blocks": end.blocks,
        "kv_cache_tokens": end.tokens,
        "sequence_blocks": end.sequence_blocks,
        "max_concurrency": round(end.concurrency, 2),
        "most_context_tokens": end.most_context_tokens,
    }


def _llama_cpp(reserve: LlamaCppReserve) -> LlamaCppJSON:
    return {
        "ngl": reserve.offloaded,
        "layers": reserve.layers,
        "cells": reserve.cells,
        "cache_type_k": reserve.cache_formats[0],
        "cache_type_v": reserve.cache_formats[1],
        "host_bytes": reserve.host_bytes,
        "at_most_ngl": reserve.most_offloaded,
    }
