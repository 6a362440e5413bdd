"""GGUF files of any architecture: caches as llama.cpp prints them, and every command on files without a design here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
from gguf import GGMLQuantizationType as Type

from qwen_inspect.architectures.gguf import own_configuration
from qwen_inspect.architectures.gguf_hparams import GgufHyperparameters
from qwen_inspect.architectures.gguf_keys import read_hyperparameters
from qwen_inspect.engines.llama_cpp.buffers import GgufModel, Plan
from qwen_inspect.engines.llama_cpp.builds import BUILDS
from qwen_inspect.engines.llama_cpp.options import LlamaCppOptions
from qwen_inspect.errors import MalformedError, UnsupportedError
from qwen_inspect.structure.inspect import inspect

from ..support.gguf_files import finish, on_a_card
from ..support.models import run

# What xllamacpp 2026.10.11549 (llama.cpp on a CPU) printed for files with this metadata and weights of zero, flash attention on:
# cells, layers, MiB of K and of V of each "llama_kv_cache: size" line; MiB of R and S of "llama_memory_recurrent: size".
CACHES: Mapping[str, Mapping[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "llama_cpp_caches.json").read_text()
)
# Context, micro-batch, sequences, whether they share cells.
RUNS = {"one": (4096, 256, 1, False), "two": (8192, 512, 2, False), "unified": (8192, 512, 2, True)}


def hyperparameters(architecture: str, keys: Mapping[str, Any]) -> GgufHyperparameters:
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()}
    return read_hyperparameters({"general.architecture": architecture, **metadata}, ())


def printed(elements: int, bits: int) -> str:
    return f"{elements * bits / 8 / 2**20:.2f}"


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_what_llama_cpp_prints(name: str) -> None:
    case = CACHES[name]
    read = hyperparameters(case["architecture"], case["metadata"])
    layers = range(read.all_layers)
    for kind, (context, micro_batch, sequences, unified) in RUNS.items():
        cells, streams = (context, 1) if unified else (context // sequences, sequences)
        # llama_kv_cache_iswa: the window of every sequence and a micro-batch, in whole 256 cells.
        window_cells = min(cells, read.window * (sequences if unified else 1) + micro_batch)
        expected = []
        attending = [layer for layer in layers if read.attends(layer)]
        split = [(cells, [layer for layer in attending if not read.windowed[layer]])]
        if any(read.windowed):
            split.append((-(-window_cells // 256) * 256, [layer for layer in attending if read.windowed[layer]]))
        for count, group in split if attending else []:
            keys, values = (sum(map(size, group)) * count * streams for size in (read.keys, read.values))
            expected.append([count, len(group), printed(keys, 16), printed(values, 16)])
        indexed = [read.index_cells(layer) for layer in layers if any(read.index_cells(layer))]
        if indexed:
            sums = [sum(pair[side] for pair in indexed) * cells * streams for side in (0, 1)]
            expected.append([cells, len(indexed), *(printed(elements, 16) for elements in sums)])
        rows = [sum(read.state(layer)[side] for layer in layers) * sequences for side in (0, 1)]
        states = [printed(elements, 32) for elements in rows] if any(rows) else None
        assert {"kv": expected, "rs": states} == case["printed"][kind]


@pytest.mark.parametrize("name", CACHES)
def test_fit_reserves_what_llama_cpp_prints(name: str) -> None:
    """For two sequences of 4,096 tokens each, in micro-batches of 512 tokens, which are the default."""
    case = CACHES[name]
    keys = {f"{case['architecture']}.{key}": value for key, value in case["metadata"].items()}
    options = LlamaCppOptions(context_tokens=2 * 4096, sequences=2)
    plan = Plan(GgufModel({"general.architecture": case["architecture"], **keys}, ()), options, (), BUILDS["b11549"])
    cells, states = (sum(buffer.low_bytes for buffer in kind) for kind in (plan.cache(), plan.states()))
    lines = case["printed"]["two"]
    printed_cells = [float(size) for line in lines["kv"] for size in line[2:]]
    printed_states = [float(size) for size in lines["rs"] or ()]
    for size_bytes, sizes in ((cells, printed_cells), (states, printed_states)):
        assert abs(size_bytes / 2**20 - sum(sizes)) <= 0.005 * len(sizes) + 1e-6  # each is rounded to 0.01


@pytest.mark.parametrize(
    ("architecture", "keys", "key"),
    [
        ("gemma4", {"attention.sliding_window": 512}, "gemma4.attention.sliding_window_pattern"),
        ("cohere2", {}, "cohere2.attention.sliding_window"),
        ("llama", {"attention.head_count_kv": [1, 2, 3]}, "llama.attention.head_count_kv"),
        ("llama", {"block_count": 0}, "llama.block_count"),
        ("llama", {"block_count": 1 << 20}, "llama.block_count"),
        ("llama", {"embedding_length": "wide"}, "llama.embedding_length"),
        ("llama", {"nextn_predict_layers": 5}, "llama.nextn_predict_layers"),
        ("nanbeige", {"num_loops": 1 << 20}, "nanbeige.num_loops"),
    ],
)
def test_keys_without_meaning_are_named(architecture: str, keys: Mapping[str, Any], key: str) -> None:
    with pytest.raises(MalformedError, match=key.replace(".", r"\.")):
        hyperparameters(architecture, {"block_count": 4, "embedding_length": 64, "attention.head_count": 4, **keys})


def write_any(path: Path, architecture: str, keys: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A file with these keys and tensors (in torch's order of sides), matrices in Q8_0."""
    made = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        name = f"{architecture}.{key}"
        if isinstance(value, list):
            made.add_array(name, value)
        elif isinstance(value, float):
            made.add_float32(name, value)
        else:
            made.add_uint32(name, value)
    for name, shape in shapes.items():
        values = numpy.zeros(shape, numpy.float32)
        if len(shape) > 1 and shape[-1] % 32 == 0:
            made.add_tensor(name, gguf.quants.quantize(values, Type.Q8_0), raw_dtype=Type.Q8_0)
        else:
            made.add_tensor(name, values)
    finish(made)
    return path


