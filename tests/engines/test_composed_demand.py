"""What a composed run gives for other cards and weights is what a prediction of its own gives."""

from __future__ import annotations

import pytest

from qwen_inspect.engines.transformers.demand import TransformersDemand
from qwen_inspect.loaders import gpus
from qwen_inspect.results.memory import Run
from qwen_inspect.structure.inspect import in_scheme, inspect


@pytest.mark.parametrize(
    ("model", "card", "dtype"),
    [
        ("Qwen/Qwen1.5-MoE-A2.7B", "RTX 4090", "awq-int4"),
        ("Qwen/Qwen3.5-0.8B", "L40S", "fp8"),
        ("google/gemma-3-1b-it", "H100", None),
        ("openai/gpt-oss-20b", "H100", None),
    ],
)
def test_a_composed_run_serves_other_cards_and_weights(model: str, card: str, dtype: str | None) -> None:
    report = inspect(model, source="catalog")
    composed = TransformersDemand(report, Run(), gpus.find("RTX 4090"))
    other = TransformersDemand(in_scheme(report, dtype) if dtype else report, Run(), gpus.find(card))
    total, predicted = other.total_like(composed), other.requirement(1, 2048)
    assert total.held_bytes == predicted.held_bytes
    assert (total.low_bytes, total.high_bytes, total.whole) == (
        predicted.low_bytes,
        predicted.high_bytes,
        predicted.whole,
    )
    assert total.more_bytes == predicted.more_bytes


def test_a_quantised_range_is_searched_with_its_composed_run() -> None:
    """Of several lengths and batches, on both sides of the window of 128 tokens."""
    demand = TransformersDemand(inspect("openai/gpt-oss-20b", source="catalog"), Run(), gpus.find("RTX 4090"))
    for batch, tokens in ((1, 64), (1, 2048), (3, 500)):
        traced = demand._traced_at(batch, tokens)
        assert traced is not None
        assert traced.held_bytes(demand._point(batch, tokens)) == demand.requirement(batch, tokens).held_bytes
