"""What an error tells the user to do is done, word for word, and is not refused again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from qwen_inspect.checkpoint import ModelRef
from qwen_inspect.cli import main
from qwen_inspect.loaders.resolve import resolve

from ..support.gguf_files import QWEN3, write_model
from ..support.invoking import Capture
from ..support.models import TINY_QWEN3, write_config

HYBRID = "catalog:Qwen/Qwen3.5-27B"


def asked(capsys: Capture, *words: str | Path) -> tuple[int, str, str]:
    code = main([*map(str, words), "--lang", "en", "--offline"])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two GGUF files, one of them split."""
    folder = tmp_path_factory.mktemp("two")
    write_model(folder / "tiny-Q8_0.gguf", "qwen3", QWEN3, Type.Q8_0)
    write_model(folder / "tiny-Q4_0.gguf", "qwen3", QWEN3, split_max_tensors=10)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["structure"],
        ["config"],
        ["weights"],
        ["params"],
        ["attention"],
        ["memory", "--context", "64", "--new-tokens", "8"],
        ["fit", "--engine", "llama.cpp", "--memory", "4GiB"],
        ["diagram"],
        ["report"],
        ["compare", "catalog:Qwen/Qwen3-0.6B"],
    ],
    ids=lambda words: words[0],
)
def test_one_of_several_gguf_files_is_shown_as_the_refusal_says(two: Path, command: list[str], capsys: Capture) -> None:
    code, _, refusal = asked(capsys, *command, two)
    found = re.search(r"such as (\S+) ", refusal)
    assert (code, bool(found)) == (2, True)
    assert found is not None
    assert asked(capsys, *command, found[1])[0] == 0
    if command[0] != "compare":
        for name in ("Q8_0", "tiny-Q4_0.gguf"):
            assert asked(capsys, *command, two, "--file", name)[0] == 0


def test_gguf_files_beside_a_configuration_are_read_as_the_notice_says(two: Path, capsys: Capture) -> None:
    write_config(two, TINY_QWEN3)
    try:
        code, shown, _ = asked(capsys, "params", two)
        found = re.search(r"such as (\S+)\. ", shown)
        assert code == 0
        assert found is not None
        code, shown, _ = asked(capsys, "params", found[1])
        assert (code, "none of which was read" in shown) == (0, False)
        assert "Q4_0" in shown
    finally:
        (two / "config.json").unlink()


@pytest.mark.parametrize("model", ["org/name", "hf:org/name", "ms:org/name@v1"])
def test_a_file_of_a_hubs_repository_is_named_as_it_can_be_asked_for(model: str) -> None:
    ref = resolve(model)
    assert resolve(ref.of_file("UD/a-Q8_0.gguf")) == ModelRef(
        source=ref.source, id=ref.id, revision=ref.revision, file="UD/a-Q8_0.gguf"
    )


def test_llama_cpp_is_asked_of_a_gguf_file_as_the_refusal_says(two: Path, capsys: Capture) -> None:
    on = ("fit", "--engine", "llama.cpp", "--memory", "24GiB", "--context", "64")
    code, _, refusal = asked(capsys, *on, "catalog:Qwen/Qwen3-0.6B", "--dtype", "awq-int4")
    assert (code, "give the GGUF file in place of this model" in refusal) == (7, True)
    assert asked(capsys, *on, two / "tiny-Q8_0.gguf")[0] == 0
    # Of a class whose conversion is not known, nobody is told to give a GGUF file.
    code, _, refusal = asked(capsys, *on, "catalog:Qwen/Qwen3.8-Flash-Next")
    assert (code, "writes of qwen4_exp is not known here" in refusal, "GGUF file" in refusal) == (7, True, False)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["memory", "--mode", "train"], "give the model that it was converted from"),
        (
            ["memory", "--mode", "train", "--lora", "8", "--dtype", "bnb-nf4"],
            "give the model that it was converted from",
        ),
        (["memory", "--dtype", "awq-int4"], "give the model that it was converted from"),
        (["fit", "--memory", "1GiB", "--dtype", "fp8"], "give the model that it was converted from"),
    ],
)
def test_what_a_gguf_file_cannot_tell_its_model_does(
    two: Path, tmp_path: Path, words: list[str], advice: str, capsys: Capture
) -> None:
    code, shown, refusal = asked(capsys, *words, two / "tiny-Q8_0.gguf")
    assert (code, shown, advice in refusal) == (7, "", True)
    write_config(tmp_path, {**TINY_QWEN3, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32})
    _, shown, refusal = asked(capsys, *words, tmp_path, "--context", "64")
    assert "Weights" in shown
    assert advice not in refusal


def test_a_plot_that_nothing_can_draw_is_left_out_as_the_refusal_says(
    two: Path, tmp_path: Path, capsys: Capture
) -> None:
    on = ("memory", two / "tiny-Q8_0.gguf", "--context", "64", "--new-tokens", "8")
    code, _, refusal = asked(capsys, *on, "--plot", tmp_path / "plot.svg")
    assert (code, "install" in refusal, "leave out --plot" in refusal) == (8, False, True)
    assert asked(capsys, *on)[0] == 0
