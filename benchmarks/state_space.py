"""Configurations with the structures of released state space models that the catalog does not have; sizes do not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_inspect.architectures.families import CLASSES

MAMBA, FULL = "linear_attention", "full_attention"
_ATTENTION: Mapping[str, Any] = {
    "dtype": "bfloat16",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 8192,
}
_MAMBA2: Mapping[str, Any] = {
    "mamba_n_heads": 16,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 64,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 256,
}
_ALONE: Mapping[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "state_size": 64,
    "conv_kernel": 4,
    "expand": 2,
    "pad_token_id": 0,
}


def _of(model_type: str, parts: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {"model_type": model_type, "architectures": [CLASSES[model_type][0]]}
    for part in parts:
        whole |= part
    return whole | changes


def _granite(**changes: Any) -> dict[str, Any]:
    types = [MAMBA, MAMBA, FULL, MAMBA, MAMBA, FULL, MAMBA, MAMBA]
    own = {"layer_types": types, "shared_intermediate_size": 512, "num_experts_per_tok": 2, "num_local_experts": 8}
    return _of("granitemoehybrid", (_ATTENTION, _MAMBA2, own), tie_word_embeddings=True, **changes)


def _falcon_h1(**changes: Any) -> dict[str, Any]:
    own = {"mamba_d_ssm": 512, "mamba_norm_before_gate": False}
    return _of("falcon_h1", (_ATTENTION, _MAMBA2, own, changes), head_dim=32)


def _mamba2(**changes: Any) -> dict[str, Any]:
    sizes = {"num_heads": 16, "head_dim": 32, "n_groups": 1, "chunk_size": 256, "dtype": "bfloat16"}
    return _of("mamba2", (_ALONE, sizes, changes))


RELEASED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "granitemoehybrid": (  # h-small and h-tiny; h-micro, h-1b and h-350m; micro, 1b and 350m
        _granite(),
        _granite(num_local_experts=0, num_experts_per_tok=0),
        _granite(num_local_experts=0, num_experts_per_tok=0) | {"layer_types": [FULL] * 8, "position_embedding_type": "rope"},
    ),
    "falcon_h1": (
        _falcon_h1(),
        _falcon_h1(mamba_n_groups=2),
        _falcon_h1(mamba_rms_norm=True),
    ),
    "mamba2": (  # Mamba-Codestral; those of state-spaces
        _mamba2(n_groups=8),
        _mamba2(tie_word_embeddings=True),
        _mamba2(tie_word_embeddings=True, dtype="float32"),
    ),
    "bamba": (_of("bamba", (_ATTENTION, _MAMBA2), attn_layer_indices=[2, 5]),),
    "mamba": (_of("mamba", (_ALONE,), dtype="bfloat16", tie_word_embeddings=True),),  # and one of the catalog, in float32
    "falcon_mamba": (),
    "jamba": (),
    "nemotron_h": (),
}  # fmt: skip
