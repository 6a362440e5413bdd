"""Qwen1.5, Qwen2, Qwen2.5 and QwQ: a dense decoder with biases on q, k and v.

Source: transformers 5.23, models/qwen2; Qwen2 Technical Report (arXiv 2407.10671).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import ModelSpec
from ..typed import Any
from .blocks import decoder_tree as module_tree
from .blocks import no_prediction_layers as prediction_layers
from .blocks import stored_as_built as stored_form
from .design import by_spec
from .reading import (
    dense_mlps,
    optional_integer,
    read_decoder,
    read_head_dim,
    read_layer_types,
    read_window,
    softmax_attentions,
)

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    # Source: Qwen2Config.__post_init__: the first `max_window_layers` layers see all tokens (28 if the key is missing).
    full_layers = optional_integer(config, "max_window_layers")
    first_sliding = 28 if full_layers is None else full_layers
    return read_decoder(
        config,
        prefix="Qwen2",
        attentions=softmax_attentions(
            config,
            head_dim=read_head_dim(config),
            qkv_bias=True,
            output_bias=False,
            qk_norm=False,
            windows=lambda layers: read_layer_types(
                config, layers, window=read_window(config), default=lambda index: index >= first_sliding
            ),
        ),
        mlps=dense_mlps(config),
    )


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
