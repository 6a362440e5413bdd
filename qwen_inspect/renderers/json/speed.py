"""Bounds of speed -> JSON."""

from __future__ import annotations

from ...results.speed import Limit, Speed, StepName
from .values import Count, Number, Positive, TypedDict


class SpeedStepJSON(TypedDict):
    """The least time of one forward pass."""

    step: StepName
    tokens: Positive
    """Computed in it, over all sequences."""
    context_tokens: Positive
    operations: Count
    """Multiplications and additions of matrix products and softmax attention."""
    weight_bytes: Count
    """Read at least: of a mixture, the experts of one token."""
    cache_bytes: Count
    operations_per_second: Count | None
    """At best with the matrices' number format; null if no source gives it for the card."""
    seconds: Number
    limit: Limit
    even_seconds: Number
    """The least time if the tokens spread evenly over a mixture's experts."""


class SpeedJSON(TypedDict):
    """What a card allows at best."""

    gpu: str
    bytes_per_second: Positive
    steps: list[SpeedStepJSON]
    time_to_first_token_seconds: Number | None
    """null if only the memory's part of it is known."""
    tokens_per_second: Number | None
    """New tokens of all sequences, at the first decoding step; null if nothing is decoded."""
    measured_share: Number | None
    """Of the memory's bandwidth, that a published run of llama.cpp reached on the card; null if none is known."""
    uncounted_layers: Count
    """Layers whose attention is not in `operations`, because only their cache is known."""


def speed_content(speed: Speed) -> SpeedJSON:
    decoding = next((step for step in speed.steps if step.name == "first"), None)
    return {
        "gpu": speed.gpu.name,
        "bytes_per_second": speed.steps[0].bandwidth,
        "steps": [
            {
                "step": step.name,
                "tokens": step.tokens,
                "context_tokens": step.context_tokens,
                "operations": step.operations,
                "weight_bytes": step.weight_bytes,
                "cache_bytes": step.cache_bytes,
                "operations_per_second": step.rate,
                "seconds": step.seconds,
                "limit": step.limit,
                "even_seconds": step.even_seconds,
            }
            for step in speed.steps
        ],
        "time_to_first_token_seconds": None if speed.steps[0].rate is None else speed.steps[0].seconds,
        "tokens_per_second": None if decoding is None else speed.tokens_a_second(decoding),
        "measured_share": speed.measured_share,
        "uncounted_layers": speed.uncounted,
    }
