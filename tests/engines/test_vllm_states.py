"""Mamba's states and sparse attention's index in vLLM's cache, worked out by hand from the sources of vLLM 0.19.0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.checkpoint import DType
from qwen_inspect.cli import main
from qwen_inspect.engines.vllm.blocks import BlockPool, hybrid_pool, softmax_kind
from qwen_inspect.engines.vllm.command import parse_command
from qwen_inspect.engines.vllm.mamba import MambaSizes, mamba_dtypes, mamba_pool, mamba_sizes
from qwen_inspect.engines.vllm.releases import release
from qwen_inspect.engines.vllm.sparse import indexed_pool, sparse_index
from qwen_inspect.engines.vllm.weights import rank_weights
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.loaders import gpus
from qwen_inspect.results.attention import LayerAttention
from qwen_inspect.results.serving import VllmEnvironment
from qwen_inspect.spec import each_module
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.structure.kv_cache import FORMATS

BF16 = (DType.BF16, DType.BF16)
NANO = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
ULTRA = "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"
GRANITE, JAMBA = "ibm-granite/granite-4.0-h-small", "ai21labs/Jamba-v0.1"


def pool_of(
    model: str, *, ranks: int = 1, prefix_caching: bool = False, name: str = "bfloat16", version: str = "0.19.0"
) -> BlockPool:
    report = inspect(model) if model[0] == "/" else inspect(model, source="catalog")
    sizes, cache = mamba_sizes(report), report.known.cache
    assert sizes is not None
    assert cache is not None
    return mamba_pool(
        report,
        cache.layers,
        sizes,
        FORMATS[name],
        ranks=ranks,
        release=release(version),
        prefix_caching=prefix_caching,
    )


def test_a_published_block_of_mamba_2_is_met() -> None:
    """672 tokens for NVIDIA-Nemotron-Nano-9B-v2 (vllm-project/vllm issue 24280): 128 heads of 80, 8 groups, states of 128."""
    sizes = MambaSizes(inner=10_240, heads=128, groups=8, state=128, kernel=4, projected=22_656)
    layer = LayerAttention(index=0, query_heads=40, kv_heads=8, head_dim=128, window_tokens=None)
    state_bytes = sizes.state_bytes(1, BF16)
    assert state_bytes == 2 * (3 * (10_240 + 2 * 8 * 128) + 128 * 80 * 128)
    assert hybrid_pool([softmax_kind(layer, FORMATS["bfloat16"], 1, 16)], [state_bytes]).block_tokens == 672


@pytest.mark.parametrize(
    ("model", "options", "tokens", "layers", "token_bytes", "groups"),
    [
        # 2 x 3 x 6144 + 4 x 64 x 64 x 128 = 2,134,016 bytes of state; 2 KV heads of 128; 6 layers of attention, 23 of Mamba
        (NANO, {}, 2096, 6, 1024, 5),
        (NANO, {"ranks": 2}, 2096, 6, 512, 5),
        (NANO, {"ranks": 8}, 528, 6, 512, 5),  # a KV head is repeated: 266,752 bytes of state
        (NANO, {"name": "fp8"}, 4176, 6, 512, 5),
        (NANO, {"prefix_caching": True}, 17 * 128, 6, 1024, 5),  # chunks of 128
        # 2 x 3 x 18,432 + 4 x 256 x 64 x 128 = 8,499,200; 12 of attention, 48 of Mamba
        (ULTRA, {}, 8304, 12, 1024, 5),
        # 2 x (3 x (8192 + 256) + 8192 x 128) = 2,147,840; 8 KV heads of 128; 4 of attention, 36 of Mamba
        (GRANITE, {}, 528, 4, 4096, 10),
        # its single group is repeated: 2 x (3 x (8192 + 8 x 256) / 8 + 8192 x 128 / 8) = 269,824 on each rank
        (GRANITE, {"ranks": 8}, 528, 4, 512, 10),
        (GRANITE, {"prefix_caching": True}, 3 * 256, 4, 4096, 10),
        # Mamba-1: 2 x 8192 x (3 + 16) = 311,296; 8 KV heads of 128; 4 of attention, 28 of Mamba
        (JAMBA, {}, 80, 4, 4096, 8),
        (JAMBA, {"prefix_caching": True}, 2048, 4, 4096, 8),
    ],
)
def test_attention_blocks_are_as_large_as_a_state(
    model: str, options: dict[str, Any], tokens: int, layers: int, token_bytes: int, groups: int
) -> None:
    pool = pool_of(model, **options)
    assert (pool.block_tokens, pool.block_bytes, len(pool.groups)) == (tokens, layers * tokens * token_bytes, groups)
    # Without prefix caching a sequence has one block of states in each group of them; else one for each block of tokens.
    blocks = -(-10_000 // tokens)
    assert pool.sequence_blocks(10_000) == (groups * blocks if options.get("prefix_caching") else blocks + groups - 1)


def test_mamba_keeps_a_second_block_where_prefixes_are_cached_by_default() -> None:
    """vLLM 0.28.0, MambaModelConfig: "align" mode, in which a block is as large as without prefixes."""
    pool = pool_of(NANO, prefix_caching=True, version="0.28.0")
    assert (pool.block_tokens, pool.sequence_blocks(10_000)) == (2096, 5 + 4 * 2)


FALCON = {
    "model_type": "falcon_h1",
    "architectures": ["FalconH1ForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "vocab_size": 65_536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_d_ssm": 3072,
    "mamba_n_heads": 48,
    "mamba_d_head": 64,
    "mamba_d_state": 256,
    "mamba_n_groups": 1,
}


@pytest.mark.parametrize(
    ("ranks", "tokens", "token_bytes"),
    [
        (1, 1568, 1024),  # 2 x (3 x (3072 + 512) + 3072 x 256) = 1,594,368 bytes of state; 2 KV heads of 128
        (4, 784, 512),  # 2 x (3 x (3072 + 4 x 512) + 3072 x 256) / 4 = 400,896 bytes; a KV head
    ],
)
def test_a_layer_may_keep_states_and_keys(tmp_path: Path, ranks: int, tokens: int, token_bytes: int) -> None:
    """Falcon-H1: each of 24 layers is one of attention and one of Mamba-2, in a group each (models/falcon_h1.py)."""
    (tmp_path / "config.json").write_text(json.dumps(FALCON), encoding="utf-8")
    pool = pool_of(str(tmp_path), ranks=ranks)
    assert (pool.block_tokens, pool.block_bytes, len(pool.groups)) == (tokens, 24 * tokens * token_bytes, 2)


def test_without_attention_a_sequence_is_one_block() -> None:
    """Falcon Mamba: 64 layers of 2 x 8192 x (3 + 16) bytes, unpadded; a block is a sequence, whatever its length."""
    pool = pool_of("tiiuae/falcon-mamba-7b")
    assert (pool.block_bytes, pool.sequence_blocks(100_000)) == (64 * 311_296, 1)
    assert pool.tokens(pool.blocks(10 * 64 * 311_296), 8192) == 81_920
    assert pool_of("tiiuae/falcon-mamba-7b", ranks=8).block_bytes == 64 * 38_912


def test_nemotron_h_names_its_recurrent_dtype() -> None:
    """NemotronHForCausalLMConfig of 0.19.0 and 0.20.0; other classes leave mamba_ssm_cache_dtype at "auto"."""
    config = {"model_type": "nemotron_h"}
    assert mamba_dtypes(config, DType.BF16, (0, 19)) == (DType.BF16, DType.F16)
    assert mamba_dtypes(config, DType.BF16, (0, 20)) == (DType.BF16, DType.F32)
    named = {**config, "mamba_ssm_cache_dtype": "float32"}
    assert mamba_dtypes(named, DType.BF16, (0, 19)) == (DType.BF16, DType.F32)
    assert mamba_dtypes({**named, "model_type": "bamba"}, DType.BF16, (0, 19)) == BF16
    with pytest.raises(UnsupportedError):
        mamba_dtypes({**config, "mamba_ssm_cache_dtype": "int3"}, DType.BF16, (0, 19))


def test_groups_that_the_ranks_do_not_divide_are_refused() -> None:
    """MambaMixer2 asserts n_groups % tp_size == 0 or n_groups == 1, and num_heads % tp_size == 0."""
    with pytest.raises(UnsupportedError) as refusal:
        pool_of(NANO, ranks=16)
    assert refusal.value.message.key == "vllm_mamba_heads"


@pytest.mark.parametrize(
    ("model", "ranks", "size_bytes"),
    [
        # 7,272,665,088 parameters in bfloat16, of which A_log (64 x 8192 x 16) in float32; 65 norms of 4096 are on every rank
        ("tiiuae/falcon-mamba-7b", 1, 14_562_107_392),
        ("tiiuae/falcon-mamba-7b", 8, (14_562_107_392 - 532_480) // 8 + 532_480),
        # 24,256,512 bytes of norms and routers on every rank; 36 mixers with 256 rows more of 4096 + 4 + 1 numbers
        (GRANITE, 2, (64_414_685_184 - 24_256_512 + 75_589_632) // 2 + 24_256_512),
    ],
)
def test_mixers_are_shared_over_the_ranks(model: str, ranks: int, size_bytes: int) -> None:
    """mamba_mixer.py and mamba_mixer2.py, __init__."""
    assert rank_weights(inspect(model, source="catalog"), ranks).total_bytes == size_bytes


def test_kimis_projector_is_whole_on_every_rank() -> None:
    """ReplicatedLinear of 4608 x 4608 and 7168 x 4608 with biases, and a norm of 1152 (models/kimi_k25_vit.py)."""
    report = inspect("moonshotai/Kimi-K2.5", source="catalog")
    projector = next(module for _, module in each_module(report.tree) if module.name == "mm_projector")
    root = replace(report.tree, children=(projector,), tensors=())
    alone = replace(report, design=replace(report.known, tree=root))
    rotary_bytes = 262_144 * 64 * 2  # the decoder's table
    assert rank_weights(alone, 8).total_bytes == 2 * (4608 * 4609 + 7168 * 4609 + 2 * 1152) + rotary_bytes


V32 = {"model_type": "deepseek_v32", "index_topk": 2048, "index_head_dim": 128}


@pytest.mark.parametrize(
    ("name", "capability", "version", "token_bytes"),
    [
        ("bfloat16", (9, 0), (0, 19), 1152),
        ("bfloat16", None, (0, 19), 1152),
        ("fp8", (9, 0), (0, 19), 656),  # fp8_ds_mla of FLASHMLA_SPARSE
        ("fp8", (10, 0), (0, 19), 576),  # FLASHINFER_MLA_SPARSE is preferred
        ("fp8", (10, 0), (0, 17), 656),  # before 0.18 DeepseekV32ForCausalLM made all fp8 packed
    ],
)
def test_an_index_is_kept_beside_the_latents(
    name: str, capability: tuple[int, int] | None, version: tuple[int, int], token_bytes: int
) -> None:
    """An index key is 128 numbers in FP8 and a float32 scale: 132 bytes; blocks of 64 tokens."""
    index = sparse_index(V32, FORMATS[name], capability, version)
    assert index is not None
    pool = indexed_pool(range(61), 576, index, FORMATS[name])
    assert (pool.block_tokens, pool.block_bytes, len(pool.groups)) == (64, 61 * 64 * (token_bytes + 132), 1)


def test_layers_may_share_an_index() -> None:
    """GLM-5.2: layers 0 to 2 and every fourth from 6 on, 21 of 78, as deepseek_v2.py of 0.24.0 builds them."""
    text = {**V32, "model_type": "glm_moe_dsa", "index_topk_freq": 4, "index_skip_topk_offset": 3}
    index = sparse_index(text, FORMATS["bfloat16"], (9, 0), (0, 24))
    assert index is not None
    assert [layer for layer in range(12) if index.of_layer(layer)] == [0, 1, 2, 6, 10]
    assert indexed_pool(range(78), 576, index, FORMATS["bfloat16"]).block_bytes == 64 * (78 * 1152 + 21 * 132)


def test_the_indexs_buffers_are_those_that_vllm_names() -> None:
    """865,075,200 bytes for 163,840 tokens (v1/attention/backends/mla/indexer.py); 5 x 163,840 x 576 x 2 of latents beside
    queries of 8192 tokens and 16 heads if the cache is packed; int32 of 2048 tokens for each of a step."""
    index, packed = (sparse_index(V32, FORMATS[name], (9, 0), (0, 19)) for name in ("bfloat16", "fp8"))
    assert index is not None
    assert packed is not None
    queries_bytes = 8192 * 16 * 576 * 2
    assert index.workspace_bytes(163_840, 576, queries_bytes) == 865_075_200
    assert packed.workspace_bytes(163_840, 576, queries_bytes) == 943_718_400 + 150_994_944
    assert index.chosen_bytes(8192) == 64 * 2**20


@pytest.mark.parametrize(
    ("text", "name", "capability", "version"),
    [
        (V32, "bfloat16", (8, 0), (0, 19)),  # no backend
        (V32, "bfloat16", (12, 0), (0, 19)),
        (V32, "fp8", None, (0, 19)),  # the card decides the layout
        (V32, "bfloat16", (9, 0), (0, 11)),  # where "auto" was fp8_ds_mla
        ({**V32, "model_type": "glm_moe_dsa", "index_topk_freq": 4}, "bfloat16", (9, 0), (0, 19)),  # GLM-5.2
        ({**V32, "index_topk": None}, "bfloat16", (9, 0), (0, 19)),
    ],
)
def test_other_indexes_are_refused(
    text: dict[str, Any], name: str, capability: tuple[int, int] | None, version: tuple[int, int]
) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        sparse_index(text, FORMATS[name], capability, version)
    assert "{" not in str(refusal.value)


def test_without_an_index_there_is_none() -> None:
    assert sparse_index({"model_type": "deepseek_v3"}, FORMATS["fp8"], None, (0, 19)) is None


@pytest.mark.parametrize(
    ("model", "asked", "blocks"),
    [
        # 30 GiB over 61 x 64 x (1152 + 132) bytes; over 6 x 4176 x 2 x 2 x 128; over 61 x 16 x 576
        ("deepseek-ai/DeepSeek-V3.2", [], 6426),
        (NANO, ["--cache-dtype", "fp8"], 2510),
        ("deepseek-ai/DeepSeek-V3", ["--cache-dtype", "fp8"], 57_299),
    ],
)
def test_the_command_answers_with_any_format(
    capsys: pytest.CaptureFixture[str], model: str, asked: list[str], blocks: int
) -> None:
    budget = ["--engine", "vllm", "--kv-budget", "30GiB", "--context", "8192", "--format", "json"]
    assert main(["fit", f"catalog:{model}", *budget, *asked]) == 0
    assert json.loads(capsys.readouterr().out)["cards"][0]["vllm"]["low"]["blocks"] == blocks


@pytest.mark.parametrize(("ranks", "block_bytes"), [(1, 6 * 2 * 16 * 8 * 64 * 2), (2, 6 * 2 * 16 * 4 * 64 * 2)])
def test_a_short_convolution_is_padded_to_a_block_of_attention(
    ranks: int, block_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """LFM2-1.2B: 6 layers with 8 KV heads of 64, and 10 whose state of 2 x 2048 numbers is smaller than their 16 tokens."""
    on = ["fit", "catalog:LiquidAI/LFM2-1.2B", "--engine", "vllm", "--gpu", "H100", "--tp", str(ranks)]
    assert main([*on, "--context", "4096", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["vllm"]["block_bytes"], found["vllm"]["block_tokens"], found["vllm"]["groups"]) == (
        block_bytes,
        16,
        3,
    )
    # A sequence has a block of each of the two groups of states: 10 layers in groups of at most 6.
    assert found["vllm"]["low"]["sequence_blocks"] == 4096 // 16 + 2
    weights = next(term["least_bytes"] for term in found["terms"] if term["term"] == "weights")
    rotary, norms = 128_000 * 64 * 2, 2 * (2048 * (2 * 16 + 1) + 6 * 2 * 64)
    assert weights - rotary - norms == (2 * 1_170_340_608 - norms) // ranks


@pytest.mark.parametrize(
    ("model", "card", "version", "in_float32"),
    [
        ("zai-org/GLM-4.7", "H200", "0.19.0", 89 * 160 * 5120),
        (NANO, "H200", "0.19.0", 0),  # gate_linear.py: a kernel for 16 bits
        (NANO, "H200", "0.16.0", 23 * 128 * 2688),
        (NANO, "L40S", "0.19.0", 23 * 128 * 2688),
    ],
)
def test_routers_in_float32_take_twice_as_much(model: str, card: str, version: str, in_float32: int) -> None:
    report = inspect(model, source="catalog")
    floats = release(version).float_routers(report, gpus.find(card).compute_capability)
    more, less = (rank_weights(report, 1, float_routers=on).total_bytes for on in (floats, False))
    assert more - less == 2 * in_float32


@pytest.mark.parametrize(
    ("model", "table"),
    [
        # Positions, rotated channels and bytes of a number. models/qwen3_vl.py (mrope_positions_factor) and qwen3_5.py of 0.32.0
        # count positions once; models/qwen2_5_vl.py still takes the default of rotary_embedding/mrope.py, four times.
        ("Qwen/Qwen3-VL-8B-Instruct", 262_144 * 128 * 2),
        ("Qwen/Qwen3.5-9B", 262_144 * 64 * 2),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 0),
    ],
)
def test_positions_of_images_are_in_the_table_once_from_0_32_on(model: str, table: int) -> None:
    report = inspect(model, source="catalog")
    before, after = (rank_weights(report, 1, version=version).total_bytes for version in ((0, 31), (0, 32)))
    assert before - after == 3 * table


FLASH_NEXT = ["fit", "catalog:Qwen/Qwen3.8-Flash-Next", "--engine", "vllm", "--engine-version", "0.30.0"]
MTP = ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}']


@pytest.mark.parametrize(
    ("budget", "asked", "block_tokens", "printed"),
    [
        # Logs of one GB10, vllm issue 54458 (also 0.88 % of padding) and, with other weights, 54426: whole blocks give the tokens
        # that they print, 744, 730 and 539 of them, only if a sequence has 17 beside those of its tokens: 3 groups of
        # states and one of the table's, of 2 + 2 blocks each, and a ring. A block: 13 layers of 1600 x (2048 + 64) bytes.
        (744 * 13 * 1600 * 2112, ["--context", "262144", *MTP], 1600, 1_077_542),
        (730 * 13 * 1600 * 2112, ["--context", "8192", *MTP], 1600, 260_006),
        (539 * 13 * 1600 * 2112, ["--context", "262144", *MTP], 1600, 780_638),
        # Four ranks, LMCache's pull request 5042: 784 tokens in each of 3432 blocks. One KV head a rank; 168 + 4 x 2 + 1 blocks.
        (3432 * 12 * 784 * 1088, ["--context", "131072", "--tp", "4"], 784, 3432 * 131_072 // (168 + 9)),
        # Eight ranks of H100 without cached prefixes, 0.31.1rc1.dev50: of FP8 weights 51.44 GiB (blog-architecture-h100-v1),
        # of those in bfloat16 11.62 sequences at once (qwen-bf16-h100-v1), which are 7681 blocks of 656 + 4 + 1 each. That log
        # printed 37.37 GiB, in which rank 0 has room for 7682 to 7684; all ranks take the fewest that one has.
        (round(51.44 * 2**30), ["--context", "262144", "--tp", "8", "--no-enable-prefix-caching"], 400, 4_194_304),
        (7681 * 12 * 400 * 1088, ["--context", "262144", "--tp", "8", "--no-enable-prefix-caching"], 400, 3_046_184),
    ],
)
def test_blocks_of_compressed_keys_are_those_of_published_logs(
    capsys: pytest.CaptureFixture[str], budget: int, asked: list[str], block_tokens: int, printed: int
) -> None:
    assert main([*FLASH_NEXT, "--kv-budget", f"{budget}B", *asked, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["cards"][0]["vllm"]
    assert (found["block_tokens"], found["low"]["kv_cache_tokens"], found["groups"]) == (block_tokens, printed, 6)


def test_compressed_keys_budget_and_weights_are_those_of_a_published_log(capsys: pytest.CaptureFixture[str]) -> None:
    """0.31.1rc1.dev50 on eight H100s (qwen-bf16-h100-v1): 31.42 GiB loaded without the tower, 37.37 for the cache."""
    line = (
        "vllm serve catalog:Qwen/Qwen3.8-Flash-Next -tp 8 --enable-expert-parallel --gpu-memory-utilization 0.9 --max-num-seqs 64"
        " --max-num-batched-tokens 8192 --max-model-len 262144 --no-enable-prefix-caching --language-model-only"
    )
    weights = []
    for option in ("", " --skip-mm-profiling"):
        run = line if not option else line.replace(" --language-model-only", option)
        assert main(["fit", "--vllm", run, "--engine-version", "0.31.1", "--gpu", "H100", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        low, high = (found["cards"][0]["vllm"][end]["kv_budget_bytes"] for end in ("low", "high"))
        assert low <= 37.37 * 2**30 <= high
        weights.append(found["terms"][0]["least_bytes"] / 2**30)
    assert abs(weights[0] - 31.42) < 0.02
    assert 0.1 < weights[1] - weights[0] < 0.15  # the tower, in eight shares, and buffers of its deeper layers
    old = line.replace("Qwen3.8-Flash-Next", "Qwen2.5-VL-7B-Instruct").replace("-tp 8 --enable-expert-parallel", "")
    loaded = []
    for version in ("0.14.0", "0.16.0"):  # models/interfaces.py, _mark_tower_model, of 0.16
        asked = ["fit", "--vllm", old.replace("262144", "32768"), "--engine-version", version, "--gpu", "H100"]
        assert main([*asked, "--format", "json"]) == 0
        loaded.append(json.loads(capsys.readouterr().out)["terms"][0]["least_bytes"])
    tower = inspect("Qwen/Qwen2.5-VL-7B-Instruct", source="catalog").tree
    own = sum(tensor.size_bytes for path, module in each_module(tower) if "visual" in path for tensor in module.tensors)
    assert loaded[0] - loaded[1] == own > 2**30


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (["--gpu", "B200", *MTP], "--kv-budget"),
        (["--kv-budget", "30GiB", "--engine-version", "0.28.0"], "0.29.0"),
        (["--kv-budget", "30GiB", "--cache-dtype", "fp8"], "bfloat16"),
        (["--kv-budget", "30GiB", "--speculative-config", '{"method": "mtp", "num_speculative_tokens": 5}'], "1,616"),
        (["--kv-budget", "30GiB", "--speculative-config", '{"method": "suffix"}'], "ngram_gpu"),
    ],
)
def test_what_is_not_known_of_compressed_keys_is_refused(
    capsys: pytest.CaptureFixture[str], asked: list[str], key: str
) -> None:
    assert main([*FLASH_NEXT, *asked]) == 7
    assert key in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "samplers"),
    [
        # config/vllm.py (_is_default_v2_model_runner_model) and v1/worker/gpu/sample/sampler.py of each version.
        ("Qwen/Qwen3-8B", ["gumbel", "gumbel", "gumbel", "gumbel", "greedy", "greedy", "greedy"]),
        ("google/gemma-3-1b-it", ["flashinfer", "flashinfer", "flashinfer", "gumbel", "greedy", "greedy", "greedy"]),
        ("Qwen/Qwen3-30B-A3B", [*["flashinfer"] * 6, "greedy"]),
    ],
)
def test_the_second_model_runner_samples_by_version(model: str, samplers: list[str]) -> None:
    report = inspect(model, source="catalog")
    versions = ("0.22.0", "0.23.0", "0.24.0", "0.25.0", "0.26.0", "0.28.0", "0.29.0")
    assert [release(version).sampler(report, None, VllmEnvironment()) for version in versions] == samplers


def test_variables_before_a_command_change_how_its_profile_run_samples() -> None:
    """topk_topp_sampler.py of 0.11.0 and 0.22.0, gpu/model_runner.py of 0.28.0 and 0.29.0 (profile_cudagraph_memory)."""
    report = inspect("Qwen/Qwen3-8B", source="catalog")
    image = "docker run -e VLLM_USE_FLASHINFER_SAMPLER={} -e HF_TOKEN=1 vllm/vllm-openai:v{} --model x"

    def sampler(asked: str, version: str, capability: tuple[int, int] = (9, 0)) -> str:
        serving = parse_command(image.format(asked, version)).serving
        environment = replace(serving.environment, second_runner=False)
        return release(serving.version).sampler(report, None, environment, capability)

    assert [sampler("1", version) for version in ("0.11.0", "0.16.0", "0.19.0", "0.22.0")] == ["flashinfer"] * 4
    assert [sampler("0", version) for version in ("0.10.1.1", "0.19.0", "0.22.0")] == ["sort", "triton", "triton"]
    assert [sampler("2", "0.22.0", of) for of in ((7, 0), (8, 0))] == ["triton", "flashinfer"]  # 2 is no value
    first = parse_command("VLLM_USE_V2_MODEL_RUNNER=0 VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0 vllm serve x").serving
    neither, none = first.environment, VllmEnvironment()
    assert (neither.second_runner, neither.graphs, none.graphs) == (False, False, None)
    counted = [
        release(version).graphs_measured(report, None, none) for version in ("0.19.0", "0.20.0", "0.28.0", "0.29.0")
    ]
    assert counted == [False, True, False, True]
    assert not release("0.29.0").graphs_measured(report, None, neither)


@pytest.mark.parametrize(
    ("version", "memory_gib", "card", "defaults"),
    [
        # engine/arg_utils.py, get_batch_defaults of 0.27.0, 0.28.0 and 0.33.0
        ("0.27.0", 178, "B200", (8192, 1024)),
        ("0.28.0", 178, "B200", (16_384, 1024)),
        ("0.28.0", 79, "A100 80GB", (2048, 256)),
        ("0.28.0", 121, "DGX Spark", (8192, 1024)),
        ("0.33.0", 121, "DGX Spark", (2048, 256)),
    ],
)
def test_a_step_takes_as_much_as_the_server_lets_it(
    version: str, memory_gib: int, card: str, defaults: tuple[int, int]
) -> None:
    assert release(version).step_defaults(memory_gib << 30, card) == defaults


def test_windows_keep_the_tokens_of_every_step_in_flight(capsys: pytest.CaptureFixture[str]) -> None:
    """A log of 0.26.0 on a B300 prints 13.25 sequences of Gemma 4 31B at once of 182.37 GiB: 5,637 blocks each."""
    asked = ["fit", "--format", "json", "--vllm"]
    line = "vllm serve catalog:google/gemma-4-31B-it --max-model-len 16384 --max-num-batched-tokens 8192"
    blocks = {}
    for version in ("0.25.0", "0.26.0"):
        for option in ("", "--no-async-scheduling"):
            command = f"{line} --kv-cache-memory=195818200000 {option}"
            assert main([*asked, command, "--engine-version", version]) == 0
            blocks[version, option] = json.loads(capsys.readouterr().out)["vllm"]["low"]["sequence_blocks"]
    assert blocks["0.26.0", ""] == 5637
    assert len({blocks[key] for key in blocks if key != ("0.26.0", "")}) == 1