KEYS = {
    "block_count": 2,
    "context_length": 4096,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
OUTSIDE = {"token_embd.weight": (128, 64), "output_norm.weight": (64,)}
ATTENTION = {"attn_norm.weight": (64,), "attn_q.weight": (64, 64), "attn_k.weight": (32, 64), "attn_v.weight": (32, 64)}
DENSE = {"ffn_gate.weight": (96, 64), "ffn_up.weight": (96, 64), "ffn_down.weight": (64, 96)}
EXPERTS = {"ffn_gate_inp.weight": (8, 64), "ffn_gate_exps.weight": (8, 32, 64), "ffn_down_exps.weight": (8, 64, 32)}
MAMBA = {"ssm_in.weight": (256, 64), "ssm_conv1d.weight": (128, 32), "ssm_a": (1, 8), "ssm_out.weight": (64, 128)}
FILES: Mapping[str, tuple[Mapping[str, Any], tuple[Mapping[str, tuple[int, ...]], ...]]] = {
    "gemma3": ({**KEYS, "attention.sliding_window": 512}, ({**ATTENTION, **DENSE},) * 2),
    "gpt-oss": (
        {**KEYS, "attention.sliding_window": 128, "expert_count": 8, "expert_used_count": 2},
        ({**ATTENTION, **EXPERTS},) * 2,
    ),
    "granitehybrid": (
        {
            **KEYS,
            "attention.head_count_kv": [0, 2],
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 128,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 8,
            "ssm.group_count": 1,
        },
        ({**MAMBA, **DENSE}, {**ATTENTION, **DENSE}),
    ),
    "mamba": (
        {**KEYS, "ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.time_step_rank": 4},
        (MAMBA, MAMBA),
    ),
    "deepseek2": (
        {
            **KEYS,
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": 32,
            "attention.key_length": 40,
            "attention.value_length": 32,
            "attention.key_length_mla": 24,
            "attention.value_length_mla": 16,
        },
        ({"attn_kv_a_mqa.weight": (40, 64), "attn_output.weight": (64, 64), **DENSE},) * 2,
    ),
    "unheard-of": (KEYS, ({**ATTENTION, **DENSE},) * 2),
}


def write_case(path: Path, architecture: str) -> Path:
    keys, blocks = FILES[architecture]
    layers = {f"blk.{index}.{name}": shape for index, block in enumerate(blocks) for name, shape in block.items()}
    return write_any(path, architecture, keys, {**OUTSIDE, **layers})


@pytest.mark.parametrize("architecture", FILES)
def test_a_file_is_its_own_tensors(tmp_path: Path, architecture: str) -> None:
    path = write_case(tmp_path / "model.gguf", architecture)
    tensors = gguf.GGUFReader(path).tensors
    report = inspect(str(path))
    assert report.parameters.stored == report.parameters.unique == sum(int(tensor.n_elements) for tensor in tensors)
    assert report.tree.size_bytes == sum(int(tensor.n_bytes) for tensor in tensors)
    assert sum(part.parameters for part in report.components) == report.parameters.unique
    assert report.checks == ()
    assert report.spec.tied_embeddings


# K and V: 2 heads of 16 numbers, 2 bytes each; states: (3 x channels + inner x state) x 4 bytes.
@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("gemma3", [("sliding", 128, 0, 512), ("sliding", 128, 0, 512)]),
        ("gpt-oss", [("sliding", 128, 0, 128), ("full", 128, 0, None)]),
        ("granitehybrid", [("recurrent", 0, (3 * (128 + 32) + 128 * 16) * 4, None), ("full", 128, 0, None)]),
        ("mamba", [("recurrent", 0, (3 * 128 + 128 * 16) * 4, None)] * 2),
        ("deepseek2", [("latent", 80, 0, None)] * 2),
        ("unheard-of", [("full", 128, 0, None)] * 2),
    ],
)
def test_each_layer_keeps_what_its_keys_say(tmp_path: Path, architecture: str, layers: list[tuple[Any, ...]]) -> None:
    cache = inspect(str(write_case(tmp_path / "model.gguf", architecture))).cache
    assert [
        (layer.kind, layer.bytes_per_token, layer.fixed_bytes, layer.window_tokens) for layer in cache.layers
    ] == layers


