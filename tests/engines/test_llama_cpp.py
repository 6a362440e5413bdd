"""llama.cpp's buffers: against the library itself, and against logs that its users published."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.checkpoint import BLOCK_FORMATS, BlockFormat, DType, Tensor
from qwen_inspect.engines.llama_cpp.buffers import GgufModel, Plan
from qwen_inspect.engines.llama_cpp.builds import BUILDS
from qwen_inspect.engines.llama_cpp.commands.command import parse_command
from qwen_inspect.engines.llama_cpp.ggml.fusions import shared_beside_routed
from qwen_inspect.engines.llama_cpp.ggml.tensors import F32, I32, Type, matmul, matmul_chosen, new, reshape, stored
from qwen_inspect.engines.llama_cpp.graphs.design import DESIGNS
from qwen_inspect.engines.llama_cpp.graphs.prediction import KNOWN
from qwen_inspect.engines.llama_cpp.offload import gguf_source
from qwen_inspect.engines.llama_cpp.options import IN_LAYER, TAKEN_BACK, LlamaCppOptions
from qwen_inspect.loaders.gguf_header import read_header
from qwen_inspect.results.llama_cpp import Buffer
from qwen_inspect.structure.gguf_conversion import as_gguf
from qwen_inspect.structure.inspect import inspect

from ..support.llama_cpp import library_path, printed_by_llama_cpp, printed_sizes, printed_while_loading
from ..support.llama_cpp_files import COMMON, decoder
from ..support.llama_cpp_small import SMALL, write_predicting, write_small
from ..support.published import published

GIB = 2**30
LIBRARY = pytest.mark.skipif(
    library_path() is None and "CI" not in os.environ, reason="xllamacpp is not installed (the extra test)"
)
# Fields of llama_context_params -> the same as options. Types 1 and 8: float16 and q8_0.
CONTEXTS: Sequence[tuple[Mapping[str, int], Mapping[str, Any]]] = (
    ({"n_ctx": 4096, "flash_attn_type": 1}, {"context_tokens": 4096}),
    ({"n_ctx": 8192, "flash_attn_type": 0}, {"context_tokens": 8192, "flash_attention": False}),
    ({"n_ctx": 1000, "flash_attn_type": 1, "n_ubatch": 256}, {"context_tokens": 1000, "micro_batch": 256}),
    (
        {"n_ctx": 4096, "flash_attn_type": 1, "n_seq_max": 4, "n_outputs_max": 4},
        {"context_tokens": 4096, "program": "llama-server", "sequences": 4},
    ),
    (
        {"n_ctx": 4096, "flash_attn_type": 1, "n_seq_max": 4, "kv_unified": 1, "n_outputs_max": 4},
        {"context_tokens": 4096, "program": "llama-server"},
    ),
    (
        {"n_ctx": 4096, "flash_attn_type": 1, "type_k": 8, "type_v": 8},
        {"context_tokens": 4096, "key_type": "q8_0", "value_type": "q8_0"},
    ),
    (
        {"n_ctx": 2048, "flash_attn_type": 1, "type_k": 0, "type_v": 0, "n_batch": 300, "n_ubatch": 300},
        {"context_tokens": 2048, "key_type": "f32", "value_type": "f32", "batch": 300, "micro_batch": 300},
    ),
    (
        {"n_ctx": 700, "flash_attn_type": 0, "n_batch": 1024, "n_ubatch": 1024},
        {"context_tokens": 700, "flash_attention": False, "batch": 1024, "micro_batch": 1024},
    ),
    (
        {"n_ctx": 2048, "flash_attn_type": 1, "embeddings": 1, "n_seq_max": 2},
        {"context_tokens": 2048, "embedding": True, "sequences": 2},
    ),
    (
        {"n_ctx": 2048, "flash_attn_type": 0, "embeddings": 1, "pooling": 1, "n_seq_max": 8},
        {"context_tokens": 2048, "flash_attention": False, "embedding": True, "pooling": "mean", "sequences": 8},
    ),
    (
        {"n_ctx": 2048, "flash_attn_type": 1, "embeddings": 1, "pooling": 4, "n_seq_max": 4, "kv_unified": 1},
        {"context_tokens": 2048, "embedding": True, "pooling": "rank", "sequences": 4, "unified": True},
    ),
)


def read(path: Path) -> GgufModel:
    with open(path, "rb") as stream:
        header = read_header(lambda at, stop: _part(stream, at, stop), file=path.name, file_bytes=path.stat().st_size)
    return GgufModel(header.metadata, tuple(header.tensors))


def _part(stream: Any, at: int, stop: int) -> bytes:
    stream.seek(at)
    return bytes(stream.read(stop - at))


def sizes(buffers: Sequence[Buffer], kind: str) -> list[str]:
    return [f"{buffer.low_bytes / 2**20:.2f}" for buffer in buffers if buffer.kind == kind]


def is_taken(architecture: str, fields: Mapping[str, int]) -> bool:
    """Whether the library makes the context: neither a quantised cache that it refuses, nor sequences that T5's bias lacks."""
    name = architecture.partition(":")[0]
    if name == "t5":
        return fields.get("n_seq_max", 1) == 1 or "kv_unified" in fields
    return name not in ("deepseek2", "grok") or fields.get("type_v") != 8


