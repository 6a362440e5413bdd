"""Peaks of quantised models: traced where bitsandbytes multiplies, ranges of all else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.quantised import base_of
from qwen_inspect.results.memory import Mode, Run
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.adapting import FourBits

from ..support.models import TINY_QWEN3, run, write_config
from ..support.runs import without_torch
from ..support.schema import assert_keeps_to_the_schema

pytest.importorskip("bitsandbytes")


def memory(model: str, *options: str) -> dict[str, Any]:
    shown = run("memory", model, *options, "--format", "json")
    assert shown.code == 0, shown.err
    content = json.loads(shown.out)
    assert_keeps_to_the_schema(content)
    found: dict[str, Any] = content["predicted"]
    return found


@pytest.mark.parametrize("mode", ["generate", "forward"])
@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-fp4", "bnb-nf4-double", "bnb-int8"])
def test_what_bitsandbytes_multiplies_has_a_peak(scheme: str, mode: Mode, tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "hidden_size": 1024, "intermediate_size": 1024})
    asked = Run(mode=mode, prompt_tokens=64, new_tokens=2)
    found, dense = (predict(inspect(str(tmp_path), dtype=dtype), asked).predicted for dtype in (scheme, None))
    assert (found.method, found.peak_range) == ("trace", None)
    assert found.peak_allocated_bytes is not None
    assert dense.peak_allocated_bytes is not None
    assert found.peak_allocated_bytes < dense.peak_allocated_bytes
    assert found.required_bytes is not None


@pytest.mark.parametrize(("said", "read"), [(None, "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_the_dtype_to_compute_in_is_as_transformers_reads_it(said: str | None, read: str, tmp_path: Path) -> None:
    """A file that names none, as older ones, is computed with in BitsAndBytesConfig's default; a scheme by name says its own."""
    from transformers import BitsAndBytesConfig

    options = {"load_in_4bit": True, **({} if said is None else {"bnb_4bit_compute_dtype": said})}
    assert str(BitsAndBytesConfig(**options).bnb_4bit_compute_dtype) == f"torch.{read}"
    write_config(tmp_path, {**TINY_QWEN3, "quantization_config": {"quant_method": "bitsandbytes", **options}})
    base = base_of(inspect(str(tmp_path)))
    assert isinstance(base, FourBits)
    assert base.dtype == read
    # The second release says its dtype in its decoder's section alone.
    for model in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-VL-2B-Instruct"):
        by_name = base_of(inspect(f"catalog:{model}", dtype="bnb-nf4"))
        assert isinstance(by_name, FourBits)
        assert by_name.dtype == "bfloat16"


def test_without_bitsandbytes_it_is_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, TINY_QWEN3)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = predict(inspect(str(tmp_path), dtype="bnb-nf4"), Run(prompt_tokens=65, new_tokens=2)).predicted
    assert found.peak is None
    assert found.peak_range is not None


def test_a_fit_of_it_is_certain(tmp_path: Path) -> None:
    quantised = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    small = {"num_hidden_layers": 1, "max_position_embeddings": 66}  # each length that is tried is traced
    write_config(tmp_path, {**TINY_QWEN3, **small, "quantization_config": quantised})
    shown = run("fit", tmp_path, "--context", "64", "--new-tokens", "2", "--memory", "24GiB", "--format", "json")
    found = json.loads(shown.out)
    assert (shown.code, found["fits"], found["likely"], found["lower_bound_only"]) == (0, True, True, False)


@pytest.mark.parametrize("threshold", ["6\x1b[31m", -1, [6.0], True])
def test_a_threshold_that_is_no_number_is_refused(threshold: object, tmp_path: Path) -> None:
    quantised = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": threshold}
    write_config(tmp_path, {**TINY_QWEN3, "quantization_config": quantised})
    shown = run("memory", tmp_path)
    assert (shown.code, shown.out, "\x1b" in shown.err) == (6, "", False)
    assert "llm_int8_threshold in config.json is" in shown.err


# --- ranges


ON_8B = ("catalog:Qwen/Qwen3-8B", "--gpu", "H100")
# Of Qwen3-8B at 2,048 tokens: the largest matrix, 4,096 x 12,288, and its inputs and outputs for each token, in 2 bytes; and 6
# MiB for the segments that these may take.
PARTS = ("packed", "scales", "zeros", "group index", "scale of the matrix")  # of a matrix, at most
SCRATCH = 2 * (4096 * 12_288 + 2048 * (4096 + 12_288)) + 6 * 2**20
# What its 36 x 7 matrices take more in 2 bytes: 6,945,767,424 numbers.
NUMBERS = 36 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 12_288)


