"""Which options of `fit` belong to one engine, and which a pasted command has itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Options that only one engine has; all others apply to every engine.
ENGINE_OPTIONS: Mapping[str, Sequence[str]] = {
    "transformers": (
        *("mode", "new_tokens", "attention", "cache", "load", "padded"),
        *("optimizer", "checkpointing", "trained", "freeze", "accumulate", "autocast"),
        *("lora", "lora_targets", "lora_parameters", "modules_to_save", "lora_alpha"),
        *("lora_dropout", "dora", "rslora"),
        *("loop", "keep_gradients", "keep_logits", "clip", "ema", "loss", "completion_only"),
        *("padding_free", "packing", "transformers"),
        *("image", "video", "audio", "min_pixels", "max_pixels", "total_pixels", "fps"),
    ),
    "vllm": (
        *("utilization", "kv_budget", "tp", "max_num_batched_tokens", "max_num_seqs", "enable_prefix_caching"),
        *("engine_version", "speculative_config", "calibration", "enable_sleep_mode"),
    ),
    "sglang": ("tp", "mem_fraction_static", "calibration"),
    "lmdeploy": ("tp", "cache_max_entry_count", "max_num_batched_tokens", "max_num_seqs"),
    "tensorrt-llm": ("tp", "free_gpu_memory_fraction", "max_num_batched_tokens", "max_num_seqs"),
    "llama.cpp": ("ngl", "cache_type_k", "cache_type_v", "quant"),
}

# The share of the card, where an engine has a name of its own for it.
SHARES = {
    "sglang": "mem_fraction_static",
    "lmdeploy": "cache_max_entry_count",
    "tensorrt-llm": "free_gpu_memory_fraction",
}
# Options that a command of --vllm has itself, with their defaults.
IN_VLLM_COMMAND: Mapping[str, object] = {
    "context": None,
    "cache_dtype": "auto",
    "utilization": None,
    "kv_budget": None,
    "tp": 1,
    "max_num_batched_tokens": None,
    "max_num_seqs": None,
    "enable_prefix_caching": None,
    "speculative_config": None,
    "enable_sleep_mode": False,
}

# Options that a command of --sglang has itself, with their defaults.
IN_SGLANG_COMMAND: Mapping[str, object] = {"context": None, "cache_dtype": "auto", "tp": 1, "mem_fraction_static": None}
# Options that a command of --llama-cpp has itself, with their defaults.
IN_LLAMA_CPP_COMMAND: Mapping[str, object] = {
    "context": None,
    "batch": 1,
    "cache_dtype": "auto",
    "ngl": None,
    "cache_type_k": "auto",
    "cache_type_v": "auto",
}
