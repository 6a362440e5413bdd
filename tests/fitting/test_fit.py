"""What fits is what `predict` says: the largest that is told fits, one more does not, and every figure adds up."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.accuracy import GIB, published
from qwen_inspect.bisection import largest
from qwen_inspect.checkpoint import Checkpoint, DType, ModelRef, Tensor
from qwen_inspect.engines import engine_of
from qwen_inspect.engines.interface import Demand
from qwen_inspect.engines.transformers.demand import TransformersDemand
from qwen_inspect.engines.transformers.traced_run import TracedRun
from qwen_inspect.errors import UnavailableError
from qwen_inspect.fitting.search import MOST_BATCH, answer, bounded, cards, fit
from qwen_inspect.fitting.suggestions import changes
from qwen_inspect.loaders import calibration, catalog, gpus
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.traces.kept_trace import Point
from qwen_inspect.results.exploration import Exploration, RequestSize
from qwen_inspect.results.fit import Bound, CardAnswer, Gpu, Requirement
from qwen_inspect.results.measurement import Calibration
from qwen_inspect.results.memory import ANY_CONTEXT_BYTES, Mode, Run
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import analyse, inspect

from ..support.models import TINY_QWEN3, run, write_config, write_sparse
from ..support.runs import without_torch
from ..support.schema import assert_keeps_to_the_schema

MIB = 1 << 20
# One model of each family of which traces are shipped; a trace is shared by models that differ in depth alone.
MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen1.5-MoE-A2.7B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
)


def card(size_bytes: int) -> Gpu:
    return Gpu(name="a card", kind="given", memory_bytes=size_bytes)


@cache
def of_depth(model: str, layers: int) -> Report:
    """A model of the catalog with other layers than it has, all of them alike."""
    config: dict[str, Any] = dict(catalog.configuration(model, catalog.entries()))
    for part in (config, config.get("text_config", {})):
        if "num_hidden_layers" in part:
            part |= {"num_hidden_layers": layers}
            part.pop("layer_types", None)
    return analyse(Checkpoint(ref=ModelRef(source="catalog", id=model), config=config, tensors=None))


def reserved(report: Report, run: Run, gpu: Gpu, **changes: int) -> int:
    """What `memory` prints for the run on this card, with the context at its larger end."""
    changed = replace(run, gpu=gpu.name, **changes)  # type: ignore[arg-type]  # lengths alone
    found = predict(report, changed).predicted
    assert found.peak_reserved is not None
    return found.peak_reserved + ANY_CONTEXT_BYTES[1]


@st.composite
def situations(draw: st.DrawFn) -> tuple[Report, Run, Gpu]:
    report = of_depth(draw(st.sampled_from(MODELS)), draw(st.integers(3, 6)))
    run = Run(
        batch=draw(st.integers(1, 9)),
        prompt_tokens=draw(st.integers(1, 5000)),
        new_tokens=draw(st.integers(2, 700)),
        loader=draw(st.sampled_from(("warmup", "per-tensor"))),
        allocator=draw(st.sampled_from(("", "expandable_segments:True", "max_split_size_mb:64"))),
    )
    weights = report.tree.size_bytes + ANY_CONTEXT_BYTES[1]
    return report, run, card(weights + draw(st.integers(-200, 9000)) * MIB + draw(st.integers(0, MIB)))


@settings(max_examples=25, deadline=None)
@given(situations())
def test_the_largest_that_is_told_fits_and_one_more_does_not(situation: tuple[Report, Run, Gpu]) -> None:
    report, asked, gpu = situation
    found = answer(TransformersDemand(report, asked, gpu), gpu, batch=asked.batch, context_tokens=asked.prompt_tokens)
    here = reserved(report, asked, gpu)
    assert (found.high.required_bytes, found.high.fits) == (here, here <= gpu.memory_bytes)
    assert found.high.margin_bytes == gpu.memory_bytes - here
    assert found.requirement.high_bytes == found.high.required_bytes
    assert found.low.required_bytes == here - ANY_CONTEXT_BYTES[1] + ANY_CONTEXT_BYTES[0]
    for name, most, at in (("context", found.high.context, "prompt_tokens"), ("batch", found.high.batch, "batch")):
        assert most.value is not None
        if most.value:
            assert reserved(report, asked, gpu, **{at: most.value}) <= gpu.memory_bytes
        if most.bound == "memory":
            assert reserved(report, asked, gpu, **{at: most.value + 1}) > gpu.memory_bytes
        else:
            assert (name, most.bound) == ("context", "model")
            assert most.value + asked.new_tokens == report.spec.context_tokens


@settings(max_examples=8, deadline=None)
@given(situations(), st.integers(1, 3000))
def test_a_larger_card_never_gives_less(situation: tuple[Report, Run, Gpu], more_mib: int) -> None:
    report, asked, gpu = situation
    demand = TransformersDemand(report, asked, gpu)
    small, large = (
        answer(demand, one, batch=asked.batch, context_tokens=asked.prompt_tokens)
        for one in (gpu, card(gpu.memory_bytes + more_mib * MIB))
    )
    for name in ("context", "batch"):
        # The smaller end of the context's range is as good as a larger card.
        reaches = [getattr(end, name).value for end in (small.high, small.low, large.high, large.low)]
        assert reaches[0] <= min(reaches[1:])
        assert max(reaches[:-1]) <= reaches[-1]
    assert [point.batch.value for point in small.curve if point.context_tokens == asked.prompt_tokens] == [
        small.high.batch.value
    ]


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 50))
def test_the_answer_fits_and_the_next_does_not_whatever_the_shape(fitting: list[bool], asked: int) -> None:
    """Islands above it are not looked for; what was asked for is, so that no answer is below what is known to fit."""
    found = largest(lambda number: fitting[number - 1], len(fitting), asked=asked)
    assert found == 0 or fitting[found - 1]
    assert found == len(fitting) or not fitting[found]
    if 0 < asked <= len(fitting) and fitting[asked - 1]:
        assert found >= asked


def test_an_allocator_counted_by_hand() -> None:
    """Weights of 12 MiB and a cache of a MiB for each token, which has a segment of its own from 10 MiB on, in steps of 2 MiB.

    Of 64 MiB the weights leave 52: 52 tokens take 52, 53 take 54. Two sequences of 13 take 26, four 52, five 65 and so 66.
    """
    run = TracedRun(
        Exploration(
            method="trace",
            terms=("weights", "cache"),
            sizes=(RequestSize((12 * MIB, 0, 0, 0, 0, 0, 0, 0)), RequestSize((0, 0, 0, 0, 0, MIB, 0, 0))),
            requests=((0, 0), (1, 1)),
            order=(0, 1),
            stages=(),
            allocator="",
            least_new_tokens=2,
        )
    )
    assert largest(lambda tokens: run.held_bytes(Point(1, tokens, tokens)) <= 64 * MIB, 1000) == 52
    assert largest(lambda batch: run.held_bytes(Point(batch, 13, 13)) <= 64 * MIB, 1000) == 4
    assert run.least_bytes(Point(1, 53, 53)) == 65 * MIB
    assert run.held_bytes(Point(1, 53, 53)) == 66 * MIB


def test_terms_by_hand() -> None:
    found = json.loads(run("fit", "catalog:Qwen/Qwen3-8B", "--gpu", "4090", "--format", "json").out)
    terms = {one["term"]: one["bytes"] for one in found["terms"]}
    # metadata.total_size of Qwen3-8B's model.safetensors.index.json: 8,190,735,360 parameters of 2 bytes.
    assert terms["weights"] == 16_381_470_720
    # The peak is in the prefill: 2,048 tokens x 36 layers x K and V x 8 heads x 128 x 2 bytes.
    assert terms["cache"] == 301_989_888
    # 2 x 4096 KiB + 8 x 16 KiB, torch's CublasHandlePool.cpp.
    assert terms["workspace"] == 8_519_680
    assert found["context_bytes"] == {"low": 141_557_760, "high": 933_232_640, "measured": False}  # 135 and 890 MiB
    assert found["available_bytes"] == 25_249_038_991  # 23.515 GiB
    assert found["max_context_tokens"] + 127 == found["kv_cache_tokens"]  # the last of 128 new tokens is not fed back


@pytest.mark.parametrize(
    "row",
    [row for row in published("transformers_memory.csv") if row["measure"] == "peak"],
    ids=lambda row: f"{row['model']}-{row['input_length']}",
)
def test_published_runs_fit_where_they_ran_and_not_in_less_than_they_took(row: dict[str, str]) -> None:
    """Qwen2.5 on an A100 80GB, its peak printed in GiB: what was allocated, and what was reserved is no less."""
    report = inspect(f"Qwen/{row['model']}", source="catalog")
    asked = Run(
        prompt_tokens=int(row["input_length"]),
        new_tokens=int(row["generated_tokens"]),
        attention="flash_attention_2_repeated",
        loader="per-tensor",
    )
    allocated = int(float(row["memory_value"]) * GIB)
    assert fit(report, asked, [gpus.find("A100 80GB")]).cards[0].high.fits is True
    assert fit(report, asked, [card(allocated)]).cards[0].low.fits is False


def test_a_few_traces_tell_of_a_hybrid_for_every_prompt_of_enough_chunks() -> None:
    config = dict(catalog.configuration("Qwen/Qwen3-Next-80B-A3B-Instruct", catalog.entries()))
    config |= {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_experts": 4,
        "vocab_size": 512,
        "max_position_embeddings": 6000,
    }
    config |= {"intermediate_size": 96, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    config |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts_per_tok": 2}
    report = analyse(Checkpoint(ref=ModelRef(source="local", id="tiny"), config=config, tensors=None))
    asked = Run(prompt_tokens=100, new_tokens=4)
    predicted = predict(report, asked).predicted
    assert (predicted.method, predicted.peak_reserved is None) == ("trace", False)
    demand = TransformersDemand(report, asked, card(GIB))
    assert demand._along_context is not None
    # Chunks of 64 tokens; by the line of lengths from 512 on, each traced before that.
    for batch, tokens in ((1, 200), (3, 100), (1, 512), (1, 1025), (1, 5996)):
        found = predict(report, replace(asked, batch=batch, prompt_tokens=tokens)).predicted
        assert demand.held_bytes(batch, tokens) == found.peak_reserved
        assert demand.least_bytes(batch, tokens) <= demand.held_bytes(batch, tokens)


@pytest.mark.parametrize(
    ("mode", "name", "limit"),
    [("train", "prompt_tokens", 100_000), ("forward", "prompt_tokens", 100_000), ("forward", "batch", MOST_BATCH)],
)
def test_without_a_kept_trace_a_few_traces_give_the_same_answer(mode: Mode, name: str, limit: int) -> None:
    config = {**TINY_QWEN3, "vocab_size": 4096, "num_hidden_layers": 1, "max_position_embeddings": 100_000}
    report = analyse(Checkpoint(ref=ModelRef(source="local", id="tiny"), config=config, tensors=None))
    asked, room = Run(mode=mode, batch=2, prompt_tokens=32), 90 * MIB
    demand = TransformersDemand(report, asked, card(room))

    def fits(value: int) -> bool:
        return demand.held_bytes(*{"batch": 2, "prompt_tokens": 32, name: value}.values()) <= room

    most = largest(fits, limit)
    assert 2 < most < limit
    assert reserved(report, asked, card(room), **{name: most}) <= room + ANY_CONTEXT_BYTES[1]
    assert reserved(report, asked, card(room), **{name: most + 1}) > room + ANY_CONTEXT_BYTES[1]


def of_8b(*options: str | Path) -> tuple[int, dict[str, Any]]:
    shown = run("fit", "catalog:Qwen/Qwen3-8B", *options, "--format", "json")
    return shown.code, json.loads(shown.out)


def test_json_keeps_to_the_schema_and_its_terms_add_up() -> None:
    code, found = of_8b("--gpu", "4090,h100")
    assert code == 0
    assert_keeps_to_the_schema(found)
    assert [one["gpu"]["name"] for one in found["cards"]] == ["RTX 4090", "H100 SXM"]
    assert {key: found[key] for key in found["cards"][0]} == found["cards"][0]
    for one in found["cards"]:
        held = sum(term["bytes"] for term in one["terms"])
        assert one["required_bytes"] == held + one["context_bytes"]["high"]
        assert one["low_end"]["required_bytes"] == held + one["context_bytes"]["low"]
        assert one["margin_bytes"] == one["available_bytes"] - one["required_bytes"]
    assert found["cards"][1]["max_context_tokens"] == 40_960 - 128  # max_position_embeddings less the new tokens
    assert found["cards"][1]["context_tokens_bound"] == "model"


def test_one_card_of_several_that_is_too_small_is_exit_1() -> None:
    code, found = of_8b("--gpu", "4090,3060 12gb")
    assert code == 1
    assert [one["fits"] for one in found["cards"]] == [True, False]


def test_weights_of_32_bits_are_first_offered_in_16_and_take_what_was_said(tmp_path: Path) -> None:
    """Not in a scheme: what that leaves dense would be in the dtype that is stored, which was overruled."""
    write_config(tmp_path, {**TINY_QWEN3, "num_hidden_layers": 1})
    asked = ("fit", tmp_path, "--memory", "602MiB", "--context", "20", "--new-tokens", "2", "--format", "json")
    weights = [
        one for one in json.loads(run(*asked, "--dtype", "float32").out)["suggestions"] if one["kind"] == "weights"
    ]
    assert ["bfloat16" in one["change"] for one in weights] == [True]
    followed = json.loads(run(*asked, "--dtype", "bfloat16").out)
    assert weights[0]["required_bytes"] == followed["required_bytes"]


def test_suggestions_are_what_memory_says_of_the_changed_run() -> None:
    code, found = of_8b("--gpu", "4090", "--context", "30k", "--batch", "2")
    assert code == 1
    assert_keeps_to_the_schema(found)
    kinds = [one["kind"] for one in found["suggestions"]]
    assert kinds == ["context", "cache", "weights", "weights", "weights", "tensor_parallel", "gpu"]
    told = {one["kind"]: one for one in found["suggestions"]}
    shorter = json.loads(
        run("memory", "catalog:Qwen/Qwen3-8B", "--batch", "2", "--context", str(found["max_context_tokens"]),
            "--gpu", "RTX 4090", "--format", "json").out
    )  # fmt: skip
    assert told["context"]["required_bytes"] == shorter["predicted"]["peak_reserved_bytes"] + 890 * MIB
    assert told["context"]["fits"] is True
    quantised = json.loads(
        run("memory", "catalog:Qwen/Qwen3-8B", "--batch", "2", "--context", "30k", "--dtype", "awq-int4",
            "--gpu", "RTX 4090", "--format", "json").out
    )  # fmt: skip
    awq = next(one for one in found["suggestions"] if "awq" in one["change"])
    # The least, with the context's high end in place of its low one; more than this card has.
    assert awq["required_bytes"] == quantised["predicted"]["required_bytes"]["low"] + (890 - 135) * MIB
    assert (awq["fits"], awq["likely"], awq["lower_bound_only"]) == (False, False, True)
    # The cache at 1 byte a number: 2 x 30,847 tokens x 36 layers x K and V x 8 heads x 128 less than at 2.
    cache = {term["term"]: term["bytes"] for term in found["terms"]}["cache"]
    assert cache == 2 * 30_720 * 147_456
    assert told["cache"]["required_bytes"] < found["required_bytes"] - 2 * 30_720 * 73_728
    ranks = json.loads(
        run("memory", "catalog:Qwen/Qwen3-8B", "--batch", "2", "--context", "30k", "--tp", "2", "--format", "json").out
    )["ranks"]
    share = max(one["total_bytes"] for one in ranks)
    assert told["tensor_parallel"]["required_bytes"] == share + 890 * MIB
    assert told["gpu"]["fits"] is True
    name = told["gpu"]["change"].removeprefix("the card ")
    assert of_8b("--gpu", name, "--context", "30k", "--batch", "2")[0] == 0


def test_training_is_told_of_checkpointing_and_adapters() -> None:
    config = {**TINY_QWEN3, "num_hidden_layers": 3}
    report = analyse(Checkpoint(ref=ModelRef(source="local", id="tiny"), config=config, tensors=None))
    asked = Run(mode="train", batch=8, prompt_tokens=512)
    engine = engine_of("transformers")
    demand = engine.demand(report, asked, card(MIB))
    lighter, adapted, both, shared, larger = changes(engine, demand, report, asked, card(MIB))
    kinds = [one.kind for one in (lighter, adapted, both, shared, larger)]
    assert kinds == ["checkpointing", "lora", "lora", "fsdp", "gpu"]
    assert larger.fits
    predicted = predict(report, replace(asked, checkpointing=True)).predicted
    assert predicted.peak_reserved is not None
    assert lighter.required_bytes == predicted.peak_reserved + ANY_CONTEXT_BYTES[1] < larger.required_bytes
    predicted = predict(report, replace(asked, lora_rank=16)).predicted
    assert predicted.peak_reserved is not None
    assert adapted.required_bytes == predicted.peak_reserved + ANY_CONTEXT_BYTES[1]
    assert both.required_bytes < larger.required_bytes


def test_cards_are_predicted_alike_where_a_prediction_knows_the_same_of_them() -> None:
    """An H100's context was measured, an H200's was not; neither was an A100's."""
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")

    def facts(name: str) -> object:
        return TransformersDemand(report, Run(mode="train"), gpus.find(name)).card_facts

    assert facts("H100") != facts("H200") == facts("GH200") != facts("A100 80GB") == facts("A100 40GB")


