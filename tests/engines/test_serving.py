"""`fit --engine`: budgets against published logs, weights as vLLM shards them, what llama.cpp puts on a card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.vllm_budgets import Budget, predicted
from qwen_inspect.cli import main
from qwen_inspect.engines import ENGINES
from qwen_inspect.engines.llama_cpp.commands.command import parse_command
from qwen_inspect.engines.llama_cpp.offload import LlamaCppDemand
from qwen_inspect.engines.vllm import ENGINE as ENGINES_VLLM
from qwen_inspect.engines.vllm import model_limit
from qwen_inspect.engines.vllm.blocks import PageKind, shared_pool
from qwen_inspect.engines.vllm.releases import release
from qwen_inspect.engines.vllm.weights import rank_weights, rounding
from qwen_inspect.errors import UnsupportedError, UsageError
from qwen_inspect.fitting.llama_cpp import run_command
from qwen_inspect.fitting.serving import budget_card, serve
from qwen_inspect.loaders import gpus
from qwen_inspect.results.fit import Gpu
from qwen_inspect.results.model import Report
from qwen_inspect.results.serving import LlamaCppReserve, Serving, VllmEnvironment, VllmReserve
from qwen_inspect.structure.gguf_conversion import as_gguf
from qwen_inspect.structure.inspect import inspect

from ..support.gguf_files import on_a_card, write_model
from ..support.models import TINY_QWEN3, write_config
from ..support.published import published
from ..support.schema import assert_keeps_to_the_schema

GIB = 2**30
Q8_0, F16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16
VLLM = Serving(engine="vllm", context_tokens=8192)
LLAMA = Serving(engine="llama.cpp", context_tokens=4096)
SCOUT = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
Capture = pytest.CaptureFixture[str]


def card_of(gib: float) -> Gpu:
    return Gpu(name=f"{gib}GiB", kind="given", memory_bytes=int(gib * GIB))


def vllm_on(model: str, serving: Serving, gpu: Gpu) -> VllmReserve:
    reserve = serve(inspect(model, source="catalog"), serving, [gpu]).cards[0].reserve
    assert isinstance(reserve, VllmReserve)
    return reserve


def within_a_budget(model: str, budget_bytes: int, serving: Serving = VLLM) -> VllmReserve:
    return vllm_on(model, replace(serving, kv_budget_bytes=budget_bytes), budget_card(budget_bytes))


# --- vLLM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "log",
    published("vllm_profile.csv"),
    ids=lambda log: f"{log['log']}-{log['engine_version']}-{log['max_model_len']}-tp{log['tp']}",
)
def test_what_a_log_printed_lies_between_the_ends(log: dict[str, str]) -> None:
    """To half of the last digit, but for what the table names; a range is at most 3 % wide, of cards with own figures."""
    budget = Budget(log=log, reserve=predicted(log))
    assert budget.inside is (log["unexplained"] == "")
    assert budget.high - budget.low < max(0.03 * budget.available, 2.0 if log["check"] else 0)
    if not budget.inside or log["pp"] != "1":
        return
    if log["num_gpu_blocks"]:
        least, most = budget.blocks
        assert least <= int(log["num_gpu_blocks"]) <= most
    for name, column in (("activation", "activation_gib"), ("non_torch", "non_torch_gib")):
        term = next(term for term in budget.reserve.terms if term.name == name)
        if log[column]:
            assert term.least_bytes - GIB // 100 <= float(log[column]) * GIB <= (term.most_bytes or 0) + GIB // 100


def test_a_known_budget_is_answered_exactly() -> None:
    found = within_a_budget("Qwen/Qwen3-8B", int(57.5 * GIB))  # vLLM 0.19.0's log: 57.50 GiB
    assert found.least == found.most
    assert (found.least.blocks, found.least.tokens) == (26_168, 418_688)
    assert f"{found.least.concurrency:.2f}" == "51.11"
    assert found.terms == ()


def test_a_checkpoint_with_scales_of_its_cache_is_served_in_8_bits(tmp_path: Path, capsys: Capture) -> None:
    """Half the bytes of a block, said in words, and the same change is not suggested again."""
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    quantisation = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": scheme,
    }
    write_config(tmp_path, {**TINY_QWEN3, "quantization_config": quantisation})
    asked = ["--engine", "vllm", "--kv-budget", "1MiB", "--batch", "999", "--context", "256", "--lang", "en"]
    assert main(["fit", str(tmp_path), "--format", "json", *asked]) == 1
    found = json.loads(capsys.readouterr().out)["cards"][0]
    # K and V of 16 tokens in 2 layers of 2 heads of 16 numbers, a byte each.
    assert (found["vllm"]["block_bytes"], found["vllm"]["cache_dtype"]) == (16 * 2 * 2 * 2 * 16, "fp8")
    assert not [one for one in found["suggestions"] if "cache" in one["change"]]
    main(["fit", str(tmp_path), *asked])
    assert "8 bits" in capsys.readouterr().out


# A change as it is suggested -> the options that ask for it.
FOLLOWED = (
    (r"sequences of ([\d,]+) tokens", ("--context",)),
    (r"([\d,]+) sequences at once", ("--batch",)),
    (r"the KV cache in (fp8)", ("--cache-dtype",)),
    (r"the KV cache in (q8_0)", ("--cache-type-k", "--cache-type-v")),
    (r"weights in (\S+)", ("--dtype",)),
    (r"(\d+) tensor-parallel ranks", ("--tp",)),
    (r"\(--ngl (\d+)\)", ("--ngl",)),
    (r"the card (.+)", ("--gpu",)),
)


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        (
            ["--engine", "vllm", "--gpu", "RTX 4080", "--context", "8k", "--batch", "4"],
            ["cache", *["weights"] * 3, "tensor_parallel", "gpu"],
        ),
        (
            ["--engine", "vllm", "--kv-budget", "3GiB", "--context", "16k", "--batch", "2"],
            ["context", "batch", "cache"],
        ),
        (["--engine", "llama.cpp", "--gpu", "RTX 4080", "--context", "16k"], ["context", "cache", "layers", "gpu"]),
    ],
    ids=lambda asked: " ".join(asked),
)
def test_a_suggestion_that_is_followed_takes_what_it_said(asked: list[str], kinds: list[str], capsys: Capture) -> None:
    """By the same command, with the change made; in the order of what it costs."""

    def cards(*options: str) -> dict[str, Any]:
        main(["fit", "catalog:Qwen/Qwen3-8B", "--lang", "en", "--format", "json", *options])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["cards"][0]
        return found

    suggestions = cards(*asked)["suggestions"]
    assert [one["kind"] for one in suggestions] == kinds
    for one in suggestions:
        options, value = next(
            (names, found[1]) for form, names in FOLLOWED if (found := re.search(form, one["change"]))
        )
        again = cards(*asked, *(word for name in options for word in (name, value.replace(",", ""))))
        assert (again["required_bytes"], again["fits"]) == (one["required_bytes"], one["fits"]), one["change"]


def suggested(report: Report, serving: Serving, card_bytes: int) -> dict[str, int]:
    """Of each change what it takes, by its last value."""
    card = Gpu(name="card", kind="given", memory_bytes=card_bytes)
    changes = serve(report, serving, [card]).cards[0].suggestions
    return {str([*change.change.values.values()][-1]): change.required_bytes for change in changes}


def test_packed_weights_of_a_stretched_model_keep_its_rotary_table(tmp_path: Path) -> None:
    """4 x 256 positions of 16 channels in bfloat16, as the model that is asked for with --dtype has them."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    write_config(
        tmp_path,
        {**TINY_QWEN3, "num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 256, "rope_scaling": rope},
    )
    asked = replace(VLLM, context_tokens=1024, batch=100_000)
    here = suggested(inspect(str(tmp_path)), asked, 3 * GIB)
    for scheme in ("fp8", "awq-int4"):
        packed = serve(inspect(str(tmp_path), dtype=scheme), asked, [card_of(3)]).cards[0]
        assert here[scheme] == packed.answer.high.required_bytes


