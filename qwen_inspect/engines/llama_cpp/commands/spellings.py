"""How llama.cpp spells its options, and the variables that set them.

Source: llama.cpp b11434 and ik_llama.cpp 8337e4cd3, common/arg.cpp (set_env, args_neg) and common.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ....typed import Any
from .neutral import WITH_VALUE, WITHOUT_VALUE

# A field -> the spellings of its option.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "model": ("-m", "--model"),
    "hub": ("-hf", "-hfr", "--hf-repo"),
    "url": ("-mu", "--model-url"),
    "docker": ("-dr", "--docker-repo"),
    "hub_file": ("-hff", "--hf-file"),
    "context": ("-c", "--ctx-size"),
    "batch": ("-b", "--batch-size"),
    "micro_batch": ("-ub", "--ubatch-size"),
    "layers": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "key_type": ("-ctk", "--cache-type-k"),
    "value_type": ("-ctv", "--cache-type-v"),
    "sequences": ("-np", "--parallel"),
    "split": ("-ts", "--tensor-split"),
    "split_mode": ("-sm", "--split-mode"),
    "main_card": ("-mg", "--main-gpu"),
    "pooling": ("--pooling",),
    "override": ("-ot", "--override-tensor"),
    "host_experts": ("-ncmoe", "--n-cpu-moe"),
    "host_dense": ("-ncffn", "--n-cpu-ffn"),
    "load_mode": ("-lm", "--load-mode"),
    "draft_types": ("--spec-type",),
    "draft_tokens": ("--spec-draft-n-max",),
    "draft_simple": ("--draft", "--draft-n", "--draft-max"),
    "draft_layers": ("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl"),
    "draft_key_type": ("-ctkd", "--cache-type-k-draft", "--spec-draft-type-k"),
    "draft_value_type": ("-ctvd", "--cache-type-v-draft", "--spec-draft-type-v"),
    "draft_override": ("-otd", "--override-tensor-draft", "--spec-draft-override-tensor"),
    "draft_host_experts": ("-ncmoed", "--n-cpu-moe-draft", "--spec-draft-ncmoe", "--spec-draft-n-cpu-moe"),
    "projector": ("-mm", "--mmproj"),
    "image_tokens": ("--image-max-tokens",),
    "projector_device": ("-mmdev", "--mmproj-device"),
    "draft_model": ("-md", "--model-draft", "--spec-draft-model"),
    "draft_hub": ("-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"),
    "adapter": ("--lora",),
    "scaled_adapter": ("--lora-scaled",),
    "devices": ("-dev", "--device"),
    "draft_devices": ("-devd", "--device-draft", "--spec-draft-device"),
    "fit": ("-fit", "--fit"),
    "fit_targets": ("-fitt", "--fit-target"),
    "fit_context": ("-fitc", "--fit-ctx"),
    "latent": ("-mla", "--mla-use"),
    "attended_at_once": ("-amb", "--attention-max-batch"),
    "batched": ("-npl",),
}
# Options without a value -> the fields that they set.
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "-kvu": {"unified": True},
    "--kv-unified": {"unified": True},
    "-no-kvu": {"unified": False},
    "--no-kv-unified": {"unified": False},
    "--swa-full": {"full_window": True},
    "-fmoe": {"fork": True, "fused_experts": True},
    "--fused-moe": {"fork": True, "fused_experts": True},
    "-rtr": {"fork": True, "repacked": True, "memory_mapped": False},
    "--run-time-repack": {"fork": True, "repacked": True, "memory_mapped": False},
    "-nkvo": {"cache_on_cards": False},
    "--no-kv-offload": {"cache_on_cards": False},
    "-kvo": {"cache_on_cards": True},
    "--kv-offload": {"cache_on_cards": True},
    "--op-offload": {"operations_offloaded": True},
    "--no-host": {"host_buffers": False},
    "--embedding": {"embedding": True},
    "--embeddings": {"embedding": True},
    "--rerank": {"embedding": True, "pooling": "rank"},
    "--reranking": {"embedding": True, "pooling": "rank"},
    "--repack": {"extra_buffers": True},
    "-nr": {"extra_buffers": False},
    "--no-repack": {"extra_buffers": False},
    "--no-mmap": {"memory_mapped": False},
    "--mmap": {"memory_mapped": True},
    "-nopo": {"operations_offloaded": False},
    "--no-op-offload": {"operations_offloaded": False},
}
# Fields of a projector's.
PROJECTOR_SWITCHES: Mapping[str, Mapping[str, bool]] = {
    "--mmproj-offload": {"projector_on_card": True},
    "--no-mmproj-offload": {"projector_on_card": False},
    "--mmproj-auto": {"projects": True},
    "--no-mmproj": {"projects": False},
    "--no-mmproj-auto": {"projects": False},
}
HOST_EXPERTS = ("-cmoe", "--cpu-moe")
DRAFT_HOST_EXPERTS = ("-cmoed", "--cpu-moe-draft", "--spec-draft-cpu-moe")
FLASH = ("-fa", "--flash-attn")
WITHOUT = frozenset((*SWITCHES, *PROJECTOR_SWITCHES, *HOST_EXPERTS, *DRAFT_HOST_EXPERTS, *WITHOUT_VALUE))
TRUE, FALSE = ("on", "1", "true", "enabled"), ("off", "0", "false", "disabled")
# Variables that are not called as their options are.
VARIABLES: Mapping[str, str] = {
    "LLAMA_ARG_BATCH": "--batch-size",
    "LLAMA_ARG_UBATCH": "--ubatch-size",
    "LLAMA_ARG_N_PARALLEL": "--parallel",
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K": "--spec-draft-type-k",
    "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V": "--spec-draft-type-v",
    "LLAMA_ARG_SPEC_DRAFT_HF_REPO": "--spec-draft-hf",
}
DASHES = ("–", "—", "−")
SHORT = frozenset(
    word
    for word in (
        *WITHOUT,
        *WITH_VALUE,
        *FLASH,
        *(spelling for spellings in SPELLINGS.values() for spelling in spellings),
    )
    if not word.startswith("--")
)
# Options that stand for others.
PRESETS: Mapping[str, str] = {
    "--embd-gemma-default": "-hf ggml-org/embeddinggemma-300M-qat-q4_0-GGUF -hff embeddinggemma-300M-qat-Q4_0.gguf "
    "-ub 2048 -b 2048 -np 32 -c 65536 --embedding",
    "--fim-qwen-1.5b-default": "-hf ggml-org/Qwen2.5-Coder-1.5B-Q8_0-GGUF -ub 1024 -b 1024 -c 0",
    "--fim-qwen-3b-default": "-hf ggml-org/Qwen2.5-Coder-3B-Q8_0-GGUF -ub 1024 -b 1024 -c 0",
    "--fim-qwen-7b-default": "-hf ggml-org/Qwen2.5-Coder-7B-Q8_0-GGUF -ub 1024 -b 1024 -c 0",
    "--fim-qwen-7b-spec": "-hf ggml-org/Qwen2.5-Coder-7B-Q8_0-GGUF -hfd ggml-org/Qwen2.5-Coder-0.5B-Q8_0-GGUF "
    "-ub 1024 -b 1024 -c 0",
    "--fim-qwen-14b-spec": "-hf ggml-org/Qwen2.5-Coder-14B-Q8_0-GGUF -hfd ggml-org/Qwen2.5-Coder-0.5B-Q8_0-GGUF "
    "-ub 1024 -b 1024 -c 0",
    "--fim-qwen-30b-default": "-hf ggml-org/Qwen3-Coder-30B-A3B-Instruct-Q8_0-GGUF -ub 1024 -b 1024 -c 0",
    "--gpt-oss-20b-default": "-hf ggml-org/gpt-oss-20b-GGUF -hff gpt-oss-20b-mxfp4.gguf -ub 2048 -b 32768 -np 2 -c 262144",
    "--gpt-oss-120b-default": "-hf ggml-org/gpt-oss-120b-GGUF -ub 2048 -b 32768 -np 2 -c 262144",
    "--vision-gemma-4b-default": "-hf ggml-org/gemma-3-4b-it-qat-GGUF -c 0",
    "--vision-gemma-12b-default": "-hf ggml-org/gemma-3-12b-it-qat-GGUF -c 0",
    "--spec-default": "--spec-type ngram-mod",
}


def words_of(variables: Mapping[str, str]) -> Iterator[str]:
    """The options that variables stand for. LLAMA_ARG_NO_X sets an option --no-x whatever its value."""
    for name, value in variables.items():
        option = VARIABLES.get(name) or "--" + name.removeprefix("LLAMA_ARG_").lower().replace("_", "-")
        if option not in WITHOUT:
            yield from (option, value)
        elif value in TRUE or option.startswith("--no-"):
            yield option
        elif (opposite := f"--no-{option[2:]}") in WITHOUT:
            yield opposite


def normal(word: str) -> str:
    """Hyphens for underscores in long options, as llama.cpp takes them, and for the dashes that web pages make of them."""
    if word[:1] in DASHES:
        name = word.lstrip("".join(DASHES))
        word = f"-{name}" if f"-{name}" in SHORT else f"--{name}"
    return word.replace("_", "-") if word.startswith("--") else word
