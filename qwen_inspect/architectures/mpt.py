"""MPT. Source: transformers 5.23, models/mpt."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from ..values import replace
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
from .reading import MOST_LAYERS, integer, shown

MPT: Mapping[str, Any] = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "vocab_size": 50368,
    "layer_norm_epsilon": 1e-5,
    "attn_config": None,
    "tie_word_embeddings": True,
}

MPT_ALIASES: Mapping[str, str] = {
    "num_attention_heads": "n_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text, dtype = with_aliases(with_defaults(config, MPT), MPT_ALIASES), whole_dtype(config)
    hidden, layers = integer(text, "d_model"), integer(text, "n_layers", at_most=MOST_LAYERS)
    heads, head_dim = read_even_heads(text, hidden, "n_heads")
    attention = text["attn_config"] or {}
    if not isinstance(attention, Mapping):
        raise MalformedError("config_not_object", key="attn_config", found=shown(attention))

    def norm(name: str) -> Module:
        full = layer_norm(name, hidden, dtype, eps=text["layer_norm_epsilon"])
        arguments = full.arguments.replace("bias=True", "bias=False")
        return replace(full, tensors=full.tensors[:1], arguments=arguments)

    block = Module(
        name="0",
        class_name="MptBlock",
        children=(
            norm("norm_1"),
            Module(
                name="attn",
                class_name="MptAttention",
                children=(linear("Wqkv", hidden, 3 * hidden, dtype), linear("out_proj", hidden, hidden, dtype)),
            ),
            norm("norm_2"),
            Module(
                name="ffn",
                class_name="MptMLP",
                children=(
                    linear("up_proj", hidden, 4 * hidden, dtype),
                    Module(name="act", class_name="GELU", arguments="approximate='none'"),
                    linear("down_proj", 4 * hidden, hidden, dtype),
                ),
            ),
            dropout("resid_attn_dropout", attention.get("attn_pdrop", 0)),
        ),
    )
    model = Module(
        name="transformer",
        class_name="MptModel",
        children=(
            embedding("wte", integer(text, "vocab_size"), hidden, dtype),
            layer_list("blocks", [block] * layers),
            norm("norm_f"),
        ),
    )
    kept = keeps_every_head(text, layers, heads, head_dim, dtype)
    return causal_lm(config, text, model, kept, table="wte", kernel="eager")
