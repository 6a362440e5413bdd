"""The files beside a model, towers of --mmproj and LoRA adapters: against the library itself, and what a command answers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import gguf
import pytest

from qwen_inspect.checkpoint import DType, Tensor
from qwen_inspect.cli import main
from qwen_inspect.engines.llama_cpp.buffers import GgufModel, Plan
from qwen_inspect.engines.llama_cpp.builds import BUILDS
from qwen_inspect.engines.llama_cpp.options import LlamaCppOptions
from qwen_inspect.engines.llama_cpp.towers.projectors import GRAPHS, tower_compute_bytes
from qwen_inspect.engines.llama_cpp.towers.tower import PROJECTORS, Tower, towers
from qwen_inspect.errors import UnsupportedError

from ..support.llama_cpp import library_path, printed_by_towers, printed_sizes, printed_with_adapter
from ..support.llama_cpp_files import Tensors, write_header
from ..support.llama_cpp_small import write_small
from ..support.llama_cpp_towers import TOWERS, published_tower, write_tower
from .test_llama_cpp import read

LIBRARY = pytest.mark.skipif(
    library_path() is None and "CI" not in os.environ, reason="xllamacpp is not installed (the extra test)"
)
BUILD = BUILDS["b11549"]


def tower_of(path: Path) -> Tower:
    model = read(path)
    (tower,) = towers(model.metadata, model.tensors)
    return tower


def mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.2f}"


@LIBRARY
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_computes_in_what_llama_cpp_prints(tmp_path: Path, name: str) -> None:
    """On the CPU, for the warm-up's input, with and without flash attention."""
    path = write_tower(tmp_path / "mmproj.gguf", name)
    tower = tower_of(path)
    for flash in (True, False):
        text = printed_by_towers(path, flash_attn_type=int(flash))
        size = tower.warm_up(None)
        assert f"warmup with {tower.modality} size = {size[0]}" in text.replace("image", "vision")
        sizes = tower_compute_bytes(tower, size, card=None, build=BUILD, flash_attention=flash)
        assert [*map(mib, sizes.values())] == printed_sizes(text, "compute")


def test_every_projector_whose_graph_is_known_is_held_against_the_library() -> None:
    tried = {name.partition(":")[0] for name in TOWERS}
    assert {*GRAPHS, *PROJECTORS} == {*tried, "mlp_norm", "glm5v"}  # GLM-5's is GLM-4.5V's with clamped activations


@pytest.mark.parametrize(
    ("name", "build", "flash", "printed"),
    [
        ("Qwen3.6-27B", "b11549", None, {"CUDA0": "248.10", "CPU": "24.93"}),
        # "failed to allocate CUDA0 buffer of size 4884066560", with flash attention off
        ("Qwen3.6-27B", "b11549", False, {"CUDA0": "4657.81", "CPU": "24.93"}),
        ("Qwen2.5-VL-7B", "0c1e57098", None, {"CUDA0": "704.79", "CPU": "292.41"}),
    ],
)
def test_a_tower_on_a_card_equals_published_logs(
    name: str, build: str, flash: bool | None, printed: dict[str, str]
) -> None:
    """reserve_compute_meta in logs of Qwen3.6 on a Tesla P100, in public repositories of programs that read them."""
    keys, tensors = published_tower(name)
    kinds = {"F32": DType.F32, "F16": DType.F16}
    tower = Tower(keys, tuple(Tensor(name, shape[::-1], kinds[kind]) for name, shape, kind in tensors), "vision")
    sizes = tower_compute_bytes(tower, tower.warm_up(None), card="CUDA0", build=BUILDS[build], flash_attention=flash)
    assert {device: mib(size) for device, size in sizes.items()} == printed
    if flash is False:
        assert sizes["CUDA0"] == 4_884_066_560


def test_a_tower_whose_build_is_not_known_has_no_compute_buffer(tmp_path: Path) -> None:
    """b11434 has windows' masks either way; before 0c1e57098 no graph is known."""
    tower = tower_of(write_tower(tmp_path / "mmproj.gguf", "qwen2.5vl_merger"))
    for name in ("b10178", "b11434"):
        with pytest.raises(UnsupportedError):
            tower_compute_bytes(tower, tower.warm_up(None), card=None, build=BUILDS[name])


