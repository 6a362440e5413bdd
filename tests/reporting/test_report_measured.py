"""`report --measured`: what a run on a device showed, in the report of its model, in either language, and held by --check."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders.kept_measurement import CAUSES, DIFFERENCES
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.measuring import differences
from qwen_inspect.measuring.measure import Request, measured
from qwen_inspect.renderers.json import render
from qwen_inspect.results.memory import RARE_TERMS, TERMS, Run
from qwen_inspect.structure.inspect import inspect

from ..support.families import FAMILIES
from ..support.hostile import markdown_tables
from ..support.invoking import Capture, invoke, refusal
from ..support.real_runs import real_model
from ..support.schema import assert_keeps_to_the_schema


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "tiny"
    real_model(FAMILIES["qwen3"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def told(model: Path) -> str:
    """What `memory --device cpu --format json` writes, in Chinese."""
    workload = Run(prompt_tokens=16, new_tokens=3, gpu="")
    return render("memory", measured(inspect(str(model)), workload, Request(device="cpu"), Access()), Language("zh"))


@pytest.fixture
def kept(told: str, tmp_path: Path) -> Path:
    file = tmp_path / "measured.json"
    file.write_text(told)
    return file


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_shows_what_was_measured_beside_the_prediction(
    language: str, model: Path, kept: Path, tmp_path: Path, capsys: Capture
) -> None:
    reports = tmp_path / "reports"
    assert invoke(capsys, "report", model, "--measured", kept, "--lang", language, "-o", reports).code == 0
    (document,) = reports.glob("*.md")
    text = document.read_text()
    assert {"en": "## GPU memory, measured", "zh": "## 显存占用实测"}[language] in text
    found = json.loads(kept.read_text())
    shown = [
        row for table in markdown_tables(text) for row in table if len(row) == 6 and row[0] in _terms(found, language)
    ]
    expected = {
        _term(one["term"], language): [one["predicted"], one["measured"], one["difference"], one["residual"]]
        for one in found["differences"]
        if one["predicted"] or one["measured"]
    }
    assert {row[0]: [_number(row[index]) for index in (1, 2, 3, 5)] for row in shown} == expected
    for one in found["differences"]:
        for cause in one["causes"]:
            assert f"{cause['bytes']:+,}" in text  # each cause, told in the report's own language
    assert invoke(capsys, "report", "--check", "-o", reports).code == 0


def _term(name: str, language: str) -> str:
    return Language(language)(f"term_{name}")


def _terms(found: dict[str, Any], language: str) -> set[str]:
    return {_term(one["term"], language) for one in found["differences"]}


def _number(cell: str) -> int:
    return int(cell.replace(",", "").replace("+", ""))


def test_the_json_of_a_report_has_the_measurement_and_fits_the_schema(model: Path, kept: Path, capsys: Capture) -> None:
    done = invoke(capsys, "report", model, "--measured", kept, "--format", "json")
    content = json.loads(done.out)
    assert_keeps_to_the_schema(content)
    (one,) = content["measured"]
    was = json.loads(kept.read_text())
    assert [(row["term"], row["measured"]) for row in one["differences"]] == [
        (row["term"], row["measured"]) for row in was["differences"]
    ]


def test_another_measurement_than_the_committed_one_is_drift(
    model: Path, kept: Path, tmp_path: Path, capsys: Capture
) -> None:
    reports = tmp_path / "reports"
    invoke(capsys, "report", model, "--measured", kept, "-o", reports)
    found = json.loads(kept.read_text())
    weights = next(one for one in found["differences"] if one["term"] == "weights")
    was, weights["measured"] = weights["measured"], weights["measured"] + 512
    kept.write_text(json.dumps(found))
    done = invoke(capsys, "report", "--check", "-o", reports)
    assert done.code == 1
    for part in ("weights.measured_bytes", f"{was:,}", f"{was + 512:,}"):
        assert part in done.out


def test_a_measurement_of_another_model_is_refused(kept: Path, tmp_path: Path, capsys: Capture) -> None:
    sentence = refusal(capsys, 2, "report", "catalog:Qwen/Qwen3-0.6B", "--measured", kept, "-o", tmp_path / "reports")
    assert "Qwen3ForCausalLM" in sentence
    assert "1,192,099,840" in sentence  # 596,049,920 parameters of 2 bytes
    assert not (tmp_path / "reports").exists()


def _without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        inner = found
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]

    return change


def _with(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        inner = found
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without("workload"),
        _without("measured", "versions"),
        _with(None, "measured"),
        _with("weights", "command"),
        _with(1 << 80, "differences", 0, "measured"),
        _with(0.5, "differences", 0, "predicted"),
        _with(True, "workload", "batch"),
        _with(-1, "workload", "batch"),
        _with("dream", "workload", "mode"),
        _with("all at once", "workload", "load"),
        _with("everything", "differences", 0, "term"),
        _with([{"key": "help_help", "values": {}, "bytes": 1}], "differences", 0, "causes"),
        _with([{"key": "cause_kept", "values": {"operator": "x"}, "bytes": 1}], "differences", 0, "causes"),
        _with([{"key": "cause_other_moment", "values": {"stage": "error"}, "bytes": 1}], "differences", 0, "causes"),
        _with("x" * 1000, "measured", "device"),
        _with([], "model"),
    ],
)
def test_a_file_that_the_tool_does_not_write_is_refused(
    change: Callable[[dict[str, Any]], None], model: Path, kept: Path, tmp_path: Path, capsys: Capture
) -> None:
    found = json.loads(kept.read_text())
    change(found)
    kept.write_text(json.dumps(found))
    sentence = refusal(capsys, 6, "report", model, "--measured", kept, "-o", tmp_path / "reports")
    assert str(kept) in sentence
    assert not (tmp_path / "reports").exists()


def test_a_file_that_is_not_there_is_refused(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "nothing.json" in refusal(capsys, 3, "report", model, "--measured", tmp_path / "nothing.json")


def test_hostile_words_of_a_measurement_stay_words(model: Path, kept: Path, capsys: Capture) -> None:
    found = json.loads(kept.read_text())
    found["measured"]["device"] = "<script>alert(1)</script>|`x`\x1b[31m"
    kept.write_text(json.dumps(found))
    done = invoke(capsys, "report", model, "--measured", kept, "--format", "html")
    assert done.code == 0
    assert "<script>alert(1)" not in done.out
    assert "\x1b" not in done.out


def test_every_cause_that_a_measurement_can_have_is_read_again() -> None:
    text = Path(differences.__file__).read_text()
    assert set(re.findall(r'"(cause_\w+)"', text)) == set(CAUSES)


def test_every_term_of_a_difference_is_read_again(told: str) -> None:
    assert {one["term"] for one in json.loads(told)["differences"]} == {*DIFFERENCES} - {*RARE_TERMS}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_measurement_of_adapters_is_read_again_and_shown(
    language: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Rank 4 beside q_proj (64 by 64) of two layers: A and B, 4 x (64 + 64) numbers of float32 each time."""
    workload = Run(mode="train", prompt_tokens=16, gpu="", lora_rank=4, lora_targets=("q_proj",))
    told = render(
        "memory", measured(inspect(str(model)), workload, Request(device="cpu"), Access()), Language(language)
    )
    file = tmp_path / "lora.json"
    file.write_text(told)
    found = {one["term"]: one for one in json.loads(told)["differences"]}
    assert sum(found[term]["measured"] for term in found if term in TERMS) == found["steady_allocated"]["measured"]
    done = invoke(capsys, "report", model, "--measured", file, "--lang", language)
    assert done.code == 0
    (row,) = (row for table in markdown_tables(done.out) for row in table if row[0] == _term("adapters", language))
    assert [_number(row[index]) for index in (1, 2, 3)] == [4096, 4096, 0]
