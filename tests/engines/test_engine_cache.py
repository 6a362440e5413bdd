"""The KV cache as engines reserve it: what they printed, and what vLLM's own functions give for the same layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_inspect.checkpoint import DType
from qwen_inspect.engines import caches_of
from qwen_inspect.engines.llama_cpp.layer_cells import llama_cpp_layer_bytes, padded
from qwen_inspect.engines.vllm.blocks import (
    BlockPool,
    block_pool,
    kv_heads_per_rank,
    latent_pool,
    latent_width,
    state_dtypes,
    text_part,
)
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.results.attention import AnyLayerAttention, LayerAttention, LinearLayerAttention, OtherLayerAttention
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.structure.kv_cache import FORMATS, checkpoint_format, read_formats

from ..support.published import PUBLISHED, published


def layers_of(model: str) -> tuple[AnyLayerAttention, ...]:
    """The layers of a cataloged model; an Instruct release has its base's."""
    return inspect(model, source="catalog").attention.layers


def pool_of(layers: Sequence[AnyLayerAttention], name: str, *, ranks: int = 1, state: DType = DType.BF16) -> BlockPool:
    return block_pool(layers, FORMATS[name], ranks=ranks, states=(DType.BF16, state))


def softmax(heads: int, head_dim: int, window_tokens: int | None = None) -> LayerAttention:
    return LayerAttention(index=0, query_heads=64, kv_heads=heads, head_dim=head_dim, window_tokens=window_tokens)


# --- vLLM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "log", published("vllm_kv.csv"), ids=lambda log: f"{log['model']}-tp{log['tp']}-{log['kv_cache_dtype']}"
)
def test_tokens_of_a_budget_equal_published_vllm_logs(log: dict[str, str]) -> None:
    name = "bfloat16" if log["kv_cache_dtype"] == "auto" else log["kv_cache_dtype"]
    pool, length = pool_of(layers_of(log["model"]), name, ranks=int(log["tp"])), int(log["max_model_len"])
    printed = float(log["available_kv_gib_per_gpu"])  # to 0.01 GiB
    least, most = (pool.blocks(int((printed + half) * 2**30)) for half in (-0.005, 0.005))
    blocks = int(log["num_gpu_blocks"])
    assert least <= blocks <= most
    assert pool.tokens(blocks, length) == int(log["kv_cache_tokens"])
    assert f"{blocks / (pool.sequence_blocks(length) or 0):.2f}" == f"{float(log['max_concurrency_x']):.2f}"


@pytest.mark.parametrize(
    ("model", "ranks", "name", "gib", "length", "tokens", "concurrency"),
    [
        # llm-d-incubation/llm-d-planner @fbd68515, accuracy/results/v0.19.0/accuracy_report.md: Llama-3.1-8B-Instruct.
        ("llama", 1, "bfloat16", 58.11, 16_384, 476_016, "29.05"),
        ("llama", 1, "fp8", 58.11, 8192, 952_032, "116.21"),
        ("Qwen/Qwen3-14B", 1, "bfloat16", 6.51, 32_768, 42_656, "1.30"),  # LMCache/LMCache issue 1739
        # Logs that stand in public repositories, by version, checkpoint, card and day:
        # 0.11.0, QuantTrio/Qwen3-VL-235B-A22B-Instruct-FP8, 8 ranks and 4 KV heads, 29 September 2025
        ("Qwen/Qwen3-235B-A22B", 8, "bfloat16", 9.71, 32_768, 216_656, "6.61"),
        # 0.10.2, Qwen3-30B-A3B-Instruct-2507-FP8, 24 September 2025
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 2, "bfloat16", 25.91, 32_768, 566_016, "17.27"),
        ("Qwen/Qwen3-30B-A3B", 1, "bfloat16", 19.40, 8192, 211_936, "25.87"),  # H100 NVL, 25 December 2025
        ("Qwen/Qwen2.5-VL-7B-Instruct", 2, "bfloat16", 10.04, 8192, 375_968, "45.89"),  # 31 August 2025
        ("Qwen/Qwen3-VL-2B-Instruct", 1, "bfloat16", 66.89, 8192, 626_240, "76.45"),
        ("Qwen/Qwen2.5-0.5B-Instruct", 1, "bfloat16", 11.71, 2048, 1_022_896, "499.46"),  # 10 July
        ("Qwen/Qwen3-0.6B", 1, "bfloat16", 37.42, 16_000, 350_304, "21.89"),  # L40S, 3 March 2026
        # 0.13.0, two L40S, 12 February 2026; blocks of 1,072 tokens
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 2, "fp8", 17.58, 32_768, 767_552, "84.29"),
        # 0.19.0, L40S, 7 April 2026; blocks of 528 tokens
        ("Qwen/Qwen3.5-9B", 1, "bfloat16", 20.27, 262_144, 165_792, "2.52"),
    ],
)
def test_budgets_of_other_published_logs_are_met(
    model: str, ranks: int, name: str, gib: float, length: int, tokens: int, concurrency: str
) -> None:
    """To the 0.01 GiB that they print: some budget that is printed so holds exactly these tokens and this concurrency."""
    layers: Sequence[AnyLayerAttention] = [softmax(8, 128)] * 32
    states = (DType.BF16, DType.BF16)
    if model != "llama":
        report = inspect(model, source="catalog")
        layers, states = report.attention.layers, state_dtypes(report.config or {}, report.spec.dtype)
    pool = block_pool(layers, FORMATS[name], ranks=ranks, states=states)
    least, most = (pool.blocks(int((gib + half) * 2**30)) for half in (-0.005, 0.005))
    sequence = pool.sequence_blocks(length) or 0
    found = {(pool.tokens(blocks, length), f"{blocks / sequence:.2f}") for blocks in range(least, most + 1)}
    assert (tokens, concurrency) in found