def test_a_command_with_a_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights as the file has them, padded to 128 bytes each; the warm-up's buffer, and how the largest image grows it."""
    model, mmproj = write_small(tmp_path / "m.gguf", "llama"), write_tower(tmp_path / "p.gguf", "qwen3vl_merger")
    command = f"llama-server -m {model} -c 4096 --mmproj {mmproj}"
    arguments = ("fit", "--lang", "en", "--format", "json", "--gpu", "RTX 4090", "--llama-cpp")
    assert main((*arguments, command)) == 0
    answer = json.loads(capsys.readouterr().out)
    named = {(one["name"], one["device"]): one["bytes"] for one in answer["buffers"] if one["context"] == "projector"}
    assert named == {("compute", "CUDA0"): named["compute", "CUDA0"], ("compute", "CPU"): named["compute", "CPU"]}
    (weights,) = (one["bytes"] for one in answer["buffers"] if one["name"] == "projector")
    sizes = [int(tensor.n_bytes) for tensor in gguf.GGUFReader(mmproj).tensors]
    assert weights == sum(-(-size // 128) * 128 for size in sizes)
    assert answer["fits"]
    assert answer["max_context_tokens"] == 32_768
    assert any("1288 x 1288" in notice and "1792 x 1792" in notice for notice in answer["assumptions"])
    assert main((*arguments, f"{command} --no-mmproj-offload")) == 0
    buffers = json.loads(capsys.readouterr().out)["buffers"]
    assert {one["device"] for one in buffers if "projector" in (one["name"], one["context"])} == {"CPU"}


# --- LoRA ----------------------------------------------------------------------------------------------------------

RANK = 16


def write_adapter(path: Path, architecture: str, model: GgufModel) -> Path:
    """For attention and the feed-forward blocks, experts each with their own."""
    tensors: Tensors = []
    for tensor in model.tensors:
        width, *rest = tensor.shape[::-1]
        changed = re.search(r"\.(attn_(q|k|v|output)|ffn_(up|gate|down)(_exps)?)\.weight", tensor.name)
        if changed is not None and rest:
            tensors.append((f"{tensor.name}.lora_a", (width, RANK, *rest[1:]), "F32"))
            tensors.append((f"{tensor.name}.lora_b", (RANK, *rest), "F32"))
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 32.0}
    return write_header(path, architecture, keys, tensors)


@LIBRARY
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3moe"])
def test_an_adapter_takes_what_llama_cpp_prints(tmp_path: Path, architecture: str) -> None:
    """Its buffer, and the compute buffer that is reserved again for its first use."""
    path = write_small(tmp_path / "model.gguf", architecture)
    adapter = write_adapter(tmp_path / "adapter.gguf", architecture, read(path))
    fields = {"n_ctx": 512, "flash_attn_type": 1, "n_outputs_max": 1, "swa_full": 0}
    printed = printed_with_adapter(path, adapter, fields)
    options = LlamaCppOptions(context_tokens=512, sequences=1)
    buffers = Plan(read(path), options, [], BUILD, adapters=[read(adapter)]).buffers()
    for kind in ("adapter", "compute"):
        assert [mib(one.size_bytes or 0) for one in buffers if one.kind == kind] == printed_sizes(printed, kind)


def test_an_adapter_lies_with_the_weights_that_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_small(tmp_path / "model.gguf", "llama")
    adapter = write_adapter(tmp_path / "adapter.gguf", "llama", read(path))
    command = f"llama-server -m {path} -c 512 -ngl 99 --lora {adapter} -ot ffn_down=CPU"
    asked = ("fit", "--lang", "en", "--format", "json", "--gpu", "RTX 4090")
    assert main((*asked, "--llama-cpp", command)) == 0
    buffers = json.loads(capsys.readouterr().out)["buffers"]
    sizes = {one["device"]: one["bytes"] for one in buffers if one["name"] == "adapter"}
    down = 3 * 4 * RANK * (704 + 256)  # of three layers
    assert sizes == {"CPU": down, "CUDA0": 3 * 4 * RANK * (4 * 256 + 2 * 256 + 2 * 128 + 2 * (256 + 704))}
    other = write_adapter(tmp_path / "other.gguf", "gemma3", read(write_small(tmp_path / "g.gguf", "gemma3")))
    assert main((*asked, "--llama-cpp", f"llama-server -m {path} -c 512 --lora {other}")) == 2
    assert "blk.3" in capsys.readouterr().err
