"""What a terminal shows is no wider than it: words stay whole, columns that are left out are named, -v and --expand show all."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest
from wcwidth import wcswidth

from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.renderers import terminal
from qwen_inspect.renderers.blocks import Block, Code, Fields, Heading, Items, Node, Paragraph, Shortened, Table, Tree
from qwen_inspect.renderers.screen import Screen
from qwen_inspect.renderers.wrapping import wrapped

from ..support.invoking import invoke

WIDTHS, WHOLE = (80, 120, 200), 1000
SMALL, LARGE, MIXTURE, OTHER = (
    f"catalog:Qwen/{name}" for name in ("Qwen3-0.6B", "Qwen3-8B", "Qwen3-30B-A3B", "Qwen2.5-7B")
)
SHOWN: Mapping[str, tuple[str, ...]] = {
    "gpus": ("gpus",),
    "models": ("models",),
    "structure": ("structure", SMALL),
    "memory": ("memory", SMALL),
    "fit": ("fit", SMALL, "--gpu", "4090"),
    "compare": ("compare", SMALL, LARGE),
}
# One process on a terminal whose width it sets itself, so that Python starts once.
SESSION = """
import fcntl, struct, sys, termios
from qwen_inspect.cli import main
for columns, words in {asked!r}:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    code = main(list(words))
    sys.stdout.write(f"\\x1dcode {{code}}\\x1d")
    sys.stdout.flush()
"""


def on_terminal(asked: list[tuple[int, tuple[str, ...]]]) -> list[str]:
    """What a terminal of so many columns is sent by each command."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1", "TERM": "xterm"}
    for name in ("COLUMNS", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION.format(asked=asked)], stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the other side has closed
        while piece := os.read(ours, 65536):
            seen += piece
    _, err = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, err.decode()
    texts = re.sub(r"\x1b\[[\d;]*m", "", seen.decode()).replace("\r\n", "\n").split("\x1d")
    assert texts[1::2] == ["code 0"] * len(asked)
    return texts[:-1:2]


@pytest.fixture(scope="module")
def screens() -> dict[tuple[str, str, int], str]:
    """(command, language, columns) -> what the terminal shows."""
    keys = [(name, language, columns) for name in SHOWN for language in LANGUAGES for columns in (*WIDTHS, WHOLE)]
    texts = on_terminal([(columns, (*SHOWN[name], "--lang", language)) for name, language, columns in keys])
    return dict(zip(keys, texts, strict=True))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("command", SHOWN)
def test_no_line_is_wider_than_the_terminal(
    command: str, language: str, screens: dict[tuple[str, str, int], str]
) -> None:
    for columns in WIDTHS:
        lines = screens[command, language, columns].splitlines()
        assert len(lines) > 10
        assert [line for line in lines if wcswidth(line) > columns] == []


def latin_words(text: str) -> set[str]:
    """Words between spaces, Chinese and its punctuation; a bracket or a colon beside a word is not part of it."""
    words = (word.strip("():,;.") for word in re.findall(r"[!-~]+", text))
    return {word for word in words if re.search("[A-Za-z]", word)}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("command", SHOWN)
def test_no_word_is_broken(command: str, language: str, screens: dict[tuple[str, str, int], str]) -> None:
    whole = latin_words(screens[command, language, WHOLE])
    short = {
        word.removeprefix("aten.").removesuffix(".default").removeprefix("model.").replace("in_features=", "")
        for word in whole
    }
    for columns in WIDTHS:
        text = screens[command, language, columns]
        unknown = (
            latin_words(text)
            - whole
            - short
            - {"-v", "--format", "md", *latin_words(Language(language)("screen_short"))}
        )
        assert {
            word
            for word in unknown
            if not re.fullmatch(r"[\d.,]+[KMBT]|Hidden|at|this|width|numbers|KiB|MiB|GiB", word)
        } == set()


