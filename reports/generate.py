"""Writes the committed reports, or with --check says which of them are no longer what the tool shows (exit 1).

Each is the Markdown of one command on one model of the built-in catalog, in both languages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from qwen_inspect.cli import main as run
from qwen_inspect.language import LANGUAGES

HERE = Path(__file__).parent
SHOWN = {
    "Qwen/Qwen3-0.6B": (["structure"], ["config", "--explain"], ["weights"], ["params"], ["attention"]),
    "Qwen/Qwen3-8B": (["structure"], ["params"]),
    "Qwen/Qwen3-30B-A3B": (["structure"], ["params"], ["attention"]),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (["structure"], ["config", "--explain"], ["params"], ["attention"]),
    "Qwen/Qwen3-VL-8B-Instruct": (["structure"], ["config", "--explain"], ["params"]),
}


def reports() -> Iterator[tuple[Path, str]]:
    """Each report's path, and the text that the command prints."""
    for model, commands in SHOWN.items():
        for command, *options in commands:
            for language in LANGUAGES:
                words = [command, f"catalog:{model}", *options, "--format", "md", "--lang", language, "--quiet"]
                yield HERE / f"{model.rpartition('/')[2]}.{command}.{language}.md", printed(words)


def printed(words: list[str]) -> str:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stdout):
        code = run(words)
    assert code == 0, words
    stdout.flush()
    buffer = stdout.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a report has drifted")
    if not parser.parse_args().check:
        for path, text in reports():
            path.write_text(text, encoding="utf-8")
        return 0
    drifted = [path.name for path, text in reports() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for name in drifted:
        print(f"{name}: drifted; `make reports` rewrites it", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
