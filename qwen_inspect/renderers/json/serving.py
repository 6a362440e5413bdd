"""`fit --engine` -> JSON. As for `fit`, the deciding card's keys are at the top."""

from __future__ import annotations

from typing import cast

from ...language import Language
from ...results.serving import Asleep, Capacity, EngineCard, LlamaCppReserve, LogTerm, ServingReport, VllmReserve
from ...typed import Annotated, Literal
from .common import OfModelJSON
from .fit import CardNameJSON, EndsJSON, SuggestionJSON, card_name, largest_batch, largest_context, suggestion_content
from .llama_cpp import BufferJSON, ChosenQuantisationJSON, buffers_content, quantisation_content
from .values import Count, Keywords, Number, Positive, TypedDict

Engine = Literal["vllm", "sglang", "llama.cpp", "lmdeploy", "tensorrt-llm"]


class ReservedJSON(TypedDict):
    """A part of the engine's memory on a card; `most_bytes` is null if no source gives an upper end."""

    term: str
    least_bytes: Count
    most_bytes: Count | None
    sources: list[str]
    """Publications of the range; empty if computed by a formula."""


class CapacityJSON(TypedDict):
    """Capacity of a KV budget on each rank."""

    kv_budget_bytes: int
    blocks: Count
    kv_cache_tokens: Count
    sequence_blocks: Count
    """Blocks for one sequence of the requested length."""
    max_concurrency: Number
    """As vLLM prints it."""
    most_context_tokens: Count | None
    """For a single sequence, ignoring the model's limit; null if unlimited, because all layers have windows."""


class AsleepJSON(TypedDict):
    """What a sleeping vLLM keeps on a rank."""

    least_bytes: Count
    most_bytes: Count
    host_bytes: Count
    """Of the host's memory for the weights, at level 1."""


class VllmJSON(TypedDict):
    """vLLM on one rank, at both ends of its memory outside the cache."""

    cache_dtype: str
    utilization: Annotated[float, Keywords(exclusiveMinimum=0, maximum=1)] | None
    requested_bytes: Count | None
    """`utilization` times the card's memory; null if the KV budget was set directly."""
    block_bytes: Count
    block_tokens: Count
    groups: Count
    """Groups of layers; each allocates its own blocks."""
    low: CapacityJSON
    high: CapacityJSON
    asleep: AsleepJSON | None
    """null without --enable-sleep-mode."""


class LlamaCppJSON(TypedDict):
    """llama.cpp with `ngl` of `layers` on the card; the output layer counts as a layer."""

    ngl: Count
    layers: Count
    cells: Count
    """Cells of all sequences, each sequence padded."""
    cache_type_k: str
    cache_type_v: str
    host_bytes: Count
    """All buffers in host memory."""
    at_most_ngl: Count
    """The most layers that fit; an upper bound if a buffer is unknown."""
    min_n_cpu_moe: Count | None
    """The smallest --n-cpu-moe that fits; null without experts, if none suffices or a buffer is unknown."""
    buffers: list[BufferJSON]


class EngineCardJSON(EndsJSON):
    """Results for one card at the cautious end, with the most memory outside the cache."""

    gpu: CardNameJSON | None
    """null if vLLM's KV budget was set instead of a card."""
    available_bytes: Count
    kv_cache_tokens: Count | None
    terms: list[ReservedJSON]
    lower_bound_only: bool
    vllm: VllmJSON | None
    llama_cpp: LlamaCppJSON | None
    suggestions: list[SuggestionJSON]


class ServingWorkloadJSON(TypedDict):
    """The workload to serve."""

    batch: Positive
    context_tokens: Positive
    tp: Positive


class LogTermJSON(TypedDict):
    """A figure that a log of vLLM printed, and the predicted range. term "weights" includes the allocator's rounding."""

    term: str
    unit: Literal["bytes", "blocks", "tokens"]
    printed: int
    low: int
    high: int
    difference: int
    """What is printed less the nearest end of the range; 0 inside."""
    agrees: bool


class ServingKeysJSON(EngineCardJSON):
    engine: Engine
    engine_version: str
    """The version whose source code the figures follow."""
    workload: ServingWorkloadJSON
    cards: Annotated[list[EngineCardJSON], Keywords(minItems=1)]
    assumptions: list[str]
    log: list[LogTermJSON] | None
    """null without --log."""
    quantisation: ChosenQuantisationJSON | None
    """null without --quant largest."""


class ServingJSON(OfModelJSON, ServingKeysJSON):
    """`fit --engine`. The deciding card's keys are at the top."""


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
        "log": None if report.log is None else [_log_term(term) for term in report.log],
        "quantisation": quantisation_content(report.quantisation),
    }


def _log_term(term: LogTerm) -> LogTermJSON:
    return {
        "term": term.name,
        "unit": term.unit,
        "printed": term.printed,
        "low": term.low,
        "high": term.high,
        "difference": term.difference,
        "agrees": term.agrees,
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
        "asleep": None if (asleep := reserve.asleep) is None else _asleep(asleep),
    }


def _asleep(asleep: Asleep) -> AsleepJSON:
    return {
        "least_bytes": asleep.least_bytes,
        "most_bytes": asleep.most_bytes,
        "host_bytes": asleep.host_bytes,
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
        "min_n_cpu_moe": reserve.host_experts,
        "buffers": buffers_content(reserve.buffers),
    }
