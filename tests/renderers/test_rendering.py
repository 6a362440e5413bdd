"""Tables that align with Chinese, Markdown that hostile names cannot break, JSON that scripts can rely on, true reports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from markdown_it import MarkdownIt
from wcwidth import wcswidth

from qwen_inspect.commands import COMMANDS, WITHOUT_DOCUMENT
from qwen_inspect.fitting.search import fit
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders import gpus
from qwen_inspect.renderers import html, markdown, terminal
from qwen_inspect.renderers import json as json_renderer
from qwen_inspect.renderers.blocks import Answer, Block, Code, Fields, Heading, Items, Node, Paragraph, Table, Tree
from qwen_inspect.renderers.document import View, document
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.structure.inspect import inspect, models

from ..support.models import run
from ..support.schema import assert_keeps_to_the_schema

REPORTS = Path(__file__).parents[2] / "reports"
# compare needs two models (test_compare, test_hubs), memory a run (test_memory), report both languages' files (test_report);
# diagram is a picture (test_diagram).
SHOWN = [command for command in COMMANDS if command not in ("compare", "memory", "report", *WITHOUT_DOCUMENT)]
TABLES = ("models", "gpus")  # of no model
HOSTILE = "a|b<script>`x`*y*\n## z\x1b[31m\u202e[t](http://e) _u_ 层"


def subject_of(command: str, report: Report) -> object:
    """What a command's document is about: a model, or of a few commands something else."""
    match command:
        case "models":
            return models()
        case "gpus":
            return gpus.table()
        case "fit":
            return fit(report, Run(), gpus.table()[:2])
        case _:
            return report


def test_an_answer_stands_above_a_terminals_title_and_below_a_pages() -> None:
    blocks: list[Block] = [Answer(["a|b fits.", "1 GiB\x1b[1m"]), Heading("T", 1), Paragraph("p")]
    assert terminal.render(blocks) == "a|b fits.\n1 GiB\\x1b[1m\n\n=== T ===\n\np\n"
    assert terminal.render_in_colour(blocks).startswith("\x1b[1ma|b fits.")
    assert markdown.render(blocks) == "# T\n\n> **a\\|b fits.**\n> 1 GiB\\\\x1b[1m\n\np\n"
    page = html.render(blocks, Language("en"))
    assert '<div class="answer"><p>a|b fits.</p><p>1 GiB' in page.partition("</h1>")[2]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("command", SHOWN)
def test_every_line_of_a_table_is_as_wide_as_its_border(command: str, language: str) -> None:
    subject = subject_of(command, inspect("Qwen/Qwen1.5-MoE-A2.7B", source="catalog", predict_files=True))
    text = terminal.render(document(command, subject, Language(language), View(explain=True)))
    tables = re.findall(r"(?:^[+|].*\n)+", text, re.MULTILINE)
    assert tables
    for table in tables:
        lines = table.splitlines()
        assert {wcswidth(line) for line in lines} == {len(lines[0])}


@pytest.mark.parametrize("command", [command for command in SHOWN if command not in TABLES])
def test_colour_changes_nothing_but_colour(command: str) -> None:
    report = inspect("Qwen/Qwen3-0.6B", source="catalog", predict_files=True)
    blocks = document(command, subject_of(command, report), Language("zh"), View())
    coloured = terminal.render_in_colour(blocks)
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == [
        line.rstrip() for line in terminal.render(blocks).splitlines()
    ]


BLOCKS: list[Block] = [
    Heading(HOSTILE),
    Paragraph(HOSTILE),
    Fields([(HOSTILE, HOSTILE)]),
    Items([HOSTILE, HOSTILE]),
    Items([HOSTILE], numbered=True),
    Table(["a", "b"], [[HOSTILE, HOSTILE], ["1", "2"]], "lr", totals=1),
    Tree(Node(HOSTILE, HOSTILE, [Node(HOSTILE, "", [])])),
    Code(HOSTILE.replace("\n", " ") + "\n```\nout", "text"),
]


@pytest.mark.parametrize("render", [terminal.render, terminal.render_in_colour, markdown.render])
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: type(block).__name__)
def test_a_hostile_name_sends_no_control_character(block: Any, render: Any) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", render([block])) if render is terminal.render_in_colour else render([block])
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_a_hostile_name_stays_in_its_markdown_cell() -> None:
    lines = markdown.render([BLOCKS[5]]).strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert "<script>" not in lines[2]
    assert "](http" not in lines[2].replace("\\](http", "")


def test_a_code_fence_is_longer_than_any_inside() -> None:
    text = markdown.render([Code("a\n````\nb", "text")])
    assert text.startswith("`````text\n")
    assert text.rstrip().endswith("\n`````")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("http://x.y/z", "http\\://x.y/z"),
        ("HTTPS://x", "HTTPS\\://x"),
        ("www.x.y", "www\\.x.y"),
        ("@name", "@<!-- -->name"),
        ("a@x.y", "a@<!-- -->x.y"),
        ("org/repo#1", "org/repo#<!-- -->1"),
        ("GH-1", "GH-<!-- -->1"),
        ("1.5 GiB, #a, a: b", "1.5 GiB, #a, a: b"),
    ],
)
def test_github_links_nothing_of_a_name(name: str, written: str) -> None:
    assert markdown.escape(name) == written
    shown = MarkdownIt("commonmark").renderInline(markdown.escape(name)).replace("<!-- -->", "")
    assert shown == name  # nothing more is seen of it


