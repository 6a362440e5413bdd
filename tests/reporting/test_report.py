"""`report`: one true document a model, the same bytes each time; drift told as figures; expectations that CI can rely on."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.sync_api import Browser
from wcwidth import wcswidth

from qwen_inspect.checkpoint import Checkpoint, ModelRef
from qwen_inspect.errors import QwenInspectError, UsageError
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders import catalog
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.output import write_all_whole
from qwen_inspect.predicting.footprint import formula_footprint
from qwen_inspect.renderers import markdown, record, terminal
from qwen_inspect.renderers.blocks import Heading, Table
from qwen_inspect.renderers.document import View, document
from qwen_inspect.reporting.compiling import compiled, predicted
from qwen_inspect.reporting.documents import files
from qwen_inspect.results.memory import MemoryReport, Run
from qwen_inspect.results.whole import ReportRequest, WholeReport
from qwen_inspect.spec import MoeMlp
from qwen_inspect.structure.inspect import analyse
from qwen_inspect.units import parse_size
from qwen_inspect.values import replace

from ..support.boxes import parsed
from ..support.documents import CUSTOM_MHA
from ..support.hostile import HOSTILE_NAMES, assert_is_safe, markdown_tables
from ..support.invoking import Capture, as_root, invoke, refusal
from ..support.models import TINY_QWEN3, run, write_config
from ..support.pages import opened
from ..support.schema import assert_keeps_to_the_schema

ROOT = Path(__file__).parents[2]
MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B")
QUANTISED = {
    **TINY_QWEN3,
    "hidden_size": 256,
    "intermediate_size": 256,
    "head_dim": 64,
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
}


@lru_cache(maxsize=4)
def compiled_once(model: str) -> WholeReport:
    return compiled(ReportRequest(model=model), Access(offline=True))


def whole_of(model: str, *, language: str = "en", form: str = "md") -> WholeReport:
    """As `report --check` has it of a model in several languages and forms; a page has images of its own."""
    request = ReportRequest(model=model, language=language, form=form)
    return replace(compiled_once(model), request=request) if form != "html" else compiled(request, Access(offline=True))


def content_of(whole: WholeReport) -> dict[str, Any]:
    """The report's JSON, read back."""
    from qwen_inspect.renderers import json as json_renderer

    found = json.loads(json_renderer.render("report", whole, Language("en")))
    assert isinstance(found, dict)
    return found