def nonzero(printed: Sequence[str]) -> list[str]:
    """Without caches that no layer has."""
    return [size for size in printed if size != "0.00"]


def halves_of_contexts() -> Iterator[Any]:
    """Each architecture with every other context in every run, neighbours with the others; with the rest in `make exhaustive`."""
    for row, architecture in enumerate(SMALL):
        for half in range(2):
            marks = () if half == row % 2 else pytest.mark.exhaustive
            yield pytest.param(architecture, half, id=f"{architecture}-{half}", marks=marks)


@LIBRARY
@pytest.mark.parametrize(("architecture", "half"), list(halves_of_contexts()))
def test_buffers_are_what_llama_cpp_prints(tmp_path: Path, architecture: str, half: int) -> None:
    """On the CPU, for prompts of llama-server and of other programs, with and without flash attention, and for embeddings."""
    path = write_small(tmp_path / "model.gguf", architecture)
    model = read(path)
    contexts = [context for context in CONTEXTS[half::2] if is_taken(architecture, context[0])]
    printed = printed_by_llama_cpp(path, [fields for fields, _ in contexts])
    for text, (_, options) in zip(printed, contexts, strict=True):
        plan = Plan(model, LlamaCppOptions(**{"program": "llama-completion", **options}), [], BUILDS["b11549"])
        buffers = plan.buffers()
        for kind in ("cache", "state", "compute", "output"):
            assert nonzero(sizes(buffers, kind)) == nonzero(printed_sizes(text, kind)), (kind, options)


@LIBRARY
@pytest.mark.parametrize(
    "architecture",
    [
        name if name in ("bert", "gemma4", "qwen3") else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in SMALL
    ],
)
def test_weights_are_what_llama_cpp_prints(tmp_path: Path, architecture: str) -> None:
    """Really loaded, mapped into memory and not."""
    path = write_small(tmp_path / "model.gguf", architecture)
    for mapped in (False, True):
        options = LlamaCppOptions(context_tokens=4096, memory_mapped=mapped)
        weights = tuple(Plan(read(path), options, [], BUILDS["b11549"]).weights())
        assert sizes(weights, "weights") == printed_sizes(printed_while_loading(path, load_mode=int(mapped)), "weights")


