"""Input that is nearly right: what to type instead is said, and what can only mean one thing is taken for it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from qwen_inspect.cli import NO_MODEL
from qwen_inspect.commands import COMMANDS, parsed, parser
from qwen_inspect.language import LANGUAGES, Language, all_texts
from qwen_inspect.loaders import catalog
from qwen_inspect.options import help as pages
from qwen_inspect.options.model import named
from qwen_inspect.options.parser import PROGRAM
from qwen_inspect.options.prediction import dtype_of, say_dtype

from ..support.invoking import Capture, assert_is_one_error_line, invoke, refusal
from ..support.models import TINY_QWEN3, write_config

ENGLISH = Language("en")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("strucutre", "did you mean structure?"),
        ("mem Qwen/Qwen3-8B", "did you mean memory?"),
        ("-q strucutre", "did you mean structure?"),
        ("gpu", "did you mean gpus?"),
        ("Qwen/Qwen3-8B", "qwen-inspect structure Qwen/Qwen3-8B"),
        ("colours", "qwen-inspect --help"),
        ("structure --conext 32k", "did you mean --context?"),
        ("structure --exp", "did you mean --expand"),
        ("memory --new_tokens 5", "did you mean --new-tokens?"),
        ("structure --gpu 4090", "memory, fit, compare"),
        ("memory --model-id Qwen/Qwen3-8B", "qwen-inspect memory Qwen/Qwen3-8B"),
        ("structure -z", "qwen-inspect structure --help-all"),
        ("--quite structure", "did you mean --quiet?"),
        ("structure --format jsn", "did you mean json?"),
        ("weights --sort sizes", "did you mean size?"),
        ("memory --dtype awq-int5", "did you mean awq-int4"),
        ("structure --context", "--context TOKENS"),
        ("memory --mode", "--mode generate|forward|train"),
        ("structure --offline=yes", "leave out"),
        ("structure catalog:Qwen/Qwen3-0.6B more", "the further argument more"),
        ("memory --zero-stage two", "two is not a positive whole number"),
        ("compare", "two"),
    ],
)
def test_a_slip_is_answered_in_one_line_with_what_to_type(words: str, advice: str, capsys: Capture) -> None:
    for language in reversed(LANGUAGES):
        done = invoke(capsys, "--lang", language, *words.split())
        assert (done.code, done.out) == (2, "")
        assert_is_one_error_line(done.err, language)
        assert re.search("[\u4e00-\u9fff]", done.err) is not None or language == "en"
    assert advice in done.err


def test_without_a_command_the_short_help_is_shown(capsys: Capture) -> None:
    for language, heading in (("en", "usage: qwen-inspect COMMAND"), ("zh", "用法：qwen-inspect 命令")):
        done = invoke(capsys, "--lang", language)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(heading)
        assert all(f"\n  {command} " in done.err for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        "--lang zh structure --format json -q",
        "structure --lang zh --format json -q",
        "-q --format json structure --lang zh",
        "-q --format=json --lang=zh structure",
        "--format JSON --offline -q --lang ZH structure catalog:Qwen/Qwen3-0.6B",
        "-q --depth 2 --format json --lang zh structure",
    ],
)
def test_options_may_stand_before_the_command(words: str, capsys: Capture) -> None:
    done = invoke(capsys, *words.split())
    assert (done.code, done.err) == (0, "")
    assert "内置模型清单" in json.loads(done.out)["model"]["notices"][0]


def test_a_file_may_be_called_as_a_command_is() -> None:
    options = parsed(["-o", "report", "structure", "memory"], ENGLISH)
    assert (options.command, options.output, options.model) == ("structure", "report", "memory")


@pytest.mark.parametrize(
    ("typed", "dtype"),
    [
        *[(name, "bfloat16") for name in ("bf16", "BF16", "bfloat16", "BFloat16", "torch.bfloat16")],
        *[(name, "float16") for name in ("fp16", "f16", "half", "Half", "FLOAT16")],
        *[(name, "float32") for name in ("fp32", "f32", "float", "single")],
        ("double", "float64"),
        ("FP8", "fp8"),
        ("fp8_e4m3", "fp8"),
        ("AWQ-int4", "awq-int4"),
        # What transformers quantises to as it loads: BitsAndBytesConfig's load_in_8bit and load_in_4bit.
        ("int8", "bnb-int8"),
        ("int4", "bnb-nf4"),
    ],
)
def test_a_dtype_is_known_by_its_usual_names(typed: str, dtype: str) -> None:
    for command in ("memory", "fit", "compare"):
        assert dtype_of(parsed([command, "--dtype", typed], ENGLISH)) == dtype


def test_every_option_of_a_number_format_takes_the_usual_names() -> None:
    assert parsed(["structure", "--dtype", "Half"], ENGLISH).dtype == "float16"
    assert parsed(["memory", "--autocast", "BF16"], ENGLISH).autocast == "bfloat16"
    assert parsed(["attention", "--cache-dtype", "FP16,Int8"], ENGLISH).cache_dtype == "float16,int8"
    assert parsed(["fit", "--cache-dtype", "fp8_e4m3"], ENGLISH).cache_dtype == "fp8"
    assert parsed(["fit", "--cache-type-k", "F16", "--cache-type-v", "Q8_0"], ENGLISH).cache_type_k == "float16"


def test_which_scheme_int4_was_taken_for_is_said(capsys: Capture) -> None:
    for words in ("--dtype int4", "--dtype bnb-nf4", "--dtype int4 -q"):
        say_dtype(parsed(["memory", *words.split()], ENGLISH), ENGLISH)
    said = capsys.readouterr().err
    assert said.startswith("--dtype int4 is taken for bnb-nf4; ")
    assert said.count("\n") == 1


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    ["Qwen3-8B", "qwen3-8b", "QWEN3 8B", "qwen/qwen3-8b", "Qwen/qwen3_8B", "catalog:qwen3-8b", "catalog:qwen/Qwen3-8B"],
)
def test_a_name_that_can_mean_one_model_alone_is_taken_for_it(typed: str, capsys: Capture) -> None:
    done = invoke(capsys, "config", typed, "--offline", "--format", "json", "--lang", "en")
    model = json.loads(done.out)["model"]
    assert (done.code, model["id"]) == (0, "Qwen/Qwen3-8B")
    assert model["notices"][0] == f"{typed.removeprefix('catalog:')} is taken for Qwen/Qwen3-8B"


def test_a_name_is_taken_for_no_other_where_it_pins_more() -> None:
    options = parsed(["config"], ENGLISH)
    for typed, name in (
        ("hf:qwen/qwen3-8b@main", "hf:Qwen/Qwen3-8B@main"),
        ("ms:Qwen3-8B", "ms:Qwen/Qwen3-8B"),
        ("qwen/qwen3-8b:Q4_K_M", "Qwen/Qwen3-8B:Q4_K_M"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("someone/Qwen3-8B", "someone/Qwen3-8B"),
        ("Qwen3-235B", "Qwen3-235B"),
    ):
        assert named(typed, options)[0] == name


def test_every_model_of_the_catalog_is_known_by_its_bare_name() -> None:
    for name in catalog.entries():
        assert catalog.meant(name.partition("/")[2].upper()) == name


def test_a_name_that_several_models_begin_with_lists_them(capsys: Capture) -> None:
    line = refusal(capsys, 3, "structure", "Qwen3-235B")
    assert "Qwen/Qwen3-235B-A22B, Qwen/Qwen3-235B-A22B-Instruct-2507, Qwen/Qwen3-235B-A22B-Thinking-2507" in line


def test_the_errors_of_a_model_that_is_nowhere_exist() -> None:
    assert set(all_texts("en")) >= NO_MODEL


def test_a_path_goes_before_a_name(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "qwen3-8b", TINY_QWEN3)
    monkeypatch.chdir(tmp_path)
    done = invoke(capsys, "config", "qwen3-8b", "--format", "json")
    assert json.loads(done.out)["model"]["id"] == "qwen3-8b"


def test_this_folder_is_called_by_its_name(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "my-model", TINY_QWEN3)
    (tmp_path / "my-model" / "below").mkdir()
    for directory, typed in (("my-model", "."), ("my-model", "./"), ("my-model/below", "..")):
        monkeypatch.chdir(tmp_path / directory)
        assert json.loads(invoke(capsys, "structure", typed, "--format", "json").out)["model"]["id"] == "my-model"
        assert re.search(r"my-model\b", invoke(capsys, "config", typed, "--format", "md", "--lang", "en").out)


@pytest.mark.parametrize(
    ("files", "call"),
    [
        (["config.json"], "qwen-inspect structure ."),
        (["a b-Q4_K_M.gguf"], "qwen-inspect structure 'a b-Q4_K_M.gguf'"),
        (["model.safetensors"], "qwen-inspect structure model.safetensors"),
        (["one.gguf", "two.gguf"], None),
        (["package.json"], None),
    ],
)
def test_a_model_in_this_folder_is_noticed(
    files: list[str], call: str | None, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).write_text(json.dumps(dict(TINY_QWEN3)))
    monkeypatch.chdir(tmp_path)
    done = invoke(capsys, "structure", "--format", "json", "--lang", "en")
    model = json.loads(done.out)["model"]
    assert model["id"] == "Qwen/Qwen3-0.6B"
    assert [notice for notice in model["notices"] if "lies in this folder" in notice] == (
        [f"catalog:Qwen/Qwen3-0.6B is shown; a model lies in this folder, for which type: {call}"] if call else []
    )


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(command: str, language: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    say = Language(language)
    for whole in (False, True):
        page = pages.page(parser(command, say), COMMANDS, say, whole=whole)
        for line in page.splitlines():
            # A name of an option with its choices is never broken.
            assert columns_of(line) <= columns or re.match(r"  --\S+ \S+$", line), line
        assert whole or page.count("\n") <= 42  # about one screen


def columns_of(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_has_every_option_in_one_group(command: str) -> None:
    grouped = [name for names in pages.GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    named = {pages.key(action) for action in parser(command, ENGLISH).actions}
    assert named - set(grouped) == set()
    assert set(pages.OFTEN.get(command, ())) - named == set()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_examples_of_the_help_are_taken(command: str) -> None:
    lines = [line for line in pages.examples(command) if line.startswith(PROGRAM)]
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert parsed(shlex.split(line)[1:], ENGLISH).command in (command or COMMANDS)


def test_help_in_chinese_has_no_english_heading(capsys: Capture) -> None:
    for words in (["--help"], ["fit", "--help-all"], ["compare", "--help"]):
        headings = re.findall("^\\S.*$", invoke(capsys, *words, "--lang", "zh").out, re.MULTILINE)
        assert [line for line in headings if not re.search("[\u4e00-\u9fff]", line)] == []


def test_help_is_shown_whatever_else_is_wrong(capsys: Capture) -> None:
    done = invoke(capsys, "memory", "--conext", "--help", "--lang", "en")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: qwen-inspect memory [MODEL] [options]")
    assert invoke(capsys, "help", "memory", "--lang", "en").out == invoke(capsys, "memory", "-h", "--lang", "en").out
    assert invoke(capsys, "structure", "--version").out.startswith("qwen-inspect ")


# --- pictures and pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["diagram", "catalog:Qwen/Qwen3-0.6B"], "Qwen3-0.6B.diagram.svg"),
        (["attention", "catalog:Qwen/Qwen3-0.6B", "--format", "html"], "Qwen3-0.6B.attention.html"),
        (["models", "8b", "--format", "html", "-q"], "models.html"),
    ],
)
def test_a_terminal_gets_the_name_of_a_file_and_no_source(words: list[str], name: str, tmp_path: Path) -> None:
    import pexpect

    command = ["-m", "qwen_inspect", *words, "--lang", "en"]
    for times, code in ((1, 0), (2, 2)):  # an existing file stays
        child = pexpect.spawn(sys.executable, command, cwd=str(tmp_path), encoding="utf-8", timeout=60)
        shown = child.read()
        child.close()
        assert child.exitstatus == code
        assert name in shown
        assert "<svg" not in shown
        assert [path.name for path in tmp_path.iterdir()] == [name], times
    piped = subprocess.run([sys.executable, *command], capture_output=True, cwd=tmp_path, check=True)
    assert piped.stdout.decode() == (tmp_path / name).read_text(encoding="utf-8")