def test_a_change_that_the_model_does_not_go_into_is_left_out(tmp_path: Path) -> None:
    """Rows of 96 numbers fill no groups of 128; 16 numbers a token no blocks of 32."""
    write_config(tmp_path, {**TINY_QWEN3, "num_key_value_heads": 1})
    report = inspect(str(tmp_path))
    by_vllm = suggested(report, replace(VLLM, context_tokens=512, batch=1_000_000), 3 * GIB)
    assert "awq-int4" not in by_vllm
    assert by_vllm.keys() >= {"fp8", "2"}  # and 2 ranks, which come after it
    assert "q8_0" not in suggested(report, LLAMA, 1024)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        (None, 40_960),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),  # Qwen3's README
        ({"type": "linear", "factor": 2}, 81_920),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 40_960),
        ({"rope_type": "yarn", "factor": None}, 40_960),
        ({"rope_type": "yarn", "factor": float("inf")}, 40_960),
        ("hostile", 40_960),
    ],
)
def test_the_longest_sequence_is_as_vllm_stretches_it(rope: object, limit: int) -> None:
    """max_model_len of vLLM 0.19.0's _get_and_verify_max_len for such a configuration."""
    assert model_limit({"model_type": "qwen3", "rope_scaling": rope}, 40_960) == limit
    assert model_limit({"text_config": {"rope_parameters": rope}}, 40_960) == limit


