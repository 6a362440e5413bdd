"""Qwen3-MoE (30B-A3B, 235B-A22B, Coder): routed experts only, QK-Norm.

Source: transformers 5.23, models/qwen3_moe; Qwen3 Technical Report (arXiv 2505.09388).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import ModelSpec, Module, MoeMlp
from .blocks import decoder_tree, experts, router
from .blocks import experts_stored_singly as stored_form
from .reading import flag, read_decoder, read_head_dim, read_layer_types, read_window, sparse_mlps

__all__ = ["module_tree", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    bias = flag(config, "attention_bias", default=False)
    # transformers 5 writes `num_local_experts`, and reads both. Source: Qwen3MoeConfig.attribute_map.
    experts_key = "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"
    return read_decoder(
        config,
        prefix="Qwen3Moe",
        head_dim=read_head_dim(config),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        # Source: cache_utils.get_layer_types_and_kwargs: a window, where there is one, holds for every layer.
        windows=lambda layers: read_layer_types(config, layers, window=read_window(config), default=lambda index: True),
        mlps=sparse_mlps(config, experts_key=experts_key, shared_size=None),
    )


def module_tree(spec: ModelSpec) -> Module:
    return decoder_tree(spec, _sparse_block)


def _sparse_block(mlp: MoeMlp, spec: ModelSpec) -> tuple[Module, ...]:
    return (experts(mlp, spec), router(mlp, spec))
