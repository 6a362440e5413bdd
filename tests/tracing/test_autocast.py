"""torch.autocast in a run: CUDA's lists of operators, the casts that are kept, and what is refused beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_inspect.cli import main
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.sources import training_timeline
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.memory import Run
from qwen_inspect.results.timeline import Allocate
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing.autocast import LOWER, SUMMED, WIDEST, _listed, cuda_lists

from ..support.models import TINY_QWEN3, write_config
from ..support.schema import assert_keeps_to_the_schema

# In torch's lists for all devices; those of CUDA alone are in autocast_mode.cpp.
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
LISTS = ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")


def of_header(name: str) -> set[str]:
    """The operators of one list, without their overloads."""
    found = re.search(rf"#define AT_FORALL_{name}\(_\)(.*?)\n\n", HEADER.read_text(), re.DOTALL)
    assert found is not None
    return set(re.findall(r"_\((\w+)", found[1]))


def test_the_lists_are_those_of_the_installed_torch() -> None:
    lower, float32, summed, widest = map(of_header, LISTS)
    assert widest == WIDEST
    assert {*summed, "norm"} == SUMMED  # the norms call themselves otherwise, with a dtype
    on_cuda = {name.partition(".")[0] for name, cuda, _ in _listed() if cuda}
    alone = {name.partition(".")[0] for name, cuda, cpu in _listed() if cuda and not cpu}
    assert (alone & lower) | {"cudnn_convolution", "cudnn_convolution_transpose"} == LOWER
    # binary_cross_entropy is refused on CUDA.
    assert on_cuda - LOWER - lower - WIDEST - SUMMED == float32 | {"binary_cross_entropy"}


def test_operators_compute_in_what_cuda_documents() -> None:
    """As in torch's documentation of amp: "CUDA Ops that autocast to float32", "to float16", "that promote to the widest"."""

    def dtypes() -> dict[str, torch.dtype]:
        low, wide = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return {
                "linear": torch.nn.functional.linear(wide, wide).dtype,
                "mv": torch.mv(wide, wide[0]).dtype,
                "pow": low.pow(2).dtype,
                "sum": low.sum(-1, keepdim=True).dtype,
                "softmax": low.softmax(-1).dtype,
                "sum of integers": torch.ones(2, dtype=torch.int64).sum().dtype,
                "norm": torch.ops.aten.norm.Scalar(low).dtype,
                "addcmul": torch.addcmul(low, wide, low).dtype,
                "addcmul of two": torch.addcmul(low, low, low).dtype,
                "reflection_pad1d": torch.nn.functional.pad(low, (1, 1), "reflect").dtype,
                "float64": torch.ones(2, dtype=torch.float64).pow(2).dtype,
            }

    before = dtypes()
    with cuda_lists():
        within = dtypes()
    assert within == {
        "linear": torch.bfloat16,
        "mv": torch.bfloat16,
        "pow": torch.float32,
        "sum": torch.float32,
        "softmax": torch.float32,
        "sum of integers": torch.int64,
        "norm": torch.float32,
        "addcmul": torch.float32,
        "addcmul of two": torch.bfloat16,
        "reflection_pad1d": torch.bfloat16,
        "float64": torch.float64,
    }
    assert dtypes() == before != within


# --- casts of weights

Q_PROJ_BYTES = 64 * 64 * 2  # in bfloat16
PROMPT = 48  # so that no activation has as many numbers as a weight


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_config(tmp_path_factory.mktemp("tiny"), TINY_QWEN3))


def casts(tiny: str, **options: Any) -> Counter[str]:
    """By stage: how often weights of q_proj are cast in two steps of training of two layers."""
    report = inspect(tiny, dtype="float32")
    plan = plan_of(report, Run(mode="train", prompt_tokens=PROMPT, autocast="bfloat16", **options))
    timeline, _ = training_timeline(report, plan)
    found: Counter[str] = Counter()
    bounds = [*(stage.first_event for stage in timeline.stages), len(timeline.events)]
    for stage, end in zip(timeline.stages, bounds[1:], strict=True):
        for event in timeline.events[stage.first_event : end]:
            if isinstance(event, Allocate) and event.operator == "aten._to_copy.default":
                found[stage.name] += event.module.endswith("q_proj") and event.size_bytes == Q_PROJ_BYTES
    return found


