"""The command line: help, languages, what is imported, the exported names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import qwen_inspect
from qwen_inspect.commands import COMMANDS, WITHOUT_DOCUMENT
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders import resolve
from qwen_inspect.options.model import DEFAULT_MODEL
from qwen_inspect.options.parser import Parser

from ..support.models import run

WITHOUT_MODEL = ("gpus", "schema", "completion")

PACKAGE = Path(qwen_inspect.__file__).parent

HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "modelscope",
    "huggingface_hub",
    "modelscope_hub",
    "safetensors",
}


# Of the standard library: each takes from 1 to 6 ms, half of a bare Python's start.
SLOW = {
    *("_hashlib", "argparse", "copy", "dataclasses", "fractions", "gettext", "gzip", "hashlib", "inspect", "locale"),
    *("pathlib", "shlex", "typing", "urllib.parse"),
}


def modules_of(*arguments: str | Path) -> set[str]:
    """The modules that a command has imported when it ends, without those of every program here."""
    script = (
        "import sys\nbefore = {*sys.modules}\n"
        "from qwen_inspect.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(' '.join({*sys.modules} - before), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def imported_by(*arguments: str | Path) -> set[str]:
    """Top-level names of the modules that a command has imported when it ends."""
    return {name.partition(".")[0] for name in modules_of(*arguments)}


def test_help_imports_next_to_nothing() -> None:
    assert imported_by("--help") & (HEAVY | {"dataclasses", "inspect", "prettytable", "rich", "json"}) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_its_own_module_shared_options_and_wrapping_alone(command: str) -> None:
    imported = modules_of(command, "--help")
    assert imported & (HEAVY | {"dataclasses", "inspect", "prettytable", "rich", "json"}) == set()
    light = (
        rf"qwen_inspect(\.(cli|commands(\.{command})?|console|engines|errors|interrupts|language.*|options.*|standard|typed|units"
        r"|values|renderers(\.(characters|wrapping))?))?"
    )
    assert [name for name in imported if name.startswith("qwen_inspect") and not re.fullmatch(light, name)] == []


def test_every_module_of_commands_is_offered_and_nothing_else() -> None:
    assert sorted(COMMANDS) == sorted(path.stem for path in (PACKAGE / "commands").glob("[!_]*.py"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_declares_runs_and_has_its_help_document_and_json(command: str) -> None:
    module = import_module(f"qwen_inspect.commands.{command}")
    assert callable(module.run)
    for language in LANGUAGES:
        assert f"help_{command}" in Language(language)
        module.declare(declared := Parser(command, Language(language)), Language(language))
    if command in WITHOUT_DOCUMENT:
        assert "--format" not in declared.names
        return
    assert "--format" in declared.names
    assert callable(import_module(f"qwen_inspect.renderers.document.{command}").blocks)
    assert callable(import_module(f"qwen_inspect.renderers.json.{command}").content)


@pytest.mark.parametrize("room", ["commands", "options"])
def test_what_was_typed_is_read_and_never_written(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert getattr(node, "id", "") not in ("setattr", "delattr", "vars"), path
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "options":
                assert isinstance(node.ctx, ast.Load), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if command not in ("models", "compare", "memory", "report", *WITHOUT_MODEL)],
)
def test_no_command_imports_anything_heavy(command: str, tiny_qwen3: Path) -> None:
    assert imported_by(command, tiny_qwen3) & (HEAVY | {"rich"}) == set()


def test_json_of_a_command_imports_what_it_has_of_others_alone() -> None:
    here = "qwen_inspect.renderers.json"
    written = {name.removeprefix(f"{here}.") for name in modules_of("structure", "--format", "json") if here in name}
    assert written == {here, "attention", "common", "media", "params", "structure", "values"}


def test_attention_of_a_known_model_imports_no_slow_part_of_the_standard_library_and_no_prediction() -> None:
    imported = modules_of("attention", "catalog:Qwen/Qwen3-8B")
    assert imported & SLOW == set()
    of_llama_cpp = {name.rpartition(".")[2] for name in imported if "engines.llama_cpp." in name}
    assert of_llama_cpp == {"layer_cells"}
    assert not [name for name in imported if "qwen_inspect.predicting" in name]


def test_attention_of_quantised_weights_works_out_no_bytes_of_theirs() -> None:
    sizes = "qwen_inspect.structure.stored_bytes"
    assert sizes not in modules_of("attention", "catalog:moonshotai/Kimi-K2.5")
    assert sizes in modules_of("params", "catalog:openai/gpt-oss-20b")


def test_memory_of_a_known_model_imports_no_slow_part_of_the_standard_library() -> None:
    imported = modules_of("memory", "catalog:Qwen/Qwen3-8B")
    assert imported & SLOW == set()
    of_others = {
        f"qwen_inspect.predicting.{name}" for name in ("training", "allocation.folded_replay", "allocation.regions")
    }
    assert imported & {"qwen_inspect.tracing.adapting", *of_others} == set()


@pytest.mark.parametrize("command", ["memory", "report"])
def test_memory_of_a_shipped_trace_imports_nothing_heavy(command: str) -> None:
    assert imported_by(command, "catalog:Qwen/Qwen3-0.6B") & (HEAVY | {"rich"}) == set()


@pytest.mark.parametrize(("language", "word"), [("en", "directory, config.json"), ("zh", "目录、config.json")])
def test_help_speaks_both_languages(language: str, word: str) -> None:
    shown = run("structure", "--help", "--lang", language)
    assert shown.code == 0
    assert word in shown.out
    assert run("structure", "--help", env={"LC_ALL": f"{language}_XX.UTF-8"}).out.count(word) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert run(command, "--help").code == 0


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command not in ("compare", "fit", "completion")]
)
def test_every_command_of_one_model_runs_with_no_argument(command: str) -> None:
    shown = run(command)
    assert shown.code == 0
    assert shown.out


def test_the_default_model_comes_from_the_catalog_and_that_is_said() -> None:
    assert DEFAULT_MODEL == resolve.DEFAULT_MODEL
    shown = run("structure")
    assert shown.out.count("Qwen/Qwen3-0.6B comes from the built-in catalog") == 1
    assert shown.err == ""  # said once
    assert "Qwen/Qwen3-0.6B comes from the built-in catalog" in run("structure", "--format", "json").err
    assert run("structure", "-q").err == ""


def test_the_locale_chooses_the_language() -> None:
    assert "模型参数统计" in run("structure", env={"LC_ALL": "zh_CN.UTF-8"}).out
    assert "Parameter statistics" in run("structure", "--lang", "en", env={"LC_ALL": "zh_CN.UTF-8"}).out


def test_version_is_the_packages() -> None:
    assert run("--version").out.strip() == f"qwen-inspect {qwen_inspect.__version__}"


def test_a_file_gets_what_stdout_would(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    shown = run("structure", "--format", "md", "-o", path)
    assert (shown.code, shown.out) == (0, "")
    assert path.read_text(encoding="utf-8") == run("structure", "--format", "md").out
    assert f"Saved to {path}" in shown.err
    assert list(tmp_path.iterdir()) == [path]


def test_params_exits_1_where_the_count_expected_is_another() -> None:
    assert run("params", "--expect-params", "596049920").code == 0
    shown = run("params", "--expect-params", "751,632,384")
    assert shown.code == 1
    assert "tied head counted twice" in shown.out
    assert "The model has 596,049,920 parameters, not 751,632,384" in shown.err


def test_depth_cuts_the_tree() -> None:
    assert "q_proj" not in run("structure", "--depth", "2").out
    assert "q_proj" in run("structure", "--depth", "5").out


def test_sort_and_top_arrange_the_weights() -> None:
    shown = run("weights", "--sort", "size", "--top", "3").out
    names = re.findall(r"^\| (\S+)", shown, re.MULTILINE)
    assert names[:2] == ["Dtype", "bfloat16"]
    assert names[3:6] == ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"]
    assert "(top 3)" in shown


def test_context_and_batch_change_the_cache() -> None:
    # 114,688 B a token (test_kv_cache) x 32,768 tokens x 4 sequences.
    assert f"{114_688 * 32_768 * 4:,} B" in run("attention", "--context", "32k", "--batch", "4").out


def test_every_exported_name_is_there() -> None:
    for name in qwen_inspect.__all__:
        assert getattr(qwen_inspect, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qwen_inspect.nothing


def test_a_terminal_gets_colour_unless_told_otherwise() -> None:
    import pexpect

    def shown(*arguments: str, **environment: str) -> str:
        variables = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment}
        variables.pop("NO_COLOR", None) if "NO_COLOR" not in environment else None
        child = pexpect.spawn(
            sys.executable,
            ["-m", "qwen_inspect", "structure", *arguments],
            env=variables,
            dimensions=(50, 200),
            encoding="utf-8",
        )
        text: str = child.read()
        child.close()
        assert child.exitstatus == 0
        return text

    assert "\x1b[" in shown()
    assert "\x1b[" not in shown("--no-color")
    assert "\x1b[" not in shown(NO_COLOR="1")
    assert "\x1b[" not in shown(TERM="dumb")
