"""GPT-NeoX (Pythia). Source: transformers 5.23, models/gpt_neox."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..spec import Module
from ..typed import Any
from ..values import replace
from .blocks import rotary
from .design import Architecture
from .even_heads import keeps_every_head, read_even_heads
from .outline import (
    activation,
    causal_lm,
    dropout,
    embedding,
    layer_list,
    layer_norm,
    linear,
    rotary_dim,
    whole_dtype,
    with_defaults,
)
from .reading import MOST_LAYERS, flag, integer

NEOX: Mapping[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "rotary_pct": 0.25,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, NEOX), whole_dtype(config)
    hidden, eps, inner = integer(text, "hidden_size"), text["layer_norm_eps"], integer(text, "intermediate_size")
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    heads, head_dim = read_even_heads(text, hidden)
    bias, share = flag(text, "attention_bias", default=False), text["hidden_dropout"]
    layer = Module(
        name="0",
        class_name="GPTNeoXLayer",
        children=(
            layer_norm("input_layernorm", hidden, dtype, eps=eps),
            layer_norm("post_attention_layernorm", hidden, dtype, eps=eps),
            dropout("post_attention_dropout", share),
            dropout("post_mlp_dropout", share),
            Module(
                name="attention",
                class_name="GPTNeoXAttention",
                children=(
                    linear("query_key_value", hidden, 3 * hidden, dtype, bias=bias),
                    linear("dense", hidden, hidden, dtype, bias=bias),
                ),
            ),
            Module(
                name="mlp",
                class_name="GPTNeoXMLP",
                children=(
                    linear("dense_h_to_4h", hidden, inner, dtype, bias=True),
                    linear("dense_4h_to_h", inner, hidden, dtype, bias=True),
                    activation("act", text["hidden_act"]),
                ),
            ),
        ),
    )
    # Its own name of the share of a head that turns. Source: GPTNeoXConfig.convert_rope_params_to_dict
    turned = rotary_dim({**text, "partial_rotary_factor": text["rotary_pct"]}, head_dim, partial=True)
    model = Module(
        name="gpt_neox",
        class_name="GPTNeoXModel",
        children=(
            embedding("embed_in", integer(text, "vocab_size"), hidden, dtype),
            dropout("emb_dropout", share),
            layer_list("layers", [layer] * layers),
            layer_norm("final_layer_norm", hidden, dtype, eps=eps),
            rotary("rotary_emb", "GPTNeoXRotaryEmbedding", turned),
        ),
    )
    return causal_lm(
        config,
        text,
        model,
        keeps_every_head(text, layers, heads, head_dim, dtype),
        table="embed_in",
        stored_form=_head_as_embed_out,
        unloaded=("attention.bias", "attention.masked_bias"),
    )


def _head_as_embed_out(tensor: Tensor) -> tuple[Tensor, ...]:
    """Source: transformers 5.23, conversion_mapping ("gpt_neox")."""
    return (replace(tensor, name="embed_out.weight") if tensor.name == "lm_head.weight" else tensor,)
