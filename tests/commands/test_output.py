"""Where a result goes: whole or not at all; and what a hostile name or value can do to it: nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

from qwen_inspect.checkpoint import Checkpoint, DType, ModelRef, Tensor
from qwen_inspect.errors import UsageError
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.output import write_whole
from qwen_inspect.renderers import json as json_renderer
from qwen_inspect.renderers import markdown, terminal
from qwen_inspect.renderers.document import View, document
from qwen_inspect.structure.inspect import analyse

from ..support.hostile import HOSTILE_NAMES, assert_is_safe, markdown_tables
from ..support.invoking import (
    HOSTILE,
    Capture,
    as_root,
    assert_is_one_error_line,
    invoke,
    refusal,
    tensors_of,
    write_bytes,
)
from ..support.models import TINY_QWEN3, write_config, write_sparse

COMMAND = [sys.executable, "-m", "qwen_inspect"]


def lines_of(*command: str | Path) -> list[str]:
    return [*COMMAND, *map(str, command)]


def tables_in(text: str) -> list[list[str]]:
    """The lines of each table between lines."""
    return [table.splitlines() for table in re.findall(r"(?:^[+|].*\n)+", text, re.MULTILINE)]


# --- a file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A configuration in a directory of its own."""
    return write_config(tmp_path / "model", TINY_QWEN3).parent


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A directory for what is written."""
    directory = tmp_path / "results"
    directory.mkdir()
    return directory


def test_a_file_that_exists_is_left_as_it_is(model: Path, results: Path, capsys: Capture) -> None:
    output = write_bytes(results / "report.md", b"precious")
    before = output.stat()
    assert "--overwrite" in refusal(capsys, 2, "structure", model, "-o", output)
    assert output.read_bytes() == b"precious"
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(results) == ["report.md"]


def test_a_file_that_exists_is_refused_before_the_model_is_looked_for(results: Path, capsys: Capture) -> None:
    output = write_bytes(results / "report.md", b"precious")
    refusal(capsys, 2, "structure", results / "missing", "-o", output)


def test_a_file_that_appears_meanwhile_is_left_as_it_is(results: Path) -> None:
    output = write_bytes(results / "report.md", b"precious")
    with pytest.raises(UsageError):
        write_whole(str(output), "text", overwrite=False)
    assert output.read_bytes() == b"precious"
    assert os.listdir(results) == ["report.md"]


def test_a_dangling_link_is_left_as_it_is(model: Path, results: Path, capsys: Capture) -> None:
    (results / "link").symlink_to(results / "target")
    refusal(capsys, 2, "structure", model, "-o", results / "link")
    assert os.listdir(results) == ["link"]


def test_overwrite_replaces_a_file(model: Path, results: Path, capsys: Capture) -> None:
    output = write_bytes(results / "report.md", b"old" * 10_000)
    done = invoke(capsys, "structure", model, "--format", "md", "--lang", "en", "-o", output, "--overwrite")
    assert (done.code, done.out) == (0, "")
    assert output.read_text(encoding="utf-8").startswith("# Qwen3")
    assert "oldold" not in output.read_text(encoding="utf-8")
    assert os.listdir(results) == ["report.md"]


def test_overwrite_does_not_touch_a_file_when_the_model_is_bad(results: Path, capsys: Capture) -> None:
    output = write_bytes(results / "report.md", b"precious")
    refusal(capsys, 3, "structure", results / "missing", "--overwrite", "-o", output)
    assert output.read_bytes() == b"precious"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_directory_is_no_output_file(overwrite: list[str], model: Path, results: Path, capsys: Capture) -> None:
    (results / "below").mkdir()
    for output in (results / "below", f"{results}/below/", results / "below" / "..", "/", "."):
        refusal(capsys, 2, "structure", model, "-o", output, *overwrite)
    assert os.listdir(results) == ["below"]
    assert os.listdir(results / "below") == []


def test_overwrite_replaces_nothing_but_regular_files(model: Path, results: Path, capsys: Capture) -> None:
    os.mkfifo(results / "pipe")
    refusal(capsys, 2, "structure", model, "-o", results / "pipe", "--overwrite")
    assert stat.S_ISFIFO((results / "pipe").lstat().st_mode)
    assert os.listdir(results) == ["pipe"]


@pytest.mark.parametrize(
    "name",
    ["missing/report.md", "file/report.md", "x" * 300, "层" * 100, "x/" * 3_000, "nul\0", "", "loop/report.md"],
    ids=lambda name: name[:16].encode("unicode_escape").decode() or "empty",
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_file_that_cannot_be_made_is_a_usage_error(
    overwrite: list[str], name: str, model: Path, results: Path, capsys: Capture
) -> None:
    write_bytes(results / "file", b"precious")
    (results / "loop").symlink_to("loop")
    refusal(capsys, 2, "structure", model, "-o", f"{results}/{name}" if name else "", *overwrite)
    assert sorted(os.listdir(results)) == ["file", "loop"]
    assert (results / "file").read_bytes() == b"precious"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_directory_that_nobody_can_write_to_is_a_usage_error(model: Path, capsys: Capture) -> None:
    refusal(capsys, 2, "structure", model, "-o", "/proc/report.md")


@as_root
def test_a_directory_without_permission_is_a_usage_error(model: Path, results: Path, capsys: Capture) -> None:
    results.chmod(0o500)
    refusal(capsys, 2, "structure", model, "-o", results / "report.md")
    assert os.listdir(results) == []


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_disk_that_fills_up_leaves_nothing_behind(overwrite: list[str], model: Path, results: Path) -> None:
    output = results / "report.json"
    if overwrite:
        output.write_bytes(b"precious")
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999))\n"
    script = f"{limited}from qwen_inspect.cli import main; sys.exit(main())"
    arguments = ["structure", str(model), "--format", "json", "--lang", "en", "-o", str(output), *overwrite]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert_is_one_error_line(done.stderr, "en")
    assert os.listdir(results) == (["report.json"] if overwrite else [])
    assert not overwrite or output.read_bytes() == b"precious"


@pytest.mark.parametrize("step", ["chmod", "link", "replace"])
def test_an_interrupted_write_leaves_nothing_behind(
    step: str, model: Path, results: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    overwrite = ["--overwrite"] if step == "replace" else []
    monkeypatch.setattr(os, step, interrupted)
    done = invoke(capsys, "structure", model, "--lang", "en", "-o", results / "report.md", *overwrite)
    monkeypatch.undo()
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")
    assert os.listdir(results) == []


def test_a_file_gets_the_permissions_of_any_new_file(model: Path, results: Path, capsys: Capture) -> None:
    before = os.umask(0o027)
    try:
        assert invoke(capsys, "structure", model, "-o", results / "report.md").code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((results / "report.md").stat().st_mode) == 0o640


@pytest.mark.parametrize("form", ["table", "md", "json"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_file_holds_what_stdout_shows(form: str, language: str, model: Path, results: Path, capsys: Capture) -> None:
    write_config(model, {**TINY_QWEN3, "hostile": HOSTILE, "half": "\ud800", "wide": "层"})
    arguments: list[str | Path] = ["config", model, "--format", form, "--lang", language]
    shown = invoke(capsys, *arguments)
    saved = invoke(capsys, *arguments, "-o", results / "report")
    assert (shown.code, saved.code, saved.out) == (0, 0, "")
    assert (results / "report").read_text(encoding="utf-8") == shown.out


@pytest.mark.parametrize("language", LANGUAGES)
def test_where_a_file_went_is_said_in_one_line(language: str, model: Path, results: Path, capsys: Capture) -> None:
    done = invoke(capsys, "models", "--lang", language, "-o", results / HOSTILE)
    assert (done.code, len(os.listdir(results))) == (0, 1)
    assert_is_safe(done.err)
    assert done.err.count("\n") == 1


def test_quiet_says_nothing(model: Path, results: Path, capsys: Capture) -> None:
    done = invoke(capsys, "structure", model, "--quiet", "-o", results / "report.md")
    assert (done.code, done.out, done.err) == (0, "", "")


# --- stdout --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of more tensors than a pipe can hold the names of."""
    path = tmp_path_factory.mktemp("many") / "model.safetensors"
    write_sparse(path, [Tensor(f"layers.{index}.weight", (4, 4), DType.F32) for index in range(5_000)])
    return path


