"""Qwen1.5-MoE and Qwen2-57B-A14B: routed experts beside a shared expert behind a sigmoid gate.

Source: transformers 5.23, models/qwen2_moe.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import ModelSpec, Module
from ..typed import Any
from .blocks import decoder_tree, sparse_block_with_shared_expert
from .blocks import experts_stored_singly as stored_form
from .blocks import no_prediction_layers as prediction_layers
from .design import by_spec
from .reading import (
    flag,
    integer,
    optional_integer,
    read_decoder,
    read_head_dim,
    read_layer_types,
    read_window,
    softmax_attentions,
    sparse_mlps,
)

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    # Source: Qwen2MoeConfig.__post_init__: every other layer below `max_window_layers` (28 if the key is missing).
    window_layers = optional_integer(config, "max_window_layers")
    last_sliding = 28 if window_layers is None else window_layers
    return read_decoder(
        config,
        prefix="Qwen2Moe",
        attentions=softmax_attentions(
            config,
            head_dim=read_head_dim(config),
            qkv_bias=flag(config, "qkv_bias", default=True),
            output_bias=False,
            qk_norm=False,
            windows=lambda layers: read_layer_types(
                config,
                layers,
                window=read_window(config),
                default=lambda index: index % 2 == 0 and index < last_sliding,
            ),
        ),
        mlps=sparse_mlps(
            config, experts_key="num_experts", shared_size=integer(config, "shared_expert_intermediate_size")
        ),
    )


def module_tree(spec: ModelSpec) -> Module:
    return decoder_tree(spec, sparse_block_with_shared_expert)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
