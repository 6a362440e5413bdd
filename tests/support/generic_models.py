"""Which model types are really run, with what a small one needs; which are refused, and why; published counts of releases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_AS_THEY_ARE = (
    "afmoe apertus arcee aria_text axk1 axk2 biogpt bitnet bloom codegen cohere cohere2 ctrl cwm deepseek_v3 "
    "deepseek_v32 diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_mamba flex_olmo fuyu gemma "
    "gemma2 gemma3 gemma3_text gemma4 gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo "
    "gpt_neox gpt_oss gptj granite granitemoe granitemoeshared helium lfm2 llama llama4_text longcat_flash mamba mimo_v2_flash "
    "minicpm3 minimax_m2 ministral3 mistral mixtral modernbert-decoder mpt nanochat nemotron_h olmo olmo2 olmo3 "
    "olmo_hybrid olmoe opt persimmon phi phi3 phimoe seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm "
    "youtu "
)
# Keys over the small sizes, where a class needs them to fit each other.
_CHANGED: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 16},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "glm5_next": {  # no RoPE; layers with states, and with an index beside the compressed keys
        "qk_rope_head_dim": 0,
        "index_kpool": 4,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_types": ["full"] * 4,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
    },
    "qwen4_exp_text": {  # the embedding of n-grams keeps states too
        "number_of_conv_states": 3,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "ple_layer_ids": [1],
        "eos_token_id": 2,
        "pad_token_id": 0,
        "ple_embed_dim": 64,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 100,
        "split_ngram_parts": 1,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.25,
            "mrope_section": [1, 1, 0],
        },
    },
    "nemotron": {"num_key_value_heads": 4, "head_dim": 16},
}
RUN: Mapping[str, Mapping[str, Any]] = {**{name: {} for name in _AS_THEY_ARE.split()}, **_CHANGED}
LONG = ("glm5_next",)  # whose linear attention runs in steps of Python

# The key of the sentence that says why.
REFUSED: Mapping[str, str] = {
    "big_bird": "generic_cache_no_forward",
    "deepseek_v4": "generic_cache_kind",
    "minimax": "generic_cache_class",
    "openai-gpt": "generic_cache_none",
    "recurrent_gemma": "generic_cache_none",
    "rwkv": "generic_cache_no_forward",
    "xlstm": "generic_cache_no_forward",
}


@dataclass(frozen=True)
class Published:
    """parameters: as `source` has them. cache_gib: at the model's own limit."""

    config: Mapping[str, Any]
    parameters: int
    source: str
    cache_gib: float | None


PUBLISHED: Mapping[str, Published] = {
    name: Published(**entry)
    for name, entry in json.loads((Path(__file__).parent / "published_models.json").read_text()).items()
}
