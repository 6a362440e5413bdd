"""The KV cache: published figures exactly, and the bytes that transformers' own cache really holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_inspect.architectures import architecture_of
from qwen_inspect.checkpoint import DType
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.results.attention import LayerAttention
from qwen_inspect.results.cache import CacheReport, Workload
from qwen_inspect.structure.attention import attention_report
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.structure.kv_cache import (
    FORMATS,
    cache_report,
    read_formats,
)

from ..support.families import FAMILIES, random_model


def cache_of(config: Mapping[str, Any]) -> CacheReport:
    spec = architecture_of(config).spec
    return cache_report(attention_report(spec, None).layers, *read_formats("auto", spec.dtype), spec.dtype)


def test_qwen3_0_6b_takes_4_375_gib_at_its_limit() -> None:
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    assert report.cache.bytes_per_token == 114_688  # 2 x 28 layers x 8 heads x 128 x 2 bytes
    assert report.cache.size_bytes(tokens=40_960) == 4_697_620_480  # 4.375 GiB


def test_quantised_formats_are_ggmls() -> None:
    import gguf

    for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0"):
        elements, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
        assert (FORMATS[name].block_elements, FORMATS[name].block_bytes) == (elements, size_bytes)


@pytest.mark.parametrize(
    "call",
    [
        lambda: read_formats("q9", DType.BF16),
        lambda: read_formats("fp8,fp8,fp8", DType.BF16),
        lambda: FORMATS["q8_0"].size_bytes(80),
    ],
)
def test_what_cannot_be_laid_out_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        call()
    assert "{" not in str(refusal.value)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "without its head" not in name])
@pytest.mark.parametrize("tokens", [1, 7, 8, 20])
def test_the_cache_that_transformers_holds_has_just_these_bytes(family: str, tokens: int) -> None:
    import torch

    config = FAMILIES[family]
    model = random_model(config)
    cache = cache_of(config)
    with torch.no_grad():
        held = model(torch.zeros((2, tokens), dtype=torch.long), use_cache=True).past_key_values
        for length in (tokens, tokens + 1, tokens + 2):  # after the prompt, and after each of two decoded tokens
            if length > tokens:
                held = model(
                    torch.zeros((2, 1), dtype=torch.long), past_key_values=held, use_cache=True
                ).past_key_values
            tensors = [_tensors_of(layer) for layer in held.layers]
            assert [2 * layer.size_bytes(length) for layer in cache.layers] == [
                sum(tensor.nbytes for tensor in layer) for layer in tensors
            ]
            assert [[2 * size for size in layer.states_bytes] for layer in cache.layers if layer.kind == "linear"] == [
                [tensor.nbytes for tensor in layer]
                for layer, of in zip(tensors, cache.layers, strict=True)
                if of.kind == "linear"
            ]
            sizes = sum(tensor.untyped_storage().nbytes() for layer in tensors for tensor in layer)
            assert cache.size_bytes(tokens=length, batch=2) <= sizes


def _tensors_of(layer: Any) -> list[Any]:
    """What one layer of transformers' cache holds: K and V, or the convolution's inputs and the recurrent state."""
    if hasattr(layer, "recurrent_states"):
        return [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return [layer.keys, layer.values]


def test_a_recurrent_state_is_float32_and_a_convolutions_the_models() -> None:
    import torch

    held = random_model(FAMILIES["qwen3_next"])(torch.zeros((1, 5), dtype=torch.long)).past_key_values
    conv, recurrent = _tensors_of(held.layers[0])
    assert (conv.dtype, recurrent.dtype) == (torch.bfloat16, torch.float32)
    # 2 x 2 key heads of 8 and 4 value heads of 16 over 4 tokens; a state of 8 x 16 for each of 4 value heads.
    assert (tuple(conv.shape), tuple(recurrent.shape)) == ((1, 96, 4), (1, 4, 8, 16))


def test_qwen3_next_takes_6_gib_at_its_limit_beside_a_constant_state() -> None:
    report = inspect("Qwen/Qwen3-Next-80B-A3B-Instruct", source="catalog")
    assert report.cache.bytes_per_token == 24_576  # 2 x 12 of 48 layers x 2 heads x 256 x 2 bytes
    # 36 layers: 8,192 channels x 4 tokens in bfloat16, 32 heads x 128 x 128 in float32
    assert report.cache.fixed_bytes == 36 * (8_192 * 4 * 2 + 32 * 128 * 128 * 4)
    assert report.cache.size_bytes(tokens=262_144) - report.cache.fixed_bytes == 6 * 2**30
    fp8 = inspect("Qwen/Qwen3-Next-80B-A3B-Instruct", source="catalog", workload=Workload(cache_format="fp8")).cache
    assert (fp8.bytes_per_token, fp8.fixed_bytes) == (12_288, report.cache.fixed_bytes)


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
    dtype=st.sampled_from(["bfloat16", "float16", "float32", "fp8"]),
)
def test_the_cache_grows_with_tokens_and_by_whole_sequences(
    layers: list[LayerAttention], tokens: int, more: int, batch: int, dtype: str
) -> None:
    cache = cache_report(layers, FORMATS[dtype], FORMATS[dtype], DType.BF16)
    assert cache.size_bytes(tokens=0, batch=batch) == cache.fixed_bytes * batch
    assert cache.size_bytes(tokens=tokens + more) >= cache.size_bytes(tokens=tokens)
    assert cache.size_bytes(tokens=tokens, batch=batch) == batch * cache.size_bytes(tokens=tokens)
    assert cache.size_bytes(tokens=tokens) == sum(layer.size_bytes(tokens) for layer in cache.layers)