def test_a_card_says_which_dtypes_it_does_not_compute_in() -> None:
    """transformers 5.23 loads FP8 weights in bfloat16 below compute capability 8.9; bfloat16 itself begins with 8.0."""
    for name, dtypes in (("T4", ["FP8", "bfloat16"]), ("3090", ["FP8"]), ("4090", [])):
        notices = of_8b("--gpu", name, "--dtype", "fp8")[1]["notices"]
        assert [dtype for dtype, notice in zip(dtypes, notices, strict=True) if dtype in notice] == dtypes
    assert of_8b("--gpu", "3090")[1]["notices"] == []


def test_where_only_a_range_is_known_no_fit_is_promised() -> None:
    code, found = of_8b("--gpu", "4090", "--dtype", "awq-int4")
    assert_keeps_to_the_schema(found)
    assert (code, found["fits"], found["likely"], found["lower_bound_only"]) == (0, None, True, True)
    assert found["max_batch"] is None
    # But that it does not fit can be certain.
    code, found = of_8b("--memory", "6GiB", "--dtype", "awq-int4")
    assert (code, found["fits"], found["at_most_context_tokens"]) == (1, False, 0)


def test_of_an_architecture_that_is_not_known_the_stored_weights_are_a_lower_bound(tmp_path: Path) -> None:
    write_config(tmp_path, {"model_type": "strange", "architectures": ["Strange"]})
    write_sparse(tmp_path / "model.safetensors", [Tensor(name="weight", shape=(1000, 1000), dtype=DType.BF16)])
    for memory, code, fits in (("24GiB", 7, None), ("891MiB", 1, False)):  # 2,000,000 bytes and 890 MiB
        shown = run("fit", tmp_path, "--memory", memory, "--format", "json")
        found = json.loads(shown.out)
        assert_keeps_to_the_schema(found)
        assert (shown.code, found["fits"], found["lower_bound_only"], found["curve"]) == (code, fits, True, [])
        assert found["required_bytes"] == 2_000_000 + 890 * MIB
        assert found["max_context_tokens"] is None
        # Nothing that is known grows with either, so that what fits has no end that is known; too little room has.
        most = (found["at_most_context_tokens"], found["at_most_batch"])
        assert most == ((0, 0) if fits is False else (None, None))
    assert run("fit", tmp_path, "--memory", "891MiB", "--format", "md", "--lang", "zh").code == 1
    for language in ("en", "zh"):
        shown = run("fit", tmp_path, "--memory", "24GiB", "--format", "md", "--lang", language)
        assert "16,777,216" not in shown.out  # where the search ends
        assert "65,536" not in shown.out


