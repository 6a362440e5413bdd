"""Falcon. Source: transformers 5.23, models/falcon."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import MalformedError, UnsupportedError
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
from .reading import MOST_LAYERS, flag, integer, shown

FALCON: Mapping[str, Any] = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None,
    "layer_norm_epsilon": 1e-5,
    "attention_dropout": 0.0,
    "num_kv_heads": None,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "tie_word_embeddings": True,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_defaults(config, FALCON), whole_dtype(config)
    if text.get("n_embed") is not None:
        text["hidden_size"] = text["n_embed"]
    hidden, layers = integer(text, "hidden_size"), integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    heads, head_dim = read_even_heads(text, hidden)
    kv_heads = heads if text["num_kv_heads"] is None else integer(text, "num_kv_heads")
    newer, single = (flag(text, key, default=False) for key in ("new_decoder_architecture", "multi_query"))
    if (
        newer
    ):  # keys and values are repeated for each query head before they are kept. Source: FalconAttention._split_heads
        if heads % kv_heads:
            raise MalformedError("config_heads_do_not_divide", query_heads=heads, kv_heads=kv_heads)
        kv_heads, columns = heads, (2 * kv_heads + heads) * head_dim
    elif single:
        kv_heads, columns = 1, hidden + 2 * head_dim
    else:
        kv_heads, columns = heads, 3 * hidden
        if text["num_kv_heads"] not in (None, heads):
            raise UnsupportedError("config_key_unsupported", key="num_kv_heads", found=shown(text["num_kv_heads"]))
    inner = 4 * hidden if text["ffn_hidden_size"] is None else integer(text, "ffn_hidden_size")
    bias = flag(text, "bias", default=False)
    if text["activation"] not in ("gelu", "relu", "silu", "gelu_new"):
        raise UnsupportedError("config_key_unsupported", key="activation", found=shown(text["activation"]))

    def falcon_linear(name: str, inputs: int, outputs: int) -> Module:
        return replace(linear(name, inputs, outputs, dtype, bias=bias), class_name="FalconLinear")

    layer = Module(
        name="0",
        class_name="FalconDecoderLayer",
        children=(
            Module(
                name="self_attention",
                class_name="FalconAttention",
                children=(
                    falcon_linear("query_key_value", hidden, columns),
                    falcon_linear("dense", hidden, hidden),
                    dropout("attention_dropout", text["attention_dropout"]),
                ),
            ),
            Module(
                name="mlp",
                class_name="FalconMLP",
                children=(
                    falcon_linear("dense_h_to_4h", hidden, inner),
                    activation("act", text["activation"]),
                    falcon_linear("dense_4h_to_h", inner, hidden),
                ),
            ),
            *(layer_norm(name, hidden, dtype, eps=text["layer_norm_epsilon"]) for name in _falcon_norms(text, newer)),
        ),
    )
    model = Module(
        name="transformer",
        class_name="FalconModel",
        children=(
            embedding("word_embeddings", integer(text, "vocab_size"), hidden, dtype),
            layer_list("h", [layer] * layers),
            layer_norm("ln_f", hidden, dtype, eps=text["layer_norm_epsilon"]),
            rotary("rotary_emb", "FalconRotaryEmbedding", rotary_dim(text, head_dim, partial=False)),
        ),
    )
    kept = keeps_every_head(text, layers, heads, head_dim, dtype, kv_heads)
    return causal_lm(config, text, model, kept, table="word_embeddings")


def _falcon_norms(text: Mapping[str, Any], newer: bool) -> tuple[str, ...]:
    """Names of a layer's norms; UnsupportedError for a choice with which its forward fails.

    Source: FalconDecoderLayer.__init__ and forward.
    """
    parallel, norms = flag(text, "parallel_attn", default=False), text["num_ln_in_parallel_attn"]
    if norms is None:
        norms = 2 if newer else 1
    if newer and not parallel:
        raise UnsupportedError("config_key_unsupported", key="parallel_attn", found="False")
    if norms not in ((1, 2) if newer else (0, 1)) or isinstance(norms, bool):
        raise UnsupportedError("config_key_unsupported", key="num_ln_in_parallel_attn", found=shown(norms))
    if not parallel:
        return ("post_attention_layernorm", "input_layernorm")
    return ("ln_attn", "ln_mlp") if norms == 2 else ("input_layernorm",)