@LIBRARY
@pytest.mark.parametrize("architecture", KNOWN)
def test_multi_token_prediction_has_a_context_of_its_own(tmp_path: Path, architecture: str) -> None:
    """As llama-server makes both: states kept for drafts of 3 tokens, where the architecture takes them back."""
    path = write_predicting(tmp_path / "model.gguf", architecture)
    model, drafted = read(path), 3 if architecture in TAKEN_BACK else 0
    for sequences, flash, batch in ((2, 1, 512), (1, 0, 256), (4, 1, 512)):
        fields = {"n_ctx": 4096, "n_seq_max": sequences, "n_ubatch": batch, "flash_attn_type": flash}
        contexts = [
            {**fields, "n_rs_seq": drafted, "n_outputs_max": 4 * sequences},
            {**fields, "context_type": 1, "n_outputs_max": sequences},
        ]
        printed = printed_by_llama_cpp(path, contexts, predicts=True)
        command = f"llama-server -c 4096 -np {sequences} -ub {batch} -fa {flash} --spec-type draft-mtp"
        buffers = Plan(model, parse_command(command).options, [], BUILDS["b11549"]).buffers()
        for text, context in zip(printed, ("model", "mtp"), strict=True):
            own = [buffer for buffer in buffers if buffer.context == context]
            for kind in ("cache", "state", "compute", "output"):
                assert sizes(own, kind) == [size for size in printed_sizes(text, kind) if size != "0.00"], (
                    kind,
                    command,
                )


@LIBRARY
def test_embeddings_are_pooled_as_llama_cpp_does(tmp_path: Path) -> None:
    """Rows of logits are reserved for all tokens, and states beside them; by commands that say so.

    llama-embedding makes the micro-batch as large as the context, and shares the cache between 256 texts unless -np is given.
    """
    whole = {"n_batch": 4096, "n_ubatch": 4096}
    path = write_small(tmp_path / "model.gguf", "qwen3")
    kinds: Sequence[tuple[Mapping[str, int], str]] = (
        ({**whole, "pooling": 1, "n_seq_max": 64}, "llama-embedding -c 4096 -np 64 --pooling mean"),
        ({**whole, "pooling": 3, "n_seq_max": 256, "kv_unified": 1}, "llama-embedding -c 4096 -ub 2048 --pooling last"),
        ({"pooling": 4, "n_seq_max": 4, "kv_unified": 1}, "llama-server -c 4096 --rerank"),
    )
    fields = {"n_ctx": 4096, "flash_attn_type": 1, "embeddings": 1}
    for text, (_, command) in zip(
        printed_by_llama_cpp(path, [{**fields, **own} for own, _ in kinds]), kinds, strict=True
    ):
        buffers = Plan(read(path), parse_command(command).options, [], BUILDS["b11549"]).buffers()
        for kind in ("compute", "output"):
            assert sizes(buffers, kind) == printed_sizes(text, kind), command


STAND_IN = replace(BUILDS["b11549"], converts_cache=False, keeps_fused=False)  # which the stand-ins do not do


def test_every_architecture_whose_graph_is_known_is_held_against_the_library() -> None:
    assert {name.partition(":")[0] for name in SMALL} == set(DESIGNS)


# Recorded from the same library with stand-ins for CUDA devices of 24 GiB: alignment 128, every operation supported, host
# weights used by the card from 32 rows on. It really allocates: with no_alloc its scheduler forgets what is pinned. Four layers
# of "qwen3" in SMALL's sizes, a vocabulary of 1,000, 4,096 tokens.
CARDS: Sequence[tuple[int, Mapping[str, Any], Mapping[str, str]]] = (
    (1, {}, {"CUDA0": "10.12", "CUDA_Host": "6.02"}),
    (1, {"flash_attention": False}, {"CUDA0": "43.01", "CUDA_Host": "10.52"}),
    (1, {"offloaded": 3}, {"CUDA0": "10.74", "CUDA_Host": "6.02"}),
    (1, {"offloaded": 2, "flash_attention": False}, {"CUDA0": "44.00", "CUDA_Host": "10.52"}),
    (1, {"offloaded": 0}, {"CUDA0": "10.74", "CUDA_Host": "6.02"}),
    (2, {}, {"CUDA0": "28.16", "CUDA1": "23.15", "CUDA_Host": "21.08"}),
    (2, {"flash_attention": False}, {"CUDA0": "74.54", "CUDA1": "69.53", "CUDA_Host": "39.06"}),
    (2, {"offloaded": 3}, {"CUDA0": "10.74", "CUDA1": "2.45", "CUDA_Host": "6.02"}),
    (1, {"cache_on_cards": False}, {"CUDA0": "10.24", "CUDA_Host": "6.02"}),
    (1, {"cache_on_cards": False, "flash_attention": False}, {"CUDA0": "6.11", "CUDA_Host": "42.02"}),
    (1, {"cache_on_cards": False, "flash_attention": False, "offloaded": 3}, {"CUDA0": "6.61", "CUDA_Host": "42.02"}),
    (2, {"cache_on_cards": False}, {"CUDA0": "10.24", "CUDA1": "7.50", "CUDA_Host": "6.02"}),
    (2, {"cache_on_cards": False, "offloaded": 3}, {"CUDA0": "10.74", "CUDA1": "2.45", "CUDA_Host": "6.02"}),
)


