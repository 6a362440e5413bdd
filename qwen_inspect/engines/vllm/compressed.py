"""Qwen3.8-Flash-Next (qwen4_exp) in vLLM: attention with an index over compressed keys, beside states and tables of n-grams.

A layer of attention keeps keys and values, a compressed key of each few tokens, and a ring of the last keys; pages of keys and
values and of compressed keys lie side by side in a block.

Source: vLLM 0.30.0, models/qwen4_exp (common/qsa_cache.py, nvidia/model.py, nvidia/qsa.py), platforms/interface.py
(_align_hybrid_block_size), v1/core/kv_cache_utils.py (_get_packed_kv_cache_groups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import UnsupportedError
from ...results.attention import LayerAttention, LinearLayerAttention
from ...results.model import Report
from ...results.serving import Serving
from ...structure.kv_cache import CacheFormat
from ...typed import Any
from .blocks import BLOCK_TOKENS, BlockPool, PageKind, linear_state_bytes, softmax_kind, state_dtypes, text_part

FIRST_VERSION = (0, 29)  # 0.28 does not have the class
METHODS = ("mtp", "ngram", "ngram_gpu")


def has_compressed_keys(report: Report) -> bool:
    return (report.config or {}).get("model_type") in ("qwen4_exp", "qwen4_exp_text")


def check_compressed(report: Report, serving: Serving, version: tuple[int, int]) -> None:
    """Raises UnsupportedError for requests that vLLM refuses for the class, and for those of which more than blocks is asked."""
    if version < FIRST_VERSION:
        raise UnsupportedError("vllm_compressed_version", class_name=report.spec.class_name)
    if serving.kv_budget_bytes is None and serving.speculation is not None:
        raise UnsupportedError("vllm_budget_only", class_name=report.spec.class_name)
    if serving.pipeline_ranks > 1:
        raise UnsupportedError("vllm_pipeline_refused", class_name=report.spec.class_name)
    if serving.speculation is not None and serving.speculation.method not in METHODS:
        known = ", ".join(METHODS)
        raise UnsupportedError("vllm_compressed_speculation", class_name=report.spec.class_name, known=known)


def attention_heads(report: Report) -> tuple[LayerAttention, ...]:
    """Of each layer with attention, as vLLM shards it and keeps its keys and values."""
    text = text_part(report.config or {})
    query_heads, kv_heads, head_dim = (
        integer(text, key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    return tuple(
        LayerAttention(
            index=layer.index, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, window_tokens=None
        )
        for layer in report.attention.layers
        if layer.kind == "indexed"
    )


def compressed_pool(
    report: Report,
    cache_format: CacheFormat,
    *,
    ranks: int,
    predicted: int,
    proposed: int,
    prefix_caching: bool,
) -> BlockPool:
    """The blocks on one of `ranks` ranks. predicted: layers for multi-token prediction, each with attention like the model's.

    Raises UnsupportedError for a cache in another dtype than the model's, and for more `proposed` tokens than a ring can hold.
    """
    if cache_format.name != "bfloat16":
        raise UnsupportedError("vllm_cache_format", found=cache_format.name, known="bfloat16")
    text, dtype = text_part(report.config or {}), report.spec.dtype
    kinds = [layer.kind for layer in report.attention.layers]
    attention, linear = kinds.count("indexed") + predicted, kinds.count("recurrent")
    tables = _table_layers(text)
    kind = softmax_kind(attention_heads(report)[0], cache_format, ranks, BLOCK_TOKENS)
    state = LinearLayerAttention(
        index=0,
        key_heads=integer(text, "linear_num_key_heads"),
        value_heads=integer(text, "linear_num_value_heads"),
        key_head_dim=integer(text, "linear_key_head_dim"),
        value_head_dim=integer(text, "linear_value_head_dim"),
        conv_kernel=integer(text, "linear_conv_kernel_dim"),
    )
    state_bytes = linear_state_bytes(state, ranks, state_dtypes(report.config or {}, dtype), proposed)
    if tables:
        state_bytes = max(state_bytes, _table_state_bytes(text, proposed) * dtype.bits // 8)
    page_bytes = -(-state_bytes // kind.page_bytes) * kind.page_bytes
    tokens = page_bytes // kind.page_bytes * BLOCK_TOKENS
    ratio = integer(text, "indexer_compress_ratio")
    ring = ratio * -(-(ratio + proposed) // ratio)
    if tokens % ring:
        raise UnsupportedError("vllm_ring", ring=ring, tokens=tokens)
    compressed_bytes = tokens // ratio * cache_format.size_bytes(integer(text, "indexer_head_dim"))
    block_bytes = attention * (page_bytes + compressed_bytes)
    counts = [count for count in (linear, tables) if count]
    repeats = _repeats([attention, attention, *counts], least=attention)
    in_block = min(repeats, block_bytes // page_bytes)
    states = sum(-(-count // in_block) for count in counts)
    return BlockPool(
        block_bytes=block_bytes,
        groups=(
            PageKind(page_bytes, tokens, 0, kind.shape),
            *[PageKind(page_bytes, 0, 0, ())] * states,
        ),
        state_blocks=2 if prefix_caching else 1,
        proposed=proposed,
        rings=1,
    )


def _repeats(counts: Sequence[int], *, least: int) -> int:
    """Layers of a group: the number for which the groups' padding is least, the largest of several.

    Source: kv_cache_utils._approximate_gcd.
    """
    return min(range(least, max(counts) + 1), key=lambda size: (sum(-count % size for count in counts), -size))


def _table_layers(text: Mapping[str, Any]) -> int:
    layers = text.get("ple_layer_ids") or []
    if not isinstance(layers, list):
        raise UnsupportedError("config_key_unsupported", key="ple_layer_ids", found=str(layers)[:60])
    return len(layers)


def _table_state_bytes(text: Mapping[str, Any], proposed: int) -> int:
    """Numbers of a dilated convolution's state behind a table, whole on every rank."""
    columns = integer(text, "hidden_size") * integer(text, "hc_count")
    return columns * ((integer(text, "ple_conv_kernel_size") - 1) * integer(text, "ngram_size") + proposed)


def integer(text: Mapping[str, Any], key: str) -> int:
    """A size of the configuration; raises UnsupportedError for what is none."""
    number = text.get(key)
    if type(number) is not int or not 0 < number <= 1 << 24:
        raise UnsupportedError("config_key_unsupported", key=key, found=str(number)[:60])
    return number
