"""Models that several ranks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Sizes that leave remainders: 131 rows of the table, 97 channels of an MLP, 5 layers.
TEXT: Mapping[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 97,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

EXPERTS: Mapping[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,  # 32 channels for each of 2 ranks, 16 for each of 4: grouped_mm asks for 8
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

LINEAR: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def named(class_name: str, model_type: str, *parts: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    config = {"architectures": [class_name], "model_type": model_type, **TEXT}
    for part in parts:
        config |= part
    return config | changes


QWEN3 = named("Qwen3ForCausalLM", "qwen3")

MODELS: Mapping[str, dict[str, Any]] = {
    "qwen2": named(
        "Qwen2ForCausalLM", "qwen2", head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=2
    ),
    "qwen3": QWEN3,
    "qwen3 tied": QWEN3 | {"tie_word_embeddings": True},
    "qwen3 with 3 KV heads": QWEN3 | {"num_attention_heads": 6, "num_key_value_heads": 3},
    "qwen3_moe": named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS),
    "qwen3_moe with 9 experts": named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS, num_experts=9),
    "qwen3_moe of odd width": named("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS, moe_intermediate_size=33),
    "qwen3_next": named("Qwen3NextForCausalLM", "qwen3_next", EXPERTS, LINEAR, shared_expert_intermediate_size=35),
    "qwen3_5": named("Qwen3_5ForCausalLM", "qwen3_5_text", LINEAR),
    "llama": named("LlamaForCausalLM", "llama"),
    "mixtral": named("MixtralForCausalLM", "mixtral", num_local_experts=8, intermediate_size=64),
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2,
        "vocab_size": 131, "n_positions": 64, "dtype": "bfloat16",
    },
}  # fmt: skip