def by_formula(config: Mapping[str, Any], *, model_id: str = "model") -> WholeReport:
    """The report of a configuration that nobody traced: its memory by formula alone, which takes no torch."""
    report = analyse(Checkpoint(ref=ModelRef(source="local", id=model_id), config=config, tensors=None))
    run_ = Run(
        mode="generate", batch=1, prompt_tokens=64, new_tokens=16, attention="sdpa", loader="warmup", gpu="sm_80"
    )
    memory = MemoryReport(report=report, run=run_, predicted=formula_footprint(report.tree, report.cache, run_))
    request = ReportRequest(model=model_id)
    return WholeReport(
        request=request, name="model", report=report, memory=(memory,), config_sha256="0" * 64, tensors_sha256=None
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written")
    for language in LANGUAGES:
        done = run("report", "catalog:Qwen/Qwen3-0.6B", "--lang", language, "-o", directory)
        assert (done.code, done.out) == (0, "")
    return directory


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A directory with the report of Qwen3-0.6B in both languages, as the command line writes it."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- the document


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_has_the_documents_sections(language: str) -> None:
    text = files(whole_of("catalog:Qwen/Qwen3-30B-A3B", language=language))[f"Qwen3-30B-A3B.{language}.md"]
    expected = {
        "zh": [
            "模型标识与数据来源", "重要发现", "配置解读", "模型架构图", "模型层次结构", "参数量分析", "注意力机制", "KV 缓存分析",
            "显存占用预测", "结论与建议", "如何复现本报告",
        ],
        "en": [
            "Identity and provenance", "Findings", "Configuration explained", "Architecture", "Module tree", "Parameters",
            "Attention", "KV cache", "GPU memory, predicted",
            "Conclusions and advice", "How to reproduce this report",
        ],
    }  # fmt: skip
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == expected[language]
    assert f"](<Qwen3-30B-A3B.{language}.svg>)" in text
    # Model card: 30.5B parameters of which 3.3B are activated.
    assert "30.53B" in text
    assert "3.35B" in text


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for seed in ("1", "2"):
        directory = tmp_path / seed
        done = run(
            "report", "catalog:Qwen/Qwen3-8B", "-o", directory, env={"PYTHONHASHSEED": seed, "TZ": f"UTC+{seed}"}
        )
        assert done.code == 0
        contents.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert contents[0] == contents[1]
    names = ["Qwen3-8B.cache.en.svg", "Qwen3-8B.en.md", "Qwen3-8B.en.md.figures.json", "Qwen3-8B.en.svg"]
    assert sorted(contents[0]) == names


def test_no_path_of_this_machine_is_in_a_report(tmp_path: Path) -> None:
    model = tmp_path / "models" / "tiny"
    write_config(model, {**CUSTOM_MHA})
    inside = run("report", model, "-o", "out", cwd=tmp_path)
    outside = run("report", model, "-o", "out", "--lang", "zh", cwd=model)
    assert (inside.code, outside.code) == (0, 0)
    for path in (*(tmp_path / "out").iterdir(), *(model / "out").iterdir()):
        assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert "models/tiny" in (tmp_path / "out" / "tiny.en.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", MODELS)
def test_every_total_of_the_json_is_the_sum_of_its_rows(model: str) -> None:
    content = content_of(whole_of(f"catalog:{model}", form="json"))
    assert_keeps_to_the_schema(content)
    components = content["components"]
    assert (
        sum(part["parameters"] for part in components)
        == content["parameters"]["theory"]
        == content["tree"]["parameters"]
    )
    assert sum(round(part["share"] * 10_000) for part in components) == 10_000
    cache = content["cache"]
    assert sum(layer["bytes_per_token"] for layer in cache["layers"]) == cache["bytes_per_token"]
    for row in content["cache_by_context"]:  # no window in these three: each token adds the same
        assert row["bytes"] == row["context_tokens"] * row["batch"] * cache["bytes_per_token"]
    assert len(content["memory"]) == 3
    for memory in content["memory"]:
        for moment in memory["predicted"]["moments"].values():
            terms = [value for name, value in moment.items() if name not in ("stage", "allocated_bytes")]
            assert sum(value or 0 for value in terms) == moment["allocated_bytes"]
    for check in content["checks"]:
        assert check["difference"] == check["residual"] + sum(cause["parameters"] for cause in check["causes"])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("model", [f"catalog:{name}" for name in MODELS])
def test_every_total_of_the_markdown_is_the_sum_of_its_rows(model: str, language: str) -> None:
    whole = whole_of(model, language=language)
    text = files(whole)[f"{whole.name}.{language}.md"]
    added = 0
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()]
        shares = [row[-1] for row in rows if re.fullmatch(r"[\d.]+%", row[-1])]
        if shares:
            assert sum(round(float(share[:-1]) * 100) for share in shares) == 10_000
            added += 1
        allocated = f"**{Language(language)('term_allocated')}**"
        if totals := [row for row in rows if row[0] == allocated]:
            for column in range(1, len(rows[0])):
                terms = [row[column] for row in rows[2:] if re.fullmatch(r"[\d,]+", row[column])]
                total = totals[0][column]
                assert sum(int(term.replace(",", "")) for term in terms) == int(total.strip("*").replace(",", ""))
                added += 1
    assert added == 3 + 2 * 3  # shares of all, by place and of a layer; three prompts at the peak and at the end


