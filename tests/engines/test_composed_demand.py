"""What a composed run gives for other cards and weights is what a prediction of its own gives."""

from __future__ import annotations

import pytest

from qwen_inspect.engines.transformers import demand as demand_module
from qwen_inspect.engines.transformers import traced_run
from qwen_inspect.engines.transformers.changes import _larger_cards
from qwen_inspect.engines.transformers.demand import TransformersDemand
from qwen_inspect.loaders import gpus
from qwen_inspect.predicting.allocation.region_steps import Steps
from qwen_inspect.predicting.footprint import reserved_within
from qwen_inspect.predicting.predict import predict
from qwen_inspect.results.memory import MemoryReport, Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Timeline
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


def test_what_every_run_keeps_rules_out_workloads_and_cards_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama-3.1-8B has 8,030,261,248 parameters, each with two states of AdamW, of 2 bytes each: 44.9 GiB."""
    predictions: list[str] = []

    def counted(report: Report, run: Run) -> MemoryReport:
        predictions.append(f"{run.gpu}, {run.prompt_tokens} tokens")
        return predict(report, run)

    monkeypatch.setattr(demand_module, "predict", counted)
    report = inspect("meta-llama/Meta-Llama-3.1-8B", source="catalog")
    card = gpus.find("RTX 4090")
    demand = TransformersDemand(report, Run(mode="train", attention="sdpa"), card)
    assert not any(demand.fits(batch, tokens, card.room_bytes) for batch in (1, 64) for tokens in (1, 2048))
    assert predictions == ["RTX 4090, 2048 tokens"]
    names = [change.gpu.name for change in _larger_cards(demand, report, demand.run, card)]
    assert "RTX 5090" not in names
    assert "A100 80GB" in names


def test_another_card_with_the_same_kernels_needs_no_other_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A100 has the workspace and the attention of an RTX 4090."""
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    demand, other = (TransformersDemand(report, Run(), gpus.find(name)) for name in ("RTX 4090", "A100 80GB"))
    alone = other.requirement(1, 2048)
    demand.requirement(1, 2048)
    monkeypatch.setattr(demand_module, "predict", None)
    monkeypatch.setattr(demand_module, "explore_trace", None)
    assert other.total_like(demand).high_bytes == alone.high_bytes


def test_a_folded_run_is_replayed_once_for_all_amounts_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    replays = 0

    def counted(timeline: Timeline, run: Run, most_bytes: int, steps: Steps) -> int:
        nonlocal replays
        replays += 1
        return reserved_within(timeline, run, most_bytes, steps)

    monkeypatch.setattr(traced_run, "reserved_within", counted)
    report = inspect("state-spaces/mamba-2.8b-hf", source="catalog")
    demand = TransformersDemand(report, Run(prompt_tokens=100), gpus.find("RTX 4090"))
    held = demand.requirement(1, 100).held_bytes
    assert [demand.fits(1, 300, room) for room in (held // 2, 2 * held, held // 2, 2 * held)] == [False, True] * 2
    assert replays == 1  # the first room does not even hold the weights
    assert (
        demand.held_bytes(1, 300)
        == TransformersDemand(report, demand.run, gpus.find("RTX 4090")).requirement(1, 300).held_bytes
    )
    assert replays == 1
