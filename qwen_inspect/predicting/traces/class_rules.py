"""What a class does that neither the design nor a layer's own modules show: masks, shared caches, sparse activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...results.attention import AnyLayerAttention
from ...results.cache import CacheReport
from ...typed import Any

# Where a configuration of several parts has that of its decoder.
DECODERS = ("text_config", "llm_config", "language_config", "thinker_config")
# Classes that mask every layer by the configuration's window, whatever types the layers have, and the window if none is stated.
# Source: transformers 5.23, modeling_*.py of each (create_sliding_window_causal_mask) and their configurations
WINDOW_OF_MASK: Mapping[str, int | None] = {
    **dict.fromkeys(("mistral", "mistral3"), 4096),
    **dict.fromkeys(("ministral3", "mixtral", "phi3", "starcoder2")),
}
SPARSE_LAYERS = 10  # of Gemma 3n, the first ones


def decoder_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the decoder."""
    for key in DECODERS:
        if isinstance(config.get(key), Mapping):
            return decoder_of(config[key])
    return config


def is_masked_by_window(config: Mapping[str, Any]) -> bool:
    text = decoder_of(config)
    kind = str(text.get("model_type", config.get("model_type")))
    return kind in WINDOW_OF_MASK and text.get("sliding_window", WINDOW_OF_MASK[kind]) is not None


def read_attention(
    attention: Sequence[AnyLayerAttention], cache: CacheReport, text: Mapping[str, Any]
) -> list[AnyLayerAttention] | None:
    """The attention whose keys and values each layer reads: its own, or that of the last layer of its type that has a cache.

    None if the types of layers that share are not stated, or if the class changes the last.
    """
    if not any(kept.kind == "shared" for kept in cache.layers):
        return [*attention]
    types = text.get("layer_types")
    if not isinstance(types, list) or len(types) != len(attention) or types[-1] != "full_attention":
        return None
    own = {
        kind: layer for kind, layer, kept in zip(types, attention, cache.layers, strict=True) if kept.kind != "shared"
    }
    if not {*types} <= {*own}:
        return None
    return [
        own[kind] if kept.kind == "shared" else layer
        for kind, layer, kept in zip(types, attention, cache.layers, strict=True)
    ]


def sparse_activations(config: Mapping[str, Any], layers: int) -> dict[str, list[float]]:
    """Of Gemma 3n what each layer leaves out of its MLP, where that is left to the class.

    Source: transformers 5.23, Gemma3nTextConfig.__post_init__
    """
    key, text = "activation_sparsity_pattern", decoder_of(config)
    if text.get("model_type") != "gemma3n_text" or text.get(key) is not None:
        return {}
    sparse = SPARSE_LAYERS if layers > SPARSE_LAYERS else 0
    return {key: [0.95] * sparse + [0.0] * (layers - sparse)}
