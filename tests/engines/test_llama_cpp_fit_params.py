"""--fit, by which llama.cpp itself changes a command that does not fit: recorded from the library, and what a user sees."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_inspect.cli import main
from qwen_inspect.engines.llama_cpp.buffers import Plan
from qwen_inspect.engines.llama_cpp.commands.command import parse_command
from qwen_inspect.engines.llama_cpp.fit_params import FitParams

from ..support.llama_cpp_small import write_small
from .test_llama_cpp import STAND_IN, read

MIB = 2**20
EXPERTS = r"\.ffn_(up|down|gate_up|gate)_(ch|)exps"
# What common_fit_params of xllamacpp 2026.10.11549 makes of commands, with stand-ins for CUDA devices that have as many bytes
# free, matrices in Q8_0: context, layers, their split, overrides. 360 random cases of seven architectures agreed.
FITTED: Sequence[
    tuple[str, str, Sequence[int], int, tuple[int, int | None, tuple[int, ...], Sequence[tuple[str, str]]]]
] = (
    ("llama", "-np 4 -kvu -fitc 512", [33_325_385], 0, (8704, None, (), ())),
    ("llama", "-np 4", [59_276_967], 0, (26_624, None, (), ())),  # each sequence may have the model's 32,768 tokens
    ("llama", "-np 4 -kvu -c 4096", [6_036_725], 0, (4096, 0, (), ())),
    ("llama", "-np 1 -fitc 512", [3_259_614, 36_719_330], 0, (1024, 4, (0, 4), ())),
    ("llama", "-np 4 -kvu -fitc 512", [52_378_045, 31_475_554], MIB, (11_008, 3, (1, 2), ())),
    (
        "qwen3moe",
        "-np 4 -fitc 512",
        [15_992_866],
        MIB,
        (2048, 4, (), [(r"blk\.1\.ffn_(gate|gate_up|down).*", "CPU"), (rf"blk\.[23]{EXPERTS}", "CPU")]),
    ),
    (
        "qwen3moe",
        "-np 1 -fitc 512",
        [15_100_602, 29_905_181],
        0,
        (1792, 4, (3, 1), [(r"blk\.2\.ffn_(gate|gate_up|down).*", "CUDA1")]),
    ),
    (
        "qwen3moe",
        "-np 1 -c 4096",
        [21_201_142, 9_423_507],
        MIB,
        (4096, 4, (3, 1), [(r"blk\.1\.ffn_down.*", "CUDA1"), (rf"blk\.2{EXPERTS}", "CPU")]),
    ),
    ("qwen3moe", "-np 4 -c 4096", [24_535_616, 1_417_070], MIB, (4096, 4, (4, 0), [(rf"blk\.\d{EXPERTS}", "CPU")])),
    ("qwen3moe", "-np 4 -kvu", [3_489_015, 6_038_772], 0, (4096, 1, (0, 1), ())),
)


@pytest.mark.parametrize(("architecture", "options", "free", "margin", "expected"), FITTED)
def test_a_command_is_changed_as_llama_cpp_does(
    tmp_path: Path,
    architecture: str,
    options: str,
    free: Sequence[int],
    margin: int,
    expected: tuple[int, int | None, tuple[int, ...], Sequence[tuple[str, str]]],
) -> None:
    model = read(write_small(tmp_path / "model.gguf", architecture, "Q8_0"))
    plan = Plan(model, parse_command(f"llama-server -fa on {options}").options, free, STAND_IN)
    fitted = FitParams(plan, [margin] * len(free)).fitted()

    def moved(overrides: Sequence[tuple[str, str]]) -> dict[str, str]:
        names = [tensor.name for tensor in model.tensors]
        found = (
            (name, device) for pattern, device in reversed(overrides) for name in names if re.search(pattern, name)
        )
        return dict(found)

    context, layers, split, overrides = expected
    assert (fitted.context_tokens, fitted.offloaded, fitted.split) == (context, layers, split)
    assert moved(fitted.overrides) == moved(overrides)


@pytest.mark.parametrize(
    "options", ["-ngl 9 -c 4096", "-ts 1,1 -c 4096", "-ot ffn=CPU -c 4096", "-ngl all -c 0", "-c 512 -np 2"]
)
def test_what_the_command_gives_is_left(tmp_path: Path, options: str) -> None:
    """As is one that leaves the margins free, the last."""
    model = read(write_small(tmp_path / "model.gguf", "llama", "Q8_0"))
    asked = parse_command(f"llama-server -fa on {options}").options
    bytes_ = 24 << 30 if "-np" in options else 4 * MIB
    fitted = FitParams(Plan(model, asked, [bytes_] * 2, STAND_IN), [0, 0]).fitted()
    assert fitted == replace(asked, context_tokens=asked.context_tokens or 32_768)


def test_what_fit_starts_is_said_beside_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """-fitt 100 leaves more of the card than its default, 1,024 MiB; with -fit off nothing is said."""
    path = write_small(tmp_path / "model.gguf", "llama")
    arguments = ("fit", "--lang", "en", "--memory", "1100MiB", "--llama-cpp")

    def answer(options: str) -> dict[str, object]:
        main([*arguments, f"llama-server -m {path} {options}", "--format", "json"])
        fitted: dict[str, object] = json.loads(capsys.readouterr().out)["fitted"]
        return fitted

    fitted = answer("")
    assert (fitted["ngl"], fitted["tensor_split"], fitted["override_tensor"]) == (4, [], [])
    assert answer("-fit off") is answer("-fitt 100") is None
    main([*arguments, f"llama-server -m {path}"])
    assert f"starts it with -c {fitted['context_tokens']} -ngl 4" in capsys.readouterr().out
