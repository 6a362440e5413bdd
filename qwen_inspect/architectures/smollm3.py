"""SmolLM3: Llama's decoder, of which every fourth layer has no RoPE and may have a window.

Source: transformers 5.23, models/smollm3.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import MalformedError
from ..typed import Any
from .decoders import read_decoder, with_layer_types
from .design import Architecture
from .outline import causal_lm, read_spans, whole_dtype, with_defaults
from .reading import flag, integer, shown

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 128004,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    text = with_defaults(config, DEFAULTS)
    windows = flag(text, "use_sliding_window", default=False) and text["sliding_window"] is not None
    text = with_layer_types(text, lambda index: not windows or _has_rope(text, index))
    decoder = read_decoder(text, whole_dtype(config), "SmolLM3")
    layer = decoder.prenorm_layer(
        decoder.attention(bias=flag(text, "attention_bias", default=False)),
        decoder.mlp(bias=flag(text, "mlp_bias", default=False)),
    )
    return causal_lm(config, text, decoder.model(layer), decoder.kept(read_spans(text, decoder.layers)))


def _has_rope(text: Mapping[str, Any], index: int) -> bool:
    """Source: SmolLM3Config.__post_init__; in `no_rope_layers` a 1 means RoPE."""
    layers = text["no_rope_layers"]
    if layers is None:
        return (index + 1) % integer(text, "no_rope_layer_interval") != 0
    if not isinstance(layers, list) or index >= len(layers):
        raise MalformedError("config_not_flag", key="no_rope_layers", found=shown(layers))
    return bool(layers[index])