@pytest.mark.parametrize(("cards", "options", "printed"), CARDS)
def test_cards_copy_what_lies_elsewhere(cards: int, options: Mapping[str, Any], printed: Mapping[str, str]) -> None:
    model = mixture_of_qwen3("F16", layers=4, width=256, heads=4, kv_heads=2, head=64, vocabulary=1000, inner=700)
    asked = LlamaCppOptions(program="llama-completion", context_tokens=4096, **options)
    plan = Plan(model, asked, [24 * GIB] * cards, STAND_IN)
    assert {buffer.device: f"{(buffer.size_bytes or 0) / 2**20:.2f}" for buffer in plan.compute()} == printed


# Recorded in the same way on two cards, of SMALL's files: what each architecture's graph has of its own.
TWO_CARDS: Sequence[tuple[str, Mapping[str, Any], Mapping[str, str]]] = (
    ("bitnet", {}, {"CUDA0": "55.80", "CUDA1": "23.17", "CUDA_Host": "21.08"}),
    ("bitnet", {"offloaded": 3}, {"CUDA0": "21.54", "CUDA1": "0.50", "CUDA_Host": "6.02"}),
    ("falcon-h1", {"cache_on_cards": False}, {"CUDA0": "9.02", "CUDA1": "21.77", "CUDA_Host": "6.53"}),
    ("gpt-oss", {"cache_on_cards": False}, {"CUDA0": "9.76", "CUDA1": "16.62", "CUDA_Host": "6.78"}),
    ("mimo2", {"cache_on_cards": False}, {"CUDA0": "7.01", "CUDA1": "16.62", "CUDA_Host": "7.03"}),
    (
        "minicpm",
        {"offloaded": 4, "split": (1.0, 3.0), "micro_batch": 256},
        {"CUDA0": "14.09", "CUDA1": "17.09", "CUDA_Host": "10.54"},
    ),
    ("olmo", {"cache_on_cards": False}, {"CUDA0": "10.26", "CUDA1": "16.62", "CUDA_Host": "6.02"}),
    ("olmo", {"offloaded": 3}, {"CUDA0": "10.38", "CUDA1": "16.12", "CUDA_Host": "6.02"}),
    ("plamo2", {"offloaded": 3}, {"CUDA0": "6.53", "CUDA1": "16.12", "CUDA_Host": "7.52"}),
)


@pytest.mark.parametrize(("architecture", "options", "printed"), TWO_CARDS)
def test_two_cards_compute_in_what_llama_cpp_prints(
    tmp_path: Path, architecture: str, options: Mapping[str, Any], printed: Mapping[str, str]
) -> None:
    model = read(write_small(tmp_path / "model.gguf", architecture))
    asked = LlamaCppOptions(program="llama-completion", context_tokens=4096, **options)
    plan = Plan(model, asked, [24 * GIB] * 2, STAND_IN)
    sizes_by_device = {buffer.device: f"{(buffer.size_bytes or 0) / 2**20:.2f}" for buffer in plan.compute()}
    assert {device: size for device, size in sizes_by_device.items() if size != "0.00"} == printed


