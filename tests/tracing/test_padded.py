"""`--padded`: a batch whose sequences differ in length, in every command that predicts it; what cannot be told is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_inspect.engines.transformers.demand import TransformersDemand
from qwen_inspect.fitting.search import fit
from qwen_inspect.loaders import gpus
from qwen_inspect.loaders.kept_measurement import read_measurement
from qwen_inspect.predicting.predict import predict
from qwen_inspect.results.fit import Gpu
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES
from ..support.invoking import Capture, invoke
from ..support.models import TINY_QWEN3, run, write_config
from ..support.runs import without_torch
from ..support.schema import assert_keeps_to_the_schema

MIB = 1 << 20
PADDED = Run(batch=4, prompt_tokens=1000, new_tokens=4, padded=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two layers, contexts up to 4,096 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    write_config(folder, {**TINY_QWEN3, "max_position_embeddings": 4096})
    return inspect(str(folder))


def held_bytes(report: Report, workload: Run) -> int:
    reserved = predict(report, workload).predicted.peak_reserved
    assert reserved is not None
    return reserved


def test_json_says_that_a_run_is_padded_and_what_that_assumes(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    asked = ("--mode", "forward", "--batch", "3", "--context", "64", "--format", "json", "--lang", "en")
    padded = json.loads(invoke(capsys, "memory", tmp_path, *asked, "--padded").out)
    assert_keeps_to_the_schema(padded)
    assert padded["workload"]["padded"] is True
    (sentence,) = (one for one in padded["predicted"]["assumptions"] if "sdpa" in one)
    assert "sequences padded to the longest, of 64 tokens" in sentence
    fitted = json.loads(invoke(capsys, "fit", tmp_path, *asked, "--padded", "--memory", "2GiB").out)
    assert_keeps_to_the_schema(fitted)
    assert fitted["workload"]["padded"] is True
    held = sum(term["bytes"] for term in fitted["terms"])
    assert held == padded["predicted"]["peak_reserved_bytes"]


def test_a_trace_of_unpadded_sequences_does_not_answer_for_padded_ones() -> None:
    """A plain install has the shipped trace of Qwen3-8B, in which there is no padding."""
    done = without_torch(
        "memory", "catalog:Qwen/Qwen3-8B", "--batch", "2", "--padded", "--format", "json", "--lang", "en"
    )
    predicted = json.loads(done.stdout)["predicted"]
    assert (predicted["method"], predicted["peak_allocated_bytes"]) == ("formula", None)
    assert any('pip install "qwen-inspect[torch]"' in one for one in predicted["assumptions"])


def test_flash_attention_takes_padding_out_and_is_refused_with_it(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, TINY_QWEN3)
    asked = ("memory", tmp_path, "--batch", "2", "--context", "64", "--padded", "--lang", "en", "--format", "json")
    done = invoke(capsys, *asked, "--attention", "flash_attention_2")
    assert done.code == 7
    assert "leave --padded out" in done.err
    assert json.loads(done.out)["predicted"]["peak_allocated_bytes"] is None


def test_padding_is_of_transformers_alone() -> None:
    done = run("fit", "catalog:Qwen/Qwen3-8B", "--gpu", "h100", "--engine", "vllm", "--padded", "--lang", "en")
    assert done.code == 2
    assert "--padded" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("RTX 4090", marks=pytest.mark.exhaustive), "H100 SXM"])
def test_any_length_of_a_padded_run_is_what_its_own_trace_gives(tiny: Report, name: str) -> None:
    """Sizes grow with the square of the tokens. Rows of a mask are a multiple of 8 but on Hopper, where cuDNN takes any."""
    demand = TransformersDemand(tiny, PADDED, gpus.find(name))
    assert demand.context_step == (8 if name == "RTX 4090" else 1)
    for tokens in (2 * demand.context_step + 16, 2048 + demand.context_step, 3333):
        assert demand.held_bytes(4, tokens) == held_bytes(tiny, replace(demand.run, prompt_tokens=tokens))
    assert demand.held_bytes(7, 1000) == held_bytes(tiny, replace(demand.run, batch=7))
    looked_up = demand._traced_at(4, 2048 + demand.context_step)
    assert looked_up is not None
    assert (demand._traced_at(4, 3333) is None) == (demand.context_step == 8)


@pytest.mark.slow
def test_the_largest_padded_context_fits_and_the_next_does_not(tiny: Report) -> None:
    card = Gpu(name="a card", kind="given", memory_bytes=1000 * MIB)
    (answered,) = fit(tiny, PADDED, [card]).cards
    most = answered.high.context.value
    assert most is not None
    assert (most % 8, answered.high.context.bound) == (0, "memory")
    room = card.memory_bytes - answered.requirement.context_high_bytes
    sizes = [held_bytes(tiny, replace(PADDED, prompt_tokens=tokens)) for tokens in (most, most + 8)]
    assert sizes[0] <= room < sizes[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["qwen3 with a sliding window", "qwen3_next", "qwen3_5"])
def test_a_padded_line_of_other_families_is_right(tmp_path: Path, family: str) -> None:
    write_config(tmp_path, FAMILIES[family])
    report = inspect(str(tmp_path))
    demand = TransformersDemand(report, replace(PADDED, prompt_tokens=640), gpus.find("RTX 4090"))
    for batch, tokens in ((4, 640), (4, 800), (4, 1001), (6, 640)):
        own = held_bytes(report, replace(demand.run, batch=batch, prompt_tokens=tokens))
        assert demand.held_bytes(batch, tokens) == own


@pytest.mark.slow
def test_a_kept_measurement_says_whether_it_was_padded(tmp_path: Path) -> None:
    write_config(tmp_path, TINY_QWEN3)
    done = run("memory", tmp_path, "--device", "cpu", "--random-weights", "--batch", "2", "--context", "16", "--new-tokens",
               "2", "--padded", "--format", "json")  # fmt: skip
    path = tmp_path / "measured.json"
    path.write_text(done.out)
    assert read_measurement(str(path)).run.padded
    before = json.loads(done.out)
    del before["workload"]["padded"]  # as earlier versions wrote it
    path.write_text(json.dumps(before))
    assert not read_measurement(str(path)).run.padded