@pytest.mark.parametrize("form", ["table", "md", "json"])
def test_a_reader_that_has_enough_is_no_error(form: str, many: Path) -> None:
    script = '"$@" | head -1; echo "${PIPESTATUS[0]}"'
    command = ["bash", "-c", script, "bash", *lines_of("weights", many, "--format", form, "--lang", "en")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=30, check=False)
    first, code = done.stdout.splitlines()
    assert first.startswith({"table": f"{many}: 5,000 tensors", "md": "# Weights of", "json": "{"}[form])
    assert code == "0"
    assert len(done.stderr.splitlines()) <= 1
    assert "No config.json" in done.stderr or not done.stderr


def test_a_reader_that_never_reads_is_no_error(many: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            lines_of("weights", many, "--quiet"), stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupting_ends_with_130_and_no_traceback(many: Path) -> None:
    process = subprocess.Popen(
        lines_of("weights", many, "--lang", "en", "--quiet"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1)  # It writes now, and waits: a pipe holds 64 KiB of its 700.
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"interrupted\n")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_device_is_a_usage_error(language: str, many: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            lines_of("weights", many, "--quiet", "--lang", language),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    assert_is_one_error_line(done.stderr.decode(), language)
    assert done.returncode == 2


def test_a_closed_stdout_is_a_usage_error() -> None:
    command = ["bash", "-c", '"$@" >&-', "bash", *lines_of("models", "--lang", "en")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert_is_one_error_line(done.stderr, "en")
    assert done.returncode == 2


@pytest.mark.parametrize(("model_name", "code"), [("catalog:Qwen/Qwen3-0.6B", 0), ("catalog:no/such", 3)])
def test_a_closed_stderr_changes_neither_result_nor_code(model_name: str, code: int) -> None:
    command = lines_of("params", model_name, "--format", "json")
    with_stderr = subprocess.run(command, capture_output=True, timeout=30, check=False)
    without = subprocess.run(
        ["bash", "-c", '"$@" 2>&-', "bash", *command], stdout=subprocess.PIPE, timeout=30, check=False
    )
    assert with_stderr.returncode == without.returncode == code
    assert without.stdout == with_stderr.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk", "utf-8", "utf-16"])
def test_json_is_json_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    names = ["é", "层", "👩", HOSTILE, "\\u00e9", "–"]
    write_sparse(tmp_path / "model.safetensors", [Tensor(name, (1,), DType.F32) for name in names])
    done = subprocess.run(
        lines_of("weights", tmp_path, "--format", "json", "--lang", "zh"),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    report = json.loads(done.stdout.decode(encoding))
    assert [tensor["name"] for tensor in report["tensors"]] == names


@pytest.mark.parametrize("form", ["table", "md"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_terminal_that_knows_only_ascii_is_no_error(form: str, language: str) -> None:
    done = subprocess.run(
        lines_of("structure", "catalog:Qwen/Qwen3-0.6B", "--format", form, "--lang", language),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert b"596,049,920" in done.stdout


# --- hostile names and values --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose tensors have HOSTILE_NAMES."""
    path = tmp_path_factory.mktemp("hostile") / "model.safetensors"
    write_sparse(path, [Tensor(name, (2, 3), DType.F16) for name in HOSTILE_NAMES])
    return path


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_hostile_name_cannot_leave_its_cell_of_a_table(language: str, hostile: Path, capsys: Capture) -> None:
    done = invoke(capsys, "weights", hostile, "--lang", language)
    assert done.code == 0
    assert_is_safe(done.out)
    _, everything, largest = tables_in(done.out)
    for table, columns in ((everything, 5), (largest, 3)):
        assert {wcswidth(line) for line in table} == {wcswidth(table[0])}
        assert table[0].count("+") == columns + 1
        assert sum(line.startswith("+") for line in table) == 3
    assert "\\x1b[31mred\\x1b[0m" in done.out
    assert "\\u202egnp.exe\\u202c" in done.out


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_hostile_name_cannot_leave_its_cell_of_a_markdown_table(
    language: str, hostile: Path, capsys: Capture
) -> None:
    def tables(*options: str) -> list[list[list[str]]]:
        done = invoke(capsys, "weights", hostile, "--lang", language, "--format", "md", *options)
        assert done.code == 0
        assert_is_safe(done.out)
        return markdown_tables(done.out)

    everything, largest = tables()[1], tables("--top", "9999")[1]
    for table, columns in ((everything, 5), (largest, 3)):
        assert {len(row) for row in table} == {columns}
        # A reader strips a cell and joins runs of spaces.
        shown = [" ".join(row[0].split()) for row in table[1:]]
        assert shown == [" ".join(terminal.safe(name).split()) for name in sorted(HOSTILE_NAMES)]


def test_json_gives_a_hostile_name_exactly(hostile: Path, capsys: Capture) -> None:
    done = invoke(capsys, "weights", hostile, "--format", "json")
    assert [tensor["name"] for tensor in json.loads(done.out)["tensors"]] == HOSTILE_NAMES


def test_json_sends_no_control_character_to_a_terminal(hostile: Path, capsys: Capture) -> None:
    assert_is_safe(invoke(capsys, "weights", hostile, "--format", "json").out)


def test_an_unexplained_tensor_with_a_hostile_name_stays_in_its_cell(tmp_path: Path, capsys: Capture) -> None:
    for name in HOSTILE_NAMES:
        write_config(tmp_path, TINY_QWEN3)
        write_sparse(tmp_path / "model.safetensors", [*tensors_of(TINY_QWEN3), Tensor(name, (1,), DType.F16)])
        table = invoke(capsys, "params", tmp_path, "--lang", "en")
        assert table.code == 1
        assert_is_safe(table.out)
        assert all(len({wcswidth(line) for line in lines}) == 1 for lines in tables_in(table.out))
        rendered = markdown_tables(invoke(capsys, "params", tmp_path, "--format", "md", "--lang", "en").out)
        assert all(len({len(row) for row in rows}) == 1 for rows in rendered)
        assert ["Finding", "Tensor", "Expected", "Found", "Parameters"] in [rows[0] for rows in rendered]
        (check,) = json.loads(invoke(capsys, "params", tmp_path, "--format", "json").out)["checks"]
        assert [item["name"] for item in check["unexplained"]] == [name]


@settings(max_examples=150, deadline=None)
@given(names=st.lists(st.text(max_size=20), min_size=1, max_size=6, unique=True))
@example(names=["\\", "\\\\|", "|\\", "`|`", "*|*", "]|("])
@example(names=["<", "&", "_", "~", "#", "- a"])
def test_any_names_make_tables_of_one_shape(names: list[str]) -> None:
    tensors = tuple(Tensor(name, (1,), DType.I8) for name in names)
    ref = ModelRef(source="local", id="model")
    report = analyse(Checkpoint(ref=ref, config=None, tensors=tensors), require_design=False)
    blocks = document("weights", report, Language("en"), View())
    drawn = terminal.render(blocks)
    assert not [character for character in drawn if unicodedata.category(character) == "Cc" and character != "\n"]
    assert [sum(line.startswith("+") for line in table) for table in tables_in(drawn)] == [3, 3, 3]
    _, everything, largest = markdown_tables(markdown.render(blocks))
    assert [len(row) for row in everything] == [5] * (len(names) + 1)
    assert [len(row) for row in largest] == [3] * (len(names) + 1)
    coloured = terminal.render_in_colour(blocks)
    assert "\x1b" not in re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [
        tensor["name"] for tensor in json.loads(json_renderer.render("weights", report, Language("en")))["tensors"]
    ] == names


HOSTILE_VALUES: Mapping[str, Any] = {
    **TINY_QWEN3,
    **{f"key {name}": name for name in HOSTILE_NAMES},
    "rope_theta": HOSTILE,
    "transformers_version": HOSTILE,
    "sliding_window": None,
    "rope_scaling": {HOSTILE: [HOSTILE]},
    "half a surrogate \ud800": "\udfff",
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("arguments", [["config"], ["config", "--explain"], ["structure"], ["attention"]])
def test_a_hostile_value_cannot_leave_its_cell(
    arguments: list[str], language: str, tmp_path: Path, capsys: Capture
) -> None:
    write_config(tmp_path, HOSTILE_VALUES)
    table = invoke(capsys, *arguments, tmp_path, "--lang", language)
    assert table.code == 0
    assert_is_safe(table.out)
    assert_is_safe(table.err)
    assert all(lines[-1].startswith("+") for lines in tables_in(table.out))
    rendered = invoke(capsys, *arguments, tmp_path, "--lang", language, "--format", "md")
    assert rendered.code == 0
    assert_is_safe(rendered.out)
    assert all(len({len(row) for row in rows}) == 1 for rows in markdown_tables(rendered.out))


@pytest.mark.parametrize("arguments", [["config"], ["structure"]])
def test_json_gives_hostile_values_exactly(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, HOSTILE_VALUES)
    done = invoke(capsys, *arguments, tmp_path, "--format", "json")
    assert (done.code, json.loads(done.out)["config"]) == (0, HOSTILE_VALUES)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "[-1e999]"])
def test_json_holds_no_number_that_is_not_json(number: str, tmp_path: Path, capsys: Capture) -> None:
    def refused(constant: str) -> NoReturn:
        pytest.fail(f"{constant} is not JSON")

    write_bytes(tmp_path / "config.json", (json.dumps(TINY_QWEN3)[:-1] + f', "more": {number}}}').encode())
    done = invoke(capsys, "config", tmp_path, "--format", "json")
    assert done.code in (0, 6)
    if done.code == 0:
        json.loads(done.out, parse_constant=refused)


@pytest.mark.parametrize(
    "name", ["a|b", "<b>", "`", "#", "*", "a\nb", "\x1b[31m", "\u202e", "层", "x" * 200, "\udcff", HOSTILE]
)
@pytest.mark.parametrize("command", ["structure", "config", "weights", "params", "attention"])
def test_a_hostile_path_is_shown_escaped(command: str, name: str, tmp_path: Path, capsys: Capture) -> None:
    directory = tmp_path / name
    write_config(directory, TINY_QWEN3)
    write_sparse(directory / "model.safetensors", tensors_of(TINY_QWEN3))
    for form in ("table", "md"):
        done = invoke(capsys, command, directory, "--format", form, "--lang", "en")
        assert done.code == 0
        assert_is_safe(done.out)
        assert_is_safe(done.err)
    headings = [line for line in done.out.splitlines() if line.startswith("# ")]
    assert headings == done.out.splitlines()[:1]
    report = json.loads(invoke(capsys, command, directory, "--format", "json").out)
    assert report["model"]["id"] == str(directory)


@pytest.mark.parametrize("form", ["table", "md", "json"])
def test_a_huge_value_is_shown_within_a_second(form: str, tmp_path: Path, capsys: Capture) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "more": "x" * 100_000})
    started = time.perf_counter()
    assert invoke(capsys, "config", tmp_path, "--format", form).code == 0
    assert time.perf_counter() - started < 1