@pytest.mark.parametrize("command", [["memory"], ["fit", "--memory", "24GiB"]])
def test_a_quantisation_that_is_not_known_is_not_called_an_architecture(tmp_path: Path, command: list[str]) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "quantization_config": {"quant_method": "strange"}})
    write_sparse(tmp_path / "model.safetensors", [Tensor(name="weight", shape=(1000, 1000), dtype=DType.BF16)])
    for language, name in (("en", "rchitecture"), ("zh", "架构")):
        shown = run(*command, tmp_path, "--lang", language)
        assert shown.code == 7
        assert "strange" in shown.err
        assert name not in shown.out + shown.err


@given(value=st.integers(0, 100), bound=st.sampled_from(["model", "search"]), whole=st.booleans())
def test_the_end_of_a_search_is_no_limit(value: int, bound: Bound, whole: bool) -> None:
    found = bounded(value, limit=100, bound=bound, whole=whole)
    if value < 100:
        assert (found.at_most, found.bound) == (value, "memory")
    elif whole or bound == "model":
        assert (found.at_most, found.bound) == (100, bound)
    else:
        assert (found.value, found.at_most, found.bound) == (None, None, "search")


def test_a_run_between_allocated_and_reserved_may_pass() -> None:
    """The allocator's model decides, with what is left for it as its capacity; a second figure, beside that it does not fit."""
    report, asked = inspect("Qwen/Qwen3-0.6B", source="catalog"), Run(batch=8, prompt_tokens=4096)
    found = predict(report, asked).predicted
    assert found.peak_reserved is not None
    assert found.peak_allocated_bytes is not None

    def passes(size_bytes: int) -> CardAnswer:
        return fit(report, asked, [card(size_bytes + ANY_CONTEXT_BYTES[1])]).cards[0]

    assert passes(found.peak_reserved).high.fits is True
    assert passes(found.peak_reserved).passes_by_release is None
    between = passes(found.peak_reserved - 2 * MIB)
    assert (between.high.fits, between.passes_by_release) == (False, True)
    below = passes(found.peak_allocated_bytes - 1)
    assert (below.high.fits, below.passes_by_release) == (False, False)