E4M3 = {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True, "dynamic": False}


@pytest.mark.parametrize(
    ("quantisation", "asked", "taken"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": E4M3}, "auto", "fp8"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": E4M3}, "bfloat16", "fp8"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, "auto", "auto"),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "auto", "fp8"),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "bfloat16", "bfloat16"),
        ({"quant_method": "modelopt_fp4", "kv_cache_scheme": E4M3}, "auto", "fp8"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {**E4M3, "dynamic": True}}, "auto", "auto"),
        ({"quant_method": "modelopt", "quantization": {"kv_cache_quant_algo": "FP8"}}, "auto", "fp8"),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "NVFP4"}, "auto", "auto"),
        ({"quant_method": "fp8"}, "auto", "auto"),
        ("hostile", "auto", "auto"),
    ],
)
def test_a_checkpoint_may_name_the_caches_format(quantisation: Any, asked: str, taken: str) -> None:
    """As vLLM 0.19.0's resolve_kv_cache_dtype_string and Attention.__init__ take it."""
    assert checkpoint_format({"quantization_config": quantisation}, asked) == taken


def test_a_cache_scheme_that_vllm_does_not_load_is_refused() -> None:
    scheme = {**E4M3, "num_bits": 4, "type": "int"}
    with pytest.raises(UnsupportedError) as refusal:
        checkpoint_format(
            {"quantization_config": {"quant_method": "compressed-tensors", "kv_cache_scheme": scheme}}, "auto"
        )
    assert refusal.value.message.key == "vllm_cache_scheme"


def test_a_budget_of_57_50_gib_holds_418_688_tokens_of_qwen3_8b() -> None:
    pool = pool_of(layers_of("Qwen/Qwen3-8B"), "bfloat16")
    blocks = pool.blocks(int(57.5 * 2**30))
    assert (blocks, pool.tokens(blocks, 8192)) == (26_168, 418_688)


POOLS: list[dict[str, Any]] = json.loads((PUBLISHED / "vllm_pools.json").read_text(encoding="utf-8"))


def described(parts: Sequence[Any]) -> list[AnyLayerAttention]:
    """Layers of the recorded form: [times, one or several of a kind's words and sizes]."""
    layers: list[AnyLayerAttention] = []
    for times, period in parts:
        for kind, *sizes in (period if isinstance(period[0], list) else [period]) * times:
            if kind == "linear":
                names = ("key_heads", "value_heads", "key_head_dim", "value_head_dim", "conv_kernel")
                layers.append(LinearLayerAttention(index=len(layers), **dict(zip(names, sizes, strict=False))))
            else:
                layers.append(softmax(*sizes))
    return layers


