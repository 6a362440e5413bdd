"""BLOOM. Source: transformers 5.23, models/bloom."""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import Module
from ..typed import Any
from .design import Architecture
from .even_heads import keeps_every_head, read_even_heads
from .outline import (
    causal_lm,
    dropout,
    embedding,
    layer_list,
    layer_norm,
    linear,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import MOST_LAYERS, integer

BLOOM: Mapping[str, Any] = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
}

BLOOM_ALIASES: Mapping[str, str] = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, BLOOM), BLOOM_ALIASES), whole_dtype(config)
    if text.get("n_embed") is not None:
        text["hidden_size"] = text["n_embed"]
    hidden, eps = integer(text, "hidden_size"), text["layer_norm_epsilon"]
    layers = integer(text, "n_layer", at_most=MOST_LAYERS)
    heads, head_dim = read_even_heads(text, hidden, "n_head")
    block = Module(
        name="0",
        class_name="BloomBlock",
        children=(
            layer_norm("input_layernorm", hidden, dtype, eps=eps),
            Module(
                name="self_attention",
                class_name="BloomAttention",
                children=(
                    linear("query_key_value", hidden, 3 * hidden, dtype, bias=True),
                    linear("dense", hidden, hidden, dtype, bias=True),
                    dropout("attention_dropout", text["attention_dropout"]),
                ),
            ),
            layer_norm("post_attention_layernorm", hidden, dtype, eps=eps),
            Module(
                name="mlp",
                class_name="BloomMLP",
                children=(
                    linear("dense_h_to_4h", hidden, 4 * hidden, dtype, bias=True),
                    Module(name="gelu_impl", class_name="BloomGelu"),
                    linear("dense_4h_to_h", 4 * hidden, hidden, dtype, bias=True),
                ),
            ),
        ),
    )
    model = Module(
        name="transformer",
        class_name="BloomModel",
        children=(
            embedding("word_embeddings", integer(text, "vocab_size"), hidden, dtype),
            layer_norm("word_embeddings_layernorm", hidden, dtype, eps=eps),
            layer_list("h", [block] * layers),
            layer_norm("ln_f", hidden, dtype, eps=eps),
        ),
    )
    kept = keeps_every_head(text, layers, heads, head_dim, dtype)
    return causal_lm(config, text, model, kept, table="word_embeddings", kernel="eager")
