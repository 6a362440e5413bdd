"""The metadata that llama.cpp's converter writes of a configuration, as far as it decides bytes.

Source: llama.cpp 0c1e57098, conversion/ (TextModel.set_gguf_parameters and the classes' own).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..results.attention import LayerAttention
from ..spec import each_tensor
from ..typed import Any
from .design import Architecture

LINEAR = frozenset({"qwen35", "qwen35moe", "qwen3next"})
WINDOWED = frozenset({"cohere2", "exaone4", "gemma2", "gemma3", "gemma4", "gpt-oss", "olmo2"})
INDEXED = ("deepseek32", "glm-dsa")
LATENT = ("deepseek2", *INDEXED)
INDEX_KEYS = {"head_count": "index_n_heads", "key_length": "index_head_dim", "top_k": "index_topk"}
WITHOUT_PATTERN = frozenset({"cohere2", "gemma2", "gpt-oss"})
# Configuration key -> GGUF key. The first key of a row that the configuration has is written.
KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("block_count", ("num_hidden_layers",)),
    ("context_length", ("max_position_embeddings",)),
    ("embedding_length", ("hidden_size",)),
    ("feed_forward_length", ("intermediate_size",)),
    ("attention.head_count", ("num_attention_heads",)),
    ("attention.head_count_kv", ("num_key_value_heads", "num_attention_heads")),
    ("expert_count", ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")),
    ("expert_used_count", ("num_experts_per_tok", "top_k_experts", "moe_k")),
    ("expert_feed_forward_length", ("moe_intermediate_size",)),
    ("expert_shared_feed_forward_length", ("shared_expert_intermediate_size",)),
    ("expert_shared_count", ("n_shared_experts", "moe_num_shared_experts")),
    ("leading_dense_block_count", ("first_k_dense_replace", "moe_layer_start_index")),
    ("attention.q_lora_rank", ("q_lora_rank",)),
    ("attention.kv_lora_rank", ("kv_lora_rank",)),
)


def written_keys(name: str, text: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    keys: dict[str, Any] = {"vocab_size": architecture.spec.vocab_size}
    for key, sources in KEYS:
        value = next((text[source] for source in sources if text.get(source) is not None), None)
        if value is not None:
            keys[key] = value
    if text.get("head_dim") is not None:
        keys["attention.key_length"] = keys["attention.value_length"] = text["head_dim"]
    if name in LATENT:
        rank, rope = text["kv_lora_rank"], text["qk_rope_head_dim"]
        keys |= {
            "attention.head_count_kv": 1,
            "attention.key_length": rank + rope,
            "attention.value_length": rank,
            "attention.key_length_mla": text["qk_nope_head_dim"] + rope,
            "attention.value_length_mla": text["v_head_dim"],
            "rope.dimension_count": rope,
        }
    if name in INDEXED:
        keys |= {f"attention.indexer.{key}": text[source] for key, source in INDEX_KEYS.items()}
        if text.get("indexer_types") is not None:
            keys["attention.indexer.types"] = [kind == "full" for kind in text["indexer_types"]]
    if name == "ernie4_5-moe" and keys.get("expert_shared_count"):
        keys["expert_shared_feed_forward_length"] = text["intermediate_size"] // text["num_key_value_heads"]
    if name == "granitehybrid":
        keys |= _granite(text)
    if name == "llama4":
        keys |= {
            "feed_forward_length": text["intermediate_size_mlp"],
            "expert_feed_forward_length": text["intermediate_size"],
            "interleave_moe_layer_step": text["interleave_moe_layer_step"],
        }
    if name == "mamba":
        keys |= _mamba(text)
    if name in LINEAR:
        key_heads, value_heads = text["linear_num_key_heads"], text["linear_num_value_heads"]
        interval = text.get("full_attention_interval", 4)
        linear = _linear_layers(text, interval)
        keys |= {
            "ssm.conv_kernel": text["linear_conv_kernel_dim"],
            "ssm.state_size": text["linear_key_head_dim"],
            "ssm.group_count": key_heads,
            "ssm.time_step_rank": value_heads,
            "ssm.inner_size": value_heads * text["linear_value_head_dim"],
            "attention.recurrent_layers": [*linear, *[False for _ in architecture.prediction_layers[:1]]],
            "rope.dimension_count": int(text["head_dim"] * _partial_rotary(text, 0.25)),
        }
    if name in ("glm4", "glm4moe"):
        head = keys.get("attention.key_length") or text["hidden_size"] // text["num_attention_heads"]
        keys["rope.dimension_count"] = int(head * _partial_rotary(text, 0.5))
    if name == "gpt-oss" or name == "minimax-m2":
        keys["expert_feed_forward_length"] = text["intermediate_size"]
    if name == "minimax-m2":
        keys["rope.dimension_count"] = text["rotary_dim"]
    if name in ("lfm2", "lfm2moe"):
        keys |= _short_convolutions(text, architecture)
    if name.startswith("nemotron_h"):
        keys |= _nemotron(name, text, architecture)
    if name == "gemma4":
        keys |= _gemma_4(text, architecture)
    windows = [layer.window_tokens for _, layer in architecture.kept or ()]
    if any(windows) and name in WINDOWED:
        keys["attention.sliding_window"] = next(window for window in windows if window)
        if name not in WITHOUT_PATTERN:
            keys["attention.sliding_window_pattern"] = [window is not None for window in windows]
    return keys


def _short_convolutions(text: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Source: conversion/lfm2.py; the width of its blocks follows from the tensors."""
    shapes = {tensor.name: tensor.shape for tensor in each_tensor(architecture.tree)}
    attends = [f"model.layers.{layer}.self_attn.q_proj.weight" in shapes for layer in range(text["num_hidden_layers"])]
    return {
        "feed_forward_length": shapes["model.layers.0.feed_forward.w1.weight"][0],
        "attention.head_count_kv": [text["num_key_value_heads"] if attended else 0 for attended in attends],
        "shortconv.l_cache": text.get("conv_L_cache", 3),
        **({"leading_dense_block_count": text["num_dense_layers"]} if text.get("num_dense_layers") else {}),
    }