@pytest.mark.parametrize("case", POOLS, ids=lambda case: f"{case['model']}-tp{case['ranks']}-{case['format']}")
def test_blocks_tokens_and_concurrency_are_what_vllms_own_functions_print(case: dict[str, Any]) -> None:
    """Recorded from get_kv_cache_configs of vLLM 0.19.0, for the specs that its layers would give."""
    state = DType.F32 if '"float32"' in json.dumps(case["layers"]) else DType.BF16
    pool = pool_of(described(case["layers"]), case["format"], ranks=case["ranks"], state=state)
    blocks, length = pool.blocks(case["budget_bytes"]), case["max_model_len"]
    sequence = pool.sequence_blocks(length, case["max_num_batched_tokens"])
    assert sequence is not None
    assert blocks == case["blocks"]
    assert case["printed"] == [
        f"GPU KV cache size: {pool.tokens(blocks, length):,} tokens",
        f"Maximum concurrency for {length:,} tokens per request: {blocks / sequence:.2f}x",
    ]


def test_a_published_hybrid_log_is_met() -> None:
    """vLLM 0.19.0, Qwen3.5-27B: 290,864 tokens, 33.04x for 32,768 tokens (vllm-project/vllm issue 40691); blocks of 784 tokens
    are what LMCache names for Qwen3.6-27B, of the same layers (LMCache/LMCache pull request 5079)."""
    report = inspect("Qwen/Qwen3.5-27B", source="catalog")
    assert report.config is not None
    states = state_dtypes(report.config, report.spec.dtype)
    pool = block_pool(report.attention.layers, FORMATS["bfloat16"], ranks=1, states=states)
    assert pool.block_tokens == 784
    assert pool.tokens(1487, 32_768) == 290_864
    assert f"{1487 / (pool.sequence_blocks(32_768) or 0):.2f}" == "33.04"


DEEPSEEK = {"model_type": "deepseek_v2", "kv_lora_rank": 512, "qk_rope_head_dim": 64}


@pytest.mark.parametrize(
    ("layers", "name", "capability", "budget", "length", "printed"),
    [
        (27, "bfloat16", (9, 0), 20 * 2**30, 32_768, (43_151, 690_416, "21.07")),
        (27, "fp8", (9, 0), 20 * 2**30, 32_768, (21_575, 1_380_800, "42.14")),
        (61, "bfloat16", (10, 0), int(57.5 * 2**30), 131_072, (27_455, 878_560, "6.70")),
        (27, "bfloat16", None, 20 * 2**30, 32_768, (43_151, 690_416, "21.07")),
    ],
)
def test_latents_are_what_vllms_own_functions_print(
    layers: int, name: str, capability: tuple[int, int] | None, budget: int, length: int, printed: tuple[int, int, str]
) -> None:
    """Recorded from get_kv_cache_configs of vLLM 0.19.0 for MLAAttentionSpec of 576 numbers in blocks of 16, 64 and 32 tokens."""
    width = latent_width(DEEPSEEK)
    assert width == 576
    pool = latent_pool(layers, width, FORMATS[name], capability)
    blocks = pool.blocks(budget)
    concurrency = blocks / (pool.sequence_blocks(length) or 0)
    assert (blocks, pool.tokens(blocks, length), f"{concurrency:.2f}") == printed


def test_only_mla_has_a_latent() -> None:
    assert latent_width({**DEEPSEEK, "model_type": "qwen3"}) is None
    assert latent_width({"model_type": "deepseek_v3"}) is None
    with pytest.raises(UnsupportedError):
        latent_width({**DEEPSEEK, "index_topk": 2048})


# model_type: kv_lora_rank, qk_rope_head_dim. Defaults of the configurations of transformers 5.23 where it has the type.
LATENTS = {
    "AXK1": (512, 64),
    "axk1": (512, 64),
    "deepseek_v2": (512, 64),
    "deepseek_v3": (512, 64),
    "glm4_moe_lite": (512, 64),
    "kimi_k2": (512, 64),
    "longcat_flash": (512, 64),
    "mistral4": (256, 64),
    "pangu_ultra_moe": (512, 64),
}


