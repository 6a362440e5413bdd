"""README.md, README.zh.md and docs/: the tool gives these answers and takes these commands, links resolve, figures agree."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qwen_inspect.commands import COMMANDS, parsed
from qwen_inspect.language import Language
from reports.answered import ROOT, answered, pages
from reports.recorded import recording

ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh.md"))
PAGES = list(pages())
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "reports" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def named(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@named([page for page in PAGES if "```console" in text_of(page)])
def test_answers_are_what_the_tool_prints(page: Path) -> None:
    assert answered(page) == text_of(page), "`make reports` rewrites them"


def commands_of(page: Path) -> list[str]:
    """What is typed in the page's blocks, without comments, prompts, redirections and runners."""
    lines = (line for _, block in FENCE.findall(text_of(page)) for line in block.splitlines())
    typed = (re.search(r"(?:^|\$ |run: |uvx )(qwen-inspect [^>]*)", line) for line in lines)
    return [shlex.join(shlex.split(found[1], comments=True)) for found in typed if found]


def test_every_command_is_taken_by_its_parser() -> None:
    commands = [command for page in PAGES for command in commands_of(page)]
    for command in commands:
        options = parsed(shlex.split(command)[1:], Language("en"))
        assert options.command in COMMANDS, command
    assert {shlex.split(command)[1] for command in commands} >= set(COMMANDS) - {"completion", "schema"}


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces to hyphens, without punctuation."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links_of(page: Path) -> Iterator[str]:
    yield from (link for link in LINK.findall(FENCE.sub("", text_of(page))) if "://" not in link)


@named(LINKING)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links_of(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index_and_linked_by_the_readme() -> None:
    names = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert {link.partition("#")[0] for link in links_of(ROOT / "docs" / "README.md")} >= names - {"README.md"}
    assert {Path(link).name for link in links_of(ENGLISH) if link.startswith("docs/")} == names


def test_a_recording_is_what_the_terminal_shows() -> None:
    """One of five; the others are recorded in the same way."""
    assert recording("structure", "zh") == text_of(ROOT / "docs" / "recordings" / "structure.zh.svg"), "`make reports`"


# --- the READMEs


@named([ENGLISH, CHINESE])
def test_the_first_screen_says_how_to_run_it_and_how_accurate_it_is(page: Path) -> None:
    lines = text_of(page).splitlines()
    assert len(lines) < 150
    first = "\n".join(lines[:25])
    for said in (
        "uvx qwen-inspect ",
        "pipx run qwen-inspect ",
        "pip install qwen-inspect",
        "`make run`",
        "`make test`",
        "H100",
    ):
        assert said in first


def test_both_readmes_have_the_same_commands_links_and_figures() -> None:
    assert commands_of(CHINESE) == commands_of(ENGLISH)
    links = [
        [link.replace(".zh.svg", ".en.svg") for link in links_of(page) if not link.startswith(("README", "#"))]
        for page in (ENGLISH, CHINESE)
    ]
    assert links[0] == links[1]
    for pattern in (r"^#+", r"`[^`\n]+`", r"(?<![\w.-])[+-]?\d[\d,.]*\d(?: [GM]iB| %|B\b)?"):
        english, chinese = (sorted(re.findall(pattern, text_of(page), re.MULTILINE)) for page in (ENGLISH, CHINESE))
        assert english == chinese, pattern


@named([ENGLISH, ROOT / "docs" / "accuracy.md"])
def test_figures_of_accuracy_are_those_of_the_committed_comparison(page: Path) -> None:
    compared = text_of(ROOT / "reports" / "accuracy.md").replace(",", "")
    rows = [row for row in text_of(page).splitlines() if re.match(r"\| (Qwen|QwenLM|vLLM|llama)", row)]
    assert len(rows) >= 6
    for row in rows:
        for cell in row.split("|")[2:-1]:
            figure = re.sub(r"[,+ ]|[GM]iB|%", "", cell)
            assert figure == "0" or figure in compared, (row, figure)


def test_the_workflow_to_copy_is_yaml() -> None:
    (block,) = (block for kind, block in FENCE.findall(text_of(ROOT / "docs" / "reports-and-ci.md")) if kind == "yaml")
    assert list(yaml.safe_load(block)["jobs"]) == ["reports"]