def test_bitnet_has_no_copy_of_its_embedding_on_the_cards(tmp_path: Path) -> None:
    """Recorded in the same way."""
    model = read(write_small(tmp_path / "model.gguf", "bitnet"))
    asked = LlamaCppOptions(program="llama-cli", memory_mapped=False)
    printed = {
        buffer.device: f"{(buffer.size_bytes or 0) / 2**20:.2f}"
        for buffer in Plan(model, asked, [24 * GIB] * 2, STAND_IN).weights()
    }
    assert printed == {"CUDA0": "2.82", "CUDA1": "1.41", "CUDA_Host": "3.91"}


@pytest.mark.parametrize(("shared_inner", "moves"), [(96, True), (192, False)])
def test_cuda_computes_a_shared_expert_of_the_routed_ones_shape_right_after_them(
    shared_inner: int, moves: bool
) -> None:
    """Source: llama.cpp b11434, ggml-cuda.cu (ggml_backend_cuda_graph_optimize, ggml_cuda_match_shared_expert)."""
    kind = Type("q8_0", 32, 34)
    state = stored(F32, (256, 512), "CUDA0", weight=False)
    chosen = stored(I32, (4, 512), "CUDA0", weight=False)
    inputs = reshape(state, 256, 1, 512)
    gate, up = (matmul_chosen(stored(kind, (256, 96, 16), "CUDA0", weight=True), inputs, chosen) for _ in range(2))
    routed = new("GLU", gate.shape, gate, up)
    down = matmul_chosen(stored(kind, (96, 256, 16), "CUDA0", weight=True), routed, chosen)
    sizes = (256, shared_inner)
    shared = [matmul(stored(kind, sizes, "CUDA0", weight=True), state) for _ in range(2)]
    joined = new("GLU", shared[0].shape, *shared)
    nodes = [gate, up, routed, down, *shared, joined]
    moved, kept = shared_beside_routed(nodes)
    assert moved == ([gate, up, routed, *shared, joined, down] if moves else nodes)
    assert kept == ([([inputs, chosen], joined)] if moves else [])


def mixture_of_qwen3(
    kind: str,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head: int,
    vocabulary: int,
    inner: int,
    experts: int = 0,
) -> GgufModel:
    """Qwen3 or, with experts of which 8 are used, its mixture, as llama.cpp's quantisation to one type writes it."""
    name = "qwen3moe" if experts else "qwen3"
    keys = {
        "block_count": layers,
        "context_length": 40_960,
        "embedding_length": width,
        "vocab_size": vocabulary,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        **({"expert_count": experts, "expert_used_count": 8, "expert_feed_forward_length": inner} if experts else {}),
    }
    dtype: DType | BlockFormat = BLOCK_FORMATS.get(kind, DType.F16)
    matrices: dict[str, tuple[int, ...]] = {
        "attn_q": (heads * head, width),
        "attn_k": (kv_heads * head, width),
        "attn_v": (kv_heads * head, width),
        "attn_output": (width, heads * head),
    }
    several = (experts,) if experts else ()
    suffix = "_exps" if experts else ""
    matrices |= {f"ffn_{part}{suffix}": (*several, inner, width) for part in ("gate", "up")}
    matrices |= {f"ffn_down{suffix}": (*several, width, inner)}
    vectors: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,),
        "ffn_norm": (width,),
        "attn_q_norm": (head,),
        "attn_k_norm": (head,),
    }
    vectors |= {"ffn_gate_inp": (experts, width)} if experts else {}
    tensors = [Tensor(f"{part}.weight", (vocabulary, width), dtype) for part in ("token_embd", "output")]
    tensors.append(Tensor("output_norm.weight", (width,), DType.F32))
    for layer in range(layers):
        tensors += [Tensor(f"blk.{layer}.{part}.weight", shape, dtype) for part, shape in matrices.items()]
        tensors += [Tensor(f"blk.{layer}.{part}.weight", shape, DType.F32) for part, shape in vectors.items()]
    metadata = {"general.architecture": name, **{f"{name}.{key}": value for key, value in keys.items()}}
    return GgufModel(metadata, tuple(tensors))