def test_the_models_own_limit_can_be_passed_over() -> None:
    inside, beyond = (of_8b("--gpu", "h100", *more)[1] for more in ((), ("--beyond-limit",)))
    assert inside["max_context_tokens"] == 40_832
    assert beyond["max_context_tokens"] > 40_832
    assert beyond["context_tokens_bound"] == "memory"


def test_a_calibration_of_the_card_takes_the_place_of_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path))
    calibration.keep(
        Calibration(
            gpu="NVIDIA GeForce RTX 4090",
            driver="1",
            torch=version("torch").partition("+")[0],
            transformers=version("transformers"),
            date="2026-01-02",
            context_bytes=300_000_001,
            workspace_bytes=9_000_000,
        )
    )
    _, found = of_8b("--gpu", "4090")
    assert found["context_bytes"] == {"low": 300_000_001, "high": 300_000_001, "measured": True}
    assert {key: found[key] for key in found["low_end"]} == found["low_end"]
    assert any("2026-01-02" in sentence for sentence in found["assumptions"])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "--gpu"),
        (["--gpu", "4090", "--memory", "24GiB"], 2, "--memory"),
        (["--gpu", "5090ti"], 2, "RTX 5090"),
        (["--gpu", "a100"], 2, "A100 80GB, A100 40GB"),
        (["--gpu", "4090,"], 2, "''"),
        (["--gpu", ""], 2, "''"),
        (["--gpu", "H100,h100-80gb"], 2, "H100 SXM"),
        (["--memory", "0"], 2, "GiB"),
        (["--memory", "0GiB"], 2, "GiB"),
        (["--memory", "24"], 2, "GiB"),
        (["--gpu", "4090", "--batch", "0"], 2, "--batch"),
        (["--gpu", "4090", "--context", "-1"], 2, "--context"),
        (["--gpu", "auto"], 8, "NVML"),
        (["--gpu", "4090", "--dtype", "awq-int4", "--mode", "train"], 7, "train"),
        (["--gpu", "4090", "--lora", "8"], 2, "--lora"),
        (["--gpu", "4090", "--accumulate", "2"], 2, "--accumulate"),
        (["--gpu", "4090", "--optimizer", "sgd"], 2, "--optimizer"),
        (["--gpu", "4090", "--checkpointing"], 2, "--checkpointing"),
        (["--gpu", "4090", "--trained", "norm", "--mode", "forward"], 2, "--trained"),
    ],
)
def test_bad_input_is_refused_in_one_line(options: list[str], code: int, words: str) -> None:
    shown = run("fit", *options)
    assert (shown.code, shown.out) == (code, "")
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1 or "usage" in shown.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "5090ti"], "RTX 5090"),
        (["--gpu", ""], "''"),
        (["--gpu", "sm_"], "sm_"),
        (["--gpu", "H100,4090"], "H100"),
        (["--optimizer", "sgd"], "--optimizer"),
        (["--checkpointing"], "--checkpointing"),
    ],
)
def test_memory_refuses_them_too(options: list[str], words: str) -> None:
    shown = run("memory", *options)
    assert (shown.code, shown.out, len(shown.err.splitlines())) == (2, "", 1)
    assert words in shown.err


