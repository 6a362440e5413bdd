"""Small files, one of each architecture whose graph is known.

Source: llama.cpp b11434, src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .llama_cpp_encoders import ENCODERS
from .llama_cpp_files import (
    AFTER,
    ALL_BIASES,
    AS_MANY,
    BIASES,
    COMMON,
    DELTA_KEYS,
    EXPERT_INNER,
    GATED,
    GATED_SHARED,
    HEAD,
    HEADS,
    INNER,
    JOINED,
    KV_HEADS,
    LATENT,
    MIXTURE,
    NARROW,
    NORMED,
    RANK,
    ROPE,
    SHARED,
    SINKS,
    SSM,
    WHOLE,
    WHOLE_NORMS,
    WIDTH,
    WINDOW,
    Tensors,
    decoder,
    delta_net,
    mamba,
    nemotron,
    phi,
    renamed,
    short_convolutions,
    without,
    write_header,
)
from .llama_cpp_further import FURTHER
from .llama_cpp_latent import LATENT_SMALL, of_grams
from .llama_cpp_others import OTHERS

# Architecture, or with a variant after a colon -> (layers, keys beside COMMON, tensors).
SMALL: Mapping[str, tuple[int, Mapping[str, Any], Callable[[], Tensors]]] = {
    **FURTHER,
    **LATENT_SMALL,
    **ENCODERS,
    **OTHERS,
    "llama": (3, {}, lambda: decoder(3)),
    "llama:factors": (3, {}, lambda: [*decoder(3), ("rope_freqs.weight", (HEAD // 2,), "F32")]),
    "qwen2": (3, {}, lambda: decoder(3, further=BIASES)),
    "qwen3": (3, {}, lambda: decoder(3, further=NORMED)),
    "qwen3moe": (3, MIXTURE, lambda: decoder(3, mixture=True, further=NORMED)),
    "qwen2moe": (
        3,
        {**MIXTURE, "expert_shared_feed_forward_length": EXPERT_INNER},
        lambda: decoder(3, mixture=True, further={**GATED_SHARED, **BIASES}),
    ),
    "qwen2vl": (3, {"rope.dimension_sections": [16, 16, 0, 0]}, lambda: decoder(3, further=BIASES)),
    "qwen3vl": (
        4,
        {"rope.dimension_sections": [16, 16, 0, 0], "n_deepstack_layers": 3},
        lambda: decoder(4, further=NORMED),
    ),
    "qwen3vlmoe": (
        4,
        {**MIXTURE, "rope.dimension_sections": [16, 16, 0, 0], "n_deepstack_layers": 3},
        lambda: decoder(4, mixture=True, further=NORMED),
    ),
    "qwen35": (5, {**DELTA_KEYS, "rope.dimension_sections": [16, 16, 0, 0]}, lambda: delta_net(5)),
    "qwen35moe": (
        4,
        {
            **MIXTURE,
            **DELTA_KEYS,
            "rope.dimension_sections": [16, 16, 0, 0],
            "expert_shared_feed_forward_length": EXPERT_INNER,
        },
        lambda: delta_net(4, mixture=True),
    ),
    "qwen3next": (
        8,
        {**MIXTURE, **DELTA_KEYS, "expert_shared_feed_forward_length": EXPERT_INNER},
        lambda: delta_net(8, mixture=True, joined=True),
    ),
    "lfm2": (
        3,
        {"attention.head_count_kv": [0, 0, KV_HEADS], "shortconv.l_cache": 3},
        lambda: short_convolutions(mixture=False),
    ),
    "lfm2moe": (
        3,
        {
            **MIXTURE,
            "attention.head_count_kv": [0, 0, KV_HEADS],
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 0,
            "expert_gating_func": 2,
        },
        lambda: short_convolutions(mixture=True),
    ),
    **dict.fromkeys(("ernie4_5", "internlm2", "minicpm", "xverse"), (3, {}, lambda: decoder(3))),
    "arcee": (3, {}, lambda: without(decoder(3), "ffn_gate.")),
    "hunyuan-dense": (3, {}, lambda: decoder(3, further=NORMED)),
    "seed_oss": (3, {}, lambda: renamed(decoder(3, further=BIASES), "ffn_norm", "post_attention_norm")),
    "olmo2": (3, {}, lambda: without(decoder(3, further={**WHOLE, **AFTER}), "attn_norm", "ffn_norm")),
    "exaone4": (4, {}, lambda: without(decoder(4, further={**NORMED, **AFTER}), "attn_norm", "ffn_norm")),
    "glm4": (
        3,
        {},
        lambda: without(decoder(3, further={**AFTER, "ffn_up.weight": ((WIDTH, 2 * INNER), "F16")}), "ffn_gate."),
    ),
    "starcoder2": (
        3,
        {"attention.layer_norm_epsilon": 1e-5},
        lambda: [*without(decoder(3, further=ALL_BIASES), "ffn_gate."), ("output_norm.bias", (WIDTH,), "F32")],
    ),
    "ernie4_5-moe": (
        3,
        {
            **MIXTURE,
            **GATED,
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": 0,
            "expert_shared_feed_forward_length": EXPERT_INNER,
        },
        lambda: decoder(3, mixture=True, further=SHARED),
    ),
    "hunyuan-moe": (
        3,
        {
            **MIXTURE,
            "feed_forward_length": EXPERT_INNER,
            "expert_shared_feed_forward_length": EXPERT_INNER,
        },
        lambda: without(decoder(3, mixture=True, further={**NORMED, **SHARED}), "exp_probs"),
    ),
    "olmoe": (
        3,
        {**MIXTURE, "feed_forward_length": EXPERT_INNER, "attention.head_count_kv": HEADS},
        lambda: decoder(3, mixture=True, further={**AS_MANY, **WHOLE, "attn_k_norm.weight": ((HEADS * HEAD,), "F32")}),
    ),
    "deepseek": (
        3,
        {
            **MIXTURE,
            "leading_dense_block_count": 0,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.0,
            "attention.head_count_kv": HEADS,
        },
        lambda: without(decoder(3, mixture=True, further={**AS_MANY, **SHARED}), "exp_probs"),
    ),
    "dots1": (
        3,
        {**MIXTURE, **GATED, "leading_dense_block_count": 0, "attention.head_count_kv": HEADS},
        lambda: decoder(3, mixture=True, further={**AS_MANY, **NORMED, **SHARED}),
    ),
    "bailingmoe2": (
        3,
        {
            **MIXTURE,
            **GATED,
            "leading_dense_block_count": 0,
            "expert_shared_feed_forward_length": EXPERT_INNER,
        },
        lambda: without(
            decoder(3, mixture=True, further={**JOINED, **NORMED, **SHARED}), "attn_q.", "attn_k.", "attn_v."
        ),
    ),
    "granitehybrid": (
        3,
        {**SSM, "attention.head_count_kv": [0, KV_HEADS, 0], "logit_scale": 8.0, "residual_scale": 0.2},
        lambda: mamba(decoder(3), (0, 2)),
    ),
    "nemotron_h": (
        4,
        {**SSM, "attention.head_count_kv": [0, KV_HEADS, 0, 0], "feed_forward_length": [0, 0, INNER, 0]},
        lambda: nemotron(mixture=False),
    ),
    "nemotron_h_moe": (
        4,
        {
            **SSM,
            **MIXTURE,
            **GATED,
            "attention.layer_norm_rms_epsilon": None,
            "attention.head_count_kv": [0, KV_HEADS, 0, 0],
            "feed_forward_length": [0, 0, INNER, 0],
            "expert_shared_feed_forward_length": EXPERT_INNER,
        },
        lambda: nemotron(mixture=True),
    ),
    "mamba2": (
        3,
        {**SSM, "attention.head_count": 0, "feed_forward_length": 0},
        lambda: mamba(without(decoder(3), "ffn_"), (0, 1, 2)),
    ),
    "mistral3": (3, {"attention.temperature_scale": 0.1}, lambda: decoder(3)),
    "smollm3": (5, {}, lambda: decoder(5)),
    "gemma": (3, {}, lambda: decoder(3, tied=True)),
    "granitemoe": (
        3,
        {**MIXTURE, "feed_forward_length": EXPERT_INNER, "logit_scale": 8.0, "residual_scale": 0.2},
        lambda: decoder(3, mixture=True),
    ),
    "minimax-m2": (
        3,
        {**MIXTURE, "feed_forward_length": EXPERT_INNER, "expert_gating_func": 2},
        lambda: decoder(3, mixture=True, further=WHOLE_NORMS),
    ),
    "gemma2": (
        4,
        {**WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        lambda: decoder(4, tied=True, further=AFTER),
    ),
    "gemma3": (8, WINDOW, lambda: decoder(8, tied=True, further={**NORMED, **AFTER})),
    "gpt-oss": (
        4,
        {**MIXTURE, "attention.sliding_window": 128},
        lambda: renamed(decoder(4, mixture=True, further=SINKS), "ffn_norm", "post_attention_norm"),
    ),
    "glm4moe": (
        4,
        {**MIXTURE, **GATED, "leading_dense_block_count": 0},
        lambda: renamed(decoder(4, mixture=True, further={**SHARED, **BIASES}), "ffn_norm", "post_attention_norm"),
    ),
    "phi3": (3, {"attention.sliding_window": 0, "rope.scaling.original_context_length": 4096}, phi),
    "granite": (3, {"logit_scale": 8.0, "residual_scale": 0.2, "embedding_scale": 12.0}, lambda: decoder(3)),
    **dict.fromkeys(
        ("deepseek2", "mistral4"),
        (
            3,
            {
                **MIXTURE,
                **GATED,
                "leading_dense_block_count": 0,
                "attention.head_count_kv": 1,
                "expert_group_count": 4,
                "expert_group_used_count": 2,
                "attention.q_lora_rank": NARROW,
                "attention.kv_lora_rank": RANK,
                "rope.dimension_count": ROPE,
                "attention.key_length": RANK + ROPE,
                "attention.value_length": RANK,
                "attention.key_length_mla": HEAD + ROPE,
                "attention.value_length_mla": HEAD,
            },
            lambda: without(decoder(3, mixture=True, further=LATENT), "attn_q.", "attn_k.", "attn_v."),
        ),
    ),
}


def write_predicting(path: Path, architecture: str) -> Path:
    """The same with a layer for multi-token prediction, a copy of the fourth or the last, which attends."""
    layers, keys, tensors = SMALL[architecture]
    stored, copied = tensors(), f"blk.{layers - 1 if architecture == 'deepseek4' else min(layers - 1, 3)}."
    if architecture == "nemotron_h_moe":
        stored, own = nemotron(mixture=True), nemotron_predicting(layers)
    elif architecture == "mimo2":
        own = [(f"blk.{layers}.{name}", shape, kind) for name, shape, kind in dense_predicting()]
    else:
        own = renamed([entry for entry in stored if entry[0].startswith(copied)], copied, f"blk.{layers}.")
    own += [(f"blk.{layers}.nextn.eh_proj.weight", (2 * WIDTH, WIDTH), "F16")]
    last = "layer_output_norm" if architecture == "bailingmoe3" else "nextn.shared_head_norm"
    own += [(f"blk.{layers}.{name}.weight", (WIDTH,), "F32") for name in ("nextn.enorm", "nextn.hnorm", last)]
    if architecture == "qwen4exp":
        own = [entry for entry in own if "nextn.hnorm" not in entry[0] and "shared_head" not in entry[0]]
        own += hyper_predicting(layers)
    metadata = {**COMMON, "block_count": layers + 1, **keys, "nextn_predict_layers": 1}
    for key in ("attention.compress_ratios", "swiglu_clamp_exp"):
        if key in keys:
            metadata[key] = [*keys[key], keys[key][-1]]
    if architecture == "nemotron_h_moe":
        metadata |= {"attention.head_count_kv": [0, KV_HEADS, 0, 0, KV_HEADS]}
        metadata |= {"feed_forward_length": [0, 0, INNER, 0, 0], "expert_feed_forward_length": [EXPERT_INNER] * 5}
    elif isinstance(keys.get("attention.head_count_kv"), list):
        metadata["attention.head_count_kv"] = [*keys["attention.head_count_kv"], 1]
    elif "attention.sliding_window_pattern" in keys:
        pattern = keys["attention.sliding_window_pattern"]
        metadata["attention.sliding_window_pattern"] = [*pattern, pattern[0]]
    return write_header(path, architecture.partition(":")[0], metadata, [*stored, *own])


def hyper_predicting(layer: int) -> Tensors:
    """Qwen4-Exp's: norms of all streams, whose sum has matrices of its own."""
    head = [entry for entry in of_grams() if entry[0].startswith("output_hc_")]
    own: Tensors = [
        (name.replace("output_hc_", f"blk.{layer}.nextn.hc_head_"), shape, kind) for name, shape, kind in head
    ]
    return [(f"blk.{layer}.nextn.hnorm.weight", head[0][1], "F32"), *own]


def dense_predicting() -> Tensors:
    """MiMo's: Q, K and V in one matrix, a dense block."""
    tensors = without(decoder(1, further=JOINED), "attn_q.", "attn_k.", "attn_v.")
    return [(name.removeprefix("blk.0."), shape, kind) for name, shape, kind in tensors if name.startswith("blk.0.")]


def nemotron_predicting(layer: int) -> Tensors:
    """Nemotron's: attention and experts in one layer."""
    shared = {name: parts for name, parts in SHARED.items() if "gate" not in name}
    further = {**shared, "post_attention_norm.weight": ((WIDTH,), "F32")}
    tensors = without(decoder(1, mixture=True, further=further), "ffn_norm", "ffn_gate_exps")
    return renamed([entry for entry in tensors if entry[0].startswith("blk.0.")], "blk.0.", f"blk.{layer}.")


def write_small(path: Path, name: str, kind: str = "F16") -> Path:
    """kind: of matrices whose rows it divides."""
    layers, keys, tensors = SMALL[name]
    stored = [(part, shape, kind if old == "F16" and shape[0] % 32 == 0 else old) for part, shape, old in tensors()]
    return write_header(path, name.partition(":")[0], {**COMMON, "block_count": layers, **keys}, stored)
