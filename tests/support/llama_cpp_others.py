"""Small files of architectures that resemble no other: Grok, T5, RWKV.

Source: llama.cpp b11434, src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .llama_cpp_encoders import EMBEDDING_NORM
from .llama_cpp_files import (
    AFTER,
    EXPERT_INNER,
    EXPERTS,
    HEADS,
    INNER,
    KV_HEADS,
    MIXTURE,
    NORMED,
    SHARED,
    SSM,
    VOCABULARY,
    WIDTH,
    WINDOW,
    Shape,
    Tensors,
    decoder,
    nemotron,
    without,
)
from .llama_cpp_further import FURTHER_SHARED, LAST_BIAS, PLAIN

GROK_NORMS = {"attn_output_norm.weight": ((WIDTH,), "F32")}
GROK_DENSE = {
    "ffn_gate.weight": ((WIDTH, INNER), "F16"),
    "ffn_up.weight": ((WIDTH, INNER), "F16"),
    "ffn_down.weight": ((INNER, WIDTH), "F16"),
    "post_ffw_norm.weight": ((WIDTH,), "F32"),
}
RELATIVE: Mapping[str, Any] = {
    "attention.relative_buckets_count": 32,
    "context_length": 512,
    "attention.head_count_kv": HEADS,
}
T5_BLOCK: Mapping[str, tuple[Shape, str]] = {
    "attn_norm.weight": ((WIDTH,), "F32"),
    **{f"attn_{part}.weight": ((WIDTH, WIDTH), "F16") for part in "qkvo"},
    "ffn_norm.weight": ((WIDTH,), "F32"),
    "ffn_up.weight": ((WIDTH, INNER), "F16"),
    "ffn_down.weight": ((INNER, WIDTH), "F16"),
}
GATE: Mapping[str, tuple[Shape, str]] = {"ffn_gate.weight": ((WIDTH, INNER), "F16")}
CROSS: Mapping[str, tuple[Shape, str]] = {
    "cross_attn_norm.weight": ((WIDTH,), "F32"),
    **{f"cross_attn_{part}.weight": ((WIDTH, WIDTH), "F16") for part in "qkvo"},
}


def t5(part: str, layers: int, further: Mapping[str, tuple[Shape, str]]) -> Tensors:
    """An encoder or a decoder, whose first layer has the table of distances."""
    block = {**T5_BLOCK, **further}
    return [
        (f"{part}.output_norm.weight", (WIDTH,), "F32"),
        (f"{part}.blk.0.attn_rel_b.weight", (HEADS, 32), "F16"),
        *((f"{part}.blk.{layer}.{name}", *kind) for layer in range(layers) for name, kind in block.items()),
    ]


EXTRA = 32
CHUNKS: Mapping[str, tuple[Shape, str]] = {
    **{f"ffn_{part}_chexps.weight": ((WIDTH, EXTRA, EXPERTS // 2), "F16") for part in ("gate", "up")},
    "ffn_down_chexps.weight": ((EXTRA, WIDTH, EXPERTS // 2), "F16"),
}
EMBEDDING: Tensors = [("token_embd.weight", (WIDTH, VOCABULARY), "F16")]
WKV_HEAD, DECAY = 64, 48
RWKV: Mapping[str, Any] = {
    **PLAIN,
    "attention.head_count": 0,
    "attention.head_count_kv": 0,
    "wkv.head_size": WKV_HEAD,
    "token_shift_count": 2,
    "time_mix_extra_dim": EXTRA,
    "time_decay_extra_dim": DECAY,
    "rescale_every_n_layers": 2,
}
SQUARE = ((WIDTH, WIDTH), "F16")
ROW = ((WIDTH,), "F32")
LERP = ((WIDTH, 1, 1), "F32")
TIME_MIX_6: Mapping[str, tuple[Shape, str]] = {
    "time_mix_w1.weight": ((WIDTH, 5 * EXTRA), "F16"),
    "time_mix_w2.weight": ((EXTRA, WIDTH, 5), "F16"),
    "time_mix_lerp_x.weight": LERP,
    "time_mix_lerp_fused.weight": ((WIDTH, 1, 1, 5), "F32"),
    "time_mix_decay.weight": ROW,
    "time_mix_decay_w1.weight": ((WIDTH, DECAY), "F16"),
    "time_mix_decay_w2.weight": ((DECAY, WIDTH), "F16"),
    **{f"time_mix_{name}.weight": SQUARE for name in ("key", "value", "receptance", "gate", "output")},
}
GROUP_NORM = {"time_mix_ln.weight": ROW, "time_mix_ln.bias": ROW}
CHANNEL_MIX: Mapping[str, tuple[Shape, str]] = {
    "attn_norm.bias": ROW,
    "attn_norm_2.weight": ROW,
    "attn_norm_2.bias": ROW,
    "channel_mix_lerp_k.weight": LERP,
    "channel_mix_key.weight": ((WIDTH, INNER), "F16"),
    "channel_mix_value.weight": ((INNER, WIDTH), "F16"),
}
FIRST: Mapping[str, tuple[Shape, str]] = {
    "time_mix_first.weight": ((WKV_HEAD, WIDTH // WKV_HEAD), "F32"),
    "channel_mix_lerp_r.weight": LERP,
    "channel_mix_receptance.weight": SQUARE,
}
TIME_MIX_7: Mapping[str, tuple[Shape, str]] = {
    **{f"time_mix_{name}0.weight": ROW for name in "wav"},
    **{f"time_mix_{name}1.weight": ((WIDTH, EXTRA), "F16") for name in "wav"},
    **{f"time_mix_{name}2.weight": ((EXTRA, WIDTH), "F16") for name in "wav"},
    **{f"time_mix_{name}.weight": ROW for name in ("k_k", "k_a", "r_k")},
    **{f"time_mix_{name}.weight": SQUARE for name in ("key", "value", "receptance", "output")},
}
GATE_7: Mapping[str, tuple[Shape, str]] = {
    "time_mix_lerp_fused.weight": ((WIDTH, 1, 1, 6), "F32"),
    "time_mix_g1.weight": ((WIDTH, EXTRA), "F16"),
    "time_mix_g2.weight": ((EXTRA, WIDTH), "F16"),
}
RANKS_7 = {f"attention.{name}_lora_rank": EXTRA for name in ("decay", "iclr", "value_residual_mix", "gate")}


def rwkv(block: Mapping[str, tuple[Shape, str]], *, dense: bool = False) -> Tensors:
    """dense: with a feed-forward block, not a channel mix."""
    tensors = without(decoder(3, further=block), "attn_q", "attn_k", "attn_v", "attn_output")
    return tensors if dense else [*without(tensors, "ffn_"), *LAST_BIAS, *EMBEDDING_NORM]


PATTERNED: Mapping[str, Any] = {**WINDOW, "attention.sliding_window_pattern": [True, True, True, False]}


def latent_experts() -> Tensors:
    """Nemotron's mixture with experts of a narrower state."""
    latent: dict[str, tuple[Shape, str]] = {
        "ffn_latent_down.weight": ((WIDTH, EXTRA), "F16"),
        "ffn_latent_up.weight": ((EXTRA, WIDTH), "F16"),
        "ffn_up_exps.weight": ((EXTRA, EXPERT_INNER, EXPERTS), "F16"),
        "ffn_down_exps.weight": ((EXPERT_INNER, EXTRA, EXPERTS), "F16"),
    }
    kept = without(nemotron(mixture=True), "ffn_up_exps", "ffn_down_exps")
    return kept + [(f"blk.2.{name}", *kind) for name, kind in latent.items()]


