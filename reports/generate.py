"""Writes the committed reports and pictures, or with --check says which of them are no longer what the tool shows (exit 1).

Whole reports of four models, the Markdown of single commands, their index, a picture, the answers in README and docs, and
recordings of a terminal, in both languages where they have words: all from real runs. --check leaves README and docs to
tests/test_docs.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import answered
import declared
import recorded
from wcwidth import wcswidth

from qwen_inspect.cli import main as run
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.renderers.document.common import size_range
from qwen_inspect.renderers.svg import element, escape, fill, picture, rectangle
from qwen_inspect.reporting.compiling import compiled
from qwen_inspect.reporting.documents import files
from qwen_inspect.results.whole import ReportRequest, WholeReport
from qwen_inspect.units import count, short_count, size

HERE = Path(__file__).parent
# The last is the model of its own that somebody took for Qwen3-8B: 32 layers of multi-head attention.
REPORTED = (
    "catalog:Qwen/Qwen3-0.6B",
    "catalog:Qwen/Qwen3-8B",
    "catalog:Qwen/Qwen3-30B-A3B",
    "reports/Custom-MHA-7.7B",
)
SHOWN = {
    "Qwen/Qwen3-0.6B": (["structure"], ["config", "--explain"], ["weights"], ["params"], ["attention"]),
    "Qwen/Qwen3-8B": (["structure"], ["params"]),
    "Qwen/Qwen3-30B-A3B": (["structure"], ["params"], ["attention"]),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (["structure"], ["config", "--explain"], ["params"], ["attention"]),
    "Qwen/Qwen3-VL-8B-Instruct": (["structure"], ["config", "--explain"], ["params"]),
}
PICTURED = "structure"
INDEXED_PROMPT = 8192
COLUMN, LINE, MARGIN = 7.6, 17, 16  # pixels
LANGUAGE_NAMES = {"en": "English", "zh": "中文"}


def generated() -> Iterator[tuple[Path, str]]:
    """Each file's path, and what it should hold."""
    reported = [
        compiled(ReportRequest(model=model, language=language), Access(offline=True))
        for model in REPORTED
        for language in LANGUAGES
    ]
    for whole in reported:
        yield from ((HERE / name, text) for name, text in files(whole).items())
    for model, command, options in commands():
        for language in LANGUAGES:
            words = [command, f"catalog:{model}", *options, "--format", "md", "--lang", language, "--quiet"]
            yield HERE / command_file(model, command, language), printed(words)
    yield HERE / "README.md", index(reported)
    yield HERE / "declarations.md", declared.page({name: Language(name) for name in LANGUAGES})
    yield HERE / "pictures" / f"{PICTURED}.svg", terminal_picture()


def commands() -> Iterator[tuple[str, str, list[str]]]:
    for model, shown in SHOWN.items():
        for command, *options in shown:
            yield model, command, options


def command_file(model: str, command: str, language: str) -> str:
    return f"{model.rpartition('/')[2]}.{command}.{language}.md"


def printed(words: list[str]) -> str:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stdout):
        code = run(words)
    assert code == 0, words
    stdout.flush()
    buffer = stdout.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8")


def index(reported: list[WholeReport]) -> str:
    """The table of contents, with each model's main figures."""
    rows = []
    for whole in reported[:: len(LANGUAGES)]:
        report = whole.report
        counts = report.parameters
        links = " · ".join(f"[{LANGUAGE_NAMES[one]}]({whole.name}.{one}.md)" for one in LANGUAGES)
        required = next(one.predicted.required_bytes for one in whole.memory if one.run.prompt_tokens == INDEXED_PROMPT)
        assert required is not None  # all of these are traced
        cells = (
            whole.name, links, f"{count(counts.unique)} ({short_count(counts.unique)})", short_count(counts.active),
            report.attention.kind, size(report.cache.bytes_per_token), size_range(*required, Language("en")),
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    columns = (
        "Model",
        "Report",
        "Parameters",
        "Active",
        "Attention",
        "KV cache a token",
        f"A card must have, {count(INDEXED_PROMPT)} in",
    )
    alone = [
        f"- {model.rpartition('/')[2]}, `{' '.join([command, *options])}`: "
        + " · ".join(f"[{LANGUAGE_NAMES[one]}]({command_file(model, command, one)})" for one in LANGUAGES)
        for model, command, options in commands()
    ]
    return "\n".join(
        [
            "# Reports",
            "",
            "Written by `make reports`, checked in CI: by `qwen-inspect report --check -o reports` figure by figure, and by",
            "`python reports/generate.py --check` byte by byte. 由 `make reports` 生成，并在 CI 中核对。",
            "",
            f"| {' | '.join(columns)} |",
            f"| :-- | :-- |{' --: |' * (len(columns) - 2)}",
            *rows,
            "",
            "A card must have: what the allocator reserves, predicted, with 128 new tokens and batch 1, and the CUDA context,",
            "of which 250 to 600 MiB are counted.",
            "[Custom-MHA-7.7B](Custom-MHA-7.7B/config.json) is a model of its own that is easily taken for Qwen3-8B: 32 layers,",
            "32 query heads and 32 KV heads. How far predictions are from what others measured: [accuracy.md](accuracy.md).",
            "",
            "How each way of declaring a dtype and a quantisation is read: [declarations.md](declarations.md).",
            "",
            "## Single commands",
            "",
            *alone,
            "",
        ]
    )


def terminal_picture() -> str:
    """What a terminal shows of a model's statistics and module tree, from that run's own text."""
    text = printed([PICTURED, "--lang", "en", "--quiet"])
    first, last = text.index("=== Parameter statistics"), text.index("=== Layers")
    lines = [f"$ qwen-inspect {PICTURED}", "…", *text[first:last].rstrip().splitlines()]
    width = 2 * MARGIN + COLUMN * max(map(wcswidth, lines))
    drawn = [
        element(
            "text",
            escape(line),
            x=MARGIN,
            y=MARGIN + LINE * number,
            textLength=COLUMN * wcswidth(line),
            lengthAdjust="spacingAndGlyphs",
            **{"xml:space": "preserve"},
            **fill("ink"),
        )
        for number, line in enumerate(lines, 1)
        if line
    ]
    height = 2 * MARGIN + LINE * len(lines) + 4
    panel = rectangle(0, 0, width, height, "panel", rx=8)
    body = element(
        "g", *drawn, font_family="ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace", font_size=12
    )
    return picture(width, height, panel, body, title=f"qwen-inspect {PICTURED}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file has drifted")
    checking = parser.parse_args().check
    os.chdir(HERE.parent)  # a report names its model as seen from there
    if not checking:
        for path, text in chain(generated(), answered.written(), recorded.recordings()):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return 0
    drifted = [path for path, text in generated() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in drifted:
        print(f"{path.relative_to(HERE.parent)}: drifted; `make reports` rewrites it", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
