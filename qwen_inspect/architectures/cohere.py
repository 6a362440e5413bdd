"""Command R and A: attention and MLP side by side behind one norm without bias; Cohere2: sliding layers, each fourth full.

Source: transformers 5.23, models/cohere, cohere2.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..spec import Module
from ..typed import Any
from .decoders import Decoder, read_decoder, with_layer_types
from .design import Architecture
from .outline import causal_lm, norm, read_spans, whole_dtype, with_defaults
from .reading import flag, integer

_COHERE: Mapping[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "attention_bias": False,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cohere": {**_COHERE, "use_qk_norm": False},
    "cohere2": {**_COHERE, "sliding_window": 4096, "sliding_window_pattern": 4},
}
PREFIXES = {"cohere": "Cohere", "cohere2": "Cohere2"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    model_type = str(config["model_type"])
    text = with_defaults(config, DEFAULTS[model_type])
    if model_type == "cohere2":
        text = with_layer_types(text, lambda index: (index + 1) % integer(text, "sliding_window_pattern") == 0)
    decoder = read_decoder(text, whole_dtype(config), PREFIXES[model_type], eps="layer_norm_eps")
    norms = _head_norms(decoder) if model_type == "cohere" and flag(text, "use_qk_norm", default=False) else ()
    attention = decoder.attention(*norms, bias=flag(text, "attention_bias", default=False))
    layer = decoder.layer(attention, decoder.mlp(), _norm(decoder, "input_layernorm"))
    model = decoder.model(layer, last_norm=_norm(decoder, "norm"))
    return causal_lm(config, text, model, decoder.kept(read_spans(text, decoder.layers)))


def _norm(decoder: Decoder, name: str) -> Module:
    return norm(name, f"{decoder.prefix}LayerNorm", decoder.hidden, decoder.dtype, arguments="")


def _head_norms(decoder: Decoder) -> tuple[Module, Module]:
    """Of queries and keys, with a weight for each channel of each head."""
    heads = {"q_norm": decoder.query_heads, "k_norm": decoder.kv_heads}
    query, key = [
        Module(
            name=name,
            class_name="CohereLayerNorm",
            tensors=(Tensor("weight", (count, decoder.head_dim), decoder.dtype),),
        )
        for name, count in heads.items()
    ]
    return query, key
