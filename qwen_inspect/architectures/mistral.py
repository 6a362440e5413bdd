"""Mistral, Ministral and Mixtral: Llama's decoder without biases, with a window, or experts.

Source: transformers 5.23, models/mistral, ministral, ministral3, mixtral; Mixtral (arXiv 2401.04088).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UnsupportedError
from .decoders import read_decoder, with_layer_types
from .design import Architecture
from .outline import causal_lm, read_rope, read_spans, whole_dtype, with_aliases, with_defaults
from .reading import integer, shown
from .sparse import read_routed, sparse_block, stored_by_expert

RESCALED: Mapping[str, Any] = {"type": "yarn", "llama_4_scaling_beta": 0.1}
_SHARED: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_MISTRAL: Mapping[str, Any] = {
    **_SHARED,
    "vocab_size": 32000,
    "num_hidden_layers": 32,
    "head_dim": None,
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-6,
    "pad_token_id": None,
    "sliding_window": 4096,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": {
        **_SHARED,
        "vocab_size": 131072,
        "num_hidden_layers": 34,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 11,
        "sliding_window": None,
        "rope_parameters": RESCALED,
    },
    "mixtral": {
        **_MISTRAL,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
    },
}
ALIASES: Mapping[str, Mapping[str, str]] = {"mixtral": {"num_experts": "num_local_experts"}}
# Integers that must be there, for a null is refused by the class's configuration, or fails when the class is built or runs.
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "mistral": ("num_key_value_heads",),
    "ministral": ("num_key_value_heads", "head_dim", "sliding_window"),
    "ministral3": ("num_key_value_heads", "head_dim"),
    "mixtral": ("num_key_value_heads",),
}
PREFIXES = {"mistral": "Mistral", "ministral": "Ministral", "ministral3": "Ministral3", "mixtral": "Mixtral"}


def architecture(config: Mapping[str, Any]) -> Architecture:
    model_type = str(config["model_type"])
    text = with_defaults(with_aliases(config, ALIASES.get(model_type, {})), DEFAULTS[model_type])
    for key in REQUIRED[model_type]:
        integer(text, key)
    _check_rope(model_type, text)
    if model_type == "ministral":
        text = with_layer_types(text, lambda index: False)
    decoder = read_decoder(text, whole_dtype(config), PREFIXES[model_type], null_head_dim=True)
    kept = decoder.kept(read_spans(text, decoder.layers))
    if model_type != "mixtral":
        model = decoder.model(decoder.prenorm_layer(decoder.attention(), decoder.mlp()))
        return causal_lm(config, text, model, kept)
    routed = read_routed(text, "num_local_experts", layers=decoder.layers)
    block = sparse_block(decoder, routed[1], name="mlp", class_name="SparseMoeBlock")
    model = decoder.model(decoder.prenorm_layer(decoder.attention(), block))
    stored = stored_by_expert("block_sparse_moe", ("w1", "w3", "w2"))
    return causal_lm(config, text, model, kept, routed=routed, stored_form=stored)


def _check_rope(model_type: str, text: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for a way to rotate with which the class cannot be built, or cannot run.

    Source: Ministral3Attention.forward, which scales queries by two of the parameters; modeling_rope_utils, where some ways
    read a null `head_dim`, which MixtralConfig leaves as it is.
    """
    kind, rope = read_rope(text)
    if model_type == "ministral3":
        length = "original_max_position_embeddings" in rope or kind in ("llama3", "yarn", "longrope")
        if not length or rope.get("llama_4_scaling_beta") is None:
            raise UnsupportedError("config_key_unsupported", key="rope_parameters", found=shown(rope))
    if model_type == "mixtral" and kind in ("dynamic", "yarn", "longrope"):
        integer(text, "head_dim")
