"""Recordings of a real terminal: commands run in a pseudo-terminal of 100 columns, and what it showed as SVG."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

from wcwidth import wcswidth

from qwen_inspect.language import LANGUAGES
from qwen_inspect.renderers.svg import element, escape, fill, picture, rectangle

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "recordings"
RECORDED = {
    "structure": "Qwen/Qwen3-8B",
    "memory": "Qwen/Qwen3-8B --context 32k --gpu H100",
    "fit": "Qwen/Qwen3-8B --context 30k --gpu 4090",
    "compare": "Qwen/Qwen3-8B Qwen/Qwen3-14B",
    "attention": "Qwen/Qwen3-Next-80B-A3B-Instruct",
}
COLUMNS, ROWS, MOST_LINES = 100, 40, 48
COLUMN, LINE, MARGIN = 7.6, 17, 16  # pixels
WIDE = re.compile("([\u2e80-\uffef]+)")  # Chinese and its punctuation, two columns each
RENDITION = re.compile(r"\x1b\[([\d;]*)m")
STYLES: dict[str, dict[str, object]] = {
    "1": {**fill("ink"), "font_weight": "bold"},
    "1;36": {**fill("weights"), "font_weight": "bold"},
    "2": fill("muted"),
    "32": fill("cache"),
}


def recordings() -> Iterator[tuple[Path, str]]:
    for command in RECORDED:
        for language in LANGUAGES:
            yield FOLDER / f"{command}.{language}.svg", recording(command, language)


def recording(command: str, language: str) -> str:
    typed = f"{command} {RECORDED[command]}"
    shown = screen([*typed.split(), "--lang", language, "--offline"])
    lines = [f"\x1b[2m$ qwen-inspect {typed}\x1b[0m", *shown[:MOST_LINES]]
    if len(shown) > MOST_LINES:
        lines.append(f"\x1b[2m… +{len(shown) - MOST_LINES}\x1b[0m")
    width, height = 2 * MARGIN + COLUMN * COLUMNS, 2 * MARGIN + LINE * len(lines) + 4
    drawn = [part for number, line in enumerate(lines, 1) for part in spans(line, MARGIN + LINE * number)]
    body = element(
        "g", *drawn, font_family="ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace", font_size=12
    )
    return picture(width, height, rectangle(0, 0, width, height, "panel", rx=8), body, title=f"qwen-inspect {typed}")


def screen(words: list[str]) -> list[str]:
    """The lines that a terminal shows, with their renditions (ECMA-48, 8.3.117)."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        for name in ("NO_COLOR", "COLUMNS"):
            environment.pop(name, None)
        os.execve(sys.executable, [sys.executable, "-m", "qwen_inspect", *words], environment)
    output = b""
    while True:
        try:
            read = os.read(terminal, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not read:
            break
        output += read
    os.waitpid(child, 0)
    os.close(terminal)
    # What stands before a carriage return within a line was progress, written over.
    lines = [line.removesuffix("\r").rpartition("\r")[2] for line in output.decode("utf-8").split("\n")]
    return [line.replace("\x1b[K", "").replace("\x1b[0K", "") for line in lines[:-1]]


def spans(line: str, y: float) -> Iterator[str]:
    """A text element for each stretch of one rendition and one width of characters, so that columns stay below each other."""
    x, style = float(MARGIN), fill("ink")
    for index, piece in enumerate(RENDITION.split(line)):
        if index % 2:
            style = STYLES.get(piece, fill("ink"))
            continue
        for stretch in WIDE.split(piece):
            if length := COLUMN * wcswidth(stretch):
                placed: dict[str, object] = {"x": x, "y": y, "textLength": length, "lengthAdjust": "spacingAndGlyphs"}
                yield element("text", escape(stretch), **placed, **{"xml:space": "preserve"}, **style)
                x += length
