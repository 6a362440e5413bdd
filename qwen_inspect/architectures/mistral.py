"""Mistral, Ministral and Mixtral: Llama's decoder without biases, with a window, or experts.

Source: transformers 5.23, models/mistral, ministral, ministral3, mixtral; Mixtral (arXiv 2401.04088).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType
from ..spec import Module
from ..typed import Any
from .blocks import stored_as_built
from .decoders import check_query_scaling, read_decoder, with_layer_types
from .design import Architecture, KeptLayer
from .outline import causal_lm, read_rope, read_spans, whole_dtype, with_aliases, with_defaults
from .reading import integer
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
    text, model, kept = decoder(config, model_type, whole_dtype(config))
    stored = stored_by_expert("block_sparse_moe", ("w1", "w3", "w2")) if model_type == "mixtral" else stored_as_built
    return causal_lm(config, text, model, kept, stored_form=stored)


def decoder(
    config: Mapping[str, Any], model_type: str, dtype: DType
) -> tuple[dict[str, Any], Module, tuple[KeptLayer, ...]]:
    """The configuration with its defaults, the bare decoder as `model`, and what each layer keeps."""
    text = with_defaults(with_aliases(config, ALIASES.get(model_type, {})), DEFAULTS[model_type])
    for key in REQUIRED[model_type]:
        integer(text, key)
    _check_rope(model_type, text)
    if model_type == "ministral":
        text = with_layer_types(text, lambda index: False)
    sizes = read_decoder(text, dtype, PREFIXES[model_type], null_head_dim=True)
    if model_type == "mixtral":
        _, count = read_routed(text, "num_local_experts", layers=sizes.layers)
        mlp = sparse_block(sizes, count, name="mlp", class_name="SparseMoeBlock")
    else:
        mlp = sizes.mlp()
    model = sizes.model(sizes.prenorm_layer(sizes.attention(), mlp))
    return text, model, tuple(sizes.kept(read_spans(text, sizes.layers)))


def _check_rope(model_type: str, text: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for a way to rotate with which the class cannot be built, or cannot run.

    Source: modeling_rope_utils, where some ways read a null `head_dim`, which MixtralConfig leaves as it is.
    """
    if model_type == "ministral3":
        check_query_scaling(text)
    if model_type == "mixtral" and read_rope(text)[0] in ("dynamic", "yarn", "longrope"):
        integer(text, "head_dim")
