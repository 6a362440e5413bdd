"""A trace is the same whether torch's fake tensors are answered by its own table of results or by the quicker key to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from qwen_inspect.architectures import architecture_of
from qwen_inspect.results.timeline import Timeline
from qwen_inspect.tracing import trace as tracing
from qwen_inspect.tracing import without_data
from qwen_inspect.tracing.trace import TraceRequest, trace

from ..support.families import FAMILIES

RUNS: Mapping[str, Mapping[str, Any]] = {
    "qwen3_next": {"mode": "train", "batch": 2},
    "qwen3_5_moe": {"mode": "generate", "new_tokens": 3},
    "qwen2": {"mode": "train", "autocast": "bfloat16", "checkpointing": True, "optimizer": "adamw_fused"},
}


def traced(family: str) -> Timeline:
    config = FAMILIES[family]
    return trace(architecture_of(config).spec, config, TraceRequest(prompt_tokens=70, **RUNS[family]))


@pytest.mark.parametrize("family", RUNS)
def test_the_quick_mode_gives_what_torchs_own_does(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    quick = traced(family)
    assert type(without_data.fake_mode()) is not FakeTensorMode
    monkeypatch.setitem(without_data.REPLACED, "_cache_key", ["as", "another", "torch", "has", "it"])
    assert type(without_data.fake_mode()) is FakeTensorMode
    own = traced(family)
    assert quick == own
    assert len(own.events) > 300


def test_each_result_of_the_table_is_the_one_that_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch checks it itself, tensor by tensor, where it is told to."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    checks = []
    check, fake_mode = FakeTensorMode._crosscheck_cache_output, without_data.fake_mode

    def counted(*arguments: Any) -> None:
        checks.append(arguments[2])
        check(*arguments)

    def checking() -> Any:
        mode = fake_mode()
        mode.cache_crosscheck_enabled = True
        return mode

    monkeypatch.setattr(FakeTensorMode, "_crosscheck_cache_output", counted)
    monkeypatch.setattr(tracing, "fake_mode", checking)
    assert traced("qwen3_next").stages
    assert len(checks) > 1_000