def test_a_stretched_model_is_served_to_its_end(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    write_config(tmp_path, {**TINY_QWEN3, "max_position_embeddings": 256, "rope_scaling": rope})
    found = serve(inspect(str(tmp_path)), replace(VLLM, context_tokens=None, kv_budget_bytes=GIB), [budget_card(GIB)])
    assert (found.context_tokens, found.cards[0].answer.high.context.value) == (1024, 1024)
    assert not [notice for notice in found.report.notices if notice.key == "context_beyond"]


def test_a_card_without_bfloat16_is_served_in_float16_and_says_so() -> None:
    """vLLM 0.19.0, platforms/cuda.check_if_supports_dtype: bfloat16 from compute capability 8.0 on."""
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    for name, said in (("T4", True), ("V100 16GB", True), ("A100 40GB", False)):
        found = serve(report, VLLM, [gpus.find(name)])
        assert any(one.key == "assume_vllm_half" for one in found.assumptions) is said


def test_qwen2_5_7b_on_four_ranks_holds_what_its_log_printed() -> None:
    """67.34 GiB as printed; 315,205 blocks and 5,043,280 tokens are the budget's to 0.01 GiB."""
    ranks = replace(VLLM, ranks=4)
    least, most = (
        within_a_budget("Qwen/Qwen2.5-7B-Instruct", int((67.34 + half) * GIB), ranks).least for half in (-0.005, 0.005)
    )
    assert least.blocks <= 315_205 <= most.blocks
    assert least.tokens <= 5_043_280 <= most.tokens
    block_bytes = within_a_budget("Qwen/Qwen2.5-7B-Instruct", GIB, ranks).block_bytes
    exact = within_a_budget("Qwen/Qwen2.5-7B-Instruct", 315_205 * block_bytes, ranks).least
    assert (exact.tokens, f"{exact.concurrency:.2f}") == (5_043_280, "615.63")


@pytest.mark.parametrize(
    ("model", "ranks", "printed"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 1, "14.25"),  # 57 MiB of it are rounding
        ("Qwen/Qwen1.5-MoE-A2.7B", 1, "26.67"),
        ("Qwen/Qwen3-30B-A3B", 1, "56.88"),
        ("Qwen/Qwen2.5-7B-Instruct", 2, "7.12"),
        ("meta-llama/Llama-3.1-8B-Instruct", 2, "7.51"),
        ("mistralai/Mixtral-8x7B-v0.1", 2, "43.51"),
        ("google/gemma-2-2b-it", 1, "4.90"),
        ("google/gemma-3-4b-it", 1, "8.58"),  # 576 MiB of it are tables of two rotary embeddings
        ("microsoft/phi-4", 1, "27.39"),
        ("Qwen/Qwen3.5-9B", 1, "17.66"),  # with its encoder
    ],
)
def test_loaded_weights_are_what_vllm_printed(model: str, ranks: int, printed: str) -> None:
    """Logs of 0.19.0, to the 0.01 GiB that they print, with the rounding of PyTorch's allocator."""
    report = ENGINES_VLLM.reads(inspect(model, source="catalog"))
    weights = rank_weights(report, ranks)
    loaded = weights.total_bytes + rounding(weights).least_bytes
    assert abs(loaded / GIB - float(printed)) < 0.0051


def rank_bytes(report: Report, ranks: int) -> int:
    return rank_weights(report, ranks).total_bytes


def test_rounding_of_packed_weights_has_an_upper_end() -> None:
    dense, packed = (inspect("Qwen/Qwen3-8B", source="catalog", dtype=dtype) for dtype in (None, "awq-int4"))
    exact = rounding(rank_weights(dense, 1))
    ranged = rounding(rank_weights(packed, 1))
    assert exact.least_bytes == exact.most_bytes
    assert ranged.most_bytes == ranged.least_bytes + 36 * 4 * 2**20  # a MiB for each of 4 matrices of 36 layers


def test_a_rank_has_its_share_of_every_matrix() -> None:
    """Qwen3-0.6B on 2 ranks, matrix by matrix as vLLM's modules are built."""
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    attention = 1024 * 128 * (8 + 4 + 4) + 128 * 8 * 1024  # 8 of 16 heads, 4 of 8 each of K and V; rows of o_proj
    mlp = 3 * 1024 * 1536  # half of 3072
    norms = 2 * 1024 + 2 * 128
    elements = 151_936 // 2 * 1024 + 28 * (attention + mlp + norms) + 1024
    table = 40_960 * 128  # cosines and sines of each position
    assert rank_bytes(report, 2) == 2 * (elements + table)


def test_kv_heads_are_repeated_where_there_are_more_ranks() -> None:
    """Qwen3-30B-A3B has 4 KV heads: on 8 ranks each holds one, as on 4."""
    report = inspect("Qwen/Qwen3-30B-A3B", source="catalog")
    four, eight = (within_a_budget("Qwen/Qwen3-30B-A3B", 8 * GIB, replace(VLLM, ranks=ranks)) for ranks in (4, 8))
    assert four.block_bytes == eight.block_bytes == 16 * 48 * 2 * 128 * 2
    key_value = 48 * 2 * 128 * 2048 * 2  # a head of K and of V in each layer, in bytes
    shared = rank_bytes(report, 4) - key_value
    whole = 48 * (2 * 2048 + 2 * 128 + 128 * 2048) * 2 + 2048 * 2 + 40_960 * 128 * 2  # norms, routers, rotary table
    assert rank_bytes(report, 8) == (shared - whole) // 2 + whole + key_value


def test_a_vocabulary_is_padded_to_a_multiple_of_64(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "vocab_size": 250})
    padded, exact = inspect(str(tmp_path)), inspect(str(write_config(tmp_path / "b", TINY_QWEN3).parent))
    assert rank_bytes(padded, 1) == rank_bytes(exact, 1)