def test_a_card_of_memory_is_the_tables() -> None:
    """By any of its names, as one that was measured is called where it was; a compute capability stays what it is."""
    named = json.loads(run("memory", "--gpu", "NVIDIA H100 80GB HBM3", "--format", "json").out)
    assert named["workload"]["gpu"] == "H100 SXM"
    assert named["predicted"]["workspace_bytes"] == 32 * MIB  # torch 2.13, CUDABlas: of sm_90
    assert json.loads(run("memory", "--gpu", "SM_90", "--format", "json").out)["workload"]["gpu"] == "SM_90"


def test_a_memory_smaller_than_the_weights_fits_nothing() -> None:
    code, found = of_8b("--memory", "1GiB")
    assert (code, found["fits"], found["max_context_tokens"], found["max_batch"]) == (1, False, 0, 0)
    assert found["kv_cache_tokens"] is None


def test_no_nvml_here_is_said() -> None:
    with pytest.raises(UnavailableError):
        cards("auto")


def on_terminal(*arguments: str | Path, columns: int) -> tuple[int, str, str]:
    """Exit code, stdout, and what a terminal of so many columns is sent as stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_inspect", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1"},
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the other side has closed
        while piece := os.read(ours, 4096):
            seen += piece
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    return process.returncode, out.decode(), seen.decode()


def test_a_search_that_takes_long_says_what_it_tries_on_a_terminal(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "num_hidden_layers": 1, "max_position_embeddings": 4000})
    asked = ("fit", tmp_path, "--mode", "train", "--context", "100", "--memory", "914MiB", "--format", "json")
    code, out, seen = on_terminal(*asked, columns=100)
    assert (code, "\r" in out, "\x1b" in out) == (0, False, False)
    lines = [part.partition("\x1b[K")[0] for part in seen.split("\r") if "\x1b[K" in part]
    told = [line for line in lines if "tracing" in line]
    assert told[0] == "This run: tracing run 1 (batch 1, 100 tokens) …"
    assert any(
        re.match(r"Runs that tell of every context, 4 in all: tracing run \d+ \(batch 1, 37 tokens\) …", line)
        for line in told
    )
    assert any(
        re.match(r"Runs that tell of every batch, 3 in all: tracing run \d+ \(batch 2, 100 tokens\) …", line)
        for line in told
    )
    assert any(line.startswith("Searching the largest context, ") for line in lines)
    assert lines[-1] == ""  # erased


@pytest.mark.exhaustive
def test_what_a_search_tries_is_quiet_if_asked_and_fits_a_narrow_terminal(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "num_hidden_layers": 1, "max_position_embeddings": 4000})
    asked = ("fit", tmp_path, "--mode", "train", "--context", "100", "--memory", "914MiB", "--format", "json")
    code, out, seen = on_terminal(*asked, "--quiet", columns=100)
    assert (code, seen) == (0, "")
    shown = run(*asked)
    assert (shown.code, shown.out) == (0, out)
    assert "\r" not in shown.err
    assert "\x1b" not in shown.err
    _, _, seen = on_terminal(*asked, "--lang", "zh", columns=20)
    assert (
        "\r本次运行：正在追踪\x1b[K" in seen
    )  # 9 characters of two columns each; the terminal has 20, of which one is left


@pytest.mark.parametrize(("form", "language"), [("table", "en"), ("md", "zh"), ("html", "zh")])
def test_every_format(form: str, language: str) -> None:
    shown = run("fit", "--memory", "2GiB", "--format", form, "--lang", language)
    assert shown.code == 1
    assert "2,531,262,464" in shown.out  # required, as the JSON has it


def test_another_engine_says_its_own_demand() -> None:
    """What `answer` asks of an engine is what `Demand` has: an engine that takes 90 % of a card and a KiB a token."""

    class Blocks(Demand):
        most_context_tokens: int | None = 100_000

        def requirement(self, batch: int, context_tokens: int) -> Requirement:
            terms = (("weights", 50 * MIB), ("cache", batch * context_tokens * 1024))
            return Requirement(terms=terms, context_low_bytes=0, context_high_bytes=0)

        def available_bytes(self, gpu: Gpu) -> int:
            return gpu.available_bytes * 9 // 10

    found = answer(Blocks(), card(100 * MIB), batch=1, context_tokens=1024)
    # 90 MiB less 50 MiB are 40 x 1024 tokens.
    assert (found.available_bytes, found.high.context.value, found.cache_tokens) == (90 * MIB, 40_960, 40_960)
    assert found.high.batch.value == 40 < MOST_BATCH
    expected: Mapping[int, int] = {1024: 40, 4096: 10, 16_384: 2, 65_536: 0, 100_000: 0}
    assert {point.context_tokens: point.batch.value for point in found.curve} == expected

    class Unknown(Blocks):
        """Of contexts up to 20,000 tokens a lower bound is known."""

        def fits(self, batch: int, context_tokens: int, room_bytes: int) -> bool | None:
            return None if context_tokens <= 20_000 else super().fits(batch, context_tokens, room_bytes)

    unknown, known = (answer(Unknown(), card(size * MIB), batch=1, context_tokens=90_000) for size in (60, 100))
    assert (unknown.high.context.value, unknown.high.context.at_most) == (None, 20_000)
    assert known.high.context.value == 40_960


def test_lengths_that_only_torch_traces_may_fit_without_it() -> None:
    """Prompts of one or two chunks of linear attention, where longer ones do not fit."""
    asked = "fit", "catalog:Qwen/Qwen3.5-9B", "--mode", "train", "--lora", "16", "--memory", "20GiB", "--format", "json"
    done = without_torch(*asked)
    found = json.loads(done.stdout)["cards"][0]
    assert (found["max_context_tokens"], found["at_most_context_tokens"]) == (None, 128)
    assert not [change for change in found["suggestions"] if change["kind"] == "context"]