@pytest.mark.parametrize(("model_type", "dims"), LATENTS.items())
def test_each_type_that_vllm_keeps_a_latent_of_is_known(model_type: str, dims: tuple[int, int]) -> None:
    """is_deepseek_mla of vLLM 0.19.0 without hybrids and indexes, and what its Mistral format makes a deepseek_v3 of."""
    text = {"model_type": model_type, "kv_lora_rank": dims[0], "qk_rope_head_dim": dims[1]}
    assert latent_width(text_part(text)) == sum(dims)
    assert latent_width(text_part({"model_type": "mistral3", "text_config": text})) == sum(dims)
    sparse = {**text, "index_topk": 2048}
    with pytest.raises(UnsupportedError):
        latent_width(text_part({"model_type": "some_vision_model", "text_config": sparse}))


@pytest.mark.parametrize("model_type", ["minicpm3", "youtu", "kimi_linear", "bailing_hybrid"])
def test_types_that_vllm_does_not_keep_so_have_no_latent(model_type: str) -> None:
    """minicpm3.py of vLLM 0.19.0 caches whole heads, youtu is not in it, the others have layers of another kind beside."""
    assert latent_width({"model_type": model_type, "kv_lora_rank": 256, "qk_rope_head_dim": 32}) is None


def test_what_engines_reserve_of_a_hybrid_is_known() -> None:
    engines = caches_of(inspect("Qwen/Qwen3-Next-80B-A3B-Instruct", source="catalog"))
    assert all(row.size_bytes is not None for row in engines)
    # 262,144 tokens: 482 blocks of 544, and 3 groups' states; a block is 12 layers of 544 x 2 x 2 x 256 in bfloat16.
    found = next(row for row in engines if (row.engine, row.format) == ("vllm", "bfloat16"))
    assert found.size_bytes == (482 + 3) * 12 * 544 * 2 * 2 * 256 * 2


def test_a_published_log_of_windows_is_met() -> None:
    """vLLM 0.19.0, gemma-3-27b-it, H100, 8,192 tokens a step: 19.53 GiB, 36,560 tokens, 4.46x for 8,192 tokens
    (llm-d-incubation/llm-d-planner @d3121e05, accuracy/results/v0.19.0/logs). Every sixth of 62 layers sees all tokens."""
    layers = [softmax(16, 128, None if index % 6 == 5 else 1024) for index in range(62)]
    pool = pool_of(layers, "bfloat16")
    least, exact, most = (pool.blocks(int((19.53 + half) * 2**30)) for half in (-0.005, 0, 0.005))
    assert pool.tokens(least, 8192) <= 36_560 <= pool.tokens(most, 8192)
    assert f"{exact / (pool.sequence_blocks(8192, 8192) or 0):.2f}" == "4.46"