PUBLISHED_MODELS: Mapping[str, Mapping[str, int]] = {
    "Qwen3-235B-A22B": {
        "layers": 94,
        "width": 4096,
        "heads": 64,
        "kv_heads": 4,
        "head": 128,
        "vocabulary": 151_936,
        "inner": 1536,
        "experts": 128,
    },
    "Qwen3-32B": {
        "layers": 64,
        "width": 5120,
        "heads": 64,
        "kv_heads": 8,
        "head": 128,
        "vocabulary": 151_936,
        "inner": 25_600,
    },
    "Qwen3-30B-A3B": {
        "layers": 48,
        "width": 2048,
        "heads": 32,
        "kv_heads": 4,
        "head": 128,
        "vocabulary": 151_936,
        "inner": 768,
        "experts": 128,
    },
}


@pytest.mark.parametrize("log", published("llama_cpp_buffers.csv"), ids=lambda log: log["log"])
def test_buffers_equal_published_logs(log: Mapping[str, str]) -> None:
    """Every printed line, to 0.01 MiB, on every card and the host; "differs" has the lines that are not equal, and why.

    Where a log's cards divide the layers by what was free on them, -ts has the division that its KV lines show. Logs without
    their command have one whose options their other lines show.
    """
    name = log["build"].removesuffix(" with BLAS")
    build = replace(BUILDS[name], blas=name != log["build"])
    options = parse_command(log["command"]).options
    model = published_model(log["model"], log["type"])
    if log["split"]:
        most_bytes, _, converted = log["split"].partition(" ")
        model = split(model, int(most_bytes), as_converted=bool(converted))
    plan = Plan(model, options, [24 * GIB] * int(log["cards"]), build)
    found = [f"{one.kind} {one.device}:{(one.size_bytes or 0) / 2**20:.2f}" for one in plan.buffers()]
    printed = log["printed"].split(" | ")
    differing = {entry.split(":")[0] for entry in log["differs"].split(" | ") if entry}
    assert {entry.split(":")[0] for entry in printed if entry not in found} == differing


# Logs that print no more than their cells: a model, a command, and cache and states in MiB by context.
CELLS: Sequence[tuple[str, str, Mapping[tuple[str, str, str], str]]] = (
    (
        "Qwen/Qwen3.6-27B",  # stored file index 56835383599; its compute buffers are of a build that is not known here
        "llama-server -c 131072 -np 1 -ctk q8_0 -ctv q8_0 --spec-type draft-mtp -ctkd q8_0 -ctvd q8_0",
        {
            ("cache", "CUDA0", "model"): "4352.00",
            ("state", "CUDA0", "model"): "598.50",
            ("cache", "CUDA0", "mtp"): "272.00",
        },
    ),
    ("Qwen/Qwen3.5-4B", "llama-cli -c 4096", {("state", "CUDA0", "model"): "50.25"}),  # index 57488598479
    (
        "Qwen/Qwen3.5-35B-A3B",
        "llama-server",
        {("state", "CUDA0", "model"): "251.25"},
    ),  # stored file index 52911601095
    (
        "Qwen/Qwen3.6-27B",
        "llama-server -np 3",
        {("state", "CUDA0", "model"): "448.88"},
    ),  # ggml-org/llama.cpp pull 23792
    (
        "Qwen/Qwen2.5-Coder-32B-Instruct",  # ggml-org/llama.cpp issue 11200
        "llama-server -c 32768 -np 1 -ctk q8_0 -ctv q8_0 -ts 41,24",
        {("cache", "CUDA0", "model"): "2788.00", ("cache", "CUDA1", "model"): "1564.00"},
    ),
    # LostRuins/koboldcpp issue 724: 82,120 MiB for 32,848 cells, 2.5 MiB each; llama.cpp pads them to 33,024
    ("Qwen/Qwen1.5-72B", "llama-cli -c 32848", {("cache", "CUDA0", "model"): "82560.00"}),
)