def test_names_of_tensors_stay_readable_in_markdown() -> None:
    assert markdown.escape("model.layers.0.self_attn.q_proj.weight") == "model.layers.0.self_attn.q_proj.weight"
    assert markdown.escape("[B, 16, L, 128]") == "[B, 16, L, 128]"
    assert markdown.escape("_u_") == "\\_u\\_"


@pytest.mark.parametrize("command", SHOWN)
def test_every_commands_json_validates(command: str, tiny_qwen3: Path) -> None:
    reports = (
        inspect("Qwen/Qwen3-30B-A3B", source="catalog", predict_files=True, expected_parameters=7),
        inspect(str(tiny_qwen3), instantiate=True),
    )
    for subject in [subject_of(command, report) for report in reports]:
        for language in LANGUAGES:
            content = json.loads(json_renderer.render(command, subject, Language(language)))
            assert_keeps_to_the_schema(content)
            assert content["command"] == command


def test_the_schema_refuses_what_is_not_an_integer() -> None:
    content = json.loads(json_renderer.render("params", inspect(source="catalog"), Language("en")))
    content["parameters"]["theory"] = 596049920.5
    with pytest.raises(jsonschema.ValidationError):
        assert_keeps_to_the_schema(content)


def test_totals_in_json_are_the_sums_of_their_rows() -> None:
    report = inspect("Qwen/Qwen3-30B-A3B", source="catalog", predict_files=True)
    structure = json.loads(json_renderer.render("structure", report, Language("en")))
    assert sum(part["parameters"] for part in structure["components"]) == structure["parameters"]["theory"]
    assert round(sum(part["share"] for part in structure["components"]), 9) == 1
    assert (
        sum(layer["bytes_per_token"] for layer in structure["cache"]["layers"]) == structure["cache"]["bytes_per_token"]
    )
    # Embedding and an output layer of the same size of its own, left out of both sides by the model card: 29.9B.
    assert structure["parameters"]["non_embedding"] == 30_532_122_624 - 2 * 151_936 * 2_048

    def adds_up(node: dict[str, Any]) -> None:
        if node["children"] and node["class"] != "Qwen3MoeExperts":
            assert node["parameters"] == node["repeats"] * sum(child["parameters"] for child in node["children"])
        for child in node["children"]:
            adds_up(child)

    adds_up(structure["tree"])
    weights = json.loads(json_renderer.render("weights", report, Language("en")))
    assert weights["totals"]["elements"] == sum(tensor["elements"] for tensor in weights["tensors"]) == 30_532_122_624
    assert weights["totals"]["bytes"] == sum(tensor["bytes"] for tensor in weights["tensors"]) == 2 * 30_532_122_624


def test_committed_reports_are_what_the_tool_shows() -> None:
    done = subprocess.run(
        [sys.executable, REPORTS / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.structure.*.md")), ids=lambda path: path.name)
def test_totals_in_committed_reports_add_up(path: Path) -> None:
    """Golden files must be true, not merely stable: the statistics are added up again from their text."""
    text = path.read_text(encoding="utf-8")
    total_row = r"^\| \*\*.+?\*\* \| \*\*([\d,]+).*?\*\* \| \*\*100\.00%\*\* \|$"
    tables = [table for table in text.split("\n\n") if re.search(total_row, table, re.MULTILINE)]
    assert len(tables) == 2  # by component, and by place in the model
    for table in tables:
        rows = re.findall(r"^\| ([^*].*?) \| (\d[\d,]*)(?:\D.*?)? \| ([\d.]+)% \|$", table, re.MULTILINE)
        (total,) = re.findall(total_row, table, re.MULTILINE)
        assert len(rows) >= 4
        assert sum(int(row[1].replace(",", "")) for row in rows) == int(total.replace(",", ""))
        assert sum(round(float(row[2]) * 100) for row in rows) == 10_000


def test_reports_in_both_languages_show_the_same_figures() -> None:
    for english in REPORTS.glob("*.en.md"):
        chinese = english.with_name(english.name.replace(".en.", ".zh."))
        figures = [sorted(re.findall(r"\d[\d,]*\d", path.read_text(encoding="utf-8"))) for path in (english, chinese)]
        assert figures[0] == figures[1], english.name


def test_the_command_line_shows_the_same_as_the_library() -> None:
    shown = run("structure", "catalog:Qwen/Qwen3-8B", "--format", "md", "--lang", "zh")
    assert shown.code == 0
    assert shown.out == (REPORTS / "Qwen3-8B.structure.zh.md").read_text(encoding="utf-8")