@pytest.mark.parametrize("scheme", ["awq-int4", "gptq-int4", "fp8", "nvfp4"])
def test_a_range_is_the_dense_run_with_these_weights_and_what_kernels_may_take(scheme: str) -> None:
    dense, found = memory(*ON_8B), memory(*ON_8B, "--dtype", scheme)
    between = found["peak_range"]
    low = dense["peak_allocated_bytes"] - dense["weights_bytes"] + found["weights_bytes"]
    assert abs(between["low_bytes"] - low) <= 512 * len(PARTS) * 36 * 7  # what blocks are larger than their tensors
    assert between["high_bytes"] - between["low_bytes"] == SCRATCH
    assert (found["peak_allocated_bytes"], found["peak_reserved_bytes"], found["moments"]["peak"]) == (None, None, None)
    # The context of an H100, 678 to 890 MiB, on top.
    required = found["required_bytes"]
    assert required["high"] - required["low"] == SCRATCH + (890 - 678) * 2**20


def test_weights_that_may_be_made_dense_reach_to_all_of_them(tmp_path: Path) -> None:
    """FP8 below compute capability 8.9, where transformers 5.23 dequantises the whole model."""
    older, newer = (memory("catalog:Qwen/Qwen3-8B", "--dtype", "fp8", "--gpu", gpu) for gpu in ("A100 80GB", "H100"))
    spans = [one["peak_range"]["high_bytes"] - one["peak_range"]["low_bytes"] for one in (older, newer)]
    # A byte a number, less a scale of 2 bytes for each block of 128 x 128.
    assert spans[0] - spans[1] == NUMBERS - 2 * NUMBERS // 128**2
    assert "below compute capability 8.9" in older["peak_range"]["source"]


def test_experts_are_fused_where_they_run() -> None:
    """Qwen3-30B-A3B: 128 experts of three matrices of 768 x 2,048 in a layer; 8 of them take each token."""
    between = memory("catalog:Qwen/Qwen3-30B-A3B", "--dtype", "gptq-int4")["peak_range"]
    scratch = 2 * (128 * 3 * 768 * 2048 + 2048 * 8 * (768 + 2048)) + 6 * 2**20
    assert between["high_bytes"] - between["low_bytes"] == scratch


def test_without_torch_a_shipped_trace_tells_the_range() -> None:
    told = json.loads(without_torch("memory", *ON_8B, "--dtype", "awq-int4", "--format", "json").stdout)["predicted"]
    assert told["peak_range"] == memory(*ON_8B, "--dtype", "awq-int4")["peak_range"]


def test_without_torch_a_fit_by_the_familys_trace_is_the_same() -> None:
    asked = ("fit", "catalog:Qwen/Qwen3-8B", "--dtype", "awq-int4", "--memory", "24GiB", "--format", "json")
    assert json.loads(without_torch(*asked).stdout) == json.loads(run(*asked).out)


def test_a_fit_is_likely_where_the_most_has_room_and_none_where_the_least_has_not() -> None:
    asked = ("fit", "catalog:Qwen/Qwen3-8B", "--dtype", "awq-int4", "--format", "json")
    required = memory("catalog:Qwen/Qwen3-8B", "--dtype", "awq-int4")["required_bytes"]
    # At the cautious end the least counts the largest context: 890 in place of 135 MiB.
    least, most = required["low"] + 755 * 2**20, required["high"]
    told = {}
    for room in (most, most - 1, least, least - 1):
        shown = run(*asked, "--memory", f"{room}B")
        found = json.loads(shown.out)
        assert_keeps_to_the_schema(found)
        told[room] = (shown.code, found["fits"], found["likely"])
        assert (found["required_bytes"], found["at_most_bytes"]) == (least, most)
    assert told == {
        most: (0, None, True),
        most - 1: (7, None, None),
        least: (7, None, None),
        least - 1: (1, False, False),
    }


def test_a_scheme_that_is_suggested_is_answered_as_if_asked_for() -> None:
    asked = ("fit", "catalog:Qwen/Qwen3-8B", "--gpu", "4090", "--context", "30k", "--format", "json")
    found = json.loads(run(*asked).out)
    assert_keeps_to_the_schema(found)
    for scheme in ("fp8", "awq-int4"):
        (change,) = (one for one in found["suggestions"] if one["change"] == f"weights in {scheme}")
        direct = json.loads(run(*asked, "--dtype", scheme).out)
        assert change["required_bytes"] == direct["required_bytes"]
        assert (change["fits"], change["likely"]) == (direct["fits"], direct["likely"]) == (None, True)


@pytest.mark.parametrize(
    ("language", "words", "likely"), [("en", "(a range)", "likely fits"), ("zh", "（范围）", "很可能够用")]
)
@pytest.mark.parametrize("form", ["table", "md", "html"])
def test_a_range_is_shown_in_every_form(form: str, language: str, words: str, likely: str) -> None:
    asked = ("catalog:Qwen/Qwen3-8B", "--dtype", "awq-int4", "--format", form, "--lang", language)
    between = memory("catalog:Qwen/Qwen3-8B", "--dtype", "awq-int4")["peak_range"]
    text = run("memory", *asked).out
    assert words in text
    assert f"{between['low_bytes']:,}" in text
    assert f"{between['high_bytes']:,}" in text
    assert likely in run("fit", *asked, "--gpu", "4090").out
