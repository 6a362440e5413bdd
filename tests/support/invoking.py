"""The command run in this process, and what its refusals must be."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from qwen_inspect.checkpoint import Checkpoint, ModelRef, Tensor
from qwen_inspect.cli import main
from qwen_inspect.language import LANGUAGES
from qwen_inspect.spec import each_tensor
from qwen_inspect.structure.inspect import analyse

from .prepared import Finished

Capture = pytest.CaptureFixture[str]

PREFIX = {"en": "error: ", "zh": "错误："}

LONGEST_LINE = 2_000

HOSTILE = "\x1b[31mred\x1b[0m\nsecond line\r\x9b2J\u202eesrever\u200b\x07"

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


def invoke(capsys: Capture, *arguments: str | Path) -> Finished:
    """`qwen-inspect` with these arguments in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        code = int(str(leaving.code))
    out, err = capsys.readouterr()
    return Finished(code, out, err)


def captured(*arguments: str) -> Finished:
    """The same where pytest does not capture, as in a script."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    for stream in (out, err):
        stream.seek(0)
    return Finished(code, out.read(), err.read())


def assert_is_one_error_line(err: str, language: str) -> None:
    line = err.removesuffix("\n")
    assert err == f"{line}\n"
    assert line.startswith(PREFIX[language])
    assert line != PREFIX[language]
    assert len(line) <= LONGEST_LINE
    assert not [character for character in line if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")]
    assert not re.search(r"\{[a-z_]+([:!][^}]*)?\}", line), "a placeholder was left unfilled"


def refusal(capsys: Capture, code: int, *arguments: str | Path) -> str:
    """The line in English with which the command ends, after the same in Chinese; neither leaves a file or prints a result."""
    line = ""
    for language in reversed(LANGUAGES):
        with TemporaryDirectory() as directory:
            output: list[str | Path] = [] if "-o" in arguments else ["-o", Path(directory) / "result"]
            done = invoke(capsys, *arguments, "--lang", language, *output)
            assert (done.code, done.out) == (code, "")
            assert_is_one_error_line(done.err, language)
            assert os.listdir(directory) == []
        line = done.err
    return line


def write_bytes(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tensors_of(config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The tensors of a dense model as `config` predicts them."""
    design = analyse(Checkpoint(ref=ModelRef(source="local", id="model"), config=config, tensors=None)).design
    assert design is not None
    return tuple(each_tensor(design.tree))
