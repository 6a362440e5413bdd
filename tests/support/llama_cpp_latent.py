"""Small files with latent attention, Kimi's delta attention, and variants of architectures that llama.cpp has lately.

Source: llama.cpp b11434, src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .llama_cpp_files import (
    ALL_BIASES,
    BIASES,
    DELTA_KEYS,
    EXPERT_INNER,
    EXPERTS,
    GATED,
    HEAD,
    HEADS,
    INNER,
    JOINED,
    KERNEL,
    LATENT,
    MIXTURE,
    NARROW,
    NORMED,
    RANK,
    ROPE,
    SHARED,
    SINKS,
    USED,
    VOCABULARY,
    WIDTH,
    WINDOW,
    Shape,
    Tensors,
    decoder,
    delta_net,
    renamed,
    without,
)
from .llama_cpp_further import FURTHER_SHARED, LAST_BIAS, PARTS, PLAIN, TWO_NORMS, gpt, recurrent

DECOMPRESSED: Mapping[str, tuple[Shape, str]] = {
    **{name: LATENT[name] for name in ("attn_kv_a_mqa.weight", "attn_kv_a_norm.weight")},
    "attn_kv_b.weight": ((RANK, HEADS * 2 * HEAD), "F16"),
    "attn_output.weight": ((HEADS * HEAD, WIDTH), "F16"),
}
NARROW_QUERY = {name: LATENT[name] for name in ("attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight")}
WHOLE_QUERY = {"attn_q.weight": ((WIDTH, HEADS * (HEAD + ROPE)), "F16")}
DECOMPRESSED_KEYS = {
    "attention.head_count_kv": HEADS,
    "attention.q_lora_rank": NARROW,
    "attention.kv_lora_rank": RANK,
    "rope.dimension_count": ROPE,
    "attention.key_length": HEAD + ROPE,
    "attention.value_length": HEAD,
}
KDA_HEAD = 64
KDA: Mapping[str, tuple[Shape, str]] = {
    **{f"attn_{part}.weight": ((WIDTH, HEADS * KDA_HEAD), "F16") for part in "qkv"},
    **{f"ssm_conv1d_{part}.weight": ((KERNEL, 1, HEADS * KDA_HEAD), "F32") for part in "qkv"},
    "ssm_f_a.weight": ((WIDTH, KDA_HEAD), "F16"),
    "ssm_f_b.weight": ((KDA_HEAD, HEADS * KDA_HEAD), "F16"),
    "ssm_g_a.weight": ((WIDTH, KDA_HEAD), "F16"),
    "ssm_g_b.weight": ((KDA_HEAD, HEADS * KDA_HEAD), "F16"),
    "ssm_beta.weight": ((WIDTH, HEADS), "F16"),
    "ssm_a": ((1, HEADS), "F32"),
    "ssm_dt.bias": ((HEADS * KDA_HEAD,), "F32"),
    "ssm_norm.weight": ((KDA_HEAD,), "F32"),
    "attn_output.weight": ((HEADS * KDA_HEAD, WIDTH), "F16"),
}


def kimi() -> Tensors:
    """Delta attention, a latent, delta attention."""
    latent = {name: parts for name, parts in LATENT.items() if "attn_q_" not in name}
    tensors = decoder(3, mixture=True, further={**latent, **WHOLE_QUERY})
    tensors = without(tensors, "attn_k.", "attn_v.")
    others = ("attn_kv_a", "attn_k_b", "attn_v_b")
    tensors = without(tensors, *(f"blk.{layer}.{part}" for layer in (0, 2) for part in others))
    return recurrent(tensors, (0, 2), KDA)


def ling() -> Tensors:
    """Delta attention with whole gates, a latent gated by head, the same again; the first layer is dense."""
    latent = {**LATENT, **SHARED, "attn_gate.weight": ((WIDTH, HEADS), "F16")}
    tensors = without(decoder(4, mixture=True, further=latent), *PARTS)
    others = ("attn_q_a", "attn_q_b", "attn_kv_a", "attn_k_b", "attn_v_b", "attn_gate")
    tensors = without(tensors, *(f"blk.{layer}.{part}" for layer in (0, 2) for part in others))
    square = {f"ssm_{part}_a.weight": ((WIDTH, HEADS * KDA_HEAD), "F16") for part in "fg"}
    delta = {**{name: kind for name, kind in KDA.items() if "_b." not in name}, **square}
    tensors = recurrent(tensors, (0, 2), delta)
    first = [entry for entry in decoder(1) if entry[0].startswith("blk.0.ffn_") and "norm" not in entry[0]]
    dense = ("ffn_gate", "ffn_up", "ffn_down", "exp_probs")
    return [*without(tensors, *(f"blk.0.{part}" for part in dense)), *first]


def kimi_k3() -> Tensors:
    """Delta attention, a latent, the same again; the first layer is dense, experts have a narrower state."""
    scores = {f"{part}_res_score.weight": ((WIDTH,), "F32") for part in ("attn", "ffn")}
    gate = {"attn_gate.weight": ((WIDTH, HEADS * HEAD), "F16")}
    routed: dict[str, tuple[Shape, str]] = {
        "ffn_routed_down.weight": ((WIDTH, NARROW), "F16"),
        "ffn_routed_up.weight": ((NARROW, WIDTH), "F16"),
        "ffn_routed_norm.weight": ((NARROW,), "F32"),
        "ffn_gate_exps.weight": ((NARROW, EXPERT_INNER, EXPERTS), "F16"),
        "ffn_up_exps.weight": ((NARROW, EXPERT_INNER, EXPERTS), "F16"),
        "ffn_down_exps.weight": ((EXPERT_INNER, NARROW, EXPERTS), "F16"),
    }
    tensors = decoder(4, mixture=True, further={**LATENT, **scores, **gate, **routed})
    latent = (".attn_q_a", ".attn_q_b", "attn_kv_a", "attn_k_b", "attn_v_b", "attn_gate")
    tensors = without(tensors, *PARTS, *(f"blk.{layer}{part}" for layer in (0, 2) for part in latent if part[0] == "."))
    tensors = without(tensors, *(f"blk.{layer}.{part}" for layer in (0, 2) for part in latent if part[0] != "."))
    delta = {name: kind for name, kind in KDA.items() if name not in ("ssm_g_a.weight", "ssm_g_b.weight")}
    delta |= {"ssm_g.weight": ((WIDTH, HEADS * KDA_HEAD), "F16"), "ssm_a": ((HEADS,), "F32")}
    tensors = recurrent(tensors, (0, 2), delta)
    first = [entry for entry in decoder(1) if entry[0].startswith("blk.0.ffn_") and "norm" not in entry[0]]
    kept = without(
        tensors, *(f"blk.0.{part}" for part in ("ffn_gate", "ffn_up", "ffn_down", "ffn_routed", "exp_probs"))
    )
    return [*kept, *first, ("output_res_score.weight", (WIDTH,), "F32")]


def predicting(tensors: Tensors, layer: int) -> Tensors:
    """With the tensors of multi-token prediction in a layer."""
    parts = {"eh_proj": ((2 * WIDTH, WIDTH), "F16"), **dict.fromkeys(("enorm", "hnorm"), ((WIDTH,), "F32"))}
    return tensors + [(f"blk.{layer}.nextn.{name}.weight", *kind) for name, kind in parts.items()]


INDEX_HEADS, INDEX = 4, 128
INDEXED: Mapping[str, tuple[Shape, str]] = {
    "indexer.k_norm.weight": ((INDEX,), "F32"),
    "indexer.k_norm.bias": ((INDEX,), "F32"),
    "indexer.proj.weight": ((WIDTH, INDEX_HEADS), "F16"),
    "indexer.attn_k.weight": ((WIDTH, INDEX), "F16"),
    "indexer.attn_q_b.weight": ((NARROW, INDEX_HEADS * INDEX), "F16"),
}
LATENT_KEYS: Mapping[str, Any] = {
    **MIXTURE,
    **GATED,
    "leading_dense_block_count": 0,
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": NARROW,
    "attention.kv_lora_rank": RANK,
    "rope.dimension_count": ROPE,
    "attention.key_length": RANK + ROPE,
    "attention.value_length": RANK,
    "attention.key_length_mla": HEAD + ROPE,
    "attention.value_length_mla": HEAD,
    "attention.indexer.head_count": INDEX_HEADS,
    "attention.indexer.key_length": INDEX,
    "attention.indexer.top_k": 512,
}


def indexed(layers: int) -> Tensors:
    """DeepSeek-V3.2's: a latent, and an index instead of Q, K and V of whole heads."""
    tensors = decoder(layers, mixture=True, further={**LATENT, **INDEXED})
    ends = (".attn_q.weight", ".attn_k.weight", ".attn_v.weight")
    return [entry for entry in tensors if not (entry[0].endswith(ends) and ".indexer." not in entry[0])]


