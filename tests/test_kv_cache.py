"""The KV cache: published figures exactly, and the bytes that transformers' own cache really holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_inspect.analyzers.attention import attention_report
from qwen_inspect.analyzers.kv_cache import cache_report
from qwen_inspect.architectures import architecture_of
from qwen_inspect.checkpoint import DType
from qwen_inspect.pipeline import inspect
from qwen_inspect.report import CacheReport, LayerAttention

from .test_local import FAMILIES


def cache_of(config: Mapping[str, Any]) -> CacheReport:
    spec = architecture_of(config).read_spec(config)
    return cache_report(attention_report(spec, None).layers, spec.dtype)


def test_qwen3_0_6b_takes_4_375_gib_at_its_limit() -> None:
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    assert report.cache.bytes_per_token == 114_688  # 2 x 28 layers x 8 heads x 128 x 2 bytes
    assert report.cache.size_bytes(tokens=40_960) == 4_697_620_480  # 4.375 GiB


def test_tokens_of_a_budget_follow_published_vllm_logs() -> None:
    """Qwen3-8B in bf16 with 57.50 GiB: vLLM printed 418,688 tokens, in blocks of 16; the budget is printed to 0.01 GiB."""
    per_token = inspect("Qwen/Qwen3-8B", source="catalog").cache.bytes_per_token
    least, most = 57.495 * 2**30 / per_token, 57.505 * 2**30 / per_token
    assert least - 16 <= 418_688 <= most


@pytest.mark.parametrize("family", [name for name in FAMILIES if "without its head" not in name])
@pytest.mark.parametrize("tokens", [1, 7, 8, 20])
def test_the_cache_that_transformers_holds_has_just_these_bytes(family: str, tokens: int) -> None:
    import torch
    import transformers

    config = FAMILIES[family]
    configuration = transformers.AutoConfig.for_model(**config)
    dtype = getattr(torch, config["torch_dtype"])
    torch.manual_seed(0)
    model = getattr(transformers, config["architectures"][0])(configuration).to(dtype).eval()
    with torch.no_grad():
        held = model(torch.zeros((2, tokens), dtype=torch.long), use_cache=True).past_key_values
    sizes = [layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes() for layer in held.layers]
    logical = [layer.keys.nbytes + layer.values.nbytes for layer in held.layers]
    cache = cache_of(config)
    assert [2 * layer.size_bytes(tokens) for layer in cache.layers] == logical
    assert cache.size_bytes(tokens=tokens, batch=2) == sum(logical) <= sum(sizes)


layer_attentions = st.builds(
    LayerAttention,
    index=st.integers(0, 100),
    query_heads=st.just(64),
    kv_heads=st.sampled_from([1, 2, 4, 8, 64]),
    head_dim=st.integers(1, 256),
    window_tokens=st.none() | st.integers(1, 5000),
)


@given(
    layers=st.lists(layer_attentions, min_size=1, max_size=8),
    tokens=st.integers(0, 10_000),
    more=st.integers(0, 10_000),
    batch=st.integers(1, 64),
    dtype=st.sampled_from([DType.BF16, DType.F16, DType.F32]),
)
def test_the_cache_grows_with_tokens_and_by_whole_sequences(
    layers: list[LayerAttention], tokens: int, more: int, batch: int, dtype: DType
) -> None:
    cache = cache_report(layers, dtype)
    assert cache.size_bytes(tokens=0, batch=batch) == cache.fixed_bytes * batch
    assert cache.size_bytes(tokens=tokens + more) >= cache.size_bytes(tokens=tokens)
    assert cache.size_bytes(tokens=tokens, batch=batch) == batch * cache.size_bytes(tokens=tokens)
    assert cache.size_bytes(tokens=tokens) == sum(layer.size_bytes(tokens) for layer in cache.layers)