@pytest.mark.parametrize(
    ("model", "version", "gib", "asked", "tokens", "concurrency"),
    [
        # Logs in public repositories; from 0.21 on the tokens are the concurrency times the sequence.
        ("Qwen/Qwen3.5-4B", "0.22.0", 11.11, Serving(engine="vllm", context_tokens=1024), 141_107, "137.80"),
        ("Qwen/Qwen3.5-9B", "0.19.0", 20.275, Serving(engine="vllm", context_tokens=262_144), 165_792, "2.52"),
        ("Qwen/Qwen3.8-27B", "0.26.0", 50.286, Serving(engine="vllm", context_tokens=786_432), 820_013, "1.04"),
        (
            "Qwen/Qwen3.5-35B-A3B",
            "0.26.0",
            18.64,
            Serving(engine="vllm", context_tokens=131_072, prefix_caching=True),
            925_508,
            "7.06",
        ),
        (
            "Qwen/Qwen3.6-35B-A3B",  # in NVFP4, of the same cache
            "0.26.0",
            6.01,
            Serving(engine="vllm", context_tokens=131_072, prefix_caching=True, cache_format="fp8"),
            569_878,
            "4.35",
        ),
    ],
)
def test_a_hybrid_holds_what_its_log_printed(
    model: str, version: str, gib: float, asked: Serving, tokens: int, concurrency: str
) -> None:
    """Of a budget that rounds to what was printed."""
    found = within_a_budget(model, int(gib * GIB), replace(asked, version=version)).least
    assert (found.tokens, f"{found.concurrency:.2f}") == (tokens, concurrency)


@settings(deadline=None, max_examples=8)
@given(
    gib=st.integers(20, 200),
    more=st.integers(0, 50),
    share=st.floats(0.1, 1),
    ranks=st.sampled_from([1, 2, 4, 8]),
    tokens=st.integers(1, 100_000),
)
def test_more_memory_holds_no_less_and_terms_add_up(gib: int, more: int, share: float, ranks: int, tokens: int) -> None:
    serving = replace(VLLM, ranks=ranks, utilization=share, context_tokens=tokens)
    small, large = (vllm_on("Qwen/Qwen3-8B", serving, card_of(memory)) for memory in (gib, gib + more))
    for end, taken in (
        (small.least, sum(term.most_bytes or 0 for term in small.terms)),
        (small.most, sum(term.least_bytes for term in small.terms)),
    ):
        assert end.budget_bytes + taken == small.requested_bytes
        assert end.tokens == 16 * end.blocks
        assert end.most_context_tokens == end.tokens  # one sequence takes all blocks
    assert small.least.tokens <= large.least.tokens
    assert small.least.tokens <= small.most.tokens


# --- llama.cpp -----------------------------------------------------------------------------------------------------


def llama_on(report: Report, serving: Serving, gpu: Gpu) -> LlamaCppReserve:
    reserve = serve(report, serving, [gpu]).cards[0].reserve
    assert isinstance(reserve, LlamaCppReserve)
    return reserve


def bytes_of(path: Path, *beginnings: str) -> int:
    """Of the tensors whose names begin so, as the gguf package reads the file."""
    return sum(int(one.n_bytes) for one in gguf.GGUFReader(path).tensors if one.name.startswith(beginnings))


def bytes_on_card(path: Path, *beginnings: str) -> int:
    """Of the same tensors in CUDA's buffer."""
    return sum(on_a_card(one) for one in gguf.GGUFReader(path).tensors if one.name.startswith(beginnings))


