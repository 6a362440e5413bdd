"""Small files of the architectures whose graphs are known, without data: names, types and shapes as llama.cpp loads them.

Source: llama.cpp b11434, src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

Shape = tuple[int, ...]
Tensors = list[tuple[str, Shape, str]]
WIDTH, HEADS, KV_HEADS, HEAD, VOCABULARY, INNER, EXPERTS, USED = 256, 4, 2, 64, 8000, 704, 16, 4
EXPERT_INNER = 96
COMMON: Mapping[str, Any] = {
    "context_length": 32_768,
    "embedding_length": WIDTH,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "rope.dimension_count": HEAD,
    "vocab_size": VOCABULARY,
}
MIXTURE: Mapping[str, Any] = {
    "expert_count": EXPERTS,
    "expert_used_count": USED,
    "expert_feed_forward_length": EXPERT_INNER,
}


def write_header(path: Path, architecture: str, keys: Mapping[str, Any], tensors: Tensors) -> Path:
    """A GGUF file whose data is a hole. Shapes as ggml has them, the row's length first."""
    made = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        if value is None:
            continue
        if isinstance(value, tuple):  # of 64 bits
            made.add_key_value(f"{architecture}.{key}", list(value), Value.ARRAY, sub_type=Value.UINT64)
            continue
        adders = {bool: made.add_bool, int: made.add_uint32, float: made.add_float32, str: made.add_string}
        add = adders.get(type(value), made.add_array)
        add(key if key.startswith(("xielu.", "general.", "adapter.", "tokenizer.")) else f"{architecture}.{key}", value)
    made.add_string("tokenizer.ggml.model", "none")
    total = 0
    for name, shape, kind in tensors:
        elements, size_bytes = gguf.GGML_QUANT_SIZES[Type[kind]]
        bytes_ = int(numpy.prod(shape)) // elements * size_bytes
        dtype = numpy.dtype(numpy.float32 if kind == "F32" else numpy.float16)
        made.add_tensor_info(name, tuple(reversed(shape)), dtype, bytes_, raw_dtype=Type[kind])
        total = -(-total // 32) * 32 + bytes_
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_ti_data_to_file()
    begin = made.fout[0].tell()
    made.close()
    os.truncate(path, -(-begin // 32) * 32 + total + 64)
    return path


def decoder(
    layers: int, *, tied: bool = False, mixture: bool = False, further: Mapping[str, tuple[Shape, str]] | None = None
) -> Tensors:
    """Llama's tensors. further: of each layer, by name."""
    tensors: Tensors = [("token_embd.weight", (WIDTH, VOCABULARY), "F16"), ("output_norm.weight", (WIDTH,), "F32")]
    if not tied:
        tensors.append(("output.weight", (WIDTH, VOCABULARY), "F16"))
    block: dict[str, tuple[Shape, str]] = {
        "attn_norm.weight": ((WIDTH,), "F32"),
        "attn_q.weight": ((WIDTH, HEADS * HEAD), "F16"),
        "attn_k.weight": ((WIDTH, KV_HEADS * HEAD), "F16"),
        "attn_v.weight": ((WIDTH, KV_HEADS * HEAD), "F16"),
        "attn_output.weight": ((HEADS * HEAD, WIDTH), "F16"),
        "ffn_norm.weight": ((WIDTH,), "F32"),
    }
    experts = {
        "ffn_gate_inp.weight": ((WIDTH, EXPERTS), "F32"),
        "ffn_gate_exps.weight": ((WIDTH, EXPERT_INNER, EXPERTS), "F16"),
        "ffn_up_exps.weight": ((WIDTH, EXPERT_INNER, EXPERTS), "F16"),
        "ffn_down_exps.weight": ((EXPERT_INNER, WIDTH, EXPERTS), "F16"),
    }
    dense = {
        "ffn_gate.weight": ((WIDTH, INNER), "F16"),
        "ffn_up.weight": ((WIDTH, INNER), "F16"),
        "ffn_down.weight": ((INNER, WIDTH), "F16"),
    }
    block |= {**(experts if mixture else dense), **(further or {})}
    return tensors + [(f"blk.{layer}.{name}", *parts) for layer in range(layers) for name, parts in block.items()]


def renamed(tensors: Tensors, before: str, after: str) -> Tensors:
    return [(name.replace(before, after), shape, kind) for name, shape, kind in tensors]


NORMED = {"attn_q_norm.weight": ((HEAD,), "F32"), "attn_k_norm.weight": ((HEAD,), "F32")}
AFTER = {"post_attention_norm.weight": ((WIDTH,), "F32"), "post_ffw_norm.weight": ((WIDTH,), "F32")}
BIASES = {
    "attn_q.bias": ((HEADS * HEAD,), "F32"),
    "attn_k.bias": ((KV_HEADS * HEAD,), "F32"),
    "attn_v.bias": ((KV_HEADS * HEAD,), "F32"),
}
SHARED = {
    "exp_probs_b.bias": ((EXPERTS,), "F32"),
    "ffn_gate_shexp.weight": ((WIDTH, EXPERT_INNER), "F16"),
    "ffn_up_shexp.weight": ((WIDTH, EXPERT_INNER), "F16"),
    "ffn_down_shexp.weight": ((EXPERT_INNER, WIDTH), "F16"),
}
GATED_SHARED = {"ffn_gate_inp_shexp.weight": ((WIDTH,), "F32"), **SHARED}
del GATED_SHARED["exp_probs_b.bias"]
AS_MANY = dict.fromkeys(("attn_k.weight", "attn_v.weight"), ((WIDTH, HEADS * HEAD), "F16"))
JOINED = {"attn_qkv.weight": ((WIDTH, (HEADS + 2 * KV_HEADS) * HEAD), "F16")}
WHOLE = {"attn_q_norm.weight": ((HEADS * HEAD,), "F32"), "attn_k_norm.weight": ((KV_HEADS * HEAD,), "F32")}
ALL_BIASES = {
    **{f"{name}.bias": ((WIDTH,), "F32") for name in ("attn_norm", "ffn_norm", "ffn_down", "attn_output")},
    "ffn_up.bias": ((INNER,), "F32"),
    **BIASES,
}
WHOLE_NORMS = {
    "attn_q_norm.weight": ((HEADS * HEAD,), "F32"),
    "attn_k_norm.weight": ((KV_HEADS * HEAD,), "F32"),
    "exp_probs_b.bias": ((EXPERTS,), "F32"),
}
SINKS = {
    "attn_sinks.weight": ((HEADS,), "F32"),
    "attn_output.bias": ((WIDTH,), "F32"),
    "ffn_gate_inp.bias": ((EXPERTS,), "F32"),
    "ffn_gate_exps.bias": ((EXPERT_INNER, EXPERTS), "F32"),
    "ffn_up_exps.bias": ((EXPERT_INNER, EXPERTS), "F32"),
    "ffn_down_exps.bias": ((WIDTH, EXPERTS), "F32"),
    **BIASES,
}
RANK, NARROW, ROPE = 128, 96, 32
LATENT = {
    "attn_q_a.weight": ((WIDTH, NARROW), "F16"),
    "attn_q_a_norm.weight": ((NARROW,), "F32"),
    "attn_q_b.weight": ((NARROW, HEADS * (HEAD + ROPE)), "F16"),
    "attn_kv_a_mqa.weight": ((WIDTH, RANK + ROPE), "F16"),
    "attn_kv_a_norm.weight": ((RANK,), "F32"),
    "attn_k_b.weight": ((HEAD, RANK, HEADS), "F16"),
    "attn_v_b.weight": ((RANK, HEAD, HEADS), "F16"),
    **SHARED,
}
GATED = {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5, "expert_shared_count": 1}
WINDOW = {"attention.sliding_window": 512}


def without(tensors: Tensors, *parts: str) -> Tensors:
    return [entry for entry in tensors if not any(part in entry[0] for part in parts)]


def phi() -> Tensors:
    joined = {
        "attn_qkv.weight": ((WIDTH, (HEADS + 2 * KV_HEADS) * HEAD), "F16"),
        "ffn_up.weight": ((WIDTH, 2 * INNER), "F16"),
    }
    return without(decoder(3, further=joined), "attn_q.", "attn_k.", "attn_v.", "ffn_gate.")


STATE, GROUPS, RECURRENT_HEADS, KERNEL = 64, 2, 4, 4
CHANNELS = (2 * GROUPS + RECURRENT_HEADS) * STATE
DELTA_KEYS: Mapping[str, Any] = {
    "full_attention_interval": 4,
    "ssm.conv_kernel": KERNEL,
    "ssm.state_size": STATE,
    "ssm.group_count": GROUPS,
    "ssm.time_step_rank": RECURRENT_HEADS,
    "ssm.inner_size": RECURRENT_HEADS * STATE,
}


def delta_net(layers: int, *, mixture: bool = False, joined: bool = False) -> Tensors:
    """Gated DeltaNet in three of four layers, gated attention in the fourth."""
    tensors = decoder(layers, mixture=mixture, further={**NORMED, **(GATED_SHARED if mixture else {})})
    strengths = (
        {"ssm_ba.weight": 2 * RECURRENT_HEADS} if joined else dict.fromkeys(("ssm_beta.weight", "ssm_alpha.weight"), 4)
    )
    linear: dict[str, tuple[Shape, str]] = {
        "attn_qkv.weight": ((WIDTH, CHANNELS), "F16"),
        "attn_gate.weight": ((WIDTH, RECURRENT_HEADS * STATE), "F16"),
        "ssm_conv1d.weight": ((KERNEL, CHANNELS), "F32"),
        "ssm_dt.bias": ((RECURRENT_HEADS,), "F32"),
        "ssm_a": ((RECURRENT_HEADS,), "F32"),
        "ssm_norm.weight": ((STATE,), "F32"),
        "ssm_out.weight": ((RECURRENT_HEADS * STATE, WIDTH), "F16"),
        **{name: ((WIDTH, count), "F16") for name, count in strengths.items()},
    }
    attention = ("attn_q.", "attn_k.", "attn_v.", "attn_output.", "attn_q_norm.", "attn_k_norm.")
    states = [layer for layer in range(layers) if (layer + 1) % 4]
    tensors = without(tensors, *(f"blk.{layer}.{name}" for layer in states for name in attention))
    tensors += [(f"blk.{layer}.{name}", *parts) for layer in states for name, parts in linear.items()]
    wide = [(name, (WIDTH, 2 * HEADS * HEAD) if ".attn_q.w" in name else shape, kind) for name, shape, kind in tensors]
    return renamed(wide, "ffn_norm", "post_attention_norm")


def short_convolutions(*, mixture: bool) -> Tensors:
    """LFM2's layers: a convolution in the first two, attention in the third; experts but in the first."""
    convolution: dict[str, tuple[Shape, str]] = {
        "shortconv.in_proj.weight": ((WIDTH, 3 * WIDTH), "F16"),
        "shortconv.conv.weight": ((3, WIDTH), "F32"),
        "shortconv.out_proj.weight": ((WIDTH, WIDTH), "F16"),
    }
    biases = {"exp_probs_b.bias": SHARED["exp_probs_b.bias"]} if mixture else {}
    tensors = decoder(3, mixture=mixture, tied=True, further={**NORMED, **biases})
    tensors = without(tensors, *(f"blk.{layer}.attn_{part}" for layer in (0, 1) for part in ("q", "k", "v", "output")))
    tensors += [(f"blk.{layer}.{name}", *parts) for layer in (0, 1) for name, parts in convolution.items()]
    return renamed(tensors, "output_norm", "token_embd_norm")


SSM: Mapping[str, Any] = {
    "attention.layer_norm_epsilon": 1e-5,
    "ssm.conv_kernel": KERNEL,
    "ssm.state_size": STATE,
    "ssm.group_count": GROUPS,
    "ssm.time_step_rank": RECURRENT_HEADS,
    "ssm.inner_size": 2 * WIDTH,
}
SSM_CHANNELS = 2 * WIDTH + 2 * GROUPS * STATE
MAMBA: Mapping[str, tuple[Shape, str]] = {
    "ssm_in.weight": ((WIDTH, 2 * WIDTH + SSM_CHANNELS + RECURRENT_HEADS), "F16"),
    "ssm_conv1d.weight": ((KERNEL, SSM_CHANNELS), "F32"),
    "ssm_conv1d.bias": ((SSM_CHANNELS,), "F32"),
    "ssm_dt.bias": ((RECURRENT_HEADS,), "F32"),
    "ssm_a": ((1, RECURRENT_HEADS), "F32"),
    "ssm_d": ((1, RECURRENT_HEADS), "F32"),
    "ssm_norm.weight": ((2 * WIDTH // GROUPS, GROUPS), "F32"),
    "ssm_out.weight": ((2 * WIDTH, WIDTH), "F16"),
}


def mamba(tensors: Tensors, layers: Sequence[int]) -> Tensors:
    """With Mamba 2 in these layers in place of attention."""
    kept = without(tensors, *(f"blk.{layer}.attn_{part}" for layer in layers for part in ("q", "k", "v", "output")))
    return kept + [(f"blk.{layer}.{name}", *parts) for layer in layers for name, parts in MAMBA.items()]


def nemotron(*, mixture: bool) -> Tensors:
    """Mamba 2, attention, a feed-forward block and Mamba 2."""
    shared = {name: parts for name, parts in SHARED.items() if "gate" not in name}
    tensors = without(
        decoder(4, mixture=mixture, further=shared if mixture else {}), "ffn_norm", "ffn_gate.", "ffn_gate_exps"
    )
    tensors = without(tensors, *(f"blk.{layer}.{part}" for layer in (0, 1, 3) for part in ("ffn", "exp_probs")))
    return mamba(without(tensors, *(f"blk.2.attn_{part}" for part in ("q", "k", "v", "output"))), (0, 3))
