"""What transformers built once is read from the user's cache: equal, without torch, and only as it was written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_inspect.errors import UnavailableError
from qwen_inspect.results.model import Report
from qwen_inspect.spec import each_tensor
from qwen_inspect.structure.inspect import inspect

from ..support.models import write_config
from ..support.small_models import small_config


@pytest.fixture
def designs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "designs"


def kept_file(designs: Path) -> Path:
    (path,) = designs.iterdir()
    return path


@pytest.mark.parametrize("model_type", ["stablelm", "olmoe", "falcon_mamba", "openai-gpt"])
def test_a_second_call_needs_no_torch_and_says_the_same(model_type: str, tmp_path: Path, designs: Path) -> None:
    """olmoe stores its experts otherwise, falcon_mamba keeps states, openai-gpt has no cache."""
    path = str(write_config(tmp_path, small_config(model_type)))
    first = inspect(path, predict_files=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        patch.setitem(sys.modules, "transformers", None)
        second = inspect(path, predict_files=True)
    assert shown(second) == shown(first)


def shown(report: Report) -> tuple[object, ...]:
    design = report.known
    refusal = None if design.cache_refusal is None else (type(design.cache_refusal), design.cache_refusal.message)
    return (
        *(design.spec, design.tree, design.parameters, design.components, design.attention, design.cache, refusal),
        *(report.tensors, report.notices),
    )


@pytest.mark.parametrize("damage", [lambda text: text[:-40], lambda text: text.replace(b"64", b"65"), lambda text: b""])
def test_a_damaged_file_is_ignored_and_rewritten(
    damage: Callable[[bytes], bytes], tmp_path: Path, designs: Path
) -> None:
    path = str(write_config(tmp_path, small_config("stablelm")))
    first = inspect(path)
    written = kept_file(designs).read_bytes()
    kept_file(designs).write_bytes(damage(written))
    assert shown(inspect(path)) == shown(first)
    assert kept_file(designs).read_bytes() == written


def test_the_file_of_another_configuration_is_ignored(tmp_path: Path, designs: Path) -> None:
    path = write_config(tmp_path, small_config("stablelm"))
    inspect(str(path))
    foreign = kept_file(designs).read_bytes()
    other = str(write_config(tmp_path, {**small_config("stablelm"), "vocab_size": 256}))
    kept_file(designs).unlink()
    assert next(each_tensor(inspect(other).tree)).shape == (256, 64)
    kept_file(designs).write_bytes(foreign)
    assert next(each_tensor(inspect(other).tree)).shape == (256, 64)


def test_without_torch_a_configuration_that_is_new_names_the_extra(tmp_path: Path, designs: Path) -> None:
    path = str(write_config(tmp_path, small_config("stablelm")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(UnavailableError):
            inspect(path)
    assert not designs.exists()