@pytest.mark.parametrize(
    ("layers", "beginnings"),
    [
        (0, ()),
        (1, ("output",)),
        (2, ("output", "blk.1.")),
        (3, ("output", "blk.1.", "blk.0.")),
        (99, ("output", "blk.1.", "blk.0.")),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_goes_first_then_layers_from_the_last(
    tmp_path: Path, layers: int, beginnings: Sequence[str], tied: bool
) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen3", {**TINY_QWEN3, "tie_word_embeddings": tied}, Q8_0)
    found = llama_on(inspect(str(path)), replace(LLAMA, offloaded=layers), card_of(1))
    on_card = bytes_on_card(path, *beginnings) if beginnings else 0
    if tied and layers:
        on_card += bytes_on_card(path, "token_embd")  # a second copy, for the output
    terms = {term.name: term.most_bytes for term in found.terms}
    attending = sum(name.startswith("blk") for name in beginnings)
    cache = attending * 2 * 2 * 16 * 4096 * 2  # K and V: layers x heads x head_dim x cells, float16
    assert (terms["weights"], terms["cache"], terms["state"]) == (on_card, cache, 0)
    # The host's part of the file is mapped from its first tensor to its last.
    stays = [
        one for one in gguf.GGUFReader(path).tensors if not (beginnings and one.name.startswith(tuple(beginnings)))
    ]
    mapped = max(one.data_offset + one.n_bytes for one in stays) - min(one.data_offset for one in stays)
    hosted = [one.low_bytes for one in found.buffers if one.device != "CUDA0" and one.kind in ("weights", "cache")]
    assert sum(hosted) == mapped + 2 * 2 * 2 * 16 * 4096 * 2 - cache


@pytest.mark.parametrize(
    ("tokens", "sequences", "formats", "cells", "mib"),
    [
        (700, 1, "auto", 768, "1.12"),  # --ctx-size 700
        (350, 2, "q8_0,auto", 1024, "1.15"),  # --ctx-size 700 --parallel 2: 512 cells for each
        (4096, 1, "q8_0", 4096, "3.19"),
    ],
)
def test_the_cache_is_what_llama_cpp_prints_for_such_a_file(
    tmp_path: Path, tokens: int, sequences: int, formats: str, cells: int, mib: str
) -> None:
    """Recorded from llama.cpp itself (xllamacpp 2026.10.11549, on a CPU), which loaded a file of these three layers."""
    write_config(tmp_path, {**TINY_QWEN3, "hidden_size": 128, "head_dim": 64, "num_hidden_layers": 3})
    serving = replace(LLAMA, context_tokens=tokens, batch=sequences, cache_format=formats)
    found = llama_on(inspect(str(tmp_path)), serving, card_of(1))
    printed = next(term.least_bytes for term in found.terms if term.name == "cache") / 2**20
    assert (found.cells, f"{printed:.2f}") == (cells, mib)


def test_a_dense_model_is_as_the_converter_would_write_it(tmp_path: Path) -> None:
    """Matrices in the model's 16 bits, vectors in float32: the file that is really written so has the same bytes."""
    path = write_model(tmp_path / "model.gguf", "qwen3", TINY_QWEN3, F16)
    write_config(tmp_path / "config", TINY_QWEN3)
    one, other = (llama_on(inspect(str(at)), LLAMA, card_of(1)) for at in (path, tmp_path / "config"))
    assert one == other


def test_64_bits_become_32_in_a_gguf_file() -> None:
    """convert_hf_to_gguf.py writes float32 of what is neither float16 nor bfloat16."""
    wide, double = (inspect("Qwen/Qwen3-0.6B", source="catalog", dtype=dtype) for dtype in ("float32", "float64"))
    assert llama_on(wide, LLAMA, card_of(24)) == llama_on(double, LLAMA, card_of(24))


def test_the_cache_of_qwen3_235b_is_the_logs() -> None:
    """3,196.00 MiB in q8_0 and 6,016.00 MiB in f16 at 32,768 cells (ikawrakow/ik_llama.cpp, discussion 357)."""
    report = inspect("Qwen/Qwen3-235B-A22B", source="catalog")
    for formats, mib in (("q8_0", 3196), ("auto", 6016), ("q8_0,float16", 4606)):
        demand = LlamaCppDemand(report, replace(LLAMA, cache_format=formats))
        assert dict(demand.requirement(1, 32_700).terms)["cache"] == mib * 2**20  # padded to 32,768
        assert demand.cache_tokens(1, 32_700) == 32_768


def test_the_engine_answers_as_its_command_does() -> None:
    """Every buffer and every limit, of a model with experts that are too many for the card."""
    report, card = as_gguf(inspect("Qwen/Qwen1.5-MoE-A2.7B", source="catalog"), "Q4_K_M"), card_of(6)
    (answer,) = serve(report, replace(LLAMA, context_tokens=8192), [card]).cards
    command = run_command(report, parse_command("llama-server -c 8192 -np 1"), [card])
    reserve = answer.reserve
    assert isinstance(reserve, LlamaCppReserve)
    assert set(reserve.buffers) == set(command.buffers)
    assert (reserve.most_offloaded, reserve.host_experts) == (command.reach.offloaded, command.reach.host_experts)
    assert (command.reach.context_tokens, answer.answer.high.context.value) == (0, 0)
    assert 0 < (reserve.host_experts or 0) < 24
    hosted = run_command(
        report, parse_command(f"llama-server -c 8192 -np 1 --n-cpu-moe {reserve.host_experts}"), [card]
    )
    assert hosted.fits


@settings(deadline=None, max_examples=2)
@given(mib=st.integers(1, 70_000), batch=st.integers(1, 8), tokens=st.integers(1, 40_960))
def test_the_most_layers_fit_and_one_more_does_not(mib: int, batch: int, tokens: int) -> None:
    report = REPORT
    gpu = Gpu(name="card", kind="given", memory_bytes=mib * 2**20)
    asked = replace(LLAMA, context_tokens=tokens, batch=batch)
    most = llama_on(report, asked, gpu).most_offloaded

    def needed(layers: int) -> int:
        found = llama_on(report, replace(asked, offloaded=layers), gpu)
        assert found.offloaded == layers
        return sum(term.least_bytes for term in found.terms)

    room = gpu.memory_bytes - 2**30  # --fit-target, llama.cpp's own margin
    assert most == 0 or needed(most) <= room
    assert most == 37 or needed(most + 1) > room


REPORT = inspect("Qwen/Qwen3-8B", source="catalog")


def test_what_llama_cpp_converts_otherwise_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="jamba"):
        llama_on(inspect("ai21labs/Jamba-v0.1", source="catalog"), LLAMA, card_of(80))


def test_a_tower_is_another_file() -> None:
    """The decoder of Qwen3-VL-8B is that of Qwen3-8B but for its graph; its vision tower goes into an mmproj file."""
    decoder, whole = (inspect(f"Qwen/{name}", source="catalog") for name in ("Qwen3-8B", "Qwen3-VL-8B-Instruct"))
    ours, theirs = (
        [term for term in llama_on(report, LLAMA, card_of(80)).terms if term.name != "compute"]
        for report in (whole, decoder)
    )
    assert ours == theirs


# --- any other -----------------------------------------------------------------------------------------------------


def test_an_engine_is_added_by_its_line_in_the_registry(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The command names it, answers by it, and suggests what any engine has: less of the same, or a larger card."""
    monkeypatch.setitem(ENGINES, "toy", "tests.support.toy_engine")
    asked = ["fit", "catalog:Qwen/Qwen3-8B", "--lang", "en", "--engine", "toy", "--context", "9k"]
    assert main([*asked, "--memory", "24GiB", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["engine"], found["engine_version"]) == ("toy", "1.0")
    # 8,190,735,360 parameters in bfloat16; a MiB a token of what they and the larger context leave of 24 GiB.
    terms = [(term["term"], term["least_bytes"], term["most_bytes"]) for term in found["terms"]]
    assert terms == [
        ("weights", 16_381_470_720, 16_381_470_720),
        ("cache", 9216 * 2**20, 9216 * 2**20),
        ("context", 100 * 2**20, 500 * 2**20),
    ]
    assert found["max_context_tokens"] == (24 * GIB - 16_381_470_720) // 2**20 - 500 == 8453
    kinds = [(one["kind"], one["change"]) for one in found["suggestions"]]
    assert kinds == [("context", "sequences of 8,453 tokens in place of 9,216"), ("gpu", "the card RTX 5090")]
    for form in ("md", "html"):
        assert main([*asked, "--memory", "32GiB", "--format", form]) == 0
        assert "16,381,470,720" in capsys.readouterr().out
    assert main(["fit", "--help"]) == 0
    assert "toy" in capsys.readouterr().out


def test_an_engine_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"transformers, vllm, sglang, llama\.cpp, lmdeploy, tensorrt-llm, found mlc"):
        serve(REPORT, Serving(engine="mlc"), [card_of(24)])


# --- the command ---------------------------------------------------------------------------------------------------

ASKED = [
    ["--engine", "vllm", "--gpu", "H200,RTX 4090", "--context", "8k"],
    ["--engine", "vllm", "--kv-budget", "10GiB", "--cache-dtype", "fp8", "--tp", "2"],
    ["--engine", "vllm", "--memory", "24GiB", "--batch", "32", "--max-model-len", "32k"],
    ["--engine", "llama.cpp", "--memory", "12GiB", "--ngl", "20", "--cache-type-k", "q8_0"],
    ["--engine", "llama.cpp", "--memory", "2GiB", "--context", "4k"],
]


@pytest.mark.parametrize("asked", ASKED, ids=" ".join)
def test_json_keeps_to_the_schema(asked: list[str], capsys: Capture) -> None:
    code = main(["fit", "catalog:Qwen/Qwen3-8B", "--lang", "en", "--format", "json", *asked])
    found = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(found)
    assert code == int(any(card["fits"] is False for card in found["cards"]))
    assert {key: found[key] for key in found["cards"][0]} == found["cards"][0]
    for card in found["cards"]:
        assert card["margin_bytes"] == card["available_bytes"] - card["required_bytes"]
        if card["vllm"] is not None:
            low = card["vllm"]["low"]
            assert card["kv_cache_tokens"] == low["kv_cache_tokens"]
            assert card["fits"] == (low["blocks"] >= found["workload"]["batch"] * low["sequence_blocks"])
            assert card["max_batch"] == low["blocks"] // low["sequence_blocks"]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("form", ["table", "md", "html"])
@pytest.mark.parametrize("asked", [ASKED[0], ASKED[1], ASKED[4]], ids=" ".join)
def test_documents_say_the_same(asked: list[str], form: str, language: str, capsys: Capture) -> None:
    main(["fit", "catalog:Qwen/Qwen3-8B", "--lang", language, "--format", form, *asked])
    text = capsys.readouterr().out
    assert "{" not in text or form == "html"
    # 18,204 blocks of 16; all matrices but the embedding in 2 bytes, norms in 4; the card's memory
    expected = {"10GiB": "291,264", "2GiB": "15,137,427,456", "8k": "139.7"}
    assert next(figure for word, figure in expected.items() if word in asked) in text


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (["--engine", "mlc", "--memory", "24GiB"], 2),
        (["--engine", "sglang", "--memory", "24GiB", "--utilization", "0.9"], 2),
        (["--engine", "sglang", "--memory", "24GiB", "--cache-dtype", "q8_0"], 7),
        (["--engine", "vllm", "--memory", "24GiB", "--mem-fraction-static", "0.9"], 2),
        (["--engine", "vllm"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--utilization", "0"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--utilization", "1.01"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--utilization", "nan"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--utilization", "a lot"], 2),
        (["--engine", "vllm", "--kv-budget", "1GiB", "--utilization", "0.9"], 2),
        (["--engine", "vllm", "--kv-budget", "1GiB", "--memory", "24GiB"], 2),
        (["--engine", "vllm", "--kv-budget", "1GiB", "--gpu", "H200"], 2),
        (["--engine", "vllm", "--kv-budget", "1"], 2),
        (["--engine", "vllm", "--kv-budget", "1MiB"], 2),  # no block of 16 tokens
        (["--engine", "vllm", "--memory", "24GiB", "--ngl", "1"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--cache-type-k", "q8_0"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--mode", "train"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--lora", "8"], 2),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--no-checkpointing"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--cache-dtype", "bfloat16,fp8"], 2),
        (["--engine", "vllm", "--memory", "24GiB", "--cache-dtype", "q8_0"], 7),
        (["--engine", "vllm", "--memory", "24GiB", "--cache-dtype", "q9"], 7),
        (["--engine", "vllm", "--memory", "24GiB", "--cache-dtype", "float32"], 7),
        (["--engine", "vllm", "--memory", "24GiB", "--tp", "3"], 7),
        (["--engine", "vllm", "--memory", "24GiB", "--tp", "64"], 7),  # 32 query heads
        (["--engine", "vllm", "--memory", "24GiB", "--tp", "0"], 2),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--tp", "2"], 2),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--enable-prefix-caching"], 2),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--utilization", "0.5"], 2),
        (["--engine", "llama.cpp", "--kv-budget", "24GiB"], 2),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--cache-dtype", "q8_0"], 2),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--cache-type-v", "fp8"], 7),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--cache-type-v", "q8_0,q4_0"], 2),
        (["--engine", "llama.cpp", "--memory", "24GiB", "--ngl", "-1"], 2),
        (["--memory", "24GiB", "--ngl", "1"], 2),
        (["--memory", "24GiB", "--utilization", "0.9"], 2),
        (["--memory", "24GiB", "--tp", "2"], 2),
        (["--kv-budget", "24GiB"], 2),
    ],
    ids=lambda asked: " ".join(asked) if isinstance(asked, list) else None,
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_cannot_be_asked_so_is_refused_in_one_line(
    asked: list[str], code: int, language: str, capsys: Capture
) -> None:
    try:
        ended = main(["fit", "catalog:Qwen/Qwen3-8B", "--lang", language, *asked])
    except SystemExit as stop:  # argparse's way
        ended = int(str(stop.code))
    told = capsys.readouterr()
    assert (ended, told.out) == (code, "")
    assert told.err.count("\n") == 1
    assert "{" not in told.err


def test_models_that_an_engine_does_not_serve_so_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen3", TINY_QWEN3, Q8_0)
    windows = {**TINY_QWEN3, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    write_config(tmp_path / "windows", windows)
    for model, key in ((path, "vllm_gguf"), (tmp_path / "windows", "vllm_qwen_windows")):
        with pytest.raises(UnsupportedError) as refusal:
            serve(inspect(str(model)), replace(VLLM, context_tokens=256), [card_of(1)])
        assert refusal.value.message.key == key
    # llama.cpp's qwen3 has no windows: its cells are for all tokens.
    whole = llama_on(inspect(str(tmp_path / "windows")), replace(LLAMA, context_tokens=256), card_of(1))
    assert {term.name: term.most_bytes for term in whole.terms}["cache"] == 256 * 2 * 2 * 2 * 16 * 2
    packed = inspect("Qwen/Qwen3-8B", source="catalog", dtype="awq-int4")
    with pytest.raises(UnsupportedError):  # no GGUF file has such weights
        llama_on(packed, LLAMA, card_of(80))


def test_attention_in_chunks_holds_what_its_log_printed() -> None:
    """vLLM 0.19.0's log of Llama-4-Scout on 4 ranks: 91,495 blocks in 4 groups, 44.68 sequences of 8,192 tokens."""
    asked = replace(VLLM, ranks=4, step_tokens=8192)
    block_bytes = within_a_budget(SCOUT, GIB, asked).block_bytes
    found = within_a_budget(SCOUT, 91_495 * block_bytes, asked).least
    assert (found.blocks, found.tokens, f"{found.concurrency:.2f}") == (91_495, 365_968, "44.68")


GEMMA = "google/gemma-3-4b-it"
DISABLED, ENABLED = VllmEnvironment(windows=False), VllmEnvironment(chunks=True)


@pytest.mark.parametrize(
    ("model", "version", "environment", "groups"),
    [
        # 29 layers with a window and 5 without, of which a group has 5: get_kv_cache_groups
        (GEMMA, "0.9.1", VllmEnvironment(), 7),
        (GEMMA, "0.33.0", VllmEnvironment(), 7),
        (GEMMA, "0.9.0.1", VllmEnvironment(), 1),  # unify_hybrid_kv_cache_specs
        (GEMMA, "0.19.0", DISABLED, 1),
        # 36 layers in chunks and 12 whole
        (SCOUT, "0.9.2", VllmEnvironment(), 1),  # has no such groups
        (SCOUT, "0.9.2", ENABLED, 1),
        (SCOUT, "0.10.0", VllmEnvironment(), 4),
        (SCOUT, "0.10.1", VllmEnvironment(), 1),
        (SCOUT, "0.13.0", VllmEnvironment(), 1),
        (SCOUT, "0.13.0", ENABLED, 4),
        (SCOUT, "0.14.0", VllmEnvironment(), 4),
    ],
)
def test_layers_with_windows_are_grouped_by_the_version(
    model: str, version: str, environment: VllmEnvironment, groups: int
) -> None:
    """Rules of vLLM's versions; in a single group every layer holds every token."""
    asked = replace(VLLM, version=version, environment=environment, step_tokens=8192)
    found = within_a_budget(model, 8 * GIB, asked)
    assert found.groups == groups
    assert groups > 1 or found.least.tokens == found.least.blocks * found.block_tokens


def test_groups_of_windows_hold_what_a_log_printed() -> None:
    """kvcached's issue 215, 13 November 2025, Gemma-3-4B: a layer added to 29, 317,136 tokens, 102.78 sequences of 3,072."""
    asked = replace(VLLM, version="0.11.0", context_tokens=3072, step_tokens=8192)
    block_bytes = within_a_budget(GEMMA, GIB, asked).block_bytes
    assert block_bytes == 5 * 2 * 16 * 4 * 256 * 2
    found = within_a_budget(GEMMA, 317_136 // 16 * 7 * block_bytes, asked).least
    assert (found.tokens, f"{found.concurrency:.2f}") == (317_136, "102.78")


@pytest.mark.parametrize(
    ("fewest", "most", "version", "layers"),
    [
        (12, 13, "0.11.0", 12),
        (12, 13, "0.12.0", 13),
        (12, 15, "0.17.0", 12),
        (12, 15, "0.18.0", 15),
        (12, 18, "0.18.0", 12),
    ],
)
def test_a_group_is_as_large_as_the_commonest_kind_if_that_is_near(
    fewest: int, most: int, version: str, layers: int
) -> None:
    """_get_kv_cache_groups_uniform_page_size: never to 0.11, below 1.25 times to 0.17, below 1.5 times since."""
    kinds = [PageKind(64, 16, 0, (1,))] * fewest + [PageKind(64, 16, 8, (1,))] * most
    assert shared_pool(kinds, release(version).spread).block_bytes == 64 * layers


@pytest.mark.parametrize(
    ("model", "form", "gib", "length", "tokens", "concurrency"),
    [
        # vLLM 0.17.1, OmniCoder-9B, of the same layers, prefix caching in "align" mode, 17 March 2026
        ("Qwen/Qwen3.5-9B", "fp8", 13.11, 16_384, 214_368, "36.95"),
        # vLLM 0.19 on a card of 96 GB, with prefixes cached: 48.8 GiB
        ("Qwen/Qwen3.5-27B", "auto", 48.8, 65_536, 199_136, "11.32"),
    ],
)
def test_prefixes_of_a_hybrid_take_a_second_block_of_states(
    model: str, form: str, gib: float, length: int, tokens: int, concurrency: str
) -> None:
    """Logs that stand in public repositories."""
    serving = replace(VLLM, cache_format=form, context_tokens=length, prefix_caching=True)
    found = within_a_budget(model, int(gib * GIB), serving).least
    assert (found.tokens, f"{found.concurrency:.2f}") == (tokens, concurrency)
    without = within_a_budget(model, int(gib * GIB), replace(serving, prefix_caching=False)).least
    assert (without.tokens, without.sequence_blocks) == (found.tokens, found.sequence_blocks - 3)  # groups of states


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_packed_weights_are_shared_by_ranks_too(ranks: int) -> None:
    """Of an FP8 model each rank has less, and no more than a half of what it has of the dense one beside the vocabulary."""
    dense, packed = (inspect("Qwen/Qwen3-8B", source="catalog", dtype=dtype) for dtype in (None, "fp8"))
    vocabulary = 2 * 151_936 * 4096 * 2 // ranks
    assert vocabulary < rank_bytes(packed, ranks) < vocabulary + (rank_bytes(dense, ranks) - vocabulary) * 0.51


def test_windows_need_the_tokens_of_a_step(tmp_path: Path) -> None:
    """Mistral's layers all have a window: one group, and a sequence of any length takes no more blocks than window and step."""
    config = {**TINY_QWEN3, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
    write_config(tmp_path, config)
    report, budget = inspect(str(tmp_path)), budget_card(2**20)
    asked = replace(VLLM, context_tokens=512, kv_budget_bytes=2**20)
    with pytest.raises(UsageError):
        serve(report, asked, [budget])
    reserve = serve(report, replace(asked, step_tokens=128), [budget]).cards[0].reserve
    assert isinstance(reserve, VllmReserve)
    assert (
        reserve.least.sequence_blocks == 12 + 1
    )  # 63 + 128 tokens in blocks of 16, and one for where the window begins
    assert reserve.least.most_context_tokens is None


def test_a_model_without_a_limit_needs_a_context() -> None:
    report = replace(REPORT, design=replace(REPORT.known, spec=replace(REPORT.spec, context_tokens=None)))
    with pytest.raises(UsageError):
        serve(report, replace(VLLM, context_tokens=None), [card_of(80)])