def test_no_line_of_chinese_starts_with_a_closing_mark(screens: dict[tuple[str, str, int], str]) -> None:
    for (_, language, columns), text in screens.items():
        if language == "zh" and columns != WHOLE:
            assert re.findall(r"^[ │|├└─]*[，。、；：？！）].*", text, re.MULTILINE) == []


def test_hidden_columns_are_named_with_what_shows_them(screens: dict[tuple[str, str, int], str]) -> None:
    shown = " ".join(screens["memory", "en", 80].split())
    assert (
        "Hidden at this width: At the end (Bytes), At the peak (Bytes). -v, a wider terminal or --format md shows all."
        in shown
    )
    assert "At the end (Bytes)" in screens["memory", "en", 120]
    assert "Hidden" not in screens["memory", "en", 120].partition("Alive")[0]
    assert "宽度不足，未显示：" in screens["gpus", "zh", 80]


def test_verbose_shows_all_at_80_columns_and_nothing_wider() -> None:
    memory, cards = on_terminal([(80, (*SHOWN["memory"], "-v")), (80, ("gpus", "-v"))])
    for text in (memory, cards):
        assert "Hidden" not in text
        assert [line for line in text.splitlines() if wcswidth(line) > 80] == []
    # 310 weights of 1,192,099,840 B at the peak (test_memory), and a source of a card.
    assert "1,192,099,840" in memory
    assert "https://developer.nvidia.com/cuda-gpus" in cards


def test_four_models_share_80_columns() -> None:
    (shown,) = on_terminal([(80, ("compare", SMALL, LARGE, MIXTURE, OTHER, "--lang", "en"))])
    lines = shown.splitlines()
    assert [line for line in lines if wcswidth(line) > 80] == []
    # The published counts, and 2 x layers x KV heads x 128 x 2 B: 28 x 8, 36 x 8, 48 x 4, 28 x 4.
    assert re.search(r"^\| Total +\| +596\.05M \| +8\.19B \| +30\.53B \| +7\.62B \|$", shown, re.MULTILINE)
    assert re.search(
        r"^\| Bytes per token +\| 112\.00 KiB \| 144\.00 KiB \| +96\.00 KiB \| +56\.00 KiB \|$", shown, re.MULTILINE
    )
    start = lines.index("Row: Class")
    assert lines[start + 1 : start + 5] == [
        "  A: Qwen3ForCausalLM",
        "  B: Qwen3ForCausalLM",
        "  C: Qwen3MoeForCausalLM",
        "  D: Qwen2ForCausalLM",
    ]


def test_equal_tensors_of_layers_and_experts_fold_and_expand_lists_each() -> None:
    folded, expanded = on_terminal(
        [
            (120, ("weights", MIXTURE, "--lang", "en")),
            (120, ("weights", SMALL, "--expand", "--lang", "en")),
        ]
    )
    # Qwen3-30B-A3B: 48 layers, each of 128 experts of 3 matrices, of a router and 8 others; with 3 more, 18,867.
    assert "model.layers.0-47.mlp.experts.0-127.down_proj.weight |  6,144 |" in folded
    assert "--expand lists all 18,867" in " ".join(folded.split())
    layers = re.findall(
        r"^\| model\.layers\.(\d+)\.mlp\.up_proj\.weight", expanded.partition("Largest")[0], re.MULTILINE
    )
    assert sorted(map(int, layers)) == list(range(28))


def test_a_pipe_gets_every_column_even_where_columns_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = invoke(capsys, "memory", SMALL, "--lang", "en").out.splitlines()
    assert "| Term " in "".join(lines)
    assert any("At the end (Bytes) | At the end | At the peak (Bytes) | At the peak" in line for line in lines)


def test_top_shows_so_many_tensors_and_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    shown = invoke(capsys, "weights", SMALL, "--top", "3", "--lang", "en").out
    assert re.findall(r"^\| (\S+weight)", shown, re.MULTILINE) == [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.mlp.down_proj.weight",
    ]
    assert "Tensors: 311" in shown  # the count of the file published with Qwen3-0.6B


