"""Training with symbolic sizes against predictions of single runs, which replay every request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.keep_traces import first_layers, report_of
from qwen_inspect.engines.transformers.demand import TransformersDemand
from qwen_inspect.engines.transformers.traced_run import TrainedRun
from qwen_inspect.loaders import catalog, gpus
from qwen_inspect.results.memory import Run
from qwen_inspect.results.training import Loop, loop_of
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES
from ..support.models import write_config


@pytest.mark.parametrize(
    ("card", "loop"),
    [
        ("H100", loop_of(None, loss="liger", ema=True)),  # with cuDNN's attention
        *(
            pytest.param("RTX 4090", loop, marks=pytest.mark.exhaustive)
            for loop in (
                loop_of(None),
                loop_of("sft"),
                loop_of("sft", completion_tokens=50),
                loop_of("trainer", loss="liger"),
            )
        ),
    ],
)
def test_what_is_reserved_is_that_of_single_predictions(
    card: str, loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of lengths at which sums over rows have no scratch and much, and of which a fused loss has one chunk and several."""
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    config = {**FAMILIES["qwen2"], "num_hidden_layers": 6, "max_position_embeddings": 100_000}
    report = inspect(str(write_config(tmp_path, config)))
    gpu = gpus.find(card)
    demand = TransformersDemand(report, Run(mode="train", prompt_tokens=64, loop=loop), gpu)
    for tokens in (64, 1001, 40_000):
        traced = demand._traced_at(1, tokens)
        assert isinstance(traced, TrainedRun)
        assert traced.held_bytes(demand._point(1, tokens)) == demand.requirement(1, tokens).held_bytes


def test_linear_attention_with_any_number_of_chunks_is_that_of_single_predictions() -> None:
    """Put together from one run of each kind: one sequence or several, the last chunk whole or padded."""
    config = first_layers(catalog.configuration("Qwen/Qwen3.5-0.8B", catalog.entries()), 8)
    run = Run(mode="train", lora_rank=8, prompt_tokens=640, batch=2, checkpointing=False)
    demand = TransformersDemand(report_of(config), run, gpus.find("RTX 4090"))
    for batch, tokens in ((2, 640), (2, 192), (1, 1187), (1, 150), (1, 449), (3, 960)):
        traced = demand._traced_at(batch, tokens)
        assert isinstance(traced, TrainedRun)
        assert traced.held_bytes(demand._point(batch, tokens)) == demand.requirement(batch, tokens).held_bytes


@pytest.mark.parametrize(
    ("model", "layers", "options"),
    [
        ("Qwen/Qwen3-0.6B", 4, {"optimizer": "adamw_8bit"}),
        ("Qwen/Qwen3-0.6B", 4, {"lora_rank": 16, "checkpointing": True, "accumulate": 3}),
        ("meta-llama/Llama-3.1-8B-Instruct", 4, {"checkpointing": True}),
        ("Qwen/Qwen3.5-0.8B", 8, {"lora_rank": 8}),
    ],
)
def test_what_is_reserved_on_other_cards_is_that_of_a_prediction(
    model: str, layers: int, options: dict[str, Any]
) -> None:
    """With cuDNN's attention and without it, and where sums over rows have other scratch."""
    report = report_of(first_layers(catalog.configuration(model, catalog.entries()), layers))
    run = Run(mode="train", prompt_tokens=4096, **options)
    demand = TransformersDemand(report, run, gpus.find("RTX 4090"))
    required = demand.requirement(1, 4096)
    assert TransformersDemand(report, run, gpus.find("RTX 4090")).total(1, 4096).held_bytes == required.held_bytes
    for name in ("L4", "A100 80GB", "H100 SXM", "B200"):
        other, apart = (TransformersDemand(report, run, gpus.find(name)) for _ in range(2))
        expected = apart.requirement(1, 4096)
        assert other.least_like(demand) <= expected.held_bytes
        assert other.total_like(demand).held_bytes == expected.held_bytes
        assert other.total_like(demand).high_bytes == expected.high_bytes
        assert not other._predicted


def test_turns_are_added_to_what_takes_memory() -> None:
    """As if requests of 0 bytes were left out afterwards; what is said to be repeated is."""
    config = first_layers(catalog.configuration("Qwen/Qwen3.5-0.8B", catalog.entries()), 8)
    demand = TransformersDemand(report_of(config), Run(mode="train", prompt_tokens=640), gpus.find("RTX 4090"))
    assert demand._traced_at(1, 1187) is not None
    ((run, streams),) = demand._trained._turned.values()
    every = (True,) * len(run._sizes)
    whole = streams.of(20, every)
    assert whole.of_sizes(every) == whole
    assert any(repeat.times > 20 // 4 for repeat in whole.repeats)
    for left_out in sorted({*whole.size_of})[::7]:
        sizes = tuple([size != left_out for size in range(len(every))])
        stream, expected = streams.of(20, sizes), whole.of_sizes(sizes)
        assert (stream.order, stream.size_of) == (expected.order, expected.size_of)
        assert stream.of_sizes(every) == stream