@pytest.mark.parametrize(("name", "command", "printed"), CELLS)
def test_cells_equal_published_logs(name: str, command: str, printed: Mapping[tuple[str, str, str], str]) -> None:
    metadata, tensors = gguf_source(inspect(f"catalog:{name}"))
    cards = 2 if any(device == "CUDA1" for _, device, _ in printed) else 1
    plan = Plan(
        GgufModel(metadata, tuple(tensors)), parse_command(command).options, [24 * GIB] * cards, BUILDS["b11549"]
    )
    for (kind, device, context), mib in printed.items():
        (size,) = (
            one.size_bytes or 0
            for one in plan.stored()
            if (one.kind, one.device, one.context) == (kind, device, context)
        )
        assert f"{size / 2**20:.2f}" == mib


@cache
def deepseek_r1() -> GgufModel:
    metadata, tensors = gguf_source(as_gguf(inspect("catalog:deepseek-ai/DeepSeek-R1"), "Q8_0"))
    return GgufModel(metadata, tuple(tensors))


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("llama-sweep-bench -c 20480 -mla 3 -fa -fmoe -b 4096 -ub 4096", {"CUDA0": "697.50", "CUDA1": "675.00"}),  # 477
        ("llama-server -c 32768 -ctk q8_0 -mla 3 -fa -fmoe", {"CUDA0": "1166.65"}),  # 258
        ("llama-cli -c 32768 -ctk q8_0 -mla 2 -fa -fmoe", {"CPU": "1166.63"}),
        ("llama-cli -c 163840 -mla 1 -fa off", {"CPU": "20740.00"}),
        ("llama-cli -c 8192 -ctk q8_0 -fa off -fmoe", {"CPU": "28060.00"}),
    ],
)
def test_latents_of_the_fork_are_cached_as_published_logs_say(command: str, printed: Mapping[str, str]) -> None:
    """DeepSeek-R1 in ik_llama.cpp's discussions, by -mla; the last without it, with K and V of 128 heads."""
    model = deepseek_r1()
    options = parse_command(command).options
    cards = [96 * GIB] * sum(name != "CPU" for name in printed)
    cells = Plan(model, options, cards, BUILDS["ik_llama.cpp 5236c98b"]).cache()
    assert {buffer.device: f"{(buffer.size_bytes or 0) / 2**20:.2f}" for buffer in cells} == printed