def test_figures_that_others_published_are_in_the_reports() -> None:
    figures = record.figures(whole_of("catalog:Qwen/Qwen3-0.6B"))
    # Model card and safetensors headers of Qwen/Qwen3-0.6B; the user's documents: 28 layers, 16 / 8 heads of 128.
    assert figures["parameters.theory"] == 596_049_920
    assert figures["parameters.stored_predicted"] == 751_632_384
    assert (figures["attention.query_heads"], figures["attention.kv_heads"], figures["attention.layers"]) == (16, 8, 28)
    assert figures["cache.bytes_per_token"] == 2 * 28 * 8 * 128 * 2
    custom = record.figures(whole_of("reports/Custom-MHA-7.7B/config.json"))
    assert custom["parameters.theory"] == 7_721_988_096  # parameter-memory-report.md, measured
    assert custom["attention.kind"] == "MHA"
    assert custom["cache.bytes_per_token"] == 2 * 32 * 32 * 128 * 2


def test_the_committed_custom_model_is_the_documents() -> None:
    committed = json.loads((ROOT / "reports" / "Custom-MHA-7.7B" / "config.json").read_text(encoding="utf-8"))
    assert CUSTOM_MHA.items() <= committed.items()


def assert_says_nothing_untrue(whole: WholeReport) -> None:
    """Words of a kind stand only where the model is of that kind."""
    report = whole.report
    spec, kinds = report.spec, {layer.kind for layer in report.attention.layers}
    has_head = spec.class_name.endswith("ForCausalLM")
    table = spec.vocab_size * spec.hidden_size
    for language in LANGUAGES:
        say = Language(language)
        text = markdown.render(document("report", whole, say, View()))
        true = {
            r"[Gg]rouped-query attention|分组查询注意力": "GQA" in kinds,
            r"[Mm]ulti-query attention|多查询注意力": "MQA" in kinds,
            r"[Mm]ulti-head attention|标准多头注意力": "MHA" in kinds,
            re.escape(say("field_active")): report.parameters.active != report.parameters.theory,
            re.escape(say("finding_tied", parameters=table)): has_head and spec.tied_embeddings,
            re.escape(say("finding_untied", parameters=table)): has_head and not spec.tied_embeddings,
        }
        if not spec.built:  # the techniques of the others are not told
            true[r"Mixture of experts|混合专家"] = any(isinstance(layer.mlp, MoeMlp) for layer in spec.layers)
        assert {pattern: bool(re.search(pattern, text)) for pattern in true} == true
        assert not re.search(r"\{[a-z_]+\}", text), "a placeholder was left unfilled"


# Hybrids by one of each family, and some of the other families.
TRACED = ("Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-35B-A3B")
HYBRIDS = ("Qwen/Qwen3-Next", "Qwen/Qwen3.5", "Qwen/Qwen3.6", "Qwen/Qwen3.8")
OTHERS = (
    *("google/gemma-3-1b-it", "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mixtral-8x7B-v0.1"),
    "allenai/Olmo-3-7B-Instruct",
)
RELEASED = [
    name
    for name in sorted(catalog.entries())
    if name in (*TRACED, *OTHERS) or (name.startswith("Qwen/") and not name.startswith(HYBRIDS))
]


@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=pytest.mark.exhaustive) if at % 3 else name for at, name in enumerate(RELEASED)],
)
def test_no_sentence_is_untrue_of_a_released_model(model: str) -> None:
    # Without the search for what fits cards, which takes half a second a model.
    assert_says_nothing_untrue(predicted(ReportRequest(model=f"catalog:{model}"), Access(offline=True)))


configurations = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([(1, 1), (4, 4), (4, 2), (4, 1), (16, 16), (32, 8)]),
        "layers": st.integers(1, 5),
        "tied": st.booleans(),
        "moe": st.booleans(),
        "hidden": st.sampled_from([8, 64, 96]),
        "limit": st.sampled_from([16, 512, 40_960]),
    }
)


