"""EXAONE 4: norms behind attention and MLP and over each head, sliding layers, each fourth full.

Source: transformers 5.23, models/exaone4; EXAONE 4.0 (arXiv 2507.11407).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..typed import Any
from .decoders import read_decoder, with_layer_types
from .design import Architecture
from .outline import causal_lm, read_spans, whole_dtype, with_defaults
from .reading import integer

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(config, DEFAULTS)
    integer(text, "num_key_value_heads")  # no null
    if text.get("layer_types") is None:
        integer(text, "sliding_window")  # without a window the class has no pattern, and cannot be built
    text = with_layer_types(text, lambda index: (index + 1) % integer(text, "sliding_window_pattern") == 0)
    decoder = read_decoder(text, whole_dtype(config), "Exaone4")
    attention = decoder.attention(decoder.norm("q_norm", decoder.head_dim), decoder.norm("k_norm", decoder.head_dim))
    norms = [decoder.norm(f"post_{part}_layernorm") for part in ("attention", "feedforward")]
    model = decoder.model(decoder.layer(attention, decoder.mlp(), *norms))
    return causal_lm(config, text, model, decoder.kept(read_spans(text, decoder.layers)))
