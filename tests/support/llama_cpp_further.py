"""More small files, of architectures that differ further from Llama.

Source: llama.cpp b11434, src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .llama_cpp_files import (
    AFTER,
    EXPERT_INNER,
    EXPERTS,
    HEAD,
    HEADS,
    INNER,
    JOINED,
    KERNEL,
    KV_HEADS,
    MAMBA,
    MIXTURE,
    NORMED,
    RECURRENT_HEADS,
    SHARED,
    SSM,
    VOCABULARY,
    WIDTH,
    WINDOW,
    Shape,
    Tensors,
    decoder,
    renamed,
    without,
)

STATE, RANK, PER_LAYER = 16, 24, 64
SSM_1: Mapping[str, Any] = {
    "ssm.conv_kernel": KERNEL,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": RANK,
    "ssm.inner_size": 2 * WIDTH,
}
MAMBA_1: Mapping[str, tuple[Shape, str]] = {
    "ssm_in.weight": ((WIDTH, 4 * WIDTH), "F16"),
    "ssm_conv1d.weight": ((KERNEL, 2 * WIDTH), "F32"),
    "ssm_conv1d.bias": ((2 * WIDTH,), "F32"),
    "ssm_x.weight": ((2 * WIDTH, RANK + 2 * STATE), "F16"),
    "ssm_dt.weight": ((RANK, 2 * WIDTH), "F16"),
    "ssm_dt.bias": ((2 * WIDTH,), "F32"),
    "ssm_a": ((STATE, 2 * WIDTH), "F32"),
    "ssm_d": ((2 * WIDTH,), "F32"),
    "ssm_out.weight": ((2 * WIDTH, WIDTH), "F16"),
}
STEP_NORMS: Mapping[str, tuple[Shape, str]] = {
    "ssm_dt_norm.weight": ((RANK,), "F32"),
    "ssm_b_norm.weight": ((STATE,), "F32"),
    "ssm_c_norm.weight": ((STATE,), "F32"),
}
PLAMO_STEPS = 64
PLAMO_MAMBA: Mapping[str, tuple[Shape, str]] = {
    "ssm_in.weight": ((WIDTH, 4 * WIDTH), "F16"),
    "ssm_conv1d.weight": ((KERNEL, 2 * WIDTH), "F32"),
    "ssm_x.weight": ((2 * WIDTH, PLAMO_STEPS + 2 * STATE), "F16"),
    "ssm_dt.weight": ((PLAMO_STEPS, RECURRENT_HEADS), "F16"),
    "ssm_dt.bias": ((RECURRENT_HEADS,), "F32"),
    "ssm_a": ((RECURRENT_HEADS,), "F32"),
    "ssm_d": ((RECURRENT_HEADS,), "F32"),
    "ssm_out.weight": ((2 * WIDTH, WIDTH), "F16"),
    "ssm_dt_norm": ((PLAMO_STEPS,), "F32"),
    "ssm_b_norm": ((STATE,), "F32"),
    "ssm_c_norm": ((STATE,), "F32"),
}
ATTENTION = ("attn_q.", "attn_k.", "attn_v.", "attn_output.", "attn_qkv.", "attn_q_norm.", "attn_k_norm.")


def recurrent(tensors: Tensors, layers: Sequence[int], block: Mapping[str, tuple[Shape, str]]) -> Tensors:
    """With `block` in these layers in place of attention."""
    kept = without(tensors, *(f"blk.{layer}.{part}" for layer in layers for part in ATTENTION))
    return kept + [(f"blk.{layer}.{name}", *parts) for layer in layers for name, parts in block.items()]


BARE_AFTER = {"post_attention_norm": ((WIDTH,), "F32"), "post_ffw_norm": ((WIDTH,), "F32")}


def beside(tensors: Tensors) -> Tensors:
    """With Mamba 2 beside attention in every layer."""
    return tensors + [(f"blk.{layer}.{name}", *parts) for layer in range(3) for name, parts in MAMBA.items()]


def plamo() -> Tensors:
    heads = {"attn_q_norm.weight": ((HEAD, HEADS), "F32"), "attn_k_norm.weight": ((HEAD, KV_HEADS), "F32")}
    wide = {"ffn_up.weight": ((WIDTH, 2 * INNER), "F16")}
    tensors = decoder(3, further={**JOINED, **BARE_AFTER, **heads, **wide})
    tensors = without(tensors, "attn_q.", "attn_k.", "attn_v.", "ffn_gate.")
    return recurrent(tensors, (0, 2), PLAMO_MAMBA)


WIDE_MLP = {"ffn_up.weight": ((WIDTH, 2 * INNER), "F16")}
PLAIN = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5}
TWO_NORMS = {"attn_norm.bias": ((WIDTH,), "F32"), "ffn_norm.bias": ((WIDTH,), "F32")}
JOINED_BIAS = {**JOINED, "attn_qkv.bias": (((HEADS + 2 * KV_HEADS) * HEAD,), "F32")}
OUT_BIAS = {"attn_output.bias": ((WIDTH,), "F32")}
MLP_BIASES = {"ffn_up.bias": ((INNER,), "F32"), "ffn_down.bias": ((WIDTH,), "F32"), **OUT_BIAS}
SUB_NORMS = {"attn_sub_norm.weight": ((HEADS * HEAD,), "F32"), "ffn_sub_norm.weight": ((INNER,), "F32")}
GATED_AFTER = {"attn_gate.weight": ((WIDTH, HEADS * HEAD), "F16")}
PARTS = ("attn_q.", "attn_k.", "attn_v.")
OUTPUT_BIAS = ("output.bias", (VOCABULARY,), "F32")
LAST_BIAS: Tensors = [("output_norm.bias", (WIDTH,), "F32")]
FURTHER_SHARED = {**MIXTURE, "expert_shared_count": 1, "expert_weights_norm": True, "leading_dense_block_count": 0}


def gpt(*, mlp_norm: bool = True) -> Tensors:
    """Layer norms with biases, Q, K and V in one matrix, an MLP of two matrices."""
    tensors = decoder(3, further={**JOINED_BIAS, **TWO_NORMS, **MLP_BIASES})
    tensors = without(tensors, *PARTS, "ffn_gate.", *(() if mlp_norm else ("ffn_norm.",)))
    return tensors + LAST_BIAS


def positioned(tensors: Tensors) -> Tensors:
    return [*tensors, ("position_embd.weight", (WIDTH, 32_768), "F16")]


def deci() -> Tensors:
    """Attention, a matrix in its place, none, and a layer without a feed-forward block."""
    tensors = without(decoder(4), *(f"blk.1.{part}" for part in PARTS))
    return without(tensors, "blk.2.attn", "blk.3.ffn")


LAYER_TABLE = {
    "inp_gate.weight": ((WIDTH, PER_LAYER), "F16"),
    "proj.weight": ((PER_LAYER, WIDTH), "F16"),
    "post_norm.weight": ((WIDTH,), "F32"),
}
ALTUP, LAUREL, ALTUP_WIDTH = 4, 64, 256  # n_altup, laurel_rank, n_embd_altup: llama-hparams.h
ALTUP_LAYER = {
    "inp_gate.weight": ((WIDTH, ALTUP_WIDTH), "F16"),
    "proj.weight": ((ALTUP_WIDTH, WIDTH), "F16"),
    "post_norm.weight": ((WIDTH,), "F32"),
    "altup_correct_coef.weight": ((ALTUP, ALTUP), "F16"),
    "altup_correct_scale.weight": ((WIDTH,), "F32"),
    "altup_predict_coef.weight": ((ALTUP, ALTUP * ALTUP), "F16"),
    "altup_router.weight": ((WIDTH, ALTUP), "F16"),
    "altup_router_norm.weight": ((WIDTH,), "F32"),
    "laurel_l.weight": ((WIDTH, LAUREL), "F16"),
    "laurel_r.weight": ((LAUREL, WIDTH), "F16"),
    "laurel_post_norm.weight": ((WIDTH,), "F32"),
}
SECOND_BLOCK = {
    "ffn_gate.weight": ((WIDTH, INNER), "F16"),
    "ffn_up.weight": ((WIDTH, INNER), "F16"),
    "ffn_down.weight": ((INNER, WIDTH), "F16"),
    "ffn_gate_inp.scale": ((WIDTH,), "F32"),
    "ffn_down_exps.scale": ((EXPERTS,), "F32"),
    **dict.fromkeys(
        (f"{name}.weight" for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")), ((WIDTH,), "F32")
    ),
}


def by_layer(tensors: Tensors, layers: int, width: int) -> Tensors:
    return [
        *tensors,
        ("per_layer_token_embd.weight", (layers * width, VOCABULARY), "F16"),
        ("per_layer_model_proj.weight", (WIDTH, layers * width), "F16"),
        ("per_layer_proj_norm.weight", (width,), "F32"),
    ]


def gemma_4(layers: int, further: Mapping[str, tuple[Shape, str]], *, mixture: bool = False) -> Tensors:
    """Full attention in the last layer of four, with wider heads and K for V; as many last layers as told use others' cells."""
    scale = {"layer_output_scale.weight": ((1,), "F32")}
    tensors = decoder(layers, tied=True, mixture=mixture, further={**NORMED, **AFTER, **scale, **further})
    full = {
        "attn_q.weight": (WIDTH, 2 * HEADS * HEAD),
        "attn_k.weight": (WIDTH, 2 * KV_HEADS * HEAD),
        "attn_output.weight": (2 * HEADS * HEAD, WIDTH),
        "attn_q_norm.weight": (2 * HEAD,),
        "attn_k_norm.weight": (2 * HEAD,),
    }
    wide = {f"blk.{layer}.{name}": shape for layer in range(3, layers, 4) for name, shape in full.items()}
    tensors = [(name, wide.get(name, shape), kind) for name, shape, kind in tensors]
    tensors.append(("rope_freqs.weight", (HEAD,), "F32"))
    return without(tensors, *(f"blk.{layer}.attn_v." for layer in range(3, layers, 4)))