@settings(max_examples=60, deadline=None)
@given(chosen=configurations)
def test_no_sentence_is_untrue_of_any_model(chosen: Mapping[str, Any]) -> None:
    query, kv = chosen["heads"]
    config = {
        **TINY_QWEN3,
        "num_attention_heads": query,
        "num_key_value_heads": kv,
        "num_hidden_layers": chosen["layers"],
        "max_window_layers": chosen["layers"],
        "tie_word_embeddings": chosen["tied"],
        "hidden_size": chosen["hidden"],
        "max_position_embeddings": chosen["limit"],
    }
    if chosen["moe"]:
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }
    whole = by_formula(config)
    assert_says_nothing_untrue(whole)
    content = content_of(whole)
    assert_keeps_to_the_schema(content)
    assert sum(part["parameters"] for part in content["components"]) == content["parameters"]["theory"]
    assert sum(round(part["share"] * 10_000) for part in content["components"]) == 10_000


def test_chinese_tables_align_in_a_terminal() -> None:
    text = terminal.render(document("report", whole_of("catalog:Qwen/Qwen3-30B-A3B"), Language("zh"), View()))
    tables = re.findall(r"(?:^[+|].*\n)+", text, re.MULTILINE)
    assert len(tables) > 12
    for table in tables:
        assert len({wcswidth(line) for line in table.splitlines()}) == 1


def test_a_peak_that_is_a_range_is_one_in_every_form(tmp_path: Path) -> None:
    write_config(tmp_path / "awq", QUANTISED)
    done = run("report", tmp_path / "awq", "--format", "json")
    assert done.code == 0
    for memory in json.loads(done.out)["memory"]:
        assert memory["predicted"]["moments"]["peak"] is None
        assert memory["predicted"]["peak_reserved_bytes"] is None
        assert memory["predicted"]["peak_range"]["low_bytes"] < memory["predicted"]["peak_range"]["high_bytes"]
    text = run("report", tmp_path / "awq").out
    assert "a card must have" in text
    assert "(a range)" in text
    assert "the peak is a range, for its kernels were not traced" in text


def test_html_is_the_same_document() -> None:
    whole = whole_of("catalog:Qwen/Qwen3-8B", form="html", language="zh")
    written = files(whole)
    assert sorted(written) == ["Qwen3-8B.zh.html", "Qwen3-8B.zh.html.figures.json"]
    page = written["Qwen3-8B.zh.html"]
    for block in document("report", whole, Language("zh"), View()):
        if isinstance(block, Heading):
            assert block.text in page
        if isinstance(block, Table):
            rows = [cell for row in block.rows for cell in row if cell.replace(",", "").isdigit()]
            assert all(cell in page for cell in rows)
    assert page == files(whole)["Qwen3-8B.zh.html"]


def test_markdown_on_stdout_points_to_no_file_that_is_not_there() -> None:
    done = run("report", "catalog:Qwen/Qwen3-8B")
    assert done.code == 0
    assert "8,190,735,360" in done.out
    assert "![" not in done.out


# --- hostile names


