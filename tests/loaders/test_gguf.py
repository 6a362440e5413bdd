"""GGUF files, written by the gguf package: headers, several files, hubs, and the models that they hold."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.architectures import architecture_of, gguf_design
from qwen_inspect.architectures.gguf import check_model, configuration, stored_form
from qwen_inspect.checkpoint import BLOCK_FORMATS, BlockFormat, DType, ModelRef
from qwen_inspect.cli import main
from qwen_inspect.errors import MalformedError, NotFoundError, QwenInspectError, UnsupportedError, UsageError
from qwen_inspect.loaders import gguf_header
from qwen_inspect.loaders.gguf_header import choose, read_header
from qwen_inspect.loaders.resolve import resolve
from qwen_inspect.results.model import Report
from qwen_inspect.spec import each_tensor
from qwen_inspect.structure.inspect import inspect

from ..hub.repos import HubFile, HubRepo
from ..hub.server import HubServer
from ..support.asking import ask, ask_json, refused
from ..support.families import TINY_QWEN2, TINY_QWEN2_MOE, TINY_QWEN3_MOE
from ..support.gguf_files import QWEN3, finish, tree_of, write_model, writer
from ..support.invoking import Capture
from ..support.models import run

MOE: Mapping[str, Any] = {
    **TINY_QWEN3_MOE,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "tie_word_embeddings": False,
}
MOE_2: Mapping[str, Any] = {
    **TINY_QWEN2_MOE,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "layer_types": None,
    "shared_expert_intermediate_size": 64,
}
FAMILIES = {"qwen2": TINY_QWEN2, "qwen2moe": MOE_2, "qwen3": QWEN3, "qwen3moe": MOE}


def header_of(path: Path) -> gguf_header.GgufHeader:
    content = path.read_bytes()
    return read_header(lambda start, stop: content[start:stop], file=path.name, file_bytes=len(content))


# --- against the gguf package and transformers ----------------------------------------------------------------------


def test_every_type_has_the_packages_number_and_blocks() -> None:
    for kind, (elements, size_bytes) in gguf.GGML_QUANT_SIZES.items():
        found = gguf_header.TYPES[int(kind)]
        if isinstance(found, BlockFormat):
            assert found == BlockFormat(kind.name, elements, size_bytes)
        else:
            assert (found.code, found.bits) == (kind.name, size_bytes * 8)
    assert set(gguf_header.TYPES) == {int(kind) for kind in gguf.GGML_QUANT_SIZES}
    assert set(BLOCK_FORMATS) <= {kind.name for kind in gguf.GGML_QUANT_SIZES}


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q8_0, Type.Q5_1, Type.MXFP4, Type.BF16, Type.F16])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_header_says_what_the_package_reads(tmp_path: Path, architecture: str, kind: Type) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, FAMILIES[architecture], kind)
    header = header_of(path)
    reader = gguf.GGUFReader(path)
    assert [(one.name, one.shape, one.size_bytes) for one in header.tensors] == [
        (one.name, tuple(int(side) for side in reversed(one.shape)), one.n_bytes) for one in reader.tensors
    ]
    assert [str(one.dtype) for one in header.tensors if isinstance(one.dtype, BlockFormat)] == [
        one.tensor_type.name for one in reader.tensors if one.tensor_type.name in BLOCK_FORMATS
    ]
    alignment = 32
    assert -(-len(header.content) // alignment) * alignment == reader.data_offset
    for key, value in header.metadata.items():
        assert reader.fields[key].contents() == value


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_configuration_is_what_transformers_reads(tmp_path: Path, architecture: str) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = write_model(tmp_path / "model.gguf", architecture, FAMILIES[architecture])
    header = header_of(path)
    found = configuration(header.metadata, header.tensors)
    theirs = load_gguf_checkpoint(str(path))["config"]
    shared = set(theirs) & set(found) - {"architectures"}
    assert {"hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "tie_word_embeddings"} <= shared
    assert {key: found[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_names_are_those_of_the_converter(architecture: str) -> None:
    config = FAMILIES[architecture]
    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for tensor in each_tensor(tree_of(config)):
        if ".mlp.experts." in tensor.name:
            stacks = ("gate_proj", "up_proj") if "gate_up" in tensor.name else ("down_proj",)
            given = [f"{tensor.name.rpartition('.')[0]}.{stack}.weight" for stack in stacks]
        else:
            given = [tensor.name]
        assert [names.get_name(one, (".weight", ".bias")) for one in given] == [p.name for p in stored_form(tensor)]


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FAMILIES)
def test_theory_and_a_file_agree(tmp_path: Path, architecture: str) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, FAMILIES[architecture])
    report = inspect(str(path))
    (check,) = report.checks
    assert check.agrees, check.unexplained
    assert "experts_singly" not in {cause.name for cause in check.causes}  # they are stacked, under other names
    dense = tree_of(FAMILIES[architecture])
    assert report.parameters.unique == report.parameters.theory == dense.parameters
    reader = gguf.GGUFReader(path)
    assert report.tree.size_bytes == sum(tensor.n_bytes for tensor in reader.tensors)
    assert report.known.quantised is not None
    assert report.known.quantised.total_bytes == report.tree.size_bytes
    assert report.attention.by_shapes is not None
    assert report.attention.findings == ()


def test_bits_by_type_are_the_blocks_own(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen3", QWEN3, Type.Q5_1)
    found = inspect(str(path)).known.quantised
    assert found is not None
    assert found.bits_per_weight == 6.0  # 32 numbers in 24 bytes
    shown = json.loads(run("weights", path, "--format", "json").out)
    assert [(one["dtype"], one["bytes"] * 8 / one["elements"]) for one in shown["dtypes"]] == [
        ("Q5_1", 6.0),
        ("float32", 32.0),
    ]


def test_an_output_layer_of_its_own_is_not_tied(tmp_path: Path) -> None:
    untied = {**QWEN3, "tie_word_embeddings": False}
    report = inspect(str(write_model(tmp_path / "model.gguf", "qwen3", untied)))
    assert not report.spec.tied_embeddings
    assert report.checks[0].agrees


def test_kv_heads_of_each_layer_make_each_layers_cache(tmp_path: Path) -> None:
    """A pruned model: 2 KV heads in its first layer, 4 in its second; the converter then writes lists."""
    made = writer(tmp_path / "model.gguf", "qwen3", {**QWEN3, "num_key_value_heads": [2, 4]})
    for tensor in each_tensor(tree_of(QWEN3)):
        for part in stored_form(tensor):
            wide = part.name in ("blk.1.attn_k.weight", "blk.1.attn_v.weight")
            made.add_tensor(part.name, numpy.zeros((128, 64) if wide else part.shape, dtype=numpy.float16))
    finish(made)
    report = inspect(str(tmp_path / "model.gguf"))
    assert [layer.kv_heads for layer in report.attention.softmax] == [2, 4]
    # K and V: heads x 32 numbers of 2 bytes.
    assert [layer.bytes_per_token for layer in report.cache.layers] == [2 * 2 * 32 * 2, 2 * 4 * 32 * 2]
    assert report.checks[0].agrees


@pytest.mark.parametrize("command", ["structure", "params", "attention", "memory", "weights", "config"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_command_shows_a_gguf_model(tmp_path: Path, command: str, language: str) -> None:
    write_model(tmp_path / "model.gguf", "qwen3moe", MOE)
    for kind in ("table", "json"):
        done = run(command, tmp_path, "--lang", language, "--format", kind)
        assert done.code == 0, done.err


def test_memory_of_a_gguf_model_is_its_formula(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen3", QWEN3)
    predicted = json.loads(run("memory", path, "--context", "64", "--format", "json").out)["predicted"]
    assert predicted["method"] == "formula"
    assert predicted["weights_bytes"] == sum(tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors)
    assert predicted["peak_allocated_bytes"] is None


# --- names and kinds of files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sha256-" + "0f" * 32, "model", "model.bin", "model.safetensors", "config.json"])
def test_a_gguf_file_is_known_by_its_first_bytes_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen3", QWEN3)
    expected = inspect(str(path)).parameters
    path = path.rename(tmp_path / name)
    report = inspect(str(path))
    assert (report.parameters, report.files[0].name) == (expected, name)


def test_a_folder_of_blobs_is_asked_by_their_first_bytes(tmp_path: Path) -> None:
    """As Ollama keeps them: models beside templates and licences, under their SHA-256."""
    for number, kind in enumerate((Type.Q4_0, Type.Q8_0)):
        write_model(tmp_path / f"sha256-{number}", "qwen3", QWEN3, kind)
    (tmp_path / "sha256-2").write_text("{{ .Prompt }}")
    with pytest.raises(UsageError, match="sha256-0, sha256-1") as refusal:
        inspect(str(tmp_path))
    assert "sha256-2" not in str(refusal.value)
    report = inspect(str(tmp_path), file="sha256-1")
    assert report.known.quantised is not None
    assert report.known.quantised.bits_per_weight == 8.5


def test_a_file_of_another_kind_is_no_gguf_for_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 something else")
    done = run("weights", tmp_path / "model.gguf")
    assert (done.code, done.err) == (6, "error: model.gguf is not a GGUF file: it does not begin with GGUF\n")


def write_adapter(path: Path, ranks: tuple[int, int] = (8, 8), kind: str = gguf.GGUFType.ADAPTER) -> Path:
    """What llama.cpp's convert_lora_to_gguf.py writes: NAME.lora_a of (rank, inputs), NAME.lora_b of (outputs, rank)."""
    made = gguf.GGUFWriter(path, "qwen3")
    made.add_type(kind)
    if kind == gguf.GGUFType.ADAPTER:
        made.add_string(gguf.Keys.Adapter.TYPE, "lora")
        made.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 16.0)
    for name, rank, outputs in (("blk.0.attn_q", ranks[0], 64), ("blk.0.attn_v", ranks[1], 16)):
        made.add_tensor(f"{name}.weight.lora_a", numpy.zeros((rank, 32), numpy.float32))
        made.add_tensor(f"{name}.weight.lora_b", numpy.zeros((outputs, rank), numpy.float32))
    finish(made)
    return path


