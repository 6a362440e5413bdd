"""The design of a GGUF file's family, if the file holds exactly the tensors that the family's design predicts.

Which keys of a configuration the metadata gives: `gguf_metadata.KEYS`, read backwards. What is not in the metadata (biases, norms
of queries and keys) is read off the tensors' names; the comparison then decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..checkpoint import Tensor
from ..errors import QwenInspectError
from ..spec import each_tensor
from ..typed import Any
from ..values import replace
from . import architecture_of
from .design import Architecture
from .gguf import own_configuration
from .gguf_hparams import GgufHyperparameters
from .gguf_keys import read_hyperparameters
from .gguf_metadata import KEYS
from .gguf_writing import stored_form_of

# general.architecture -> model_type; those of several families are told apart in `_model_type`.
MODEL_TYPES: Mapping[str, str] = {
    "arcee": "arcee",
    "command-r": "cohere",
    "deepseek2": "deepseek_v3",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "glm4": "glm4",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "llama": "llama",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi3": "phi3",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
}
# RoPE's factors, which transformers computes. Source: conversion/, generate_extra_tensors.
FACTORS = r"rope_(freqs|factors_long|factors_short)\.weight"


def family_design(
    metadata: Mapping[str, Any], tensors: Sequence[Tensor]
) -> tuple[Mapping[str, Any], Architecture] | None:
    """The configuration and the design of the file's family; None if the file is not what such a design predicts."""
    name = metadata["general.architecture"]
    if name not in MODEL_TYPES:
        return None
    try:
        read = read_hyperparameters(metadata, tensors)
        config = _config(name, metadata, read, {tensor.name for tensor in tensors})
        architecture = architecture_of(config)
        form = stored_form_of(name, config)
        buffers = tuple(part for buffer in architecture.buffers for part in form(buffer))
        parts = [part for tensor in each_tensor(architecture.tree) for part in form(tensor)]
        predicted = Counter((part.name, part.shape) for part in (*parts, *buffers))
    except (QwenInspectError, KeyError, TypeError):  # keys that the family does not have
        return None
    stored = Counter((tensor.name, tensor.shape) for tensor in tensors if not tensor.name.startswith("rope_f"))
    if predicted != stored:
        return None
    return {**own_configuration(metadata), **config}, replace(
        architecture, stored_form=form, buffers=buffers, unloaded=(*architecture.unloaded, FACTORS)
    )


def _config(name: str, metadata: Mapping[str, Any], read: GgufHyperparameters, names: set[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": _model_type(name, read, names),
        "torch_dtype": "float16",
        "vocab_size": read.vocabulary,
        "tie_word_embeddings": "output.weight" not in names,
        **({} if read.latent else {"head_dim": read.key_length}),
        "pad_token_id": None,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "use_bias": "blk.0.attn_q.bias" in names,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in names,
        "rms_norm_eps": metadata.get(f"{name}.attention.layer_norm_rms_epsilon", 1e-6),
    }
    for key, sources in KEYS:
        value = metadata.get(f"{name}.{key}")
        if value is not None:
            sources = sources[:1] if key.startswith("attention.head_count") else sources
            config |= dict.fromkeys(sources, value)
    if any(read.windowed):
        config["sliding_window"] = read.window
        config["layer_types"] = ["sliding_attention" if window else "full_attention" for window in read.windowed]
    if name == "deepseek2":
        rope = read.rope_dimensions
        config |= {
            "num_key_value_heads": read.heads[0],
            "q_lora_rank": read.q_lora_rank or None,
            "qk_rope_head_dim": rope,
            "qk_nope_head_dim": read.key_length_mla - rope,
            "v_head_dim": read.value_length_mla,
        }
    return config


def _model_type(name: str, read: GgufHyperparameters, names: set[str]) -> str:
    if name == "llama" and read.experts.count:
        return "mixtral"
    if name == "olmo2" and any(read.windowed):
        return "olmo3"
    if name == "deepseek2" and not any(part.endswith("exp_probs_b.bias") for part in names):
        return "deepseek_v2"
    return MODEL_TYPES[name]