BLOCKS: Mapping[str, tuple[Shape, str]] = {
    **{f"indexer.{part}_norm.weight": ((INDEX,), "F32") for part in "qk"},
    "indexer.q_proj.weight": ((WIDTH, 2 * INDEX), "F16"),
    "indexer.k_proj.weight": ((WIDTH, INDEX), "F16"),
}


def block_sparse() -> Tensors:
    """MiniMax-M3's: a dense layer, then two with experts and an index."""
    tensors = decoder(3, mixture=True, further={**NORMED, **SHARED, **BLOCKS})
    first = decoder(1, further=NORMED)
    return [
        *(entry for entry in tensors if not entry[0].startswith("blk.0.")),
        *(entry for entry in first if entry[0].startswith("blk.0.")),
    ]


STREAMS = 4


def compressing() -> Tensors:
    """DeepSeek-V4's: a layer of the last tokens alone, cells of 4, of 128 and of 4 tokens, the last tokens alone."""
    length, mixes = 2 * INDEX, (2 + STREAMS) * STREAMS
    block: dict[str, tuple[Shape, str]] = {
        "attn_q_a.weight": ((WIDTH, NARROW), "F16"),
        "attn_q_a_norm.weight": ((NARROW,), "F32"),
        "attn_q_b.weight": ((NARROW, HEADS * length), "F16"),
        "attn_kv.weight": ((WIDTH, length), "F16"),
        "attn_kv_a_norm.weight": ((length,), "F32"),
        "attn_sinks.weight": ((HEADS,), "F32"),
        "attn_output_a.weight": ((HEADS * length // 2, 64 * 2), "F16"),
        "attn_output_b.weight": ((2 * 64, WIDTH), "F16"),
        **SHARED,
    }
    for part in ("attn", "ffn"):
        block[f"hc_{part}_fn.weight"] = ((STREAMS * WIDTH, mixes), "F16")
        block[f"hc_{part}_base.weight"] = ((mixes,), "F32")
        block[f"hc_{part}_scale.weight"] = ((3,), "F32")
    tensors = decoder(5, mixture=True, further=block)
    tensors = without(tensors, *PARTS, "attn_output.", "blk.0.exp_probs")
    tensors.append(("blk.0.ffn_gate_tid2eid.weight", (USED, VOCABULARY), "I32"))
    tensors += [
        ("output_hc_fn.weight", (STREAMS * WIDTH, STREAMS), "F16"),
        ("output_hc_base.weight", (STREAMS,), "F32"),
        ("output_hc_scale.weight", (1,), "F32"),
    ]
    for layer, ratio in ((1, 4), (2, 128), (3, 4)):
        own = {"attn_compressor": length, **({"indexer_compressor": INDEX} if ratio == 4 else {})}
        for name, size in own.items():
            wide = size * (2 if ratio == 4 else 1)
            tensors += [(f"blk.{layer}.{name}_{part}.weight", (WIDTH, wide), "F16") for part in ("kv", "gate")]
            tensors.append((f"blk.{layer}.{name}_ape.weight", (wide, ratio), "F32"))
            tensors.append((f"blk.{layer}.{name}_norm.weight", (size,), "F32"))
        if ratio == 4:
            tensors.append((f"blk.{layer}.indexer.proj.weight", (WIDTH, INDEX_HEADS), "F16"))
            tensors.append((f"blk.{layer}.indexer.attn_q_b.weight", (NARROW, INDEX_HEADS * INDEX), "F16"))
    return tensors


def pooling() -> Tensors:
    """GLM-5.3-Flash's: delta attention, a latent with an index of pools, the same again; the first layer is dense."""
    mixes = (2 + STREAMS) * STREAMS
    hyper: dict[str, tuple[Shape, str]] = {}
    for part in ("attn", "ffn"):
        hyper[f"hc_{part}_fn.weight"] = ((STREAMS * WIDTH, mixes), "F16")
        hyper[f"hc_{part}_base.weight"] = ((mixes,), "F32")
        hyper[f"hc_{part}_scale.weight"] = ((3,), "F32")
    latent: dict[str, tuple[Shape, str]] = {
        **{name: kind for name, kind in LATENT.items() if name.startswith("attn_")},
        "attn_q_b.weight": ((NARROW, HEADS * HEAD), "F16"),
        "attn_kv_a_mqa.weight": ((WIDTH, RANK), "F16"),
        "attn_output.weight": ((HEADS * HEAD, WIDTH), "F16"),
        **INDEXED,
        "indexer_compressor_gate.weight": ((WIDTH, INDEX), "F16"),
        "indexer_compressor_ape.weight": ((INDEX, 4), "F32"),
    }
    tensors = without(decoder(4, mixture=True, further={**hyper, **SHARED}), *PARTS, "attn_output.")
    for layer in range(4):
        block = {**KDA, "ssm_a": ((HEADS,), "F32")} if layer % 2 == 0 else latent
        tensors += [(f"blk.{layer}.{name}", *kind) for name, kind in block.items()]
    first = [entry for entry in decoder(1) if entry[0].startswith("blk.0.ffn_") and "norm" not in entry[0]]
    kept = without(tensors, *(f"blk.0.{part}" for part in ("ffn_gate", "ffn_up", "ffn_down", "exp_probs")))
    return [*kept, *first]


def independent() -> Tensors:
    """HY V4's: a gated latent with sinks, an index in every other layer, and hyper-connections without a matrix."""
    hyper: dict[str, tuple[Shape, str]] = {"attn_gate.weight": ((WIDTH, HEADS * HEAD), "F16")}
    hyper["attn_sinks.weight"] = ((HEADS,), "F32")
    for part in ("attn", "ffn"):
        hyper[f"hc_{part}_fn.weight"] = ((STREAMS * WIDTH, 2 * STREAMS), "F16")
        hyper[f"hc_{part}_base.weight"] = ((2 * STREAMS,), "F32")
        hyper[f"hc_{part}_scale.weight"] = ((2,), "F32")
    tensors = indexed(4) + [(f"blk.{at}.{name}", *kind) for at in range(4) for name, kind in hyper.items()]
    kept = without(tensors, *(f"blk.{layer}.indexer." for layer in (1, 3)), "blk.0.ffn_", "blk.0.exp_")
    first = [entry for entry in decoder(1) if entry[0].startswith("blk.0.ffn_")]
    head: Tensors = [
        ("output_hc_fn.weight", (STREAMS * WIDTH, STREAMS), "F16"),
        ("output_hc_base.weight", (STREAMS,), "F32"),
        ("output_hc_scale.weight", (1,), "F32"),
    ]
    return [*kept, *first, *head]


HASHED = WIDTH // 4


def of_grams() -> Tensors:
    """Qwen4-Exp's: Gated DeltaNet and attention with an index, no norms but the streams', n-grams in the second layer."""
    tensors = without(delta_net(8, mixture=True), "attn_norm", "post_attention_norm", "output_norm")
    wide, low = STREAMS * WIDTH, 32
    mixer: dict[str, tuple[Shape, str]] = {
        "norm.weight": ((wide,), "F32"),
        "down.weight": ((wide, low), "F16"),
        "up.weight": ((low, wide), "F16"),
    }
    block = {f"hc_{part}_{name}": kind for part in ("attn", "ffn") for name, kind in mixer.items()}
    block |= {f"hc_{part}_inject.weight": ((wide, STREAMS), "F16") for part in ("attn", "ffn")}
    tensors += [(f"blk.{layer}.{name}", *kind) for layer in range(8) for name, kind in block.items()]
    tensors += [(f"output_hc_{name}", *kind) for name, kind in mixer.items()]
    index: dict[str, tuple[Shape, str]] = {
        "indexer.q_proj.weight": ((WIDTH, INDEX_HEADS * INDEX), "F16"),
        "indexer.k_proj.weight": ((WIDTH, INDEX), "F16"),
        **{f"indexer.{part}_norm.weight": ((INDEX,), "F32") for part in "qk"},
    }
    tensors += [(f"blk.{layer}.{name}", *kind) for layer in (3, 7) for name, kind in index.items()]
    grams: dict[str, tuple[Shape, str]] = {
        "key.weight": ((WIDTH, wide), "F16"),
        "value.weight": ((WIDTH, WIDTH), "F16"),
        **{f"norm_{part}.weight": ((wide,), "F32") for part in ("key", "query", "conv")},
        "conv1d.weight": ((4, wide), "F32"),
    }
    tensors += [(f"blk.1.ple_{name}", *kind) for name, kind in grams.items()]
    return [*tensors, ("per_layer_token_embd.weight", (HASHED, 4000), "F16")]


LATENT_SMALL: Mapping[str, tuple[int, Mapping[str, Any], Callable[[], Tensors]]] = {
    "kimi-linear": (
        3,
        {
            **MIXTURE,
            **GATED,
            "leading_dense_block_count": 0,
            "attention.head_count_kv": [0, 1, 0],
            "attention.kv_lora_rank": RANK,
            "rope.dimension_count": ROPE,
            "attention.key_length": RANK + ROPE,
            "attention.value_length": RANK,
            "attention.key_length_mla": HEAD + ROPE,
            "attention.value_length_mla": HEAD,
            "kda.head_dim": KDA_HEAD,
            "ssm.conv_kernel": KERNEL,
        },
        kimi,
    ),
    "deepseek4": (
        5,
        {
            **MIXTURE,
            "expert_gating_func": 4,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.5,
            "expert_shared_count": 1,
            "attention.head_count_kv": 1,
            "attention.key_length": 2 * INDEX,
            "attention.value_length": 2 * INDEX,
            "rope.dimension_count": ROPE,
            "attention.q_lora_rank": NARROW,
            "attention.sliding_window": 128,
            "attention.compress_ratios": [0, 4, 128, 4, 0],
            "attention.compress_rope_freq_base": 160_000.0,
            "attention.output_group_count": 2,
            "attention.output_lora_rank": 64,
            "attention.indexer.head_count": INDEX_HEADS,
            "attention.indexer.key_length": INDEX,
            "attention.indexer.top_k": 512,
            "hyper_connection.count": STREAMS,
            "hyper_connection.sinkhorn_iterations": 20,
            "hyper_connection.epsilon": 1e-6,
            "hash_layer_count": 1,
            "swiglu_clamp_exp": [10.0] * 5,
        },
        compressing,
    ),
    "qwen4exp": (
        8,
        {
            **MIXTURE,
            **DELTA_KEYS,
            "rope.dimension_sections": [16, 16, 0, 0],
            "expert_shared_feed_forward_length": EXPERT_INNER,
            "attention.indexer.head_count": INDEX_HEADS,
            "attention.indexer.key_length": INDEX,
            "attention.indexer.top_k": 512,
            "attention.compress_ratios": [0, 0, 0, 4, 0, 0, 0, 4],
            "hyper_connection.count": STREAMS,
            "hyper_connection.low_rank": 32,
            "embedding_length_per_layer_input": HASHED,
            "ple.layers": [1],
            "ple.ngram_size": 3,
            "ple.heads_per_ngram": 2,
            "ple.conv_kernel": 4,
            "ple.eos_token_id": 1,
            "ple.layer_multipliers": (3, 5, 7),
            "ple.head_offsets": (0, 1000, 2000, 3000),
            "ple.head_vocab_sizes": (1000,) * 4,
        },
        of_grams,
    ),
    "hy_v4": (
        4,
        {
            **LATENT_KEYS,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "attention.indexer.types": [1, 0, 1, 0],
            "hyper_connection.count": STREAMS,
            "hyper_connection.epsilon": 1e-6,
            "hyper_connection.magnitude": 2.0,
            "swiglu_clamp_exp": [10.0] * 4,
        },
        independent,
    ),
    "glm5-next": (
        4,
        {
            **MIXTURE,
            **GATED,
            "leading_dense_block_count": 1,
            "attention.head_count_kv": [0, 1, 0, 1],
            "attention.q_lora_rank": NARROW,
            "attention.kv_lora_rank": RANK,
            "rope.dimension_count": 0,
            "attention.key_length": RANK,
            "attention.value_length": RANK,
            "attention.key_length_mla": HEAD,
            "attention.value_length_mla": HEAD,
            "kda.head_dim": KDA_HEAD,
            "kda.gate_lower_bound": -5.0,
            "ssm.conv_kernel": KERNEL,
            "attention.indexer.head_count": INDEX_HEADS,
            "attention.indexer.key_length": INDEX,
            "attention.indexer.top_k": 512,
            "attention.indexer.kpool": 4,
            "attention.indexer.kpool_select_tail": True,
            "hyper_connection.count": STREAMS,
            "hyper_connection.sinkhorn_iterations": 20,
            "hyper_connection.epsilon": 1e-6,
            "swiglu_clamp_exp": [10.0] * 4,
        },
        pooling,
    ),
    "bailingmoe3": (
        4,
        {
            **MIXTURE,
            **GATED,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "attention.head_count_kv": [0, 1, 0, 1],
            "attention.q_lora_rank": NARROW,
            "attention.kv_lora_rank": RANK,
            "rope.dimension_count": ROPE,
            "attention.key_length": RANK + ROPE,
            "attention.value_length": RANK,
            "attention.key_length_mla": HEAD + ROPE,
            "attention.value_length_mla": HEAD,
            "kda.head_dim": KDA_HEAD,
            "kda.gate_lower_bound": -5.0,
            "ssm.conv_kernel": KERNEL,
        },
        ling,
    ),
    "kimi-k3": (
        4,
        {
            **MIXTURE,
            **GATED,
            "leading_dense_block_count": 1,
            "attention.head_count_kv": [0, 1, 0, 1],
            "attention.q_lora_rank": NARROW,
            "attention.kv_lora_rank": RANK,
            "rope.dimension_count": ROPE,
            "attention.key_length": RANK + ROPE,
            "attention.value_length": RANK,
            "attention.key_length_mla": HEAD + ROPE,
            "attention.value_length_mla": HEAD,
            "kda.head_dim": KDA_HEAD,
            "kda.gate_lower_bound": -5.0,
            "ssm.conv_kernel": KERNEL,
            "expert_latent_length": NARROW,
            "attn_res.block_size": 2,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
        },
        kimi_k3,
    ),
    "glm4moe:prediction": (
        4,
        {**MIXTURE, **GATED, "leading_dense_block_count": 0, "nextn_predict_layers": 1},
        lambda: predicting(
            renamed(decoder(4, mixture=True, further={**SHARED, **BIASES}), "ffn_norm", "post_attention_norm"), 3
        ),
    ),
    "deepseek32": (3, LATENT_KEYS, lambda: indexed(3)),
    "glm-dsa": (3, LATENT_KEYS, lambda: indexed(3)),
    "glm-dsa:shared": (3, {**LATENT_KEYS, "attention.indexer.types": [1, 0, 1]}, lambda: indexed(3)),
    "minimax-m3": (
        3,
        {
            **MIXTURE,
            **GATED,
            "leading_dense_block_count": 1,
            "attention.indexer.head_count": 2,
            "attention.indexer.key_length": INDEX,
            "attention.indexer.top_k": 16,
            "attention.indexer.block_size": 128,
            "attention.indexer.local_blocks": 1,
        },
        block_sparse,
    ),
    "minicpm3": (
        3,
        DECOMPRESSED_KEYS,
        lambda: without(decoder(3, further={**DECOMPRESSED, **NARROW_QUERY}), *PARTS),
    ),
    "deepseek2:decompressed": (
        3,
        {**MIXTURE, **GATED, **DECOMPRESSED_KEYS, "leading_dense_block_count": 0},
        lambda: without(decoder(3, mixture=True, further={**DECOMPRESSED, **NARROW_QUERY, **SHARED}), *PARTS),
    ),
    "arctic": (
        3,
        {**MIXTURE, "feed_forward_length": EXPERT_INNER},
        lambda: decoder(
            3,
            mixture=True,
            further={
                **{f"ffn_{part}.weight": ((WIDTH, WIDTH), "F16") for part in ("gate", "up", "down")},
                "ffn_norm_exps.weight": ((WIDTH,), "F32"),
            },
        ),
    ),
    "baichuan": (32, {}, lambda: decoder(32)),
    "baichuan:13b": (40, {}, lambda: decoder(40)),
    "plamo": (3, {}, lambda: without(decoder(3), "ffn_norm")),
    "orion": (3, PLAIN, lambda: decoder(3, further=TWO_NORMS) + LAST_BIAS),
    "maincoder": (3, {}, lambda: decoder(3, further=NORMED)),
    "mellum": (4, {**MIXTURE, **WINDOW}, lambda: decoder(4, mixture=True, further=NORMED)),
    "pangu-embedded": (3, {}, lambda: decoder(3, further={"attn_output.bias": ((WIDTH,), "F32")})),
    "refact": (3, {}, lambda: decoder(3)),
    "codeshell": (3, PLAIN, gpt),
    "jais": (
        3,
        {**PLAIN, "attention.max_alibi_bias": 8.0},
        lambda: [
            *gpt(),
            *(
                (f"blk.{layer}.ffn_gate.{name}", shape, kind)
                for layer in range(3)
                for name, shape, kind in (("weight", (WIDTH, INNER), "F16"), ("bias", (INNER,), "F32"))
            ),
        ],
    ),
    "jais2": (3, PLAIN, lambda: without(decoder(3, further=ALL_BIASES), "ffn_gate.") + LAST_BIAS),
    "openelm": (3, {}, lambda: without(decoder(3, tied=True, further={**JOINED, **NORMED}), *PARTS)),
    "paddleocr": (3, {"rope.dimension_sections": [16, 16, 0, 0]}, lambda: decoder(3)),
    "granite_swa": (
        4,
        {
            **WINDOW,
            "attention.sliding_window_pattern": [True, True, True, False],
            "logit_scale": 8.0,
            "residual_scale": 0.2,
        },
        lambda: decoder(4, further={"attn_sinks.weight": SINKS["attn_sinks.weight"]}),
    ),
    "laguna": (
        4,
        {**FURTHER_SHARED, **WINDOW, "expert_gating_func": 2, "expert_shared_feed_forward_length": EXPERT_INNER},
        lambda: decoder(4, mixture=True, further={**NORMED, **SHARED, "attn_gate.weight": ((WIDTH, HEADS), "F16")}),
    ),
    "hy_v3": (
        3,
        {**FURTHER_SHARED, "expert_gating_func": 2, "expert_shared_feed_forward_length": EXPERT_INNER},
        lambda: renamed(decoder(3, mixture=True, further={**NORMED, **SHARED}), "exp_probs_b.bias", "exp_probs_b"),
    ),
    "step35": (
        4,
        {
            **FURTHER_SHARED,
            **WINDOW,
            "attention.sliding_window_pattern": [True, True, True, False],
            "expert_gating_func": 2,
            "expert_shared_feed_forward_length": EXPERT_INNER,
        },
        lambda: decoder(4, mixture=True, further={**NORMED, **SHARED, "attn_gate.weight": ((WIDTH, HEADS), "F16")}),
    ),
    "smallthinker": (8, {**MIXTURE, **WINDOW, "expert_gating_func": 2}, lambda: decoder(8, mixture=True)),
    "cohere2moe": (
        4,
        {
            **FURTHER_SHARED,
            **WINDOW,
            "logit_scale": 0.0625,
            "expert_gating_func": 2,
            "expert_shared_feed_forward_length": EXPERT_INNER,
        },
        lambda: without(decoder(4, tied=True, mixture=True, further=SHARED), "ffn_norm", "exp_probs"),
    ),
    "deepseek2-ocr": (
        3,
        {**FURTHER_SHARED, "attention.head_count_kv": HEADS},
        lambda: decoder(
            3,
            mixture=True,
            further={**SHARED, **dict.fromkeys(("attn_k.weight", "attn_v.weight"), ((WIDTH, WIDTH), "F16"))},
        ),
    ),
}