# A third of them; the others are in `make exhaustive`, and each is in the tables of every command (tests/renderers).
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % 3 == 0 else pytest.mark.exhaustive)
        for number, name in enumerate(["长" * 80, "-rf", "...", *HOSTILE_NAMES])
    ],
)
def test_a_hostile_name_stays_a_name(
    name: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not name or "\0" in name or "/" in name or len(name.encode("utf-8", "surrogateescape")) > 255:
        pytest.skip("no directory can be called so")
    write_config(tmp_path / name, {**CUSTOM_MHA, "num_hidden_layers": 2})
    monkeypatch.chdir(tmp_path)
    language = list(LANGUAGES)[len(name) % 2]
    done = invoke(capsys, "report", f"./{name}", "--lang", language, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 4  # the document, two pictures, the record
    for path in written:
        assert re.fullmatch(r"[\w.-]+", path.name)
        assert not path.name.startswith((".", "-"))
        text = path.read_text(encoding="utf-8")
        assert_is_safe(text.replace("\n", " "))
        if path.suffix == ".svg":
            parsed(text)
        elif path.suffix == ".md":
            assert all(len({len(row) for row in table}) == 1 for table in markdown_tables(text))
            page = MarkdownIt("commonmark").enable("table").render(text)
            assert not re.search(r"<(script|img(?! src=)|a )", page)
            assert page.count("<img") == 2
    (command,) = re.findall(r"```sh\n(.*)\n```", next(tmp_path.glob("out/*.md")).read_text(encoding="utf-8"))
    script = f'set -- {command}; printf %s "$3"'
    read = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert read.stdout.decode() == f"./{name}"


# --- committed reports


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_what_was_just_written_agrees(saved: Path) -> None:
    for model in ([], ["catalog:Qwen/Qwen3-0.6B"]):
        done = run("report", *model, "--check", "-o", saved)
        assert (done.code, done.err) == (0, "")
        assert "Qwen3-0.6B.en.md: every figure is unchanged" in done.out


def test_drift_is_told_as_figures(tmp_path: Path) -> None:
    config = dict(CUSTOM_MHA)
    write_config(tmp_path / "model", config)
    assert run("report", "model", "-o", "out", cwd=tmp_path).code == 0
    write_config(tmp_path / "model", {**config, "num_key_value_heads": 8})
    done = run("report", "--check", "-o", "out", cwd=tmp_path)
    assert done.code == 1
    rows = {
        cells[0]: cells[1:]
        for line in done.out.splitlines()
        if line.startswith("|")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert rows["config.num_key_value_heads"] == ["32", "8"]
    # K and V projections of 32 layers shrink from 4096 x 4096 to 4096 x 1024.
    assert rows["parameters.theory"] == ["7,721,988,096", f"{7_721_988_096 - 32 * 2 * 4096 * 3072:,}"]
    assert rows["attention.kind"] == ["MHA", "GQA"]
    assert rows["cache.bytes_per_token"] == ["524,288", "131,072"]
    assert "more" in done.out  # long lists are cut
    assert run("report", "--update", "-o", "out", cwd=tmp_path).code == 0
    assert run("report", "--check", "-o", "out", cwd=tmp_path).code == 0


@pytest.mark.parametrize("file", [pytest.param("Qwen3-0.6B.zh.md", marks=pytest.mark.exhaustive), "Qwen3-0.6B.zh.svg"])
def test_a_report_edited_by_hand_is_told_and_rewritten(file: str, saved: Path) -> None:
    before = (saved / file).read_bytes()
    change(saved / file, "596", "597")
    done = run("report", "--check", "-o", saved)
    assert done.code == 1
    assert f"{file} was edited by hand" in done.out
    assert "Qwen3-0.6B.en.md: every figure" in done.out
    assert run("report", "--update", "-o", saved).code == 0
    assert (saved / file).read_bytes() == before


def test_a_missing_report_is_told_and_written(saved: Path) -> None:
    (saved / "Qwen3-0.6B.en.md").unlink()
    done = run("report", "--check", "-o", saved)
    assert (done.code, "Qwen3-0.6B.en.md is missing" in done.out) == (1, True)
    assert run("report", "--update", "-o", saved).code == 0
    assert run("report", "--check", "-o", saved).code == 0


def only_english(saved: Path) -> None:
    """Without the reports in Chinese, which would be checked too each time."""
    for path in saved.glob("*.zh.*"):
        path.unlink()


def test_a_record_of_another_version_or_none_is_told(saved: Path, capsys: Capture) -> None:
    only_english(saved)
    for record_text, told, model in (
        ('{"report_format": 99}', "version 99", ("catalog:Qwen/Qwen3-0.6B", "--lang", "en")),
        ("{", "no readable record", ()),
        ("[]", "no readable record", ()),
        ("", "no readable record", ()),
        ("[" * 100_000, "no readable record", ()),
        (
            '{"report_format": 1, "request": {"model": 1}}',
            "no readable record",
            ("catalog:Qwen/Qwen3-0.6B", "--lang", "en"),
        ),
    ):
        (saved / "Qwen3-0.6B.en.md.figures.json").write_text(record_text, encoding="utf-8")
        done = invoke(capsys, "report", *model, "--check", "-o", saved)
        assert (done.code, told in done.out) == (1, True), record_text[:50]
    assert invoke(capsys, "report", "catalog:Qwen/Qwen3-0.6B", "--update", "-o", saved).code == 0
    assert invoke(capsys, "report", "--check", "-o", saved).code == 0


def test_a_report_of_other_words_but_the_same_figures_is_no_drift(saved: Path) -> None:
    """What an older version of the tool wrote: its text and digests are its own, its figures still true."""
    document_path, record_path = saved / "Qwen3-0.6B.en.md", saved / "Qwen3-0.6B.en.md.figures.json"
    before = hashlib.sha256(document_path.read_bytes()).hexdigest()
    change(document_path, "How to reproduce this report", "Reproduction")
    change(record_path, before, hashlib.sha256(document_path.read_bytes()).hexdigest())
    done = run("report", "--check", "-o", saved)
    assert done.code == 0
    assert "all figures agree, but this tool words or draws it otherwise" in done.out


def test_a_renamed_report_is_told(saved: Path) -> None:
    for name in ("Qwen3-0.6B.en.md", "Qwen3-0.6B.en.md.figures.json"):
        (saved / name).rename(saved / name.replace("0.6B", "0.7B"))
    done = run("report", "--check", "-o", saved)
    assert (done.code, "is no longer the name of this report" in done.out) == (1, True)


def test_what_a_record_asks_for_is_checked(saved: Path, capsys: Capture) -> None:
    only_english(saved)
    path = saved / "Qwen3-0.6B.en.md.figures.json"
    sound = json.loads(path.read_text(encoding="utf-8"))
    for key, value in (
        ("batch", 0), ("batch", True), ("batch", 10**30), ("language", "../x"), ("form", "sh"), ("source", "ftp"),
        ("model", None),
        ("context_tokens", "8k"), ("instantiate", 1), ("extra", 1),
    ):  # fmt: skip
        path.write_text(json.dumps({**sound, "request": {**sound["request"], key: value}}), encoding="utf-8")
        done = invoke(capsys, "report", "--check", "-o", saved)
        assert (done.code, "no readable record" in done.out) == (1, True), key


# --- expectations


def test_expectations_that_hold_say_nothing_and_exit_0(capsys: Capture) -> None:
    done = invoke(
        capsys, "report", "catalog:Qwen/Qwen3-0.6B", "--expect-params", "596049920", "--expect-attention", "gqa",
        "--max-vram", "16GiB", "--context", "8k",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--expect-params", "751632384", "Qwen/Qwen3-0.6B has 596,049,920 parameters, not 751,632,384\n"),
        ("--expect-attention", "mha", "Qwen/Qwen3-0.6B uses GQA, not MHA\n"),
    ],
)
def test_an_expectation_that_fails_is_one_sentence_and_exit_1(
    option: str, value: str, sentence: str, capsys: Capture
) -> None:
    done = invoke(capsys, "report", "catalog:Qwen/Qwen3-0.6B", option, value, "--lang", "en")
    assert (done.code, done.err) == (1, sentence)


def test_memory_is_held_against_its_limit_to_the_byte(capsys: Capture) -> None:
    """The limit is what the allocator reserves; what `memory` predicts for the same run decides."""
    words = ("catalog:Qwen/Qwen3-8B", "--context", "8k")
    predicted = json.loads(run("memory", *words, "--format", "json").out)["predicted"]["peak_reserved_bytes"]
    for limit, code in ((predicted, 0), (predicted - 1, 1)):
        done = invoke(capsys, "report", *words, "--max-vram", f"{limit}B", "--lang", "en")
        assert done.code == code
        assert ("8,192 tokens in" in done.err) == (code == 1)


def test_a_range_that_a_limit_is_in_fails_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path / "awq", QUANTISED)
    words = ("report", tmp_path / "awq", "--context", "64", "--lang", "en")
    between = json.loads(run("memory", tmp_path / "awq", "--context", "64", "--format", "json").out)["predicted"][
        "required_bytes"
    ]
    limit = between["low"] - 130 * 2**20 + 1  # one more than is reserved at least
    done = invoke(capsys, *words, "--max-vram", f"{limit}B")
    assert done.code == 1
    assert re.fullmatch(r"cannot tell whether awq stays within \d+B: .* reserved at its peak .*\n", done.err)
    assert invoke(capsys, *words, "--max-vram", "16GiB").code == 0


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("16GiB", 16 << 30), ("24GB", 24_000_000_000), ("15.5 GiB", 16_642_998_272), ("1b", 1), ("0.5KiB", 512)],
)
def test_a_size_is_read_with_its_unit(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["16", "16G", "GiB", "-1GiB", "0GiB", "1e3GiB", "１６GiB", " ", "0.1B", "16GiBs"])
def test_a_size_without_a_sound_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_size(text)