def test_a_token_uses_its_experts_alone(tmp_path: Path) -> None:
    report = inspect(str(write_case(tmp_path / "model.gguf", "gpt-oss")))
    experts = 2 * 2 * 8 * 32 * 64
    assert report.parameters.active == report.parameters.theory - experts + experts // 4


def test_an_unknown_architecture_with_keys_of_another_cache_has_none(tmp_path: Path) -> None:
    keys, _ = FILES["gemma3"]
    path = write_any(tmp_path / "model.gguf", "unheard-of", keys, OUTSIDE)
    report = inspect(str(path))
    assert report.parameters.unique == 128 * 64 + 64
    assert isinstance(report.known.cache_refusal, UnsupportedError)
    assert run("attention", path).code == 7


def test_metadata_is_no_configuration() -> None:
    metadata = {"general.architecture": "gemma3", "model_type": "llama", "torch_dtype": "float64", "gemma3.a": 1}
    assert own_configuration(metadata) == {
        "general.architecture": "gemma3",
        "gemma3.a": 1,
        "model_type": "gguf/gemma3",
        "torch_dtype": "float16",
    }


def test_an_embedding_without_sides_is_none(tmp_path: Path) -> None:
    for architecture in ("gemma3", "unheard-of", "qwen3"):
        keys, _ = FILES["gemma3"]
        path = write_any(tmp_path / f"{architecture}.gguf", architecture, keys, {"token_embd.weight": ()})
        assert run("params", path).code in (0, 6, 7)


def test_an_unknown_architecture_without_keys_is_its_tensors(tmp_path: Path) -> None:
    report = inspect(str(write_any(tmp_path / "model.gguf", "unheard-of", {}, OUTSIDE)))
    assert (report.parameters.unique, report.spec.hidden_size, report.spec.vocab_size) == (128 * 64 + 64, 64, 128)
    assert report.known.cache is None


def test_fit_answers_for_any_architecture(tmp_path: Path) -> None:
    for architecture in ("gemma3", "granitehybrid", "mamba", "deepseek2", "unheard-of"):
        path = write_case(tmp_path / f"{architecture}.gguf", architecture)
        done = run("fit", path, "--engine", "llama.cpp", "--memory", "1GiB", "--context", "4096", "--format", "json")
        assert done.code == 0, (architecture, done.err)
        terms = {term["term"]: term["least_bytes"] for term in json.loads(done.out)["terms"]}
        weights = sum(map(on_a_card, gguf.GGUFReader(path).tensors))
        assert terms["weights"] == weights  # the embedding stays on the host, and a card has a copy for the output
        # gemma3: two windows of 512 + 512 cells, K and V of 64 bytes each for both heads.
        expected = {"gemma3": 2 * 1024 * 128, "mamba": 0, "deepseek2": 2 * 4096 * 80, "unheard-of": 2 * 4096 * 128}
        assert terms["cache"] == expected.get(architecture, 4096 * 128)


def test_every_command_answers(tmp_path: Path) -> None:
    path = write_case(tmp_path / "model.gguf", "granitehybrid")
    for command in ("weights", "attention", "structure", "config", "memory"):
        done = run(command, path, "--lang", "zh")
        assert done.code == 0, (command, done.err)
    assert run("report", path, "--format", "md").code == 0
    assert "no theory for granitehybrid" in run("params", path, "--lang", "en").out
    refused = run("params", path, "--instantiate", "--lang", "en")
    assert refused.code == 7
    assert "transformers builds no model of a GGUF file" in refused.err


@pytest.mark.parametrize(
    "name", [".".join("a" * 5_000), "blk.0", "blk.0.attn_q", "blk.99999999999.x.weight", "blk..", "..."]
)
def test_odd_names_are_listed(tmp_path: Path, name: str) -> None:
    keys, _ = FILES["gemma3"]
    shapes = {**OUTSIDE, name: (2, 32), "blk.0.attn_q.weight": (2, 32)}
    report = inspect(str(write_any(tmp_path / "model.gguf", "gemma3", keys, shapes)))
    assert report.parameters.unique == 128 * 64 + 64 + 128
    assert run("structure", tmp_path / "model.gguf").code == 0
