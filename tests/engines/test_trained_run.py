"""Training with symbolic sizes against predictions of single runs, which replay every request."""

from __future__ import annotations

from pathlib import Path

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