# --- parts ---------------------------------------------------------------------------------------------------------

LONG = "https://example.org/a_long/path-of/one.word?and=more&of=it"
WORDS = ["plain words", "混排的 text，与「引号」（括号）和 12.50 GiB。", LONG, "x" * 70, "e\u0301" * 30, "", "a  b"]


def lines_of(block: Block, columns: int, **screen: bool) -> list[str]:
    return terminal.render([block], Screen(columns, Language("en"), **screen)).splitlines()


@pytest.mark.parametrize("columns", [20, 33, 80])
@pytest.mark.parametrize("whole", [False, True])
def test_every_kind_of_block_fits(columns: int, whole: bool) -> None:
    tree = Tree(Node("root", "1", [Node(word, "note of it", [Node(word, word, [])]) for word in WORDS]))
    table = Table(["a", "b", "c"], [[word, "1", word] for word in WORDS], "lrl", totals=1, expendable=((1,),))
    pairs = [(word, word) for word in WORDS]
    blocks: list[Block] = [Items(WORDS), Items(WORDS, True), Fields(pairs), tree, table, Code("\n".join(WORDS))]
    for block in [*map(Paragraph, WORDS), *blocks]:
        assert [line for line in lines_of(block, columns, whole=whole) if wcswidth(line) > columns] == []


def test_a_word_wider_than_the_line_is_broken_after_its_punctuation_and_nothing_is_lost() -> None:
    lines = wrapped(f"See {LONG} there", 20)
    assert lines[1:4] == ["https://example.org/", "a_long/path-of/one.", "word?and=more&of=it"]
    assert "".join(lines).replace("See", "").replace("there", "").strip() == LONG


def test_a_number_stays_with_its_unit() -> None:
    assert wrapped("takes about 890.00 MiB of it", 18) == ["takes about", "890.00 MiB of it"]


def test_rows_with_words_too_wide_for_their_table_go_below_it() -> None:
    rows = [[f"row {index}", "1", "2"] for index in range(9)]
    table = Table(["Row", "A", "B"], [*rows, ["class", "A" * 20, "B" * 20]], "lrr")
    lines = lines_of(table, 40)
    assert lines.count("| Row | A | B |".replace("Row |", "Row   |")) == 1
    assert lines[-3:] == ["Row: class", f"  A: {'A' * 20}", f"  B: {'B' * 20}"]


def test_numbers_are_shortened_before_columns_go() -> None:
    table = Table(
        ["Row", "Total", "More"], [["a", Shortened("1,234,567,890,123", "1.23T"), "x" * 10]], "lrr", expendable=((2,),)
    )
    lines = lines_of(table, 30)
    assert "| a   | 1.23T | xxxxxxxxxx |" in lines
    assert lines[-1].endswith("shows all.")
    assert "1,234,567,890,123" in "\n".join(lines_of(table, 40))
    assert "1,234,567,890,123" in "\n".join(lines_of(table, 30, whole=True))


def test_a_table_of_no_fitting_words_becomes_labelled_paragraphs() -> None:
    table = Table(["Key", "Value"], [["k" * 15, "v" * 15]], "ll")
    assert lines_of(table, 30) == [f"Key: {'k' * 15}", f"  Value: {'v' * 15}"]


@pytest.mark.parametrize("text", ["word " * 15 + "abcd", "每个 rank 预留的缓存" * 4])
def test_the_mark_that_closes_a_heading_is_not_alone_on_a_line(text: str) -> None:
    columns = wcswidth(f"=== {text}") + 2  # the text fits, its closing mark does not
    *first, last = terminal.render([Heading(text)], Screen(columns, Language("en"))).rstrip("\n").split("\n")
    assert first
    assert last.removesuffix(" ===").strip() not in ("", last)
