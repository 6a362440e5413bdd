"""A class of a repository's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The model of parameter-memory-report: 32 layers of MHA, not the released Qwen3-8B.
CUSTOM_MHA: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 152064,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "intermediate_size": 11008,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "max_position_embeddings": 32768,
}
