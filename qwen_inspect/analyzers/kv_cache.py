"""The KV cache: exact bytes for each layer, token and sequence."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint import DType
from ..report import CacheLayer, CacheReport, LayerAttention


def cache_report(layers: Sequence[LayerAttention], dtype: DType) -> CacheReport:
    """What transformers' DynamicCache holds for a model whose layers attend like `layers`, in `dtype`."""
    return CacheReport(dtype=str(dtype), layers=tuple(_cache_layer(layer, dtype) for layer in layers))


def _cache_layer(layer: LayerAttention, dtype: DType) -> CacheLayer:
    """K and V of one layer: (batch, kv_heads, tokens, head_dim) each.

    A sliding layer keeps window - 1 tokens, for the next one completes its window.
    Source: transformers 5.23, cache_utils.DynamicLayer and DynamicSlidingWindowLayer.
    """
    return CacheLayer(
        index=layer.index,
        kind="full" if layer.window_tokens is None else "sliding",
        bytes_per_token=2 * layer.kv_heads * layer.head_dim * dtype.bits // 8,  # K and V
        fixed_bytes=0,
        window_tokens=layer.window_tokens,
    )
