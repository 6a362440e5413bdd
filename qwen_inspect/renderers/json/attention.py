"""`attention` -> JSON: heads where all layers have the same, the pattern of layers, and the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engines import caches_of
from ...language import Language
from ...results.model import Report
from .common import model_content


def content(report: Report, say: Language) -> dict[str, Any]:
    return {"model": model_content(report, say), **attention_content(report)}


def attention_content(report: Report) -> dict[str, Any]:
    layers, linear = report.attention.softmax, report.attention.linear

    def same(values: Sequence[int]) -> int | None:
        return values[0] if len(set(values)) == 1 else None

    return {
        "kind": report.attention.kind,
        "query_heads": same([layer.query_heads for layer in layers]),
        "kv_heads": same([layer.kv_heads for layer in layers]),
        "head_dim": same([layer.head_dim for layer in layers]),
        "pattern": None
        if report.attention.pattern is None
        else [{"kind": kind, "layers": several} for kind, several in report.attention.pattern],
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
        "tied_embeddings": report.spec.tied_embeddings,
        "cache": {
            "dtype": report.cache.dtype,
            "bytes_per_token": report.cache.bytes_per_token,
            "fixed_bytes": report.cache.fixed_bytes,
            "batch": report.workload.batch,
            "context_tokens": report.context_tokens,
            "bytes": None
            if report.context_tokens is None
            else report.cache.size_bytes(tokens=report.context_tokens, batch=report.workload.batch),
            "layers": [
                {
                    "index": layer.index,
                    "kind": layer.kind,
                    "bytes_per_token": layer.bytes_per_token,
                    "fixed_bytes": layer.fixed_bytes,
                    "window_tokens": layer.window_tokens,
                }
                for layer in report.cache.layers
            ],
            "engines": [
                {"engine": row.engine, "format": row.format, "ranks": report.workload.ranks, "bytes": row.size_bytes}
                for row in caches_of(report)
            ],
        },
    }
