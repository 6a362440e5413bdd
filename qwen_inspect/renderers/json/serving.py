"""What an engine reserves -> JSON: the keys of the deciding card stand at the top, as those of `fit` without an engine do."""

from __future__ import annotations

from typing import Any

from ...language import Language
from ...results.serving import Capacity, EngineCard, LlamaCppReserve, ServingReport, VllmReserve
from .fit import suggestion_content


def serving_content(found: ServingReport, say: Language) -> dict[str, Any]:
    cards = [_card(card, say) for card in found.cards]
    return {
        "engine": found.serving.engine,
        "engine_version": found.version,
        "workload": {"batch": found.serving.batch, "context_tokens": found.context_tokens, "tp": found.serving.ranks},
        **cards[found.deciding],
        "cards": cards,
        "assumptions": [say(message) for message in found.assumptions],
    }


def _card(card: EngineCard, say: Language) -> dict[str, Any]:
    """Figures are those of the cautious end, where the most is taken beside the cache."""
    high, reserve, gpu = card.answer.high, card.reserve, card.gpu
    return {
        "gpu": None
        if gpu is None
        else {"name": gpu.name, "memory_bytes": gpu.memory_bytes, "available_from": gpu.origin},
        "fits": high.fits,
        "required_bytes": high.required_bytes,
        "available_bytes": card.answer.available_bytes,
        "margin_bytes": high.margin_bytes,
        "max_context_tokens": high.context.value,
        "at_most_context_tokens": high.context.at_most,
        "context_tokens_bound": high.context.bound,
        "max_batch": high.batch.value,
        "at_most_batch": high.batch.at_most,
        "batch_bound": high.batch.bound,
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
        "suggestions": [suggestion_content(one, say) for one in card.suggestions],
    }


def _vllm(reserve: VllmReserve) -> dict[str, Any]:
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


def _capacity(end: Capacity) -> dict[str, Any]:
    return {
        "kv_budget_bytes": end.budget_bytes,
        "blocks": end.blocks,
        "kv_cache_tokens": end.tokens,
        "sequence_blocks": end.sequence_blocks,
        "max_concurrency": round(end.concurrency, 2),
        "most_context_tokens": end.most_context_tokens,
    }


def _llama_cpp(reserve: LlamaCppReserve) -> dict[str, Any]:
    return {
        "ngl": reserve.offloaded,
        "layers": reserve.layers,
        "cells": reserve.cells,
        "cache_type_k": reserve.cache_formats[0],
        "cache_type_v": reserve.cache_formats[1],
        "host_bytes": reserve.host_bytes,
        "at_most_ngl": reserve.most_offloaded,
    }
