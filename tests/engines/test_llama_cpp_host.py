"""The host's buffers of weights: mapped, pinned, plain, or repacked for the CPU; against the library, and recorded from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from qwen_inspect.engines.llama_cpp.buffers import Plan
from qwen_inspect.engines.llama_cpp.builds import BUILDS
from qwen_inspect.engines.llama_cpp.commands.command import parse_command

from ..support.llama_cpp import library_path, weights_by_llama_cpp
from ..support.llama_cpp_small import write_small
from .test_llama_cpp import STAND_IN, read

GIB = 2**30
LIBRARY = pytest.mark.skipif(
    library_path() is None and "CI" not in os.environ, reason="xllamacpp is not installed (the extra test)"
)


@LIBRARY
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "Q4_0"), ("llama", "Q8_0"), ("gemma3n", "IQ4_NL"), ("gpt-oss", "MXFP4"), ("deepseek2", "Q4_0")],
)
def test_weights_are_repacked_for_the_cpu(tmp_path: Path, architecture: str, kind: str) -> None:
    """CPU_REPACK, with AVX2: not the embedding, nor products of other shapes; a tied output has a copy there. --no-repack."""
    path = write_small(tmp_path / "model.gguf", architecture, kind)
    model = read(path)
    for option, fields in (("", {}), ("--no-mmap", {"load_mode": 0}), ("--no-mmap -nr", {"load_mode": 0, "extra": 0})):
        buffers = Plan(model, parse_command(f"llama-server {option}").options, [], BUILDS["b11549"]).weights()
        found = [(one.device, f"{one.low_bytes / 2**20:.2f}") for one in buffers]
        assert sorted(found) == sorted(weights_by_llama_cpp(path, **fields)), option


# Recorded from the same library with a stand-in for a CUDA device of 24 GiB, matrices in Q4_0, 4,096 tokens.
BESIDE_A_CARD: Sequence[tuple[str, str, Mapping[str, str], Mapping[str, str]]] = (
    (
        "qwen3moe",
        "--no-mmap -ot ffn=CPU",
        {"CUDA0": "1.42", "CUDA_Host": "3.05"},
        {"CUDA0": "21.64", "CUDA_Host": "6.02"},
    ),
    (
        "qwen3moe",
        "--no-mmap --no-host -ngl 2",
        {"CUDA0": "1.86", "CPU": "1.13", "CPU_REPACK": "1.48"},
        {"CUDA0": "18.63", "CUDA_Host": "9.30"},
    ),
    (
        "gemma3n",
        "--no-mmap --no-host --no-repack -ngl 0",
        {"CPU": "43.06"},
        {"CUDA0": "45.50", "CUDA_Host": "20.03"},
    ),
)


@pytest.mark.parametrize(("architecture", "options", "weights", "compute"), BESIDE_A_CARD)
def test_what_the_host_keeps_beside_a_card(
    tmp_path: Path, architecture: str, options: str, weights: Mapping[str, str], compute: Mapping[str, str]
) -> None:
    """Pinned where -ot names the host; repacked with --no-host, which no card computes with."""
    model = read(write_small(tmp_path / "model.gguf", architecture, "Q4_0"))
    plan = Plan(model, parse_command(f"llama-completion -c 4096 {options}").options, [24 * GIB], STAND_IN)
    assert {one.device: f"{one.low_bytes / 2**20:.2f}" for one in plan.weights()} == weights
    assert {one.device: f"{one.low_bytes / 2**20:.2f}" for one in plan.compute()} == compute


def test_before_builds_of_2026_a_tensor_of_ot_was_not_pinned(tmp_path: Path) -> None:
    """As the published logs of 36667c8e print it; there, and in later builds, what -ot leaves is."""
    model = read(write_small(tmp_path / "model.gguf", "qwen3moe", "Q4_0"))
    options = parse_command("llama-server --no-mmap -ot ffn=CPU").options
    for build, devices in ((BUILDS["36667c8e"], {"CUDA0", "CUDA_Host", "CPU"}), (STAND_IN, {"CUDA0", "CUDA_Host"})):
        assert {one.device for one in Plan(model, options, [24 * GIB], build).weights()} == devices