def _granite(text: Mapping[str, Any]) -> dict[str, Any]:
    """Source: conversion/granite.py, GraniteHybridModel.set_gguf_parameters."""
    attends = [kind == "attention" for kind in text["layer_types"]]
    return {
        "attention.head_count_kv": [text["num_key_value_heads"] if attended else 0 for attended in attends],
        "expert_shared_feed_forward_length": text["shared_intermediate_size"],
        "ssm.conv_kernel": text["mamba_d_conv"],
        "ssm.state_size": text["mamba_d_state"],
        "ssm.group_count": text["mamba_n_groups"],
        "ssm.inner_size": text["hidden_size"] * text["mamba_expand"],
        "ssm.time_step_rank": text["mamba_n_heads"],
        "context_length": 2**20,
    }


def _mamba(text: Mapping[str, Any]) -> dict[str, Any]:
    """Source: conversion/mamba.py, MambaModel.set_gguf_parameters."""
    rank = text["time_step_rank"]
    return {
        "context_length": 2**20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "ssm.conv_kernel": text["conv_kernel"],
        "ssm.inner_size": text["intermediate_size"],
        "ssm.state_size": text["state_size"],
        "ssm.time_step_rank": -(-text["hidden_size"] // 16) if rank == "auto" else rank,
    }


def _nemotron(name: str, text: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Source: conversion/nemotron.py, NemotronHModel; which layer is what follows from the tensors."""
    names, mixture = {tensor.name for tensor in each_tensor(architecture.tree)}, name.endswith("_moe")
    layers = range(text["num_hidden_layers"])
    head = text.get("head_dim") or text["attention_head_dim"]
    block, width = ("experts.up_proj", "moe_intermediate_size") if mixture else ("up_proj.weight", "intermediate_size")
    heads = text["mamba_num_heads"]
    return {
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.head_count_kv": [
            text["num_key_value_heads"] if f"model.layers.{layer}.mixer.q_proj.weight" in names else 0
            for layer in layers
        ],
        "feed_forward_length": [
            text[width] if f"model.layers.{layer}.mixer.{block}" in names else 0 for layer in layers
        ],
        "ssm.conv_kernel": text["conv_kernel"],
        "ssm.state_size": text["ssm_state_size"],
        "ssm.group_count": text["n_groups"],
        "ssm.inner_size": heads * text["mamba_head_dim"],
        "ssm.time_step_rank": heads,
        "rope.dimension_count": head,
        **({"expert_shared_feed_forward_length": text["moe_shared_expert_intermediate_size"]} if mixture else {}),
    }


def _gemma_4(text: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Source: conversion/gemma.py, Gemma4Model.set_gguf_parameters."""
    layers, shared = text["num_hidden_layers"], text.get("num_kv_shared_layers") or 0
    attending = [layer for layer, _ in architecture.kept or () if isinstance(layer, LayerAttention)]
    full = next(layer for layer in attending if layer.window_tokens is None)
    whole, windowed = full.head_dim, text["head_dim"]
    keys: dict[str, Any] = {
        "attention.key_length": whole,
        "attention.value_length": whole,
        "attention.key_length_swa": windowed,
        "attention.value_length_swa": windowed,
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": text.get("hidden_size_per_layer_input") or 0,
        "rope.dimension_count": whole,
        "rope.dimension_count_swa": windowed,
    }
    if text.get("use_double_wide_mlp"):
        width = text["intermediate_size"]
        keys["feed_forward_length"] = [width if layer < layers - shared else 2 * width for layer in range(layers)]
    few = text["num_key_value_heads"]
    if full.kv_heads != few:
        types = text["layer_types"]
        keys["attention.head_count_kv"] = [few if kind == "sliding_attention" else full.kv_heads for kind in types]
    return keys


def _linear_layers(text: Mapping[str, Any], interval: int) -> list[bool]:
    types = text.get("layer_types")
    if isinstance(types, list):
        return [kind == "linear_attention" for kind in types]
    return [(index + 1) % interval != 0 for index in range(text["num_hidden_layers"])]


def _partial_rotary(text: Mapping[str, Any], default: float) -> float:
    rope = text.get("rope_parameters")
    nested = rope if isinstance(rope, Mapping) else {}
    return float(nested.get("partial_rotary_factor", text.get("partial_rotary_factor", default)))