# --- CI


def test_the_summary_is_short_markdown_with_drift_and_expectations(saved: Path, capsys: Capture) -> None:
    change(saved / "Qwen3-0.6B.en.md.figures.json", '"parameters.theory": 596049920', '"parameters.theory": 596049921')
    done = invoke(
        capsys, "report", "--check", "-o", saved, "--format", "github", "--expect-attention", "mha", "--lang", "en"
    )
    assert done.code == 1
    assert len(done.out.splitlines()) < 60
    tables = markdown_tables(done.out)
    assert ["parameters.theory", "596,049,921", "596,049,920"] in [row for table in tables for row in table]
    assert ["Qwen/Qwen3-0.6B uses GQA, not MHA", "✗ fails"] in [row for table in tables for row in table]
    assert done.out.count("## Qwen/Qwen3-0.6B") == 1


def test_the_hook_is_what_pre_commit_requires_and_runs(saved: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert {"id", "name", "entry", "language"} <= set(hook)  # pre-commit 4, clientlib.MANIFEST_HOOK_DICT
    assert hook["language"] == "python"
    assert hook["pass_filenames"] is False
    program, *words = shlex.split(hook["entry"])
    assert program == "qwen-inspect"
    assert run(*words, "-o", saved).code == 0
    change(saved / "Qwen3-0.6B.zh.md", "596", "597")
    assert run(*words, "-o", saved).code == 1
    assert hook["args"] == ["-o", "reports"]


def test_the_workflow_and_the_lines_to_copy_are_yaml_with_commands_that_exist(written: Path, tmp_path: Path) -> None:
    """In a repository with reports of one model."""
    shutil.copytree(written, tmp_path / "reports")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "reports.yml").read_text(encoding="utf-8"))
    copied = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "reports-and-ci.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert copied
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for text in copied:
        found = yaml.safe_load(text)
        if "jobs" in found:
            steps += [step for job in found["jobs"].values() for step in job["steps"]]
    commands = [line for step in steps for line in step.get("run", "").splitlines() if "qwen-inspect report" in line]
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command.partition(">>")[0])
        done = run(*words[words.index("report") :], cwd=tmp_path)
        assert (done.code, done.err) == (0, ""), command


