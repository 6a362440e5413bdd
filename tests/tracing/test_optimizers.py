"""Optimizers in a trace against the truth: the same steps really run on CPU, under the profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ..support.families import FAMILIES
from ..support.following import Run, follow, profiled
from ..support.real_runs import PROMPT, real_model, traced
from ..support.real_training import STEP_COUNTER_BYTES, on_cpu

STEPS = 2
CONFIG = {**FAMILIES["qwen3"], "vocab_size": 512}


def sgd_with_momentum(model: Any) -> list[Any]:
    import torch

    return [torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)]


def adafactor(model: Any) -> list[Any]:
    from transformers.optimization import Adafactor

    return [Adafactor(model.parameters(), lr=1e-3, scale_parameter=False, relative_step=False)]


def lion(model: Any) -> list[Any]:
    import bitsandbytes

    return [bitsandbytes.optim.Lion(model.parameters())]


def muon(model: Any) -> list[Any]:
    import torch

    hidden = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]
    others = [weight for weight in model.parameters() if not any(weight is other for other in hidden)]
    return [torch.optim.Muon(hidden), torch.optim.AdamW(others, foreach=True)]


def steps(model: Any, optimizers: list[Any]) -> Callable[[], object]:
    import torch

    def run() -> object:
        for _ in range(STEPS):
            input_ids = torch.zeros(1, PROMPT, dtype=torch.int64)
            labels = torch.zeros_like(input_ids)
            loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
            loss.backward()
            loss = loss.detach()
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
        return loss, optimizers

    return run


@pytest.mark.parametrize(
    ("name", "make", "counters"),
    [
        pytest.param("sgd_momentum", sgd_with_momentum, 0, marks=pytest.mark.exhaustive),
        ("adafactor", adafactor, 0),
        pytest.param("lion", lion, 0, marks=pytest.mark.exhaustive),
        ("muon", muon, 10),  # of AdamW's, for embedding and head, the last norm and each layer's norms
    ],
)
def test_an_optimizer_takes_what_the_trace_says(name: str, make: Callable[[Any], list[Any]], counters: int) -> None:
    model = real_model(CONFIG).train()
    timeline = traced(CONFIG, mode="train", prompt_tokens=PROMPT, steps=STEPS, optimizer=name, device="cpu")
    left = follow(profiled(steps(model, make(model))), on_cpu(timeline), Run({}, {}, {})).scratch
    assert [change.size_bytes for change in left.values()] == [STEP_COUNTER_BYTES] * counters
