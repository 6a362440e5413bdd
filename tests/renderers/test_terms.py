"""The terms of a footprint add up wherever they are shown, partial sums say so, and headlines are what a card must have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.comparing.contrast import fact_rows
from qwen_inspect.engines.transformers.on_card import terms_of
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders.kept_measurement import DIFFERENCES
from qwen_inspect.predicting.course import LOADER, STACKED_TERMS
from qwen_inspect.predicting.footprint import formula_footprint
from qwen_inspect.predicting.predict import predict
from qwen_inspect.renderers import markdown
from qwen_inspect.renderers.document.memory import headline, term_table
from qwen_inspect.renderers.document.memory import terms_of as shown_terms
from qwen_inspect.renderers.json.footprint import footprint_content
from qwen_inspect.renderers.plot import memory_plot
from qwen_inspect.renderers.svg import PALETTE
from qwen_inspect.results.fit import deciding
from qwen_inspect.results.measurement import Calibration
from qwen_inspect.results.memory import TERMS, Footprint, MemoryReport, Moment, Run
from qwen_inspect.structure.inspect import inspect

from ..support.hostile import markdown_tables
from ..support.invoking import Capture, invoke
from ..support.models import TINY_QWEN3, run, write_config
from ..support.runs import a_run, without_torch
from ..support.schema import assert_keeps_to_the_schema

MIB = 1 << 20
GENERATE, LORA = a_run(), a_run(mode="train", lora_rank=4)
BY_FORMULA = ("--mode", "train", "--lora", "16", "--lora-targets", "q_proj")  # no such trace is shipped
CALIBRATION = Calibration(
    gpu="sm_80",
    driver="1",
    torch="2",
    transformers="5",
    date="2026-01-01",
    context_bytes=300 * MIB,
    workspace_bytes=8519680,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terms")
    write_config(folder, TINY_QWEN3)
    return folder


def number(cell: str) -> int:
    return int(re.sub(r"[^\d]", "", cell))


def table_of(memory: MemoryReport, language: str = "en") -> dict[str, list[str]]:
    """The table of terms as Markdown shows it, by its first column."""
    (table,) = markdown_tables(markdown.render([term_table(memory.predicted, Language(language))]))
    return {row[0].strip("*"): [cell.strip("*") for cell in row[1:]] for row in table[1:]}


def assert_shown_whole(memory: MemoryReport) -> None:
    """Each place that takes a footprint apart shows terms that add up to what is allocated, or reserved."""
    found, say = memory.predicted, Language("en")
    content = json.loads(json.dumps(footprint_content(found, memory.run, say)))
    table = table_of(memory)
    for column, (name, moment) in enumerate((("steady", found.steady), ("peak", found.peak))):
        if moment is None:
            continue
        told = content["moments"][name]
        parts = {key: value for key, value in told.items() if key.endswith("_bytes") and key != "allocated_bytes"}
        assert sum(value or 0 for value in parts.values()) == told["allocated_bytes"] == moment.allocated
        rows = [table[say(f"term_{term}")][2 * column] for term in shown_terms(found.steady, found.peak)]
        assert sum(number(cell) for cell in rows if cell != "–") == number(table[say("term_allocated")][2 * column])
    held = found.peak_reserved if found.peak_reserved is not None else found.steady.allocated
    assert sum(size_bytes for _, size_bytes in terms_of(found)) == held
    if found.peak is not None and found.peak_reserved is not None:
        assert dict(terms_of(found))["reserved_only"] == found.peak_reserved - (found.peak.allocated or 0)
    if found.course is not None:
        assert max(found.course.totals) == found.peak_allocated_bytes
        assert set(found.course.terms) == {*TERMS, LOADER}


@pytest.mark.parametrize(
    "workload", [GENERATE, a_run(mode="forward"), a_run(mode="train"), LORA], ids=lambda one: one.mode
)
def test_terms_add_up_wherever_a_run_is_shown(workload: Run, tiny: Path) -> None:
    memory = predict(inspect(str(tiny)), workload, course_points=50)
    assert memory.predicted.method == "trace"
    assert bool(memory.predicted.steady.adapters) == (workload.lora_rank is not None)
    assert_shown_whole(memory)


def test_terms_of_a_formula_add_up_too(tiny: Path) -> None:
    report = inspect(str(tiny))
    for workload in (GENERATE, a_run(mode="train"), a_run(mode="train", optimizer="none")):
        footprint = formula_footprint(report.tree, report.cache, workload)
        assert_shown_whole(MemoryReport(report=report, run=workload, predicted=footprint))


def test_terms_of_a_rank_that_gathers_add_up(tiny: Path, capsys: Capture) -> None:
    shown = invoke(capsys, "memory", tiny, "--fsdp", "2", "--mode", "train", "--context", "16", "--format", "json")
    content = json.loads(shown.out)
    assert_keeps_to_the_schema(content)
    for rank in content["ranks"]:
        parts = [value for key, value in rank["peak"].items() if key.endswith("_bytes") and key != "allocated_bytes"]
        assert rank["peak"]["gathered_bytes"] > 0
        assert sum(parts) == rank["peak"]["allocated_bytes"]


def test_every_term_has_a_name_a_colour_and_a_place() -> None:
    """What is added to a moment is shown everywhere, for each list is made of its terms."""
    assert set(TERMS) == set(Moment.__dataclass_fields__) - {"stage", "total"}
    assert {*TERMS, LOADER} == set(STACKED_TERMS) <= set(PALETTE)
    assert set(TERMS) < set(DIFFERENCES)
    for language in LANGUAGES:
        for term in (*TERMS, LOADER):
            assert Language(language)(f"term_{term}")


def test_adapters_count_without_torch_where_a_run_is_fitted() -> None:
    """Rank 16 on the queries of Qwen3-0.6B: in each of 28 layers 16 x (1,024 + 2,048) numbers of float32."""
    adapters = 28 * 16 * 3_072 * 4
    asked = ("catalog:Qwen/Qwen3-0.6B", *BY_FORMULA, "--format", "json")
    fitted = json.loads(without_torch("fit", *asked, "--gpu", "4090").stdout)
    terms = {one["term"]: one["bytes"] for one in fitted["terms"]}
    assert terms["adapters"] == adapters
    told = json.loads(without_torch("memory", *asked).stdout)["predicted"]
    assert sum(terms.values()) == told["steady_allocated_bytes"] == 1_225_669_632
    assert fitted["lower_bound_only"] is told["moments"]["steady"]["lower_bound_only"] is True


# --- several cards


@pytest.mark.parametrize(
    ("verdicts", "index"),
    [
        ([True], 0),
        ([True, True], 0),
        ([True, False], 1),
        ([True, None, False], 2),
        ([None, True], 0),
        ([True, None], 1),
    ],
)
def test_the_card_that_decides_is_the_first_without_room_or_in_doubt(verdicts: list[bool | None], index: int) -> None:
    assert deciding(verdicts) == index


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        (["--context", "4k"], "a100-80gb,3060 12gb"),
        (["--context", "4k"], "3060 12gb,a100-80gb"),
        (["--context", "4k"], "a100-80gb,h100"),
        (["--engine", "vllm", "--max-model-len", "4k"], "a100-80gb,3060 12gb"),
        (["--engine", "llama.cpp", "--context", "4k"], "a100-80gb,3060 12gb"),
    ],
)
def test_the_top_of_the_json_says_what_the_exit_code_says(engine: list[str], names: str, capsys: Capture) -> None:
    shown = invoke(capsys, "fit", "catalog:Qwen/Qwen3-8B", "--gpu", names, *engine, "--format", "json")
    found = json.loads(shown.out)
    assert_keeps_to_the_schema(found)
    assert [card["gpu"]["name"] for card in found["cards"]] == [one["gpu"]["name"] for one in found["cards"]]
    assert (shown.code == 1) == (found["fits"] is False) == any(card["fits"] is False for card in found["cards"])
    assert {key: found[key] for key in found["cards"][0]} in found["cards"]  # one card's, whole


# --- partial sums


def test_a_sum_without_activations_says_that_it_is_a_lower_bound(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "hidden_act": "relu"})  # no release is so: no trace is shipped
    for options in ((), ("--mode", "train"), ("--mode", "train", "--lora", "4")):
        for form in ("table", "md", "html"):
            text = without_torch("memory", tmp_path, *options, "--format", form, "--lang", "en").stdout
            row = next(line for line in re.split(r"\n|</tr>", text) if re.search(r"[|>*] ?\**Allocated\**[ <]", line))
            assert row.count("at least") == 2, (options, form)
        told = json.loads(without_torch("memory", tmp_path, *options, "--format", "json").stdout)["predicted"]
        assert told["moments"]["steady"]["lower_bound_only"] is True
        assert (told["peak_allocated_bytes"], told["required_bytes"], told["moments"]["peak"]) == (None, None, None)


@pytest.mark.parametrize(("language", "words"), [("en", "at least"), ("zh", "至少")])
def test_every_command_says_of_a_partial_sum_that_it_is_one(language: str, words: str, capsys: Capture) -> None:
    asked = ("catalog:Qwen/Qwen3-8B", "--dtype", "awq-int4", "--lang", language)
    reported = run("report", "catalog:Qwen/Qwen3-8B", "--lang", language)
    assert words not in _line(reported.out, Language(language)("term_allocated"))  # traced: whole
    fitted = invoke(capsys, "fit", *asked, "--gpu", "4090,h100", "--format", "md")
    table = next(table for table in markdown_tables(fitted.out) if len(table[0]) == 7)
    assert all(row[2].startswith(words) for row in table[1:])
    compared = invoke(capsys, "compare", asked[0], "catalog:Qwen/Qwen3-0.6B", *asked[1:], "--format", "md")
    assert _line(compared.out, Language(language)("row_steady")).count(words) == 2


def _line(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("|") and name in line)


def test_lower_bounds_are_not_compared(tiny: Path) -> None:
    report = inspect(str(tiny))
    footprint = formula_footprint(report.tree, report.cache, GENERATE)
    memories = [predict(report, GENERATE), MemoryReport(report=report, run=GENERATE, predicted=footprint)]
    rows = {
        row.name: row for row in fact_rows([report, report], memories, tokens=64, batch=1) if row.section == "memory"
    }
    assert (rows["steady"].at_least, rows["steady"].same) == ((False, True), None)
    assert (rows["weights"].same, rows["required_high"].values[1]) == (True, None)


def test_a_ranks_total_is_a_lower_bound(tiny: Path, capsys: Capture) -> None:
    shown = invoke(capsys, "memory", tiny, "--tp", "2", "--lang", "en", "--format", "md")
    assert "Total, at least" in next(table for table in markdown_tables(shown.out) if table[0][0] == "Rank")[0]


# --- what a card must have


def qwen3_8b(**changes: Any) -> MemoryReport:
    return predict(
        inspect("catalog:Qwen/Qwen3-8B"), a_run(prompt_tokens=32_768, new_tokens=128, **changes), course_points=99
    )


def test_the_headline_is_what_a_card_must_have() -> None:
    """Qwen3-8B at 32,768 tokens allocates 23.03 GiB and reserves 24.35: an RTX 4090, of 23.51 GiB, cannot run it."""
    memory, say = qwen3_8b(), Language("en")
    found = memory.predicted
    assert found.required_bytes == (26_140_999_680 + 135 * MIB, 26_140_999_680 + 890 * MIB)
    text = markdown.render(headline(found, say))
    assert "A card must have 24.48 GiB to 25.21 GiB: 24.35 GiB reserved at the peak, of which 23.03 GiB" in text
    table = table_of(memory)
    assert table["Required, small context (135.00 MiB)"][2:] == ["26,282,557,440", "24.48 GiB"]
    assert table["Required, large context (890.00 MiB)"][2:] == ["27,074,232,320", "25.21 GiB"]
    content = footprint_content(found, memory.run, say)
    assert content["required_bytes"] == {"low": 26_282_557_440, "high": 27_074_232_320}
    assert content["total_bytes"] is None  # nobody measured the context
    assert found.course is not None
    picture = memory_plot(memory, found.course, say)
    assert "A card must have 24.48 GiB to 25.21 GiB" in picture
    assert "Allocated at the peak: 23.03 GiB" in picture


def test_a_context_that_was_measured_makes_one_figure() -> None:
    memory = qwen3_8b(calibration=CALIBRATION)
    required = 26_140_999_680 + 300 * MIB
    assert memory.predicted.required_bytes == (required, required)
    assert table_of(memory)["Required"][2:] == [f"{required:,}", "24.64 GiB"]
    assert "24.64 GiB: 24.35 GiB" in markdown.render(headline(memory.predicted, Language("en")))


def test_fit_and_memory_ask_the_same_of_a_card() -> None:
    required = qwen3_8b().predicted.required_bytes
    shown = run("fit", "catalog:Qwen/Qwen3-8B", "--gpu", "4090", "--context", "32k", "--format", "json")
    found = json.loads(shown.out)
    assert (found["low_end"]["required_bytes"], found["required_bytes"]) == required
    assert (shown.code, found["fits"]) == (1, False)


def test_a_report_and_its_summary_begin_with_what_a_card_must_have() -> None:
    shown = run("report", "catalog:Qwen/Qwen3-8B", "--lang", "en").out
    assert "a card must have 24.48 GiB to 25.21 GiB" in shown
    summary = run("report", "catalog:Qwen/Qwen3-8B", "--lang", "en", "--format", "github").out
    assert "Required of a card, prompt of 32,768 tokens" in summary
    assert "24.48 GiB to 25.21 GiB" in summary


def test_a_host_and_a_run_without_a_peak_have_no_such_figure(tiny: Path) -> None:
    report = inspect(str(tiny))
    found: Mapping[str, Footprint] = {
        "host": predict(report, a_run(device="cpu")).predicted,
        "formula": formula_footprint(report.tree, report.cache, GENERATE),
    }
    for footprint in found.values():
        assert footprint.required_bytes is None
        assert headline(footprint, Language("en")) == []
    assert replace(found["host"], peak_reserved=1).required_bytes is not None