@pytest.mark.parametrize(
    ("ranks", "words"), [((8, 8), "rank 8, alpha 16, 1,152 par"), ((4, 8), "rank 4, 8, alpha 16, 768 par")]
)
def test_a_lora_adapter_says_what_it_is(tmp_path: Path, ranks: tuple[int, int], words: str) -> None:
    path = write_adapter(tmp_path / "lora.gguf", ranks)
    report = inspect(str(path), require_design=False)
    assert [tensor.name for tensor in report.tensors or ()] == [
        f"blk.0.attn_{letter}.weight.lora_{side}" for letter in "qv" for side in "ab"
    ]
    with pytest.raises(UnsupportedError, match="LoRA adapter, not a model: architecture qwen3") as refusal:
        inspect(str(path))
    assert words in str(refusal.value)
    assert "4 tensors" in str(refusal.value)


@pytest.mark.parametrize("asked", [["memory"], ["fit", "--memory", "24GiB"], ["memory", "--device", "cpu"], ["params"]])
@pytest.mark.parametrize("kind", [gguf.GGUFType.ADAPTER, gguf.GGUFType.MMPROJ, gguf.GGUFType.IMATRIX])
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, asked: list[str], kind: str, capsys: Capture) -> None:
    path = write_adapter(tmp_path / "part.gguf", kind=kind)
    assert main(["weights", str(path), "-q"]) == 0
    capsys.readouterr()
    assert main([*asked, str(path), "--lang", "en"]) == 7
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert ("LoRA adapter" if kind == "adapter" else f"its general.type is '{kind}'") in shown.err
    assert "config.json" not in shown.err


