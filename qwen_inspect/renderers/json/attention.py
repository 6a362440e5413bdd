"""`attention` -> JSON: heads (null if layers differ), the pattern of layers, and the cache."""

from __future__ import annotations

from collections.abc import Sequence

from ...engines import caches_of
from ...language import Language
from ...results.cache import CacheEngine, CacheKind
from ...results.model import Report
from ...typed import Annotated
from .common import OfModelJSON, model_content
from .media import MediaJSON, media_content
from .values import Count, Keywords, Positive, TypedDict

AttentionKind = Annotated[
    str,
    Keywords(
        enum=[
            *("MHA", "GQA", "MQA", "mixed", "hybrid", "MLA"),
            *("chunked", "indexed", "recurrent", "convolution", "shared", "none"),
        ]
    ),
]


class PatternJSON(TypedDict):
    """A run of layers with the same kind of cache."""

    kind: CacheKind
    layers: Positive


class LinearJSON(TypedDict):
    """The layers with linear attention. A figure is null if the layers differ in it."""

    layers: Count
    key_heads: Count | None
    value_heads: Count | None
    key_head_dim: Count | None
    value_head_dim: Count | None
    conv_kernel: Count | None


class CacheLayerJSON(TypedDict):
    """What one layer caches for one sequence."""

    index: Count
    kind: CacheKind
    bytes_per_token: Count
    fixed_bytes: Count
    """Independent of the length: the states of linear attention."""
    window_tokens: Count | None
    """null if the layer attends to all earlier tokens."""
    source_bytes_per_token: Count
    """For each position of an encoder's output, which cross-attention keeps; 0 without one."""


class EngineCacheJSON(TypedDict):
    """An engine's cache for the same batch and context, on one rank."""

    engine: CacheEngine
    format: str
    ranks: Positive
    bytes: Count | None


class CacheJSON(TypedDict):
    """The KV cache in transformers' DynamicCache."""

    dtype: str
    bytes_per_token: Count
    """Bytes that one more token of one sequence adds while no window is full."""
    fixed_bytes: Count
    source_bytes_per_token: Count
    """Bytes that one more position of an encoder's output adds; 0 without an encoder."""
    source_tokens: Count | None
    """Positions of the encoder's output: requested, else fixed by the model; null if unknown or without an encoder."""
    batch: Positive
    context_tokens: Count | None
    """Requested, else the model's own limit."""
    bytes: Count | None
    """For `batch` sequences of `context_tokens`; null if these, or the positions of an encoder's output, are unknown."""
    layers: list[CacheLayerJSON]
    engines: list[EngineCacheJSON]


class HeadsJSON(TypedDict):
    query_heads: Count | None
    """null if the layers differ; likewise `kv_heads` and `head_dim`."""
    kv_heads: Count | None
    head_dim: Count | None
    pattern: list[PatternJSON] | None
    """The runs of the shortest repeating sequence of layers; null if all layers are of one kind or nothing repeats."""
    linear: LinearJSON | None
    """null if the model has none."""
    both_ways: bool | None
    """Whether tokens attend to later ones too, as in an encoder, which has no cache; null if unknown."""
    tied_embeddings: bool


class SettledJSON(HeadsJSON):
    kind: AttentionKind
    cache: CacheJSON


class AttentionJSON(OfModelJSON, SettledJSON):
    """`attention`."""

    media: MediaJSON | None
    """null unless images or videos were requested."""


def content(report: Report, say: Language) -> AttentionJSON:
    media = media_content(report.media)
    return {"model": model_content(report, say), **attention_content(report), "media": media}


def attention_content(report: Report) -> SettledJSON:
    layers, linear = report.attention.softmax or report.attention.both_ways, report.attention.linear

    def same(values: Sequence[int]) -> int | None:
        return values[0] if len(set(values)) == 1 else None

    return {
        "kind": report.attention.kind,
        "query_heads": same([layer.query_heads for layer in layers]),
        "kv_heads": same([layer.kv_heads for layer in layers]),
        "head_dim": same([layer.head_dim for layer in layers]),
        "pattern": None
        if report.attention.pattern is None
        else [{"kind": kind, "layers": length} for kind, length in report.attention.pattern],
        "linear": {
            "layers": len(linear),
            "key_heads": same([layer.key_heads for layer in linear]),
            "value_heads": same([layer.value_heads for layer in linear]),
            "key_head_dim": same([layer.key_head_dim for layer in linear]),
            "value_head_dim": same([layer.value_head_dim for layer in linear]),
            "conv_kernel": same([layer.conv_kernel for layer in linear]),
        }
        if linear
        else None,
        "both_ways": bool(report.attention.both_ways),
        "tied_embeddings": report.spec.tied_embeddings,
        "cache": {
            "dtype": report.cache.dtype,
            "bytes_per_token": report.cache.bytes_per_token,
            "fixed_bytes": report.cache.fixed_bytes,
            "source_bytes_per_token": report.cache.source_bytes_per_token,
            "source_tokens": report.cache.source_tokens,
            "batch": report.workload.batch,
            "context_tokens": report.context_tokens,
            "bytes": report.cache_bytes,
            "layers": [
                {
                    "index": layer.index,
                    "kind": layer.kind,
                    "bytes_per_token": layer.bytes_per_token,
                    "fixed_bytes": layer.fixed_bytes,
                    "window_tokens": layer.window_tokens,
                    "source_bytes_per_token": layer.source_bytes_per_token,
                }
                for layer in report.cache.layers
            ],
            "engines": [
                {"engine": row.engine, "format": row.format, "ranks": report.workload.ranks, "bytes": row.size_bytes}
                for row in caches_of(report)
            ],
        },
    }
