"""Llama 2 and 3.x, and the many releases under their type: the plain decoder that most others vary.

Source: transformers 5.23, models/llama; Llama 3 (arXiv 2407.21783).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import Module
from .blocks import linear, rotary
from .design import Architecture
from .outline import (
    causal_lm,
    embedding,
    gated_mlp,
    keeps_heads,
    layer_list,
    norm,
    read_heads,
    read_padding,
    read_spans,
    whole_dtype,
    with_defaults,
)
from .reading import flag, integer, read_head_dim

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, DEFAULTS), whole_dtype(config)
    hidden, eps = integer(text, "hidden_size"), text["rms_norm_eps"]
    query_heads, kv_heads = read_heads(text)
    head_dim = read_head_dim(text)
    bias = flag(text, "attention_bias", default=False)
    rows, columns = query_heads * head_dim, kv_heads * head_dim
    layer = Module(
        name="0",
        class_name="LlamaDecoderLayer",
        children=(
            Module(
                name="self_attn",
                class_name="LlamaAttention",
                children=(
                    linear("q_proj", hidden, rows, dtype, bias=bias),
                    linear("k_proj", hidden, columns, dtype, bias=bias),
                    linear("v_proj", hidden, columns, dtype, bias=bias),
                    linear("o_proj", rows, hidden, dtype, bias=bias),
                ),
            ),
            gated_mlp(
                "mlp",
                "LlamaMLP",
                hidden,
                integer(text, "intermediate_size"),
                text["hidden_act"],
                dtype,
                bias=flag(text, "mlp_bias", default=False),
            ),
            norm("input_layernorm", "LlamaRMSNorm", hidden, dtype, eps=eps),
            norm("post_attention_layernorm", "LlamaRMSNorm", hidden, dtype, eps=eps),
        ),
    )
    layers = integer(text, "num_hidden_layers")
    model = Module(
        name="model",
        class_name="LlamaModel",
        children=(
            embedding("embed_tokens", integer(text, "vocab_size"), hidden, dtype, padding=read_padding(text)),
            layer_list("layers", [layer] * layers),
            norm("norm", "LlamaRMSNorm", hidden, dtype, eps=eps),
            rotary("rotary_emb", "LlamaRotaryEmbedding", head_dim),
        ),
    )
    kept = [
        keeps_heads(index, query_heads, kv_heads, head_dim, dtype, kind=kind, window=window)
        for index, (kind, window) in enumerate(read_spans(text, layers))
    ]
    return causal_lm(config, text, model, kept)
