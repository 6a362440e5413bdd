"""A small configuration of any language model that transformers knows, from its class's own defaults with small sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# By key, wherever it stands; layers' number stays even, heads divide, every width is a multiple of every head's.
SMALL: Mapping[str, Any] = {
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "hidden_size": 64,
    "hidden_dim": 64,
    "d_model": 64,
    "n_embd": 64,
    "dim": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "d_ff": 96,
    "n_inner": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "max_seq_len": 512,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 16,
    "rotary_dim": 8,
    "first_k_dense_replace": 1,
    "qk_head_dim": None,
    "layers_block_type": None,
    "layer_types": None,
    "mlp_layer_types": None,
    "attention_types": [[["global", "local"], 2]],
    "attn_layer_indices": [1, 3],
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_d_state": 16,
    "state_size": 16,
    "time_step_rank": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def small_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """The configuration as JSON would hold it. changes: of its decoder, over the small sizes."""
    import transformers

    whole = json.loads(transformers.AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    text = whole.get("text_config") if isinstance(whole.get("text_config"), dict) else whole
    layers = next((text[key] for key in ("num_hidden_layers", "num_layers", "n_layer") if text.get(key)), None)
    for key, value in SMALL.items():
        if text.get(key) is not None:
            text[key] = value
    for key in [key for key, value in text.items() if value is None or key == "per_layer_config"]:
        del text[key]
    for key, value in text.items():  # one entry a layer
        if isinstance(value, list) and len(value) == layers:
            text[key] = value[:4]
    if "kv_lora_rank" in text:  # as many heads of keys as of queries; RoPE turns the part that is not compressed
        text |= {"num_key_value_heads": 4, "head_dim": 8}
    text.update(changes)
    return {**{key: value for key, value in whole.items() if value is not None}, "dtype": "bfloat16"}
