"""Real weights loaded, against what `from_pretrained` itself loads, and every way that a directory of weights can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.errors import (
    MalformedError,
    NotFoundError,
    QwenInspectError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from qwen_inspect.language import Language
from qwen_inspect.measuring.loading import LoadedModel, check_device, load_model, quiet, random_model

from ..support.families import FAMILIES, TINY_QWEN2, TINY_QWEN3_MOE, saved_by_transformers
from ..support.models import TINY_QWEN3
from ..support.weights import DOWN, change, spec_of

SHARDED = {"max_shard_size": "40KB"}


def loaded(directory: Path, config: Mapping[str, Any] = TINY_QWEN3, **options: Any) -> LoadedModel:
    return load_model(directory, spec_of(config), **options)


@pytest.fixture
def directory(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """A copy of the small qwen3 that a test may spoil."""
    return shutil.copytree(tiny_qwen3, tmp_path / "model")


# --- what is loaded


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("options", [{}, SHARDED], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_one_that_from_pretrained_loads(
    family: str, options: dict[str, str], dtype: str, tmp_path: Path
) -> None:
    import torch

    saved = saved_by_transformers(tmp_path, FAMILIES[family], **options)
    found = loaded(tmp_path, FAMILIES[family], dtype=dtype)
    expected = type(saved).from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    assert found.notices == ()
    assert not found.model.training
    for kind in ("named_parameters", "named_buffers"):
        theirs, ours = dict(getattr(expected, kind)()), dict(getattr(found.model, kind)())
        assert list(ours) == list(theirs)
        assert all(ours[name].dtype == one.dtype and torch.equal(ours[name], one) for name, one in theirs.items())


def test_the_dtype_is_the_configurations_unless_another_is_asked_for(directory: Path) -> None:
    assert {str(one.dtype) for one in loaded(directory).model.parameters()} == {"torch.bfloat16"}
    assert {str(one.dtype) for one in loaded(directory, dtype="float16").model.parameters()} == {"torch.float16"}


@pytest.mark.parametrize("config", [TINY_QWEN2, TINY_QWEN3, TINY_QWEN3_MOE], ids=lambda config: config["model_type"])
def test_each_storage_has_the_bytes_of_its_parameter_in_memory_of_its_own(
    config: Mapping[str, Any], tmp_path: Path
) -> None:
    saved_by_transformers(tmp_path, config)
    model = loaded(tmp_path, config).model
    assert all(one.untyped_storage().nbytes() == one.nbytes for one in model.parameters())
    assert "model.safetensors" not in Path("/proc/self/maps").read_text()


def test_a_file_that_is_cut_after_loading_does_no_harm(directory: Path) -> None:
    """What from_pretrained leaves behind is a mapping of the file: touched after this, it ends the process (SIGBUS)."""
    model = loaded(directory).model
    os.truncate(directory / "model.safetensors", 100)
    assert all(one.float().sum().isfinite() for one in model.parameters())


def test_the_generation_configuration_is_the_repositorys(directory: Path) -> None:
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 9], "do_sample": true}')
    assert loaded(directory).model.generation_config.eos_token_id == [7, 9]


def test_nothing_is_printed_and_the_librarys_settings_stay(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled

    change(directory, lambda tensors: tensors.update(extra=tensors[DOWN].clone()))
    settings = [transformers.logging.is_progress_bar_enabled(), are_progress_bars_disabled()]
    verbosity = transformers.logging.get_verbosity()
    loaded(directory)
    assert capfd.readouterr() == ("", "")
    assert [transformers.logging.is_progress_bar_enabled(), are_progress_bars_disabled()] == settings
    assert transformers.logging.get_verbosity() == verbosity
    with warnings.catch_warnings(record=True) as heard, quiet():
        warnings.warn("not heard", stacklevel=1)
    assert heard == []


def test_random_weights_are_the_same_each_time_and_leave_the_random_numbers_alone() -> None:
    import torch

    state = torch.get_rng_state()
    first, second = (random_model(spec_of(TINY_QWEN3), TINY_QWEN3, dtype="float16").model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    assert {str(one.dtype) for one in first.parameters()} == {"torch.float16"}
    assert first.model.embed_tokens.weight.float().std() > 0.01
    assert not first.training


# --- what is refused


def refusal(error: type[QwenInspectError], directory: Path, **options: Any) -> str:
    with pytest.raises(error) as caught:
        loaded(directory, **options)
    for code in ("en", "zh"):
        assert "\n" not in Language(code)(caught.value.message)
    return str(caught.value)


def test_a_missing_tensor_is_refused_by_name_never_replaced(directory: Path) -> None:
    change(directory, lambda tensors: tensors.pop(DOWN))
    assert f"1 of the model's tensors are not in the files, {DOWN} first" in refusal(MalformedError, directory)


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    saved_by_transformers(tmp_path, TINY_QWEN3_MOE)
    change(tmp_path, lambda tensors: tensors.pop("model.layers.0.mlp.experts.3.down_proj.weight"))
    with pytest.raises(MalformedError, match=r"model\.layers\.0\.mlp\.experts\.down_proj has the shape \[7, 64, 32\]"):
        loaded(tmp_path, TINY_QWEN3_MOE)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(directory: Path) -> None:
    change(directory, lambda tensors: tensors.update({DOWN: tensors[DOWN][:, :95].contiguous()}))
    assert f"{DOWN} has the shape [64, 95] in the files and [64, 96] in the model" in refusal(MalformedError, directory)


def test_tensors_that_are_not_the_models_are_named_in_a_notice(directory: Path) -> None:
    change(
        directory, lambda tensors: tensors.update({"extra.a": tensors[DOWN].clone(), "extra.b": tensors[DOWN].clone()})
    )
    (notice,) = loaded(directory).notices
    assert Language("en")(notice) == "2 tensor(s) of the files are not the model's and were left out, extra.a first"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_that_are_no_numbers_are_named_in_a_notice(value: float, dtype: str, directory: Path) -> None:
    change(directory, lambda tensors: tensors[DOWN].view(-1)[4321].fill_(value))
    found = loaded(directory, dtype=dtype)
    assert found.not_finite == (DOWN,)
    assert Language("en")(found.notices[0]).startswith(f"1 tensor(s) of the weights hold NaN or infinity, {DOWN} first")


def test_weights_cut_inside_their_data_are_refused(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", (directory / "model.safetensors").stat().st_size - 1)
    assert "cannot be read" in refusal(MalformedError, directory)


@pytest.mark.parametrize("event", ["cut", "replaced", "rewritten"])
def test_weights_that_change_while_they_are_read_are_refused(
    event: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is made at the moment when the files are open and no tensor is read yet."""
    from qwen_inspect.measuring import loading

    weights = directory / "model.safetensors"
    opened = loading._slices

    def then_changed(*arguments: Any) -> dict[str, Any]:
        slices = opened(*arguments)
        if event == "cut":
            os.truncate(weights, weights.stat().st_size // 2)
        elif event == "replaced":
            shutil.copyfile(weights, weights.with_suffix(".new"))
            os.replace(weights.with_suffix(".new"), weights)
        else:
            weights.write_bytes(weights.read_bytes())
        return slices

    monkeypatch.setattr(loading, "_slices", then_changed)
    assert refusal(MalformedError, directory).startswith("model.safetensors changed while it was being read")


def test_a_configuration_that_changes_while_weights_are_read_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_inspect.measuring import loading

    opened = loading._slices
    monkeypatch.setattr(
        loading, "_slices", lambda *arguments: ((directory / "config.json").write_text("{}"), opened(*arguments))[1]
    )
    assert refusal(MalformedError, directory).startswith("config.json changed")


def test_pickles_are_never_opened(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "only as pickles (pytorch_model.bin)" in refusal(UnsupportedError, directory)


def test_a_distributed_checkpoint_is_not_followed(directory: Path) -> None:
    """Its metadata is a pickle that from_pretrained would open."""
    (directory / ".metadata").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (directory / "__0_0.distcp").write_bytes(b"")
    assert loaded(directory).notices == ()
    assert not Path("pwned").exists()


def test_a_directory_without_weights_says_what_was_looked_for(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert "looked for model.safetensors and model.safetensors.index.json" in refusal(NotFoundError, directory)


def test_weights_under_other_names_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")
    assert "consolidated.safetensors alone cannot be" in refusal(UnsupportedError, directory)


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        ("{", MalformedError, 'no "weight_map"'),
        ('{"weight_map": []}', MalformedError, 'no "weight_map"'),
        ('{"weight_map": {"a": ["b"]}}', MalformedError, 'no "weight_map"'),
        ('{"weight_map": {"a": "../a.safetensors"}}', MalformedError, "names the shard ../a.safetensors"),
        ('{"weight_map": {"a": "a.bin"}}', MalformedError, "names the shard a.bin"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', NotFoundError, "model-1.safetensors first"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(
    index: str, error: type[QwenInspectError], words: str, directory: Path
) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(index)
    assert words in refusal(error, directory)


def test_what_transformers_refuses_is_said_in_one_line(directory: Path) -> None:
    assert "cannot load Qwen3ForCausalLM: " in refusal(UnsupportedError, directory, attention="no_such_kernel")


def test_a_repositorys_own_code_runs_only_when_it_is_trusted(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from transformers import Qwen3ForCausalLM\nclass OwnForCausalLM(Qwen3ForCausalLM):\n    pass\n"
    (directory / "modeling_own.py").write_text(code)
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (directory / "config.json").write_text(json.dumps(config))
    script = (
        "import sys; from pathlib import Path; from tests.measuring.test_loading import *\n"
        "for trusted in (False, True):\n"
        f"    print(type(loaded(Path({str(directory)!r}), trust_remote_code=trusted).model).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.stdout.split() == ["Qwen3ForCausalLM", "OwnForCausalLM"]


# --- the device


def test_a_device_is_cpu_or_cuda_with_an_index() -> None:
    assert check_device("cpu") == "cpu"
    for device in ("", "gpu", "cuda:", "cuda:-1", "CPU", "cuda:0x", "mps", "cuda:99999"):
        with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N"):
            check_device(device)


@pytest.mark.parametrize(
    ("built", "available", "words"),
    [
        (None, False, "is built without CUDA"),
        ("13.0", False, "finds no GPU that it can use"),
        ("13.0", True, "2 CUDA device"),
    ],
)
def test_what_cuda_lacks_is_named(
    built: str | None, available: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only torch's own answers about the build and the driver are put in place here; no figure comes of it."""
    import torch

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UnavailableError, match=words):
        check_device("cuda:2")
    if available:
        assert [check_device(device) for device in ("cuda", "cuda:1")] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("package", ["torch", "transformers", "safetensors"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match=rf"{package} is not installed.*qwen-inspect\[torch\]"):
        loaded(directory)
