"""A configuration -> one of the same classes and features that a CPU runs in no time."""

from __future__ import annotations

from typing import Any

LAYERS, VOCABULARY = 2, 512
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "head_dim": 16, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "experts_per_token": 2, "max_window_layers": LAYERS, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "depth": LAYERS, "num_heads": 2,
    "num_position_embeddings": 16, "out_hidden_size": 64,
}  # fmt: skip
LISTS: dict[str, Any] = {"mrope_section": [4, 2, 2], "deepstack_visual_indexes": [0]}


def small_configuration(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with small sizes wherever it names one, its special tokens within the vocabulary."""
    made: dict[str, Any] = {}
    special = 0
    for name, value in config.items():
        if name.endswith("token_id") and isinstance(value, int):
            special += 1
            made[name] = VOCABULARY - special
        elif isinstance(value, dict):
            made[name] = small_configuration(value)
        elif name == "layer_types":
            made[name] = [value[0], value[-1]]
        elif name in LISTS:
            made[name] = LISTS[name] if value else value
        else:
            made[name] = SIZES.get(name, value)
    return made
