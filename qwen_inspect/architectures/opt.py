"""OPT. Source: transformers 5.23, models/opt."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .design import Architecture
from .even_heads import keeps_every_head, read_even_heads
from .outline import (
    activation,
    causal_lm,
    embedding,
    layer_list,
    layer_norm,
    linear,
    read_padding,
    whole_dtype,
    with_defaults,
)
from .reading import MOST_LAYERS, flag, integer

OPT: Mapping[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "word_embed_proj_dim": None,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "pad_token_id": 1,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, OPT), whole_dtype(config)
    if text.get("_remove_final_layer_norm"):
        raise UnsupportedError("config_key_unsupported", key="_remove_final_layer_norm", found="True")
    hidden, layers = integer(text, "hidden_size"), integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    width = hidden if text["word_embed_proj_dim"] is None else integer(text, "word_embed_proj_dim")
    heads, head_dim = read_even_heads(text, hidden)
    bias, inner = flag(text, "enable_bias", default=False), integer(text, "ffn_dim")
    affine = flag(text, "layer_norm_elementwise_affine", default=False)

    def norm(name: str) -> Module:
        full = layer_norm(name, hidden, dtype, eps="1e-05")
        plain = f"({hidden},), eps=1e-05, elementwise_affine=False, bias=False"
        return full if affine else replace(full, tensors=(), arguments=plain)

    layer = Module(
        name="0",
        class_name="OPTDecoderLayer",
        children=(
            Module(
                name="self_attn",
                class_name="OPTAttention",
                children=tuple(
                    linear(f"{part}_proj", hidden, hidden, dtype, bias=bias) for part in ("k", "v", "q", "out")
                ),
            ),
            activation("activation_fn", text["activation_function"]),
            norm("self_attn_layer_norm"),
            linear("fc1", hidden, inner, dtype, bias=bias),
            linear("fc2", inner, hidden, dtype, bias=bias),
            norm("final_layer_norm"),
        ),
    )
    rows = integer(text, "max_position_embeddings") + 2
    projected = (
        (linear("project_out", hidden, width, dtype), linear("project_in", width, hidden, dtype))
        if width != hidden
        else ()
    )
    before = flag(text, "do_layer_norm_before", default=False)
    decoder = Module(
        name="decoder",
        class_name="OPTDecoder",
        children=(
            embedding("embed_tokens", integer(text, "vocab_size"), width, dtype, padding=read_padding(text)),
            embedding("embed_positions", rows, hidden, dtype, class_name="OPTLearnedPositionalEmbedding"),
            *projected,
            *((norm("final_layer_norm"),) if before else ()),
            layer_list("layers", [layer] * layers),
        ),
    )
    model = Module(name="model", class_name="OPTModel", children=(decoder,))
    return causal_lm(
        config, text, model, keeps_every_head(text, layers, heads, head_dim, dtype), table="decoder.embed_tokens"
    )
