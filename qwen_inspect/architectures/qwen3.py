"""Qwen3, dense: QK-Norm in place of the q, k and v biases, and its own head_dim.

Source: transformers 5.23, models/qwen3; Qwen3 Technical Report (arXiv 2505.09388).
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
    MOST_HEADS,
    dense_mlps,
    flag,
    integer,
    optional_integer,
    read_decoder,
    read_layer_types,
    read_window,
    softmax_attentions,
)

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    # Source: Qwen3Config: the first `max_window_layers` layers see all tokens (28 if the key is missing).
    full_layers = optional_integer(config, "max_window_layers")
    first_sliding = 28 if full_layers is None else full_layers
    bias = flag(config, "attention_bias", default=False)
    return read_decoder(
        config,
        prefix="Qwen3",
        attentions=softmax_attentions(
            config,
            head_dim=integer(config, "head_dim", at_most=MOST_HEADS) if "head_dim" in config else 128,  # class default
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=True,
            windows=lambda layers: read_layer_types(
                config, layers, window=read_window(config), default=lambda index: index >= first_sliding
            ),
        ),
        mlps=dense_mlps(config),
    )


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
