"""Seed-OSS: Llama's decoder with biases of q, k and v.

Source: transformers 5.23, models/seed_oss.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..typed import Any
from .decoders import read_decoder
from .design import Architecture
from .outline import causal_lm, read_spans, whole_dtype, with_defaults
from .reading import flag

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 155136,
    "hidden_size": 4096,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 524288,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "attention_out_bias": False,
    "mlp_bias": False,
    "head_dim": 128,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(config, DEFAULTS)
    decoder = read_decoder(text, whole_dtype(config), "SeedOss", null_head_dim=True)
    attention = decoder.attention(
        bias=flag(text, "attention_bias", default=True),
        output_bias=flag(text, "attention_out_bias", default=False),
    )
    layer = decoder.prenorm_layer(attention, decoder.mlp(bias=flag(text, "mlp_bias", default=False)))
    return causal_lm(config, text, decoder.model(layer), decoder.kept(read_spans(text, decoder.layers)))