PARTS = (
    *("attn_norm", "ffn_down_exps", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_inp", "ffn_norm"),
    *("attn_k_norm", "attn_k", "attn_output", "attn_q_norm", "attn_q", "attn_v"),
)


def split(model: GgufModel, most_bytes: int, *, as_converted: bool) -> GgufModel:
    """In files of at most so many bytes, by name, or in the order of transformers' names, which ik_llama.cpp keeps.

    Source: llama.cpp, tools/gguf-split (--split-max-size) and weight_name_comparer; conversion/qwen.py (Qwen2MoeModel), whose
    experts are written after the last of a layer. Of the last layer lm_head comes before its norms and experts, and attention
    and router come last, as the printed ranges show.
    """
    layers = {tensor.name: int(match[1]) if (match := IN_LAYER.match(tensor.name)) else -1 for tensor in model.tensors}
    last = max(layers.values())

    def order(tensor: Tensor) -> tuple[float, Any]:
        layer = layers[tensor.name]
        if not as_converted:
            return layer, tensor.name
        if layer < 0:
            return {"token_embd.weight": -1, "output.weight": last - 0.5, "output_norm.weight": last + 1}[
                tensor.name
            ], 0
        part = tensor.name.split(".")[2]
        before_head_norm = part in ("attn_norm", "ffn_norm") or part.endswith("_exps")
        return layer + 2 * (layer == last and not before_head_norm), PARTS.index(part)

    files, used, tensors = 1, 0, []
    for tensor in sorted(model.tensors, key=order):
        size = -(-tensor.size_bytes // 32) * 32
        files, used = (files + 1, size) if used + size > most_bytes else (files, used + size)
        tensors.append(replace(tensor, file=f"part {files}"))
    return GgufModel(model.metadata, tuple(tensors))


IK_FORMATS = {name: BlockFormat(name, 256, size) for name, size in (("IQ3_K", 110), ("IQ4_K", 144), ("IQ6_K", 212))}


def published_model(name: str, types: str) -> GgufModel:
    """types: a quantisation of llama-quantize, or what `with_types` takes."""
    kind, _, importance = types.partition(" with ")
    if not (importance or types.endswith("_M")):
        return with_types(mixture_of_qwen3("Q8_0", **PUBLISHED_MODELS[name]), types)
    metadata, tensors = gguf_source(as_gguf(inspect(f"catalog:Qwen/{name}"), kind))
    if importance:  # Q4_1 for an eighth of the layers' ffn_down. Source: llama-quant.cpp, llama_tensor_get_type_impl
        early = {f"blk.{layer}.ffn_down.weight" for layer in range(PUBLISHED_MODELS[name]["layers"] // 8)}
        tensors = [replace(one, dtype=BLOCK_FORMATS["Q4_1"]) if one.name in early else one for one in tensors]
    return GgufModel(metadata, tuple(tensors))


def with_types(model: GgufModel, types: str) -> GgufModel:
    """types: of all matrices, or "GATE_AND_UP/DOWN/ATTENTION/EMBEDDING"; ik_llama.cpp's by their size."""
    experts, down, attention, rest = types.split("/") if "/" in types else [types] * 4

    def of(tensor: Tensor) -> DType | BlockFormat:
        if not isinstance(tensor.dtype, BlockFormat):
            return tensor.dtype
        part = down if "ffn_down" in tensor.name else experts if "ffn_" in tensor.name else attention
        name = part if tensor.name.startswith("blk.") else rest
        return IK_FORMATS[name] if name in IK_FORMATS else BLOCK_FORMATS[name]

    return GgufModel(model.metadata, tuple(replace(tensor, dtype=of(tensor)) for tensor in model.tensors))


def test_an_october_build_reserves_fewer_outputs() -> None:
    """Qwen3-8B, 8,192 tokens, on the CPU: 120.02 MiB, as xllamacpp 2026.10.11549's server prints it.

    Before, 512 rows of logits were reserved: 512 x (151,936 + 4,096) x 4 bytes, as 28 of 34 published logs have them.
    """
    model = mixture_of_qwen3(
        "Q8_0", layers=36, width=4096, heads=32, kv_heads=8, head=128, vocabulary=151_936, inner=12_288
    )
    options = LlamaCppOptions(context_tokens=8192)
    assert sizes(Plan(model, options, [], BUILDS["b11549"]).buffers(), "compute") == ["120.02"]
    assert sizes(Plan(model, options, [24 * GIB], BUILDS["36667c8e"]).buffers(), "compute")[0] == "304.75"


def test_an_architecture_without_a_graph_has_a_lower_bound() -> None:
    """The logits and the states before them: 512 tokens x (8,000 + 256) x 4 bytes."""
    keys = {**COMMON, "block_count": 1}
    metadata = {"general.architecture": "newcomer", **{f"newcomer.{key}": value for key, value in keys.items()}}
    tensors = tuple(Tensor(name, shape[::-1], DType.F16) for name, shape, _ in decoder(1))
    options = LlamaCppOptions(program="llama-completion", context_tokens=4096)
    compute = Plan(GgufModel(metadata, tensors), options, [24 * GIB], BUILDS["b11549"]).compute()
    assert [(one.device, one.size_bytes, one.low_bytes, one.high_bytes) for one in compute] == [
        ("CUDA0", None, 512 * (8000 + 256) * 4, None),
        ("CPU", None, 0, None),
    ]