@pytest.mark.exhaustive  # that they are what the tool shows is tested with all others
def test_the_committed_reports_agree_with_the_tool() -> None:
    done = run("report", "--check", "-o", "reports", cwd=ROOT)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("every figure is unchanged") == 8


# --- bad input


@pytest.mark.parametrize(
    "words", [["--check"], ["--update"], ["--max-vram", "16"], ["--format", "table"], ["--expect-attention", "x"]]
)
def test_a_wrong_option_is_a_usage_error(words: list[str], capsys: Capture) -> None:
    done = invoke(capsys, "report", "catalog:Qwen/Qwen3-0.6B", *words, "--lang", "en")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_file_in_place_of_the_directory_is_a_usage_error(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "file"
    path.write_text("kept", encoding="utf-8")
    for words in (["catalog:Qwen/Qwen3-0.6B"], ["catalog:Qwen/Qwen3-0.6B", "--update"], ["--check"]):
        assert "is not a directory" in refusal(capsys, 2, "report", *words, "-o", path)
    assert path.read_text(encoding="utf-8") == "kept"


def test_a_directory_without_reports_has_nothing_to_check(tmp_path: Path, capsys: Capture) -> None:
    assert "holds no report" in refusal(capsys, 3, "report", "--check", "-o", tmp_path)
    assert "is not there" in refusal(capsys, 2, "report", "--check", "-o", tmp_path / "none")


@as_root
def test_an_unwritable_directory_is_a_usage_error(tmp_path: Path, capsys: Capture) -> None:
    tmp_path.chmod(0o500)
    refusal(capsys, 2, "report", "catalog:Qwen/Qwen3-0.6B", "-o", tmp_path)
    refusal(capsys, 2, "report", "catalog:Qwen/Qwen3-0.6B", "-o", tmp_path / "below")


def test_a_directory_that_cannot_be_made_is_a_usage_error(capsys: Capture) -> None:
    refusal(capsys, 2, "report", "catalog:Qwen/Qwen3-0.6B", "-o", "/proc/nowhere/reports")


def test_existing_reports_are_replaced_only_when_asked(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    (saved / "Qwen3-0.6B.en.md").write_text("mine", encoding="utf-8")
    words = ("report", "catalog:Qwen/Qwen3-0.6B", "-o", saved)
    done = run(*words)
    assert (done.code, (saved / "Qwen3-0.6B.en.md").read_text(encoding="utf-8")) == (2, "mine")
    assert run(*words, "--overwrite").code == 0
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_where_one_file_cannot_be_written_none_is(tmp_path: Path) -> None:
    contents: dict[str, str | bytes] = {str(tmp_path / "a"): "a", str(tmp_path / "none" / "b"): "b"}
    with pytest.raises(UsageError):
        write_all_whole(contents, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_known_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "model_type": "other"})
    with pytest.raises(QwenInspectError) as refused:
        whole_of(str(tmp_path))
    assert refused.value.exit_code == 7


def test_a_check_without_a_reader_ends_quietly(saved: Path) -> None:
    command = [sys.executable, "-m", "qwen_inspect", "report", "--check", "-o", str(saved)]
    done = subprocess.run(["bash", "-c", '"$@" | true', "bash", *command], capture_output=True, check=False, timeout=60)
    assert done.stderr == b""


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_a_report_has_its_live_parts(browser: Browser, tmp_path: Path, language: str) -> None:
    """Sliders that work, the map of parameters, the figure, a tree and every tensor, in one file that asks for nothing else."""
    out = tmp_path / "out"
    shown = run("report", "catalog:Qwen/Qwen3-0.6B", "-o", out, "--format", "html", "--lang", language)
    assert shown.code == 0, shown.err
    with opened(browser, out / f"Qwen3-0.6B.{language}.html") as page:
        page.wait_for_function("() => document.querySelector('.explorer').dataset.drawn")
        before = page.locator(".explorer").inner_text()
        page.locator(".explorer input[type=range]").first.focus()
        page.keyboard.press("End")
        page.wait_for_function("was => document.querySelector('.explorer').innerText !== was", arg=before)
        assert page.locator("svg").count() >= 2
        page.locator("input[type=search]").last.fill("layers.27.mlp.down_proj")
        page.get_by_text("model.layers.27.mlp.down_proj.weight").first.wait_for()