# --- several files --------------------------------------------------------------------------------------------------


def test_parts_of_a_split_model_are_one(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", "qwen3", QWEN3, split_max_tensors=10)
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for named in (tmp_path, tmp_path / parts[0], tmp_path / parts[2]):
        report = inspect(str(named))
        assert report.checks[0].agrees
        assert [file.name for file in report.files] == parts
    (tmp_path / parts[1]).unlink()
    with pytest.raises(NotFoundError, match="lacks 1 of its 3 parts"):
        inspect(str(tmp_path))


def test_one_of_several_must_be_named(tmp_path: Path) -> None:
    write_model(tmp_path / "Qwen3-tiny-Q4_0.gguf", "qwen3", QWEN3)
    write_model(tmp_path / "Qwen3-tiny-Q8_0.gguf", "qwen3", QWEN3, Type.Q8_0)
    with pytest.raises(UsageError, match=r"Qwen3-tiny-Q4_0\.gguf, Qwen3-tiny-Q8_0\.gguf"):
        inspect(str(tmp_path))

    def bits(report: Report) -> float:
        assert report.known.quantised is not None
        return report.known.quantised.bits_per_weight

    assert bits(inspect(str(tmp_path), file="q8_0")) == 8.5
    assert bits(inspect(str(tmp_path), file="Qwen3-tiny-Q4_0.gguf")) == 4.5
    assert bits(inspect(str(tmp_path / "Qwen3-tiny-Q8_0.gguf"))) == 8.5
    with pytest.raises(NotFoundError, match="Q6_K"):
        inspect(str(tmp_path), file="Q6_K")
    done = run("params", tmp_path, "--file", "Q4_0", "--format", "json")
    assert json.loads(done.out)["quantisation"]["bits_per_weight"] == 4.5


def test_names_that_several_files_could_have() -> None:
    names = ["a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "mmproj-a-f16.gguf", "UD/a-Q8_0-00001-of-00002.gguf"]
    names.append("UD/a-Q8_0-00002-of-00002.gguf")
    ref = ModelRef(source="hf", id="org/m")
    assert choose(names, replace(ref, file="Q4_K_M")) == ("a-Q4_K_M.gguf",)
    assert choose(names, replace(ref, file="q8_0")) == tuple(names[3:])
    assert choose(names, replace(ref, file="mmproj-a-f16.gguf")) == ("mmproj-a-f16.gguf",)
    assert choose(["a.gguf", "mmproj.gguf"], ref) == ("a.gguf",)
    with pytest.raises(UsageError):
        choose(names, ref)


@pytest.mark.parametrize(
    ("given", "identifier", "revision", "file"),
    [
        ("hf:org/name:Q4_K_M", "org/name", None, "Q4_K_M"),
        ("ms:org/name@v1:a-Q8_0.gguf", "org/name", "v1", "a-Q8_0.gguf"),
        ("org/name:Q4_K_M", "org/name", None, "Q4_K_M"),
        ("org/name", "org/name", None, None),
    ],
)
def test_a_file_may_follow_a_hubs_name(given: str, identifier: str, revision: str | None, file: str | None) -> None:
    ref = resolve(given)
    assert (ref.id, ref.revision, ref.file) == (identifier, revision, file)
    with pytest.raises(UsageError):
        resolve("org/name:")


# --- hubs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["hf", "ms"])
def test_a_hubs_file_is_read_by_ranges(tmp_path: Path, prefix: str) -> None:
    """A header of 6.7 MB before 5 GB of weights: no more is fetched than the header, and nothing again."""
    path = tmp_path / "model-Q8_0.gguf"
    made = writer(path, "qwen3", QWEN3, tokens=151_936)
    for tensor in each_tensor(tree_of(QWEN3)):
        for part in stored_form(tensor):
            made.add_tensor(part.name, numpy.zeros(part.shape, dtype=numpy.float16))
    made.add_tensor_info(
        "blk.2.unknown.weight", (65_536, 32_768), numpy.float16, 65_536 * 32_768 * 2, raw_dtype=Type.F16
    )
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_ti_data_to_file()
    made.close()
    large = HubFile(path=path, total_bytes=path.stat().st_size + 5_000_000_000)
    small = write_model(tmp_path / "model-Q4_0.gguf", "qwen3", QWEN3)
    files: dict[str, bytes | HubFile] = {"model-Q8_0.gguf": large, "model-Q4_0.gguf": HubFile(path=small)}
    with HubServer([HubRepo("org/blocks", files)]) as hub:
        refused(ask(hub, tmp_path, "weights", f"{prefix}:org/blocks"), 2, "model-Q4_0.gguf", "model-Q8_0.gguf")
        found = ask_json(hub, tmp_path, "weights", f"{prefix}:org/blocks:Q8_0")
        assert found["totals"]["tensors"] == len(list(each_tensor(tree_of(QWEN3)))) + 1
        ranged = [one for one in hub.requests if "Q8_0.gguf" in one.target]
        assert 1 <= len(ranged) <= 6  # with a redirect each
        assert sum(one.bytes_sent for one in ranged) < 16_000_000
        again = ask_json(hub, tmp_path, "weights", f"{prefix}:org/blocks:Q8_0")
        assert again["totals"] == found["totals"]
        assert [one for one in hub.requests if "Q8_0.gguf" in one.target] == ranged
        report = ask_json(hub, tmp_path, "params", f"{prefix}:org/blocks", "--file", "Q4_0")
        assert report["checks"][0]["agrees"]
        largest = ("--llama-cpp", "llama-server -c 512", "--memory", "2GiB", "--quant", "largest")
        # Of the two in the hub's listing. What makes it large is in no layer: llama.cpp does not load it.
        chosen = ask_json(hub, tmp_path, "fit", f"{prefix}:org/blocks", *largest)["quantisation"]
        assert chosen == {"name": f"{prefix}:org/blocks:model-Q8_0.gguf", "bytes": large.total_bytes}


# --- bad input ------------------------------------------------------------------------------------------------------


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor_info(sides: list[int], kind: int = 0, offset: int = 0, name: bytes = b"a") -> bytes:
    form = f"<I{len(sides)}QIQ"
    return text(name) + struct.pack(form, len(sides), *sides, kind, offset)


U32, LIST, TEXT = 4, 9, 8
BAD: list[tuple[str, bytes, type[QwenInspectError], str]] = [
    ("magic", b"GGML" + bytes(20), MalformedError, "gguf_magic"),
    ("short", b"GGUF\x03\0", MalformedError, "gguf_header_truncated"),
    ("version 1", head(version=1), UnsupportedError, "gguf_version"),
    ("version 4", head(version=4), UnsupportedError, "gguf_version"),
    ("tensors", head(tensors=1 << 63), MalformedError, "gguf_counts"),
    ("keys", head(keys=1 << 40), MalformedError, "gguf_counts"),
    ("long key", head(keys=1) + struct.pack("<Q", 1 << 60), MalformedError, "gguf_text_too_long"),
    ("no key", head(keys=1), MalformedError, "gguf_header_truncated"),
    ("latin key", head(keys=1) + text(b"\xff") + struct.pack("<II", U32, 1), MalformedError, "gguf_not_utf8"),
    ("value type", head(keys=1) + text(b"a") + struct.pack("<I", 99), MalformedError, "gguf_value_type"),
    ("nan", head(keys=1) + text(b"a") + struct.pack("<If", 6, float("nan")), MalformedError, "gguf_not_finite"),
    ("twice", head(keys=2) + (text(b"a") + struct.pack("<II", U32, 1)) * 2, MalformedError, "gguf_duplicate"),
    (
        "list of lists",
        head(keys=1) + text(b"a") + struct.pack("<IIQ", LIST, LIST, 1),
        MalformedError,
        "gguf_value_type",
    ),
    (
        "many texts",
        head(keys=1) + text(b"a") + struct.pack("<IIQ", LIST, TEXT, 1 << 50),
        MalformedError,
        "gguf_header_truncated",
    ),
    (
        "long text in a list",
        head(keys=1) + text(b"a") + struct.pack("<IIQQ", LIST, TEXT, 1, 1 << 62),
        MalformedError,
        "gguf_header_truncated",
    ),
    (
        "long list",
        head(keys=1) + text(b"a") + struct.pack("<IIQ", LIST, U32, 1 << 62),
        MalformedError,
        "gguf_header_truncated",
    ),
    (
        "alignment",
        head(keys=1) + text(b"general.alignment") + struct.pack("<II", U32, 33),
        MalformedError,
        "gguf_alignment",
    ),
    ("sides", head(tensors=1) + tensor_info([1] * 5), MalformedError, "gguf_sides"),
    ("shape", head(tensors=1) + tensor_info([1 << 40, 1 << 40]), MalformedError, "gguf_shape"),
    ("type", head(tensors=1) + tensor_info([32], kind=4), UnsupportedError, "gguf_tensor_type"),
    (
        "longer text than a file",
        head(keys=1) + text(b"a") + struct.pack("<IIQQ", LIST, TEXT, 2, (1 << 63) + 5) + bytes(64),
        MalformedError,
        "gguf_header_truncated",
    ),
    ("absurd type", head(tensors=1) + tensor_info([32], kind=1 << 31), UnsupportedError, "gguf_tensor_type"),
    ("blocks", head(tensors=1) + tensor_info([33], kind=2), MalformedError, "gguf_blocks"),
    ("place", head(tensors=1) + tensor_info([8], offset=64), MalformedError, "gguf_not_tiled"),
    ("cut off", head(tensors=1) + tensor_info([1 << 20]), MalformedError, "gguf_truncated"),
    (
        "same name",
        head(tensors=2) + tensor_info([8]) + tensor_info([8], offset=32) + bytes(128),
        MalformedError,
        "gguf_duplicate",
    ),
]


@pytest.mark.parametrize(("content", "error", "key"), [one[1:] for one in BAD], ids=[one[0] for one in BAD])
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes, error: type[QwenInspectError], key: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        header_of(path)
    assert caught.value.message.key == key
    assert run("weights", path).code == error.exit_code


@cache
def whole() -> bytes:
    with TemporaryDirectory() as folder:
        return write_model(Path(folder, "model.gguf"), "qwen3", QWEN3, tokens=4).read_bytes()


@settings(max_examples=500, deadline=None)
@given(at=st.integers(0, 2_500), value=st.binary(min_size=1, max_size=8), end=st.none() | st.integers(0, 2_500))
def test_any_damage_is_read_or_refused_in_no_time(at: int, value: bytes, end: int | None) -> None:
    damaged = bytearray(whole()[:end])
    damaged[at : at + len(value)] = value
    began = time.monotonic()
    try:
        header = read_header(lambda start, stop: bytes(damaged[start:stop]), file="m.gguf", file_bytes=len(damaged))
        check_model(header.metadata, header.tensors)
        gguf_design.architecture(header.metadata, header.tensors)
        configuration(header.metadata, header.tensors)
    except QwenInspectError as error:
        assert str(error)  # noqa: PT017 (what it says, whichever it is)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("qwen3.block_count", None, 6),
        ("qwen3.block_count", 1 << 40, 6),
        ("qwen3.attention.head_count_kv", [2, 2, 2], 6),
        ("qwen3.attention.head_count_kv", [2, 3], 6),
        ("qwen3.attention.head_count", [4, 2], 7),
        ("qwen3.attention.value_length", 64, 7),
        ("general.architecture", "clip", 7),
        ("general.architecture", None, 6),
    ],
)
def test_metadata_without_meaning_is_refused(key: str, value: object, code: int) -> None:
    header = read_header(lambda start, stop: whole()[start:stop], file="m.gguf", file_bytes=len(whole()))
    metadata = {name: one for name, one in {**header.metadata, key: value}.items() if one is not None}

    def read() -> None:
        check_model(metadata, header.tensors)
        config = configuration(metadata, header.tensors)
        assert architecture_of(config).spec is None

    with pytest.raises(QwenInspectError) as caught:
        read()
    assert caught.value.exit_code == code


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    made = writer(tmp_path / "model.gguf", "qwen3", QWEN3, endianess=gguf.GGUFEndian.BIG)
    for tensor in each_tensor(tree_of(QWEN3)):
        for part in stored_form(tensor):
            made.add_tensor(part.name, numpy.zeros(part.shape, dtype=numpy.float32))
    finish(made)
    report = inspect(str(tmp_path / "model.gguf"))
    assert report.checks[0].agrees
    assert {tensor.dtype for tensor in report.tensors or ()} == {DType.F32}