OTHERS: Mapping[str, tuple[int, Mapping[str, Any], Callable[[], Tensors]]] = {
    "step35:clamped": (
        4,
        {
            **FURTHER_SHARED,
            **PATTERNED,
            "expert_gating_func": 2,
            "expert_shared_feed_forward_length": EXPERT_INNER,
            "swiglu_clamp_exp": [0.0, 0.0, 7.0, 7.0],
            "swiglu_clamp_shexp": [0.0, 0.0, 0.0, 16.0],
        },
        lambda: decoder(4, mixture=True, further={**NORMED, **SHARED, "attn_gate.weight": ((WIDTH, HEADS), "F16")}),
    ),
    "nemotron_h_moe:latent": (
        4,
        {
            **SSM,
            **MIXTURE,
            "attention.head_count_kv": [0, KV_HEADS, 0, 0],
            "feed_forward_length": [0, 0, EXPERT_INNER, 0],
            "moe_latent_size": EXTRA,
            "expert_shared_feed_forward_length": EXPERT_INNER,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
        },
        latent_experts,
    ),
    "maple": (
        4,
        {**MIXTURE, **PATTERNED, "swiglu_clamp_exp": [7.0] * 4},
        lambda: decoder(4, mixture=True, further=NORMED),
    ),
    "muse-glimmer": (
        4,
        {**WINDOW, "logit_scale": 0.5, "final_logit_softcapping": 30.0},
        lambda: decoder(4, further={**NORMED, **AFTER, "attn_gate.weight": ((WIDTH, WIDTH), "F16")}),
    ),
    "spark2_5": (4, PATTERNED, lambda: decoder(4, further={"attn_gate.weight": ((WIDTH, HEADS), "F16")})),
    "grok": (
        3,
        {**MIXTURE, "feed_forward_length": EXPERT_INNER},
        lambda: decoder(3, mixture=True, further={**GROK_NORMS, "layer_output_norm.weight": ((WIDTH,), "F32")}),
    ),
    "rwkv6": (3, RWKV, lambda: rwkv({**TIME_MIX_6, **GROUP_NORM, **CHANNEL_MIX, **FIRST})),
    "rwkv6:apart": (
        3,
        {**RWKV, "rescale_every_n_layers": 0},
        lambda: without(
            rwkv(
                {
                    **TIME_MIX_6,
                    **GROUP_NORM,
                    **CHANNEL_MIX,
                    **FIRST,
                    **{f"time_mix_lerp_{name}.weight": LERP for name in "wkvrg"},
                }
            ),
            "lerp_fused",
        ),
    ),
    "rwkv6qwen2": (
        3,
        {**RWKV, "attention.head_count": HEADS, "attention.head_count_kv": 2, "token_shift_count": 1},
        lambda: rwkv(
            {
                **TIME_MIX_6,
                **{f"time_mix_{name}.weight": ((WIDTH, 2 * WKV_HEAD), "F16") for name in ("key", "value")},
                **{f"time_mix_{name}.bias": ((2 * WKV_HEAD,), "F32") for name in ("key", "value")},
                "time_mix_receptance.bias": ROW,
            },
            dense=True,
        ),
    ),
    "rwkv7": (
        3,
        {**RWKV, **RANKS_7},
        lambda: rwkv({**TIME_MIX_7, **GATE_7, **GROUP_NORM, **CHANNEL_MIX}),
    ),
    "arwkv7": (
        3,
        {**RWKV, **RANKS_7, "token_shift_count": 1},
        lambda: rwkv({**TIME_MIX_7, "time_mix_lerp_fused.weight": ((WIDTH, 1, 1, 5), "F32")}, dense=True),
    ),
    "arwkv7:gated": (
        3,
        {**RWKV, **RANKS_7, "token_shift_count": 1},
        lambda: rwkv({**TIME_MIX_7, **GATE_7, **GROUP_NORM}, dense=True),
    ),
    "t5": (
        3,
        {**RELATIVE, "decoder_block_count": 2},
        lambda: [
            *EMBEDDING,
            ("output.weight", (WIDTH, VOCABULARY), "F16"),
            *t5("enc", 3, GATE),
            *t5("dec", 2, {**CROSS, **GATE}),
        ],
    ),
    "t5:relu": (3, RELATIVE, lambda: [*EMBEDDING, *t5("enc", 3, {}), *t5("dec", 3, CROSS)]),
    "t5encoder": (3, {**RELATIVE, "pooling_type": 1}, lambda: [*EMBEDDING, *t5("enc", 3, GATE)]),
    "grovemoe": (
        3,
        {**MIXTURE, "expert_group_scale": 0.05, "experts_per_group": 2, "expert_chunk_feed_forward_length": EXTRA},
        lambda: decoder(3, mixture=True, further={**NORMED, **CHUNKS}),
    ),
    "grok:2": (
        3,
        {**MIXTURE, "final_logit_softcapping": 50.0},
        lambda: decoder(3, mixture=True, further={**GROK_NORMS, **GROK_DENSE}),
    ),
}
