"""Configurations as llama.cpp's converter and llama-quantize store them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures import architecture_of
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.architectures.gguf_keys import read_hyperparameters
from qwen_inspect.architectures.gguf_quantisation import quantised
from qwen_inspect.architectures.gguf_writing import as_converted
from qwen_inspect.checkpoint import Checkpoint, DType, ModelRef, Tensor
from qwen_inspect.errors import UnsupportedError, UsageError
from qwen_inspect.loaders import catalog
from qwen_inspect.structure.gguf_conversion import as_gguf
from qwen_inspect.structure.inspect import analyse, inspect

from ..support.gguf_files import QWEN3, write_model
from ..support.models import run
from ..support.small_models import small_config

GOLDEN: Mapping[str, Mapping[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "llama_cpp_files.json").read_text()
)


# Whose files hold the decoder alone, or other parts than `gguf_families` has: the design follows from the file's keys.
BY_FILE = {
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    *(
        "gemma3",
        "gemma4_text",
        "gemma4_text:moe",
        "cohere2",
        "deepseek_v32",
        "ernie4_5_moe",
        "falcon_mamba",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gpt_oss",
        "granitemoehybrid",
        "lfm2",
        "lfm2_moe",
        "llama4_text",
        "mamba",
        "minimax_m2",
        "mistral3",
        "nemotron_h",
        "qwen2_audio",
    ),
}


def converted_config(name: str) -> dict[str, Any]:
    """The small configuration that a golden entry was converted from; a variant of a model_type stands after a colon."""
    model_type = name.partition(":")[0]
    config = small_config(model_type, **GOLDEN["converted"][name].get("changes", {}))
    config.pop("time_step_limit", None)  # whose end is infinite
    return {**config, "architectures": [CLASSES[model_type][0]]}


@pytest.mark.parametrize("model_type", GOLDEN["converted"])
def test_a_small_model_is_written_as_the_converter_writes_it(model_type: str) -> None:
    """What convert_hf_to_gguf.py of llama.cpp 0c1e57098 wrote in float16 for the same configuration and weights of zero."""
    golden = GOLDEN["converted"][model_type]
    config = converted_config(model_type)
    metadata, tensors = as_converted(config, architecture_of(config), DType.F16)
    lines = sorted(f"{tensor.name} {list(tensor.shape)} {tensor.dtype.code}" for tensor in tensors)
    assert len(lines) == golden["tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == golden["sha256"]
    assert read_hyperparameters(metadata, tensors) == read_hyperparameters(golden["metadata"], tensors)


@pytest.mark.parametrize("model_type", sorted(set(GOLDEN["converted"]) - BY_FILE))
def test_a_file_of_a_known_family_is_held_against_its_design(model_type: str) -> None:
    config = converted_config(model_type)
    design = architecture_of(config)
    metadata, tensors = as_converted(config, design, DType.F16)
    checkpoint = Checkpoint(ref=ModelRef(source="local", id="m"), config=metadata, tensors=tensors, gguf=True)
    report = analyse(checkpoint)
    assert not report.spec.from_file
    assert [(check.agrees, check.left_parameters) for check in report.checks] == [(True, design.tree.parameters)]
    assert report.tree.size_bytes == sum(tensor.size_bytes for tensor in tensors) - sum(
        4 * buffer.elements for buffer in design.buffers
    )
    if not model_type.startswith("qwen"):
        other = analyse(replace(checkpoint, tensors=tensors[:1] + tensors[2:]))
        assert (other.spec.from_file, other.checks) == (True, ())


# layers, hidden, feed forward, heads, KV heads, experts, tied
CASES: Mapping[str, tuple[int, int, int, int, int, int, bool]] = {
    "dense": (36, 256, 512, 32, 8, 0, True),
    "multi-head": (12, 256, 512, 8, 8, 0, False),
    "8 experts": (32, 256, 512, 32, 8, 8, False),
    "80 layers": (80, 256, 512, 64, 8, 0, False),
    "odd rows": (4, 288, 100, 4, 2, 0, False),
}


def case(name: str) -> tuple[Mapping[str, Any], Sequence[Tensor]]:
    layers, hidden, feed_forward, heads, kv_heads, experts, tied = CASES[name]
    tensors = [
        Tensor("token_embd.weight", (1000, hidden), DType.F16),
        Tensor("output_norm.weight", (hidden,), DType.F32),
    ]
    tensors += [] if tied else [Tensor("output.weight", (1000, hidden), DType.F16)]
    for index in range(layers):
        names = ["attn_q", "attn_k", "attn_v", "attn_output"]
        tensors.append(Tensor(f"blk.{index}.attn_norm.weight", (hidden,), DType.F32))
        tensors += [Tensor(f"blk.{index}.{part}.weight", (hidden, hidden), DType.F16) for part in names]
        sides, suffix = (hidden, feed_forward), ""
        if experts:
            tensors.append(Tensor(f"blk.{index}.ffn_gate_inp.weight", (experts, hidden), DType.F32))
            sides, suffix = (experts, *sides), "_exps"  # type: ignore[assignment]
        tensors += [
            Tensor(f"blk.{index}.ffn_{part}{suffix}.weight", sides, DType.F16) for part in ("gate", "up", "down")
        ]
    keys = {
        "block_count": layers,
        "embedding_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "expert_count": experts,
    }
    return {"general.architecture": "llama", **{f"llama.{key}": value for key, value in keys.items()}}, tensors


@pytest.mark.parametrize("name", CASES)
def test_types_are_those_that_llama_quantize_chooses(name: str) -> None:
    """Compiled from llama.cpp 0c1e57098, src/llama-quant.cpp, llama_tensor_get_type, and run on these tensors."""
    metadata, tensors = case(name)
    model = read_hyperparameters(metadata, tensors)
    for scheme, expected in GOLDEN["quantised"][name].items():
        stored = quantised(tensors, scheme, model)
        ordered = sorted(
            stored, key=lambda one: (int(match[1]) if (match := re.match(r"blk\.(\d+)", one.name)) else -1, one.name)
        )
        counts = " ".join(
            f"{kind}:{count}" for kind, count in sorted(Counter(one.dtype.code for one in stored).items())
        )
        lines = "\n".join(f"{one.name} {one.dtype.code}" for one in ordered)
        assert f"{counts} {hashlib.sha256(lines.encode()).hexdigest()[:8]}" == expected, scheme


# What llama.cpp printed as "model size" (GiB) of published files. Sources: ikawrakow/ik_llama.cpp 8337e4cd, github-data:
# discussion 357 (235B; ik_llama.cpp and mainline), and the logs of 30B-A3B there; llama-bench's tables in ggml-org/llama.cpp:
# discussion 15396 (gpt-oss), pull request 14203 (Gemma 3), and others' (gpt-oss in F16, MiniMax-M2, Nemotron 3 Nano).
@pytest.mark.parametrize(
    ("model", "scheme", "printed"),
    [
        ("Qwen/Qwen3-30B-A3B", "Q4_K_M", "17.28"),
        ("Qwen/Qwen3-30B-A3B", "Q5_K_M", "20.228"),
        ("Qwen/Qwen3-235B-A22B", "Q4_K_M", "132.386"),
        ("Qwen/Qwen3-235B-A22B", "q6_k", "179.754"),
        ("Qwen/Qwen3-235B-A22B", "Q8_0", "232.769"),
        ("openai/gpt-oss-20b", "MXFP4_MOE", "11.27"),
        ("openai/gpt-oss-120b", "MXFP4_MOE", "59.02"),
        ("openai/gpt-oss-20b", "F16", "12.83"),
        ("google/gemma-3-27b-it", "Q4_K_M", "15.40"),
        ("google/gemma-3-27b-it", "Q8_0", "26.73"),
        ("MiniMaxAI/MiniMax-M2", "Q4_K_S", "121.10"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Q4_K_M", "22.82"),
    ],
)
def test_sizes_are_those_of_published_files(model: str, scheme: str, printed: str) -> None:
    report = as_gguf(inspect(f"catalog:{model}"), scheme)
    digits = len(printed.partition(".")[2])
    assert f"{sum(tensor.size_bytes for tensor in report.tensors or ()) / 2**30:.{digits}f}" == printed


def test_lfm2_is_as_large_as_published() -> None:
    """llama-bench prints 694.76 MiB of LFM2-1.2B in Q4_K_M."""
    report = as_gguf(inspect("catalog:LiquidAI/LFM2-1.2B"), "Q4_K_M")
    assert f"{sum(tensor.size_bytes for tensor in report.tensors or ()) / 2**20:.2f}" == "694.76"


def test_what_is_mxfp4_is_not_quantised_again() -> None:
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_down_exps"):
        as_gguf(inspect("catalog:openai/gpt-oss-20b"), "Q4_K_M")


GLM_AIR = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 10_944,
    "max_position_embeddings": 131_072,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": False,
    "vocab_size": 151_552,
}


def test_glms_layer_for_prediction_has_what_the_files_store() -> None:
    """llama-bench prints 110.47 B parameters of GLM-4.5-Air, and 62.27 GiB in Q4_K_S; 67.85 in Q4_K_M (b6767 on a DGX Spark).

    Another published file called Q4_K_M has 67.96 GiB for as many parameters: it has other types.
    """
    own = [Tensor(f"model.layers.46.{name}.weight", (1,), DType.BF16) for name in ("embed_tokens", "shared_head.head")]
    metadata, tensors = as_converted(GLM_AIR, architecture_of(GLM_AIR), DType.BF16, own)
    assert f"{sum(tensor.elements for tensor in tensors) / 1e9:.2f}" == "110.47"
    for scheme, printed in (("Q4_K_S", "62.27"), ("Q4_K_M", "67.85")):
        stored = quantised(tensors, scheme, read_hyperparameters(metadata, tensors))
        assert f"{sum(tensor.size_bytes for tensor in stored) / 2**30:.2f}" == printed


def test_an_fp8_release_is_written_from_its_dense_weights() -> None:
    """671 billion parameters, of which the converter leaves those for multi-token prediction out."""
    report = as_gguf(inspect("catalog:deepseek-ai/DeepSeek-R1"), "Q4_K_M")
    assert (report.parameters.theory, report.checks[0].agrees) == (671_026_404_352, True)
    assert {layer.kind for layer in report.cache.layers} == {"latent"}


def test_fit_takes_the_quantised_weights(tmp_path: Path) -> None:
    call = ("fit", "catalog:Qwen/Qwen3-8B", "--engine", "llama.cpp", "--memory", "24GiB", "--format", "json", "--quant")
    answer = json.loads(run(*call, "Q4_K_M").out)
    assert any("5,021,827,072" in notice for notice in answer["model"]["notices"])
    refused = run(*call, "Q9")
    assert (refused.code, "Q4_K_M" in refused.err) == (7, True)
    path = write_model(tmp_path / "model.gguf", "qwen3", QWEN3)
    with pytest.raises(UsageError):
        as_gguf(inspect(str(path)), "Q4_K_M")


def test_what_the_converter_writes_of_others_is_not_guessed() -> None:
    config = small_config("mamba2", n_groups=1, num_heads=8, head_dim=16)
    with pytest.raises(UnsupportedError, match="mamba2"):
        as_converted(config, replace(architecture_of(QWEN3), prediction_layers=()), DType.F16)


def test_what_a_configuration_leaves_to_its_class_is_the_classs() -> None:
    """Mistral-7B has the class's own sizes: 32 layers of 4,096 and 14,336, in 32 heads on 8 KV heads.

    Source: transformers 5.23, MistralConfig. Qwen2-Audio's release states neither its 32 layers nor their heads.
    """
    whole = catalog.configuration("mistralai/Mistral-7B-Instruct-v0.3", catalog.entries())
    left_out = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size")
    few = {key: value for key, value in whole.items() if key not in left_out}
    written, expected = (as_converted(config, architecture_of(config), DType.BF16) for config in (few, whole))
    assert written == expected
    audio = as_gguf(inspect("Qwen/Qwen2-Audio-7B", source="catalog"), "Q4_K_M").config or {}
    assert [audio[f"qwen2.{key}"] for key in ("block_count", "attention.head_count")] == [32, 32]
