"""`completion` in the shells themselves, and `schema`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from qwen_inspect.cli import main
from qwen_inspect.commands import COMMANDS, WITHOUT_DOCUMENT

from ..support.invoking import Capture, invoke, refusal
from ..support.schema import SCHEMA

BASH = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _qwen_inspect
[[ ${#COMPREPLY[@]} == 0 ]] || printf '%s\\n' "${COMPREPLY[@]}"
"""


@cache
def script(shell: str, language: str = "en") -> str:
    written = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(written, "utf-8")) as shown:
        assert main(["completion", shell, "--lang", language]) == 0
        shown.flush()
        return written.getvalue().decode()


def bash(words: str, directory: Path) -> list[str]:
    """What bash offers for the last of `words`."""
    typed = words.split(" ")
    command = ["bash", "--norc", "-c", script("bash") + BASH, "bash", *typed]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=directory)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qwen-inspect str", ["structure"]),
        ("qwen-inspect -q mem", ["memory"]),
        ("qwen-inspect structure --fo", ["--format"]),
        ("qwen-inspect --lang zh structure --dty", ["--dtype"]),
        ("qwen-inspect --lang ", ["auto", "en", "zh"]),
        ("qwen-inspect report --format ", ["md", "html", "json", "github"]),
        ("qwen-inspect structure --format = js", ["json"]),  # as bash splits --format=js
        ("qwen-inspect memory --dtype awq", ["awq-int4", "awq"]),
        ("qwen-inspect structure Qwen/Qwen3-8", ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"]),
        ("qwen-inspect structure my", ["my model"]),
        ("qwen-inspect structure -o my", ["my model"]),
        ("qwen-inspect memory --gpu RTX-409", ["RTX-4090"]),
        ("qwen-inspect schema me", ["memory"]),
        ("qwen-inspect completion ", ["bash", "zsh", "fish"]),
        ("qwen-inspect memory --context ", []),
        ("qwen-inspect models Q", []),
    ],
)
def test_bash_completes(words: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    found = bash(words, tmp_path)
    assert found[: len(offered)] == offered if words.endswith("RTX-409") else found == offered


def test_bash_completes_at_a_key_press(tmp_path: Path) -> None:
    import pexpect

    (tmp_path / "script").write_text(script("bash"))
    shell = pexpect.spawn("bash", ["--norc"], cwd=str(tmp_path), encoding="utf-8", timeout=20, dimensions=(40, 200))
    shell.sendline(". ./script; echo rea''dy")
    shell.expect("ready")
    shell.send("qwen-inspect struc\tQwen/Qwen3-1.7B-\t--form\tjs\t")
    shell.expect("qwen-inspect structure Qwen/Qwen3-1.7B-Base --format json")
    shell.close(force=True)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_its_shell(shell: str, language: str, tmp_path: Path) -> None:
    text = script(shell, language)
    assert all(command in text for command in COMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(text, encoding="utf-8")
    checked = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes() -> None:
    for words, offered in (
        ("qwen-inspect str", "structure\t"),
        ("qwen-inspect structure Qwen/Qwen3-8", "Qwen/Qwen3-8B\n"),
    ):
        asked = f"{script('fish')}\ncomplete -C {words!r}"
        assert subprocess.run(["fish", "-c", asked], capture_output=True, text=True, check=True).stdout.startswith(
            offered
        )


def test_without_a_shell_that_of_the_environment_is_taken(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert invoke(capsys, "completion").out.startswith("#compdef qwen-inspect\n")
    monkeypatch.setenv("SHELL", "/bin/csh")
    assert "qwen-inspect completion bash|zsh|fish" in refusal(capsys, 2, "completion")


# --- schema --------------------------------------------------------------------------------------------------------


def test_schema_is_the_one_that_is_shipped(capsys: Capture) -> None:
    assert json.loads(invoke(capsys, "schema").out) == SCHEMA


@pytest.mark.parametrize("command", ["attention", "models", "gpus"])
def test_the_schema_of_a_command_describes_its_answer_alone(command: str, capsys: Capture) -> None:
    schema = json.loads(invoke(capsys, "schema", command).out)
    Draft202012Validator.check_schema(schema)
    answer = json.loads(invoke(capsys, command, "--format", "json").out)
    assert list(Draft202012Validator(schema).iter_errors(answer)) == []
    assert list(Draft202012Validator(schema).iter_errors({**answer, "command": "structure"})) != []


def test_every_command_with_json_has_a_schema(capsys: Capture) -> None:
    for command in COMMANDS:
        if command not in WITHOUT_DOCUMENT:
            schema = json.loads(invoke(capsys, "schema", command).out)
            assert set(schema["$defs"]) <= set(SCHEMA["$defs"])
    assert "did you mean memory?" in refusal(capsys, 2, "schema", "memry")