def test_weights_are_cast_once_a_forward_and_again_where_checkpointing_repeats_it(tiny: str) -> None:
    """The cache is cleared when autocast is left, and what checkpointing repeats enters it anew (torch.utils.checkpoint).

    Beside weights, each forward casts the input of q_proj, which has 48 x 64 numbers.
    """
    assert casts(tiny)["forward"] == 2 * 2
    checkpointed = casts(tiny, checkpointing=True)
    assert (checkpointed["forward"], checkpointed["backward"]) == (2 * 2, 2 * 2)


def test_casts_of_a_whole_run_are_held_to_its_end(tiny: str) -> None:
    """In inference one autocast is around all: casts of all linear weights, the tied head's too, are never freed."""
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)  # of two layers: 64 -> 64, 32, 32; 64 -> 64; MLP
    run = Run(mode="forward", prompt_tokens=PROMPT, autocast="bfloat16")
    footprint = predict(inspect(tiny, dtype="float32"), run).predicted
    # The outputs beside them: logits in bfloat16, K in float32, as its norm's weight is, and V, which is put into a cache of K's
    # dtype (transformers 5.23, DynamicLayer.lazy_initialization); and the prompt.
    outputs = PROMPT * 256 * 2 + 2 * PROMPT * 32 * (4 + 4) + PROMPT * 8
    moment = footprint.steady
    assert moment.activations is not None
    assert moment.cache is not None
    assert moment.activations + moment.cache == 2 * (linear + 256 * 64) + outputs


def test_a_scaler_adds_two_numbers_and_keeps_weights_of_float16_from_training(tiny: str) -> None:
    """torch.amp.GradScaler: its scale (float32) and its growth tracker (int32), both of one number."""
    steady = {
        dtype: predict(
            inspect(tiny, dtype="float32"), Run(mode="train", prompt_tokens=PROMPT, autocast=dtype)
        ).predicted.steady
        for dtype in ("bfloat16", "float16")
    }
    assert steady["float16"].activations == (steady["bfloat16"].activations or 0) + 4 + 4


# --- the option


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--format", "json", "-q"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert_keeps_to_the_schema(content)
    return content


def test_weights_are_in_float32_unless_it_is_said(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    training = ("memory", tiny, "--mode", "train", "--context", "16")
    plain = shown(capsys, *training)
    wide = shown(capsys, *training, "--autocast", "bfloat16")
    narrow = shown(capsys, *training, "--autocast", "bfloat16", "--dtype", "bfloat16")
    assert [one["workload"]["autocast"] for one in (plain, wide, narrow)] == [None, "bfloat16", "bfloat16"]
    assert [one["workload"]["dtype"] for one in (plain, wide, narrow)] == ["bfloat16", "float32", "bfloat16"]
    weights = [one["predicted"]["weights_bytes"] for one in (plain, wide, narrow)]
    assert weights == [weights[0], 2 * weights[0], weights[0]]
    said = wide["predicted"]["assumptions"]
    assert any("torch.autocast(bfloat16) around each forward" in one for one in said)
    assert any("Weights are in float32" in one for one in said)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_fit_answers_for_it_too(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = shown(capsys, "fit", tiny, "--mode", "train", "--context", "16", "--autocast", "float16", "--gpu", "T4")
    assert content["workload"]["autocast"] == "float16"
    assert any("GradScaler" in one for one in content["assumptions"])


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("--mode", "train", "--autocast", "float16", "--dtype", "float16"), 2, "refuses those of float16 weights"),
        (("--autocast", "bfloat16", "--dtype", "bnb-int8"), 7, "beside quantised weights"),
        (("--mode", "train", "--lora", "2", "--autocast", "float16", "--dtype", "bnb-nf4"), 7, "in the same dtype"),
        (("--autocast", "bfloat16", "--cache-dtype", "fp8"), 7, "only a trace tells"),
        (("--autocast", "bfloat16", "--tp", "2"), 7, "On several ranks --autocast"),
    ],
)
def test_what_is_not_known_with_autocast_is_refused_in_a_sentence(
    tiny: str, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], code: int, error: str
) -> None:
    assert main(["memory", tiny, "--context", "16", "-q", *arguments]) == code
    assert error in capsys.readouterr().err


def test_without_a_trace_there_is_no_figure_of_a_run_without_autocast(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = inspect(tiny, dtype="float32")

    def cannot(*_: object) -> Mapping[str, object]:
        raise UnsupportedError("trace_no_head", class_name="Qwen3ForCausalLM", mode="generate")

    monkeypatch.setattr("qwen_inspect.tracing.trace._runs", cannot)
    with pytest.raises(UnsupportedError):
        predict(report, Run(prompt_tokens=17, autocast="bfloat16"))
