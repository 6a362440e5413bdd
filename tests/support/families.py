"""A small configuration of every described family, and models that transformers saves of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_inspect.architectures import architecture_of

from .models import TINY_QWEN3

TINY_QWEN2 = {**TINY_QWEN3, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False}

TINY_QWEN3_MOE = {
    **TINY_QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "num_hidden_layers": 4,
}

TINY_QWEN2_MOE = {
    **TINY_QWEN3_MOE,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 48,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [],
}

TINY_SLIDING = {
    **TINY_QWEN3,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
    "num_hidden_layers": 3,
}

HYBRID = {
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 256,
}

HYBRID_EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 48,
}

TINY_QWEN3_NEXT = {
    **HYBRID,
    **HYBRID_EXPERTS,
    "architectures": ["Qwen3NextForCausalLM"],
    "mlp_only_layers": [1],
    "model_type": "qwen3_next",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

MROPE = {"mrope_interleaved": True, "mrope_section": [1, 1, 0], "rope_theta": 10000.0, "rope_type": "default"}

TOWER = {
    "depth": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "num_position_embeddings": 16,
    "out_hidden_size": 64,
    "patch_size": 4,
}

TINY_QWEN3_5: Mapping[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": {
        **HYBRID,
        "dtype": "bfloat16",
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "model_type": "qwen3_5_text",
        "rope_parameters": {**MROPE, "partial_rotary_factor": 0.25},
    },
    "tie_word_embeddings": True,
    "vision_config": {**TOWER, "model_type": "qwen3_5"},
}

TINY_QWEN3_5_MOE: Mapping[str, Any] = {
    **TINY_QWEN3_5,
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "text_config": {**TINY_QWEN3_5["text_config"], **HYBRID_EXPERTS, "model_type": "qwen3_5_moe_text"},
    "tie_word_embeddings": False,
    "vision_config": {**TOWER, "model_type": "qwen3_5_moe_vision"},
}

# As the releases write it: the decoder's keys beside the tower's.
TINY_QWEN2_VL = {
    **TINY_QWEN3,
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "bos_token_id": None,  # by default it has one, of which `generate` makes a tensor
    "head_dim": None,
    "model_type": "qwen2_vl",
    "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"},
    "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "in_chans": 3, "mlp_ratio": 2, "num_heads": 4},
}

TINY_QWEN2_5_VL = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "text_config": {
        **{key: TINY_QWEN3[key] for key in ("hidden_act", "hidden_size", "intermediate_size", "num_attention_heads")},
        "bos_token_id": None,
        "max_window_layers": 1,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [2, 3, 3], "rope_theta": 1e6, "rope_type": "default"},
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "vocab_size": 256,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "depth": 2,
        "fullatt_block_indexes": [1],
        "hidden_size": 32,
        "intermediate_size": 40,
        "model_type": "qwen2_5_vl",
        "num_heads": 4,
        "out_hidden_size": 64,
    },
}

TINY_QWEN3_VL = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "text_config": {
        **{
            key: value for key, value in TINY_QWEN3.items() if key not in ("architectures", "rope_theta", "torch_dtype")
        },
        "dtype": "bfloat16",
        "model_type": "qwen3_vl_text",
        "rope_scaling": {**MROPE, "mrope_section": [4, 2, 2]},
    },
    "tie_word_embeddings": True,
    "vision_config": {**TOWER, "deepstack_visual_indexes": [0], "model_type": "qwen3_vl"},
}

TINY_QWEN3_VL_MOE: Mapping[str, Any] = {
    **TINY_QWEN3_VL,
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "text_config": {
        **{
            key: value
            for key, value in TINY_QWEN3_MOE.items()
            if key not in ("architectures", "rope_theta", "torch_dtype")
        },
        "dtype": "bfloat16",
        "model_type": "qwen3_vl_moe_text",
        "rope_scaling": {**MROPE, "mrope_section": [4, 2, 2]},
        # That of the whole model counts, which is not tied.
        "tie_word_embeddings": True,
    },
    "tie_word_embeddings": False,
    "vision_config": {**TOWER, "deepstack_visual_indexes": [0], "model_type": "qwen3_vl_moe"},
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": TINY_QWEN2,
    "qwen2_moe": TINY_QWEN2_MOE,
    "qwen3": TINY_QWEN3,
    "qwen3_moe": TINY_QWEN3_MOE,
    "qwen3 with a sliding window": TINY_SLIDING,
    "qwen3 with biases": {**TINY_QWEN3, "attention_bias": True},
    "qwen3 without its head": {**TINY_QWEN3, "architectures": ["Qwen3Model"]},
    "qwen3 in float32 with padding": {**TINY_QWEN3, "torch_dtype": "float32", "pad_token_id": 3},
    "qwen2_vl": TINY_QWEN2_VL,
    "qwen2_5_vl": TINY_QWEN2_5_VL,
    "qwen3_vl": TINY_QWEN3_VL,
    "qwen3_vl_moe": TINY_QWEN3_VL_MOE,
    "qwen3_next": TINY_QWEN3_NEXT,
    "qwen3_5": TINY_QWEN3_5,
    "qwen3_5_moe": TINY_QWEN3_5_MOE,
    "qwen3_5_text": {
        **TINY_QWEN3_5["text_config"],
        "architectures": ["Qwen3_5ForCausalLM"],
        "dtype": "float16",
        "attention_bias": True,
        "linear_conv_kernel_dim": 1,
    },
}


def configuration_of(config: Mapping[str, Any]) -> Any:
    """transformers' own configuration, of a copy: it changes what it is given."""
    import transformers

    return transformers.AutoConfig.for_model(**copy.deepcopy(dict(config)))


def random_model(config: Mapping[str, Any]) -> Any:
    """The real model with random weights in the dtype of its configuration."""
    import torch
    import transformers

    torch.manual_seed(0)
    dtype = architecture_of(config).spec.dtype
    model = getattr(transformers, config["architectures"][0])(configuration_of(config))
    return model.to(getattr(torch, dtype.torch_name)).eval()


def saved_by_transformers(directory: Path, config: Mapping[str, Any], **options: Any) -> Any:
    """The real model with random weights, saved by `save_pretrained` into `directory`."""
    model = random_model(config)
    model.save_pretrained(directory, **options)
    return model
