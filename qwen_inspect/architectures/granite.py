"""Granite 3: Llama's decoder with scaled residuals; GraniteMoE: with experts.

Source: transformers 5.23, models/granite, granitemoe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import Tensor
from .decoders import read_decoder
from .design import Architecture
from .outline import causal_lm, read_spans, whole_dtype, with_defaults
from .reading import flag
from .sparse import read_routed, sparse_block

_GRANITE: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "granite": {**_GRANITE, "mlp_bias": False},
    "granitemoe": {**_GRANITE, "num_local_experts": 8, "num_experts_per_tok": 2},
}
STORED = {
    "block_sparse_moe.experts.gate_up_proj": "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.experts.down_proj": "block_sparse_moe.output_linear.weight",
    "block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight",
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    model_type = str(config["model_type"])
    text = with_defaults(config, DEFAULTS[model_type])
    decoder = read_decoder(text, whole_dtype(config), "Granite" if model_type == "granite" else "GraniteMoe")
    kept = decoder.kept(read_spans(text, decoder.layers))
    attention = decoder.attention(bias=flag(text, "attention_bias", default=False))
    if model_type == "granite":
        layer = decoder.prenorm_layer(attention, decoder.mlp(bias=flag(text, "mlp_bias", default=False)))
        return causal_lm(config, text, decoder.model(layer), kept)
    routed = read_routed(text, "num_local_experts", layers=decoder.layers)
    norms = [decoder.norm(f"{place}_layernorm") for place in ("input", "post_attention")]
    block = sparse_block(decoder, routed[1], name="block_sparse_moe", class_name="MoE", router="router")
    model = decoder.model(decoder.layer(attention, *norms, block))
    return causal_lm(config, text, model, kept, routed=routed, stored_form=stored_form)


def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
    """Experts and router under the names of releases. Source: transformers 5.23, conversion_mapping ("granitemoe")."""
    layer, dot, block = tensor.name.partition(".block_sparse_moe.")
    stored = STORED.get(f"block_sparse_moe.{block}") if dot else None
    return (tensor if stored is None else replace(tensor, name=f"{layer}.{stored}"),)