def test_a_file_that_ends_before_its_weights_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen3", QWEN3)
    os.truncate(path, path.stat().st_size - 1_000)
    done = run("weights", path)
    assert (done.code, "is cut off" in done.err) == (6, True)


def test_vocabularies_are_skipped_string_by_string(tmp_path: Path) -> None:
    """Strings of any length in any mixture: empty, short, long, in runs and alone, before the keys and tensors that follow."""
    random = numpy.random.default_rng(1)
    lengths = [*range(40), 300, 70_000, *random.integers(0, 40, 1_000), *([5] * 700), 33, *([0] * 300), *range(300)]
    made = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen3")
    made.add_token_list([b"\x05\0" * (length // 2) + b"x" * (length % 2) for length in lengths])
    made.add_token_merges(["a b"] * 5_000)
    made.add_uint32("qwen3.block_count", 7)
    made.add_tensor("token_embd.weight", numpy.zeros((4, 32), numpy.float32))
    finish(made)
    header = header_of(tmp_path / "model.gguf")
    assert header.metadata["qwen3.block_count"] == 7
    assert [tensor.name for tensor in header.tensors] == ["token_embd.weight"]
    content = (tmp_path / "model.gguf").read_bytes()
    in_drops = read_header(
        lambda start, stop: content[start : min(stop, start + 999)], file="model.gguf", file_bytes=len(content)
    )
    assert in_drops == header