def test_a_recurrent_state_is_the_models_dtype_unless_vllm_reads_another() -> None:
    text = {"mamba_ssm_dtype": "float32"}
    named = {"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text}
    assert state_dtypes(named, DType.BF16) == (DType.BF16, DType.F32)
    assert state_dtypes({**named, "architectures": ["Qwen3NextForCausalLM"]}, DType.BF16) == (DType.BF16, DType.BF16)
    assert state_dtypes({**named, "text_config": {}}, DType.BF16) == (DType.BF16, DType.BF16)


@pytest.mark.parametrize(("heads", "ranks", "each"), [(8, 1, 8), (8, 4, 2), (4, 8, 1), (1, 4, 1)])
def test_heads_are_shared_evenly_or_repeated(heads: int, ranks: int, each: int) -> None:
    assert kv_heads_per_rank(heads, ranks) == each


layers_alike = st.builds(softmax, st.sampled_from([1, 2, 4, 8, 64]), st.integers(1, 256))


@given(
    layers=st.lists(layers_alike, min_size=1, max_size=8),
    name=st.sampled_from(["bfloat16", "float16", "float32", "fp8"]),
    budget=st.integers(0, 2**36),
    more=st.integers(0, 2**34),
    tokens=st.integers(1, 300_000),
    batch=st.integers(1, 64),
)
def test_tokens_come_in_blocks_of_16_and_grow_with_the_budget(
    layers: list[LayerAttention], name: str, budget: int, more: int, tokens: int, batch: int
) -> None:
    pool = pool_of(layers, name)
    blocks = pool.blocks(budget)
    assert pool.tokens(blocks, tokens) == 16 * blocks <= pool.tokens(pool.blocks(budget + more), tokens)
    assert blocks * pool.block_bytes <= budget < (blocks + 1) * pool.block_bytes
    size = pool.size_bytes(tokens=tokens, batch=batch)
    assert size == batch * pool.size_bytes(tokens=tokens)
    # What is reserved holds the tokens, with less than a block to spare for each sequence.
    per_token = sum(2 * FORMATS[name].size_bytes(layer.kv_heads * layer.head_dim) for layer in layers)
    assert 0 <= size - batch * tokens * per_token < batch * 16 * per_token


# --- llama.cpp -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", published("llama_cpp_kv.csv"), ids=lambda log: f"{log['n_ctx']}-{log['k_cache_type']}")
def test_the_cache_equals_published_llama_cpp_logs(log: dict[str, str]) -> None:
    keys, values = read_formats(f"{log['k_cache_type']},{log['v_cache_type']}", DType.BF16)
    layers = layers_of("Qwen/Qwen3-235B-A22B")
    size_bytes = sum(llama_cpp_layer_bytes(layer, keys, values, tokens=int(log["n_ctx"])) for layer in layers)
    assert size_bytes == float(log["kv_total_mib"]) * 2**20


@pytest.mark.parametrize(
    ("model", "sequences", "layers", "mib"),
    [
        ("Qwen/Qwen3.8-27B", 3, 48, "448.88"),  # R 16.88 and S 432.00 (ggml-org/llama.cpp pull request 23792)
        ("Qwen/Qwen3.5-35B-A3B", 4, 30, "251.25"),  # R 11.25 and S 240.00 (stored file index 52911601095)
    ],
)
def test_recurrent_states_equal_published_llama_cpp_logs(model: str, sequences: int, layers: int, mib: str) -> None:
    half = FORMATS["float16"]
    linear = [layer for layer in layers_of(model) if isinstance(layer, LinearLayerAttention)]
    size_bytes = sum(llama_cpp_layer_bytes(layer, half, half, tokens=256, sequences=sequences) for layer in linear)
    assert len(linear) == layers
    assert f"{size_bytes / 2**20:.2f}" == mib


def test_cells_come_by_the_256() -> None:
    assert [padded(tokens) for tokens in (1, 256, 257, 32_768)] == [256, 256, 512, 32_768]


# --- refusals ------------------------------------------------------------------------------------------------------

FP8, Q8 = FORMATS["fp8"], FORMATS["q8_0"]
LINEAR = LinearLayerAttention(index=1, key_heads=2, value_heads=4, key_head_dim=8, value_head_dim=8, conv_kernel=4)
OTHER = OtherLayerAttention(index=0, cache_kind="indexed", window_tokens=None)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kv_heads_per_rank(8, 3),
        lambda: pool_of([softmax(8, 64)], "fp8", ranks=3),
        lambda: pool_of([softmax(8, 64)], "q8_0"),
        lambda: pool_of([OTHER], "fp8"),
        lambda: pool_of([LINEAR], "fp8"),
        lambda: pool_of([LINEAR, softmax(8, 64)], "fp8", ranks=4),
        lambda: pool_of([LINEAR, softmax(8, 64), softmax(8, 128)], "fp8"),
        lambda: pool_of([LINEAR, softmax(8, 64, 128)], "fp8"),
        lambda: pool_of([softmax(3, 64), softmax(8, 64, 128)], "fp8"),
        lambda: pool_of([softmax(8, 64, 128)], "fp8").size_bytes(tokens=100),
        lambda: llama_cpp_layer_bytes(softmax(8, 64), FP8, FP8, tokens=5),
        lambda: llama_cpp_layer_bytes(softmax(8, 64, 128), Q8, Q8, tokens=5),
        lambda: llama_cpp_layer_bytes(softmax(1, 80), Q8, Q8, tokens=5),
        lambda: llama_cpp_layer_bytes(OTHER, Q8, Q8, tokens=5),
    ],
)
def test_what_an_engine_would_not_lay_out_so_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        call()
    assert "{" not in str(refusal.value)
