"""The answers in README and docs: below each `$ qwen-inspect …` of a ```console block, what the command really answers."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from qwen_inspect.cli import main as run

ROOT = Path(__file__).resolve().parent.parent
CONSOLE = re.compile(r"(?<=```console\n).*?(?=\n```)", re.DOTALL)
PROMPT = "$ qwen-inspect "


def pages() -> Iterator[Path]:
    yield from (ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md")))


def written() -> Iterator[tuple[Path, str]]:
    """Each page, and what it should hold."""
    return ((page, answered(page)) for page in pages())


def answered(page: Path) -> str:
    """The page's text with today's answers, in its language."""
    language = "zh" if page.suffixes[:1] == [".zh"] else "en"

    def block(old: re.Match[str]) -> str:
        commands = [line for line in old[0].splitlines() if line.startswith(PROMPT)]
        return "\n\n".join(f"{command}\n{answer(command, language)}" for command in commands)

    return CONSOLE.sub(block, page.read_text(encoding="utf-8"))


@cache
def answer(command: str, language: str) -> str:
    """What the command prints before its details, without a network."""
    words = shlex.split(command.removeprefix(PROMPT))
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = run([*words, "--lang", language, "--offline", "--quiet"])
    assert code in (0, 1), words  # 1: it does not fit
    stdout.flush()
    buffer = stdout.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8").partition("\n\n")[0]
