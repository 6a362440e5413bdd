"""Llama 2 and 3.x, and the many releases under their type: the plain decoder that most others vary.

Source: transformers 5.23, models/llama; Llama 3 (arXiv 2407.21783).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..typed import Any
from .decoders import read_decoder
from .design import Architecture
from .outline import causal_lm, check_width, read_spans, whole_dtype, with_defaults
from .reading import flag

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
    text = with_defaults(config, DEFAULTS)
    check_width(text)
    decoder = read_decoder(text, whole_dtype(config), "Llama", null_head_dim=True)
    layer = decoder.prenorm_layer(
        decoder.attention(bias=flag(text, "attention_bias", default=False)),
        decoder.mlp(bias=flag(text, "mlp_bias", default=False)),
    )
    return causal_lm(config, text, decoder.model(layer), decoder.kept(read_spans(text, decoder.layers)))