GEMMA_4 = {
    **WINDOW,
    "attention.key_length": 2 * HEAD,
    "attention.value_length": 2 * HEAD,
    "attention.key_length_swa": HEAD,
    "attention.value_length_swa": HEAD,
    "rope.dimension_count": 2 * HEAD,
    "rope.dimension_count_swa": HEAD,
    "embedding_length_per_layer_input": 0,
    "attention.sliding_window_pattern": [True, True, True, False, True, True, True, False],
}


FURTHER: Mapping[str, tuple[int, Mapping[str, Any], Callable[[], Tensors]]] = {
    "apertus": (
        3,
        {f"xielu.{name}": 0.8 for name in ("alpha_n", "alpha_p", "beta", "eps")},
        lambda: without(decoder(3, further=NORMED), "ffn_gate."),
    ),
    "bitnet": (3, {}, lambda: decoder(3, tied=True, further=SUB_NORMS)),
    "chatglm": (3, {}, lambda: without(decoder(3, further=WIDE_MLP), "ffn_gate.")),
    "dbrx": (
        3,
        {**MIXTURE, **PLAIN, "feed_forward_length": EXPERT_INNER, "attention.clamp_kqv": 8.0},
        lambda: renamed(without(decoder(3, mixture=True, further=JOINED), *PARTS), "ffn_norm", "attn_output_norm"),
    ),
    "deci": (
        4,
        {
            "attention.head_count": [HEADS, HEADS, 0, HEADS],
            "attention.head_count_kv": [KV_HEADS, 0, 0, KV_HEADS],
            "feed_forward_length": [INNER, INNER, INNER, 0],
        },
        deci,
    ),
    "exaone": (3, {}, lambda: decoder(3)),
    "hunyuan_vl": (3, {"rope.dimension_sections": [16, 16, 0, 0]}, lambda: decoder(3, further=NORMED)),
    "plamo3": (
        3,
        {},
        lambda: without(decoder(3, further={**JOINED, **NORMED, **BARE_AFTER, **WIDE_MLP}), *PARTS, "ffn_gate."),
    ),
    "qwen": (
        3,
        {"attention.head_count_kv": HEADS, "feed_forward_length": 2 * INNER},
        lambda: without(
            decoder(
                3,
                further={
                    "attn_qkv.weight": ((WIDTH, 3 * WIDTH), "F16"),
                    "attn_qkv.bias": ((3 * WIDTH,), "F32"),
                },
            ),
            *PARTS,
        ),
    ),
    "stablelm": (3, PLAIN, lambda: without(decoder(3, further=TWO_NORMS), "blk.1.ffn_norm") + LAST_BIAS),
    "bloom": (
        3,
        PLAIN,
        lambda: [*gpt(), ("token_embd_norm.weight", (WIDTH,), "F32"), ("token_embd_norm.bias", (WIDTH,), "F32")],
    ),
    "gpt2": (3, PLAIN, lambda: positioned(gpt())),
    "mpt": (3, {**PLAIN, "attention.max_alibi_bias": 8.0}, gpt),
    "starcoder": (3, PLAIN, lambda: positioned(gpt())),
    "command-r": (3, {**PLAIN, "logit_scale": 0.0625}, lambda: without(decoder(3, tied=True), "ffn_norm")),
    "cohere2": (
        4,
        {**PLAIN, **WINDOW, "logit_scale": 0.0625},
        lambda: without(decoder(4, tied=True), "ffn_norm"),
    ),
    "gptneox": (3, {**PLAIN, "use_parallel_residual": True}, gpt),
    "falcon": (
        3,
        PLAIN,
        lambda: without(gpt(mlp_norm=False), "attn_qkv.bias", "up.bias", "down.bias", "attn_output.bias"),
    ),
    "phi2": (3, PLAIN, lambda: [*gpt(mlp_norm=False), OUTPUT_BIAS]),
    "nemotron": (3, PLAIN, lambda: without(decoder(3, further=TWO_NORMS), "ffn_gate.") + LAST_BIAS),
    "olmo": (3, PLAIN, lambda: without(decoder(3), "norm")),
    "exaone-moe": (
        4,
        {**FURTHER_SHARED, **WINDOW, "expert_gating_func": 2},
        lambda: decoder(4, mixture=True, further={**NORMED, **SHARED}),
    ),
    "bailingmoe": (
        3,
        FURTHER_SHARED,
        lambda: without(decoder(3, mixture=True, further=SHARED), "exp_probs"),
    ),
    "afmoe": (
        4,
        {**FURTHER_SHARED, **WINDOW, "expert_gating_func": 2},
        lambda: decoder(4, mixture=True, further={**NORMED, **SHARED, **AFTER, **GATED_AFTER}),
    ),
    "mimo2": (
        4,
        {**MIXTURE, **WINDOW, "attention.sliding_window_pattern": [1, 1, 1, 0], "attention.value_scale": 0.6},
        lambda: decoder(4, mixture=True),
    ),
    "phimoe": (
        3,
        {**MIXTURE, "feed_forward_length": EXPERT_INNER},
        lambda: [*decoder(3, mixture=True, further={**TWO_NORMS, **OUT_BIAS}), *LAST_BIAS, OUTPUT_BIAS],
    ),
    "gemma3n": (
        25,
        {**WINDOW, "embedding_length_per_layer_input": ALTUP_WIDTH},
        lambda: [
            *by_layer(decoder(25, tied=True, further={**NORMED, **AFTER, **ALTUP_LAYER}), 25, ALTUP_WIDTH),
            *((name, (WIDTH, WIDTH, ALTUP - 1), "F16") for name in ("altup_proj.weight", "altup_unembd_proj.weight")),
        ],
    ),
    "gemma4": (
        8,
        {**GEMMA_4, "embedding_length_per_layer_input": PER_LAYER, "attention.shared_kv_layers": 4},
        lambda: by_layer(gemma_4(8, LAYER_TABLE), 8, PER_LAYER),
    ),
    "gemma4:mixture": (8, {**GEMMA_4, **MIXTURE}, lambda: gemma_4(8, SECOND_BLOCK, mixture=True)),
    "llama4": (
        4,
        {**MIXTURE, "interleave_moe_layer_step": 1},
        lambda: without(decoder(4, mixture=True, further=SHARED), "exp_probs"),
    ),
    "llama4:full": (
        4,
        {**MIXTURE, "interleave_moe_layer_step": 1, "expert_used_count": 1, "attention.sliding_window": 0},
        lambda: without(decoder(4, mixture=True, further=SHARED), "exp_probs"),
    ),
    "mamba:falcon": (
        3,
        {**SSM_1, "attention.head_count": 0, "feed_forward_length": 0, "ssm.dt_b_c_rms": True},
        lambda: recurrent(without(decoder(3), "ffn_"), (0, 1, 2), MAMBA_1),
    ),
    "falcon-h1": (3, SSM, lambda: renamed(beside(decoder(3)), "ffn_norm.weight", "ffn_norm")),
    "mamba": (
        3,
        {**SSM_1, "attention.head_count": 0, "feed_forward_length": 0},
        lambda: recurrent(without(decoder(3), "ffn_"), (0, 1, 2), MAMBA_1),
    ),
    "jamba": (
        3,
        {**SSM_1, "attention.head_count_kv": [0, KV_HEADS, 0]},
        lambda: recurrent(decoder(3), (0, 2), {**MAMBA_1, **STEP_NORMS}),
    ),
    "plamo2": (
        3,
        {
            **SSM_1,
            "attention.head_count_kv": [0, KV_HEADS, 0],
            "ssm.group_count": 0,
            "ssm.time_step_rank": RECURRENT_HEADS,
        },
        plamo,
    ),
}
