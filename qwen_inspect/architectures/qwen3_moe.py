"""Qwen3-MoE (30B-A3B, 235B-A22B, Coder): routed experts only, QK-Norm.

Source: transformers 5.23, models/qwen3_moe; Qwen3 Technical Report (arXiv 2505.09388).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import ModelSpec, Module
from ..typed import Any
from .blocks import decoder_tree, sparse_block
from .blocks import experts_stored_singly as stored_form
from .blocks import no_prediction_layers as prediction_layers
from .design import by_spec
from .reading import (
    experts_key,
    flag,
    read_decoder,
    read_head_dim,
    read_layer_types,
    read_window,
    softmax_attentions,
    sparse_mlps,
)

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    bias = flag(config, "attention_bias", default=False)
    return read_decoder(
        config,
        prefix="Qwen3Moe",
        attentions=softmax_attentions(
            config,
            head_dim=read_head_dim(config),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=True,
            # Source: cache_utils.get_layer_types_and_kwargs: a window, if set, holds for every layer.
            windows=lambda layers: read_layer_types(
                config, layers, window=read_window(config), default=lambda index: True
            ),
        ),
        mlps=sparse_mlps(config, experts_key=experts_key(config), shared_size=None),
    )


def module_tree(spec: ModelSpec) -> Module:
    return decoder_tree(spec, sparse_block)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
