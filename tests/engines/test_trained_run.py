"""Training with symbolic sizes against predictions of single runs, which replay every request."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_inspect.engines.transformers.demand import TransformersDemand
from qwen_inspect.engines.transformers.traced_run import TrainedRun
from qwen_inspect.loaders import gpus
from qwen_inspect.results.memory import Run
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES
from ..support.models import write_config


@pytest.mark.parametrize(
    "card", ["H100", pytest.param("RTX 4090", marks=pytest.mark.exhaustive)]
)  # with cuDNN's attention and without
def test_what_is_reserved_is_that_of_single_predictions(
    card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of lengths at which sums over rows have no scratch and much."""
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    config = {**FAMILIES["qwen2"], "num_hidden_layers": 6, "max_position_embeddings": 100_000}
    report = inspect(str(write_config(tmp_path, config)))
    gpu = gpus.find(card)
    demand = TransformersDemand(report, Run(mode="train", prompt_tokens=64), gpu)
    for tokens in (64, 1001, 40_000):
        traced = demand._traced_at(1, tokens)
        assert isinstance(traced, TrainedRun)
        assert traced.held_bytes(demand._point(1, tokens)) == demand.requirement(1, tokens).held_bytes
