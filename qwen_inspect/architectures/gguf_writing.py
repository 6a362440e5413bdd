"""What llama.cpp's converter writes of a configuration: the metadata that decides bytes, and the tensors under GGUF names.

Source: llama.cpp 0c1e57098, conversion/ (TextModel.set_gguf_parameters and the classes' own; ModelBase.prepare_tensors) and
gguf-py/gguf/tensor_mapping.py. Towers go into a file of their own. Layers for multi-token prediction are written for the families
in `WITH_PREDICTION` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import DType, Tensor
from ..errors import UnsupportedError
from ..results.attention import LayerAttention
from ..spec import SoftmaxAttention, each_module, each_tensor
from .design import Architecture, StoredForm
from .gguf import NAMES
from .reading import MOST_LAYERS, integer

# model_type -> general.architecture.
ARCHITECTURES: Mapping[str, str] = {
    "arcee": "arcee",
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "glm4": "glm4",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "olmoe",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen2_vl": "qwen2vl",
    "qwen2_5_vl": "qwen2vl",
    "qwen3": "qwen3",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
}
LINEAR = frozenset({"qwen35", "qwen35moe", "qwen3next"})
WITH_PREDICTION = LINEAR
OTHER_NAMES: Mapping[str, str] = {
    "model.final_layernorm": "output_norm",
    "block_sparse_moe.experts": "mlp.experts",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.router": "ffn_gate_inp",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "post_feedforward_layernorm": "post_ffw_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "self_attn.dense": "attn_output",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.qkv_proj": "attn_qkv",
}
# Where the norm before the MLP has another name, this one follows attention.
NORM_AFTER_ATTENTION = frozenset({"gemma2", "gemma3", "olmo2", "exaone4", "seed_oss"}) | LINEAR
# Tensors of a layer for multi-token prediction besides those of any layer.
PREDICTION: Mapping[str, str] = {
    "mtp.fc.weight": "nextn.eh_proj.weight",
    "mtp.norm.weight": "nextn.shared_head_norm.weight",
    "mtp.pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
}
# Configuration key -> GGUF key. The first key of a row that the configuration has is written.
KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("block_count", ("num_hidden_layers",)),
    ("context_length", ("max_position_embeddings",)),
    ("embedding_length", ("hidden_size",)),
    ("feed_forward_length", ("intermediate_size",)),
    ("attention.head_count", ("num_attention_heads",)),
    ("attention.head_count_kv", ("num_key_value_heads", "num_attention_heads")),
    ("expert_count", ("num_local_experts", "num_experts", "n_routed_experts")),
    ("expert_used_count", ("num_experts_per_tok",)),
    ("expert_feed_forward_length", ("moe_intermediate_size",)),
    ("expert_shared_feed_forward_length", ("shared_expert_intermediate_size",)),
    ("expert_shared_count", ("n_shared_experts",)),
    ("leading_dense_block_count", ("first_k_dense_replace",)),
    ("attention.q_lora_rank", ("q_lora_rank",)),
    ("attention.kv_lora_rank", ("kv_lora_rank",)),
)
TOWERS = re.compile(r"(model\.)?(visual|vision_tower|vision_model|multi_modal_projector|audio_tower|embed_vision)\.")
DECODER = re.compile(r"(model\.)?language_model\.(model\.)?")
IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
IN_PREDICTION = re.compile(r"mtp\.layers\.(\d+)\.(.+)")
WIDE = ("norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight")


def as_converted(
    config: Mapping[str, Any], architecture: Architecture, dtype: DType
) -> tuple[Mapping[str, Any], tuple[Tensor, ...]]:
    """The metadata and the tensors, matrices in `dtype`. UnsupportedError for a family whose conversion is not known here."""
    model_type = str(config.get("model_type"))
    name = ARCHITECTURES.get(model_type)
    ahead = architecture.prediction_layers
    if name is None or (ahead and name not in WITH_PREDICTION):
        raise UnsupportedError("gguf_not_written", found=model_type, known=", ".join(ARCHITECTURES))
    nested = config.get("text_config")
    text = _with_class_defaults({**config, **nested} if isinstance(nested, Mapping) else config, architecture)
    try:
        return _converted(name, text, architecture, dtype)
    except KeyError as error:  # a default of the class that the design does not tell
        raise UnsupportedError("gguf_key_not_stated", key=str(error.args[0])) from None


def _with_class_defaults(text: Mapping[str, Any], architecture: Architecture) -> Mapping[str, Any]:
    """`text` with what the class takes for keys that it lacks, as the converter has them from AutoConfig.

    UnsupportedError for such a key of a mixture of experts, which the design does not tell.
    """
    spec, read = architecture.spec, _first_softmax(architecture)
    known: dict[str, Any] = {"hidden_size": spec.hidden_size, "max_position_embeddings": spec.context_tokens}
    if read is not None:
        known |= {"num_attention_heads": read.query_heads, "num_key_value_heads": read.kv_heads}
        if read.head_dim * read.query_heads != spec.hidden_size:
            known["head_dim"] = read.head_dim
    for _, module in each_module(architecture.tree):
        if module.routed is not None and text.get("num_experts_per_tok") is None:
            raise UnsupportedError("gguf_key_not_stated", key="num_experts_per_tok")
        dense = module.name == "mlp" and all(child.name != "experts" for child in module.children)
        if dense and text.get("intermediate_size") is None:
            raise UnsupportedError("gguf_key_not_stated", key="intermediate_size")
    return {**text, **{key: value for key, value in known.items() if text.get(key) is None and value is not None}}


def _first_softmax(architecture: Architecture) -> LayerAttention | SoftmaxAttention | None:
    layers = architecture.spec.layers
    if layers:
        return architecture.spec.softmax
    return next((read for read, _ in architecture.kept or () if isinstance(read, LayerAttention)), None)


def _converted(
    name: str, text: Mapping[str, Any], architecture: Architecture, dtype: DType
) -> tuple[Mapping[str, Any], tuple[Tensor, ...]]:
    ahead = architecture.prediction_layers
    metadata: dict[str, Any] = {"general.architecture": name}
    keys = _keys(name, text, architecture)
    layers = integer(text, "num_hidden_layers", at_most=MOST_LAYERS)
    if ahead:
        keys |= {"block_count": layers + 1, "nextn_predict_layers": 1}
    metadata |= {f"{name}.{key}": value for key, value in keys.items()}
    ahead = tuple(replace(tensor, name=_ahead(tensor.name, layers)) for tensor in ahead)
    held = (*each_tensor(architecture.tree), *architecture.buffers, *ahead)
    tensors = [part for tensor in held for part in _written(tensor, name, text)]
    tensors += _rope_factors(name, text)
    return metadata, tuple(
        Tensor(tensor.name, tensor.shape, DType.F32 if len(tensor.shape) < 2 or tensor.name.endswith(WIDE) else dtype)
        for tensor in tensors
    )


def _ahead(name: str, layers: int) -> str:
    """A tensor for multi-token prediction belongs to the layer behind the last. Source: conversion/qwen.py, _Qwen35MtpMixin."""
    if match := IN_PREDICTION.fullmatch(name):
        return f"model.layers.{layers + int(match[1])}.{match[2]}"
    return f"blk.{layers}.{PREDICTION[name]}" if name in PREDICTION else name


def stored_form_of(architecture: str, config: Mapping[str, Any]) -> StoredForm:
    """The tensors of a GGUF file of this architecture for a tensor of the model."""
    return lambda tensor: tuple(_written(tensor, architecture, config))


def _keys(name: str, text: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    keys: dict[str, Any] = {"vocab_size": architecture.spec.vocab_size}
    for key, sources in KEYS:
        value = next((text[source] for source in sources if text.get(source) is not None), None)
        if value is not None:
            keys[key] = value
    if text.get("head_dim") is not None:
        keys["attention.key_length"] = keys["attention.value_length"] = text["head_dim"]
    if name == "deepseek2":
        rank, rope = text["kv_lora_rank"], text["qk_rope_head_dim"]
        keys |= {
            "attention.head_count_kv": 1,
            "attention.key_length": rank + rope,
            "attention.value_length": rank,
            "attention.key_length_mla": text["qk_nope_head_dim"] + rope,
            "attention.value_length_mla": text["v_head_dim"],
            "rope.dimension_count": rope,
        }
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
    if name == "glm4":
        keys["rope.dimension_count"] = int(keys["attention.key_length"] * _partial_rotary(text, 0.5))
    windows = [layer.window_tokens for _, layer in architecture.kept or ()]
    if any(windows) and name in ("gemma2", "gemma3", "olmo2", "exaone4"):
        keys["attention.sliding_window"] = next(window for window in windows if window)
        if name != "gemma2":
            keys["attention.sliding_window_pattern"] = [window is not None for window in windows]
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


def _written(tensor: Tensor, architecture: str, text: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors as which a tensor of transformers' class is written; none of a tower."""
    if TOWERS.match(tensor.name):
        return
    if tensor.name.startswith("blk."):
        yield tensor
        return
    full = DECODER.sub("model.", tensor.name)
    layer = IN_LAYER.fullmatch(full)
    prefix, name = (f"blk.{layer[1]}.", layer[2]) if layer else ("", full)
    name = name.replace("block_sparse_moe.experts.", "mlp.experts.")
    if name == "mlp.experts.gate_up_proj":
        count, doubled, hidden = tensor.shape
        for part in ("gate", "up"):
            yield Tensor(f"{prefix}ffn_{part}_exps.weight", (count, doubled // 2, hidden), tensor.dtype)
        return
    if name == "mlp.experts.down_proj":
        yield Tensor(f"{prefix}ffn_down_exps.weight", tensor.shape, tensor.dtype)
        return
    if name == "self_attn.kv_b_proj.weight":
        heads, nope, values = (text[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
        rank = tensor.shape[1]
        yield Tensor(f"{prefix}attn_k_b.weight", (heads, rank, nope), tensor.dtype)
        yield Tensor(f"{prefix}attn_v_b.weight", (heads, values, rank), tensor.dtype)
        return
    if name in ("linear_attn.A_log", "linear_attn.dt_bias"):
        yield Tensor(prefix + ("ssm_a" if name.endswith("A_log") else "ssm_dt.bias"), tensor.shape, tensor.dtype)
        return
    if name == "linear_attn.in_proj_qkvz.weight":
        values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
        rows, hidden = tensor.shape
        yield Tensor(f"{prefix}attn_qkv.weight", (rows - values, hidden), tensor.dtype)
        yield Tensor(f"{prefix}attn_gate.weight", (values, hidden), tensor.dtype)
        return
    if name == "mlp.gate.e_score_correction_bias":
        yield Tensor(f"{prefix}exp_probs_b.bias", tensor.shape, tensor.dtype)
        return
    module, _, kind = name.rpartition(".")
    stored = OTHER_NAMES.get(module) or NAMES.get(module)
    if module == "post_attention_layernorm" and architecture in NORM_AFTER_ATTENTION:
        stored = "post_attention_norm"
    if stored is None:
        raise UnsupportedError("gguf_tensor_not_written", name=tensor.name)
    sides = tensor.shape[1:] if module == "mlp.shared_expert_gate" else tensor.shape
    if module == "linear_attn.conv1d":
        sides = (tensor.shape[0], tensor.shape[2])
    yield Tensor(f"{prefix}{stored}.{kind}", sides, tensor.dtype)


def _rope_factors(architecture: str, text: Mapping[str, Any]) -> Iterator[Tensor]:
    """RoPE's factors where the scaling has one for each pair of channels.

    Source: conversion/llama.py, LlamaModel.generate_extra_tensors; conversion/phi.py, Phi3MiniModel.generate_extra_tensors.
    """
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else None
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if kind == "llama3":
        yield Tensor("rope_freqs.weight", (head // 2,), DType.F32)
    if kind == "longrope" and architecture == "phi3":
        assert isinstance(rope, Mapping)
        for side in ("long", "short"):
            factors = rope.get(f"{side}_factor")
            if isinstance(factors, list):
                yield Tensor(f"rope_factors_{side}.weight", (len(factors),), DType.F32)
