"""The HTML page in a real browser: it loads whole and alone, sorts, searches and folds, and no name breaks out of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from qwen_inspect.commands import COMMANDS, WITHOUT_DOCUMENT
from qwen_inspect.fitting.search import fit
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders import gpus
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.predicting.predict import explored, predict
from qwen_inspect.renderers import html, markdown, terminal
from qwen_inspect.renderers.blocks import Block, Code, Fields, Figure, Heading, Items, Node, Paragraph, Table, Tree
from qwen_inspect.renderers.document import View, document
from qwen_inspect.renderers.figure import architecture_figure
from qwen_inspect.renderers.svg import shown
from qwen_inspect.reporting.compiling import compiled
from qwen_inspect.results.whole import ReportRequest
from qwen_inspect.structure.inspect import inspect, models

from ..support.layout import defects, resize
from ..support.models import run
from ..support.pages import HOSTILE, opened
from ..support.runs import a_run
from ..support.turns import in_turn


def written(directory: Path, blocks: Sequence[Block], language: str = "en") -> Path:
    path = directory / "page.html"
    path.write_text(html.render(blocks, Language(language)), encoding="utf-8", errors="strict")
    return path


@pytest.fixture(scope="session")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    """The 36,945 tensors of Qwen3-235B-A22B."""
    report = inspect("Qwen/Qwen3-235B-A22B", source="catalog", predict_files=True)
    blocks = document("weights", report, Language("en"), View())
    table = max((block for block in blocks if isinstance(block, Table)), key=lambda block: len(block.rows))
    return written(tmp_path_factory.mktemp("html"), blocks), table


@cache
def subject_of(command: str) -> object:
    if command == "models":
        return models()
    report = inspect("Qwen/Qwen3-30B-A3B", source="catalog", predict_files=True)
    match command:
        case "memory":
            return explored(predict(report, a_run()))
        case "fit":
            return fit(report, a_run(), gpus.table()[:2])
        case "gpus":
            return gpus.table()
        case "report":
            return compiled(ReportRequest(model="catalog:Qwen/Qwen3-30B-A3B"), Access(offline=True))
    return report


@pytest.mark.parametrize(
    ("command", "language"),
    in_turn([command for command in COMMANDS if command not in ("compare", *WITHOUT_DOCUMENT)], list(LANGUAGES)),
)
def test_every_commands_page_loads_without_a_word(
    browser: Browser, tmp_path: Path, command: str, language: str
) -> None:
    blocks = document(command, subject_of(command), Language(language), View(explain=True, expand=True, live=True))
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    papers: dict[Literal["light", "dark"], str] = {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}
    with opened(browser, written(tmp_path, blocks, language)) as page:
        assert page.title() == headings[0]
        assert page.locator("h1, h2, h3, h4").all_inner_texts() == headings
        assert page.evaluate("document.documentElement.lang") == language
        for scheme, paper in papers.items():
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        resize(page, 1280)
        assert defects(page) == []
        resize(page, 390)
        assert defects(page) == []


def test_a_page_names_nothing_outside_itself(tensors: tuple[Path, Table]) -> None:
    text = tensors[0].read_text(encoding="utf-8")
    assert not re.search(r'(src|href)\s*=\s*(?!"#)|url\(|@import|https?:', text)
    assert "default-src 'none'" in text
    assert "unsafe" not in text


def test_36945_tensors_take_less_than_3_mb(tensors: tuple[Path, Table]) -> None:
    assert len(tensors[1].rows) == 36_945
    assert tensors[0].stat().st_size < 3_000_000


def test_a_long_table_holds_every_row_and_draws_those_in_view(browser: Browser, tensors: tuple[Path, Table]) -> None:
    path, table = tensors
    with opened(browser, path) as page:
        page.set_viewport_size({"width": 1200, "height": 900})
        block = page.locator(".table.long")
        rows = page.evaluate("""(() => { const block = document.querySelector(".table.long");
            return rowsOf(block, block.querySelector("tbody")); })()""")
        assert rows == [list(row) for row in table.rows]
        scroll, drawn = block.locator(".scroll"), block.locator("tbody tr:not(.gap)")
        assert drawn.count() < 120
        scroll.focus()
        page.keyboard.press("End")
        last = table.rows[-1][0]
        page.wait_for_function("name => document.querySelector('.long tbody').textContent.includes(name)", arg=last)
        assert drawn.count() < 120
        assert block.get_by_text(last, exact=True).is_visible()
        heights = page.evaluate(
            "[...document.querySelectorAll('.long tbody tr:not(.gap)')].map(row => row.offsetHeight)"
        )
        assert set(heights) == {28}  # what the places of all others are computed from


def test_a_long_table_stays_smooth(browser: Browser, tensors: tuple[Path, Table]) -> None:
    with opened(browser, tensors[0]) as page:
        frames = page.evaluate("""async () => {
            const scroll = document.querySelector(".long .scroll"), times = [];
            for (let step = 1; step <= 60; step++) {
                const start = performance.now();
                scroll.scrollTop = step * 17000;
                scroll.dispatchEvent(new Event("scroll"));
                scroll.querySelector("tbody").offsetHeight;
                times.push(performance.now() - start);
                await new Promise(requestAnimationFrame);
            }
            return times.sort((a, b) => a - b);
        }""")
        assert frames[30] < 50  # milliseconds, half of the frames; here 4
        begin = time.monotonic()
        page.locator(".long th button").nth(4).click()
        page.locator(".long input").fill("experts.127 down_proj")
        page.wait_for_function("document.querySelector('.long output').textContent.startsWith('94 of')")
        assert time.monotonic() - begin < 5


def test_a_table_is_sorted_and_searched_by_keyboard(browser: Browser, tensors: tuple[Path, Table]) -> None:
    with opened(browser, tensors[0]) as page:
        first = page.locator(".long tbody tr:not(.gap)").first
        page.locator(".long th button").nth(3).focus()
        page.keyboard.press("Enter")
        assert page.locator(".long th").nth(3).get_attribute("aria-sort") == "descending"
        assert first.locator("td").nth(3).inner_text() == "622,329,856"
        page.keyboard.press("Enter")
        assert page.locator(".long th").nth(3).get_attribute("aria-sort") == "ascending"
        assert first.locator("td").nth(3).inner_text() == "128"  # q_norm: one weight for each channel of a head
        page.locator(".long input").focus()
        page.keyboard.type("layers.93. q_norm")
        assert page.locator(".long output").inner_text() == "1 of 36,945 rows"
        assert first.locator("td").first.inner_text() == "model.layers.93.self_attn.q_norm.weight"
        page.keyboard.type(" nowhere")
        assert page.locator(".long tbody tr:not(.gap)").count() == 0


@pytest.mark.parametrize(
    ("column", "descending"),
    [
        (["1.50 GiB", "900.00 MiB", "–", "2 B", "10.00 KiB"], ["1.50 GiB", "900.00 MiB", "10.00 KiB", "2 B", "–"]),
        (["8.19B", "596.05M", "1.2T", "300"], ["1.2T", "8.19B", "596.05M", "300"]),
        (["-1,234", "+5", "0", "12.3%"], ["12.3%", "+5", "0", "-1,234"]),
    ],
)
def test_figures_sort_by_what_they_mean(
    browser: Browser, tmp_path: Path, column: list[str], descending: list[str]
) -> None:
    table = Table(["n"], [*([cell] for cell in column), ["total"]], "r", totals=1)
    with opened(browser, written(tmp_path, [table])) as page:
        page.locator("th button").click()
        assert page.locator("tbody td").all_inner_texts() == descending
        assert page.locator("tfoot td").all_inner_texts() == ["total"]


def test_a_tree_folds_by_keyboard_and_by_button(browser: Browser, tmp_path: Path) -> None:
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    with opened(browser, written(tmp_path, document("structure", report, Language("en"), View(expand=True)))) as page:
        details, leaf = page.locator(".tree details"), page.get_by_text("(q_proj)").first
        assert details.count() > 28 * 3
        assert not leaf.is_visible()  # 28 layers one by one are folded at first
        page.locator(".folding button").first.click()
        assert leaf.is_visible()
        summary = page.locator(".tree summary").first
        summary.focus()
        page.keyboard.press("Enter")
        assert not leaf.is_visible()
        page.keyboard.press("Enter")
        assert leaf.is_visible()
        page.locator(".folding button").nth(1).click()
        assert not leaf.is_visible()


def test_a_page_reads_without_scripts(browser: Browser, tensors: tuple[Path, Table]) -> None:
    with opened_without_scripts(browser, tensors[0]) as page:
        assert "first 200 of 36,945 rows" in page.locator("noscript").first.inner_text()
        assert page.locator(".long tbody tr").count() == 200
        assert not page.locator("input").first.is_visible()


@contextmanager
def opened_without_scripts(browser: Browser, path: Path) -> Iterator[Page]:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    yield page
    context.close()


def hostile_blocks(name: str) -> list[Block]:
    return [
        Heading(name, 1),
        *[Heading(name)] * 3,
        Paragraph(name),
        Fields([(name, name)]),
        Items([name]),
        Items([name], numbered=True),
        Table([name, "b"], [[name, "1"], [name, "2"]], "lr", totals=1),
        Tree(Node(name, name, [Node(name, "", [])])),
        Code(name, name),
    ]


def test_a_hostile_name_shows_as_it_is(browser: Browser, tmp_path: Path) -> None:
    blocks = [block for name in HOSTILE for block in hostile_blocks(name)]
    with opened(browser, written(tmp_path, blocks)) as page:
        inside = page.evaluate(
            "[...new Set([...document.querySelectorAll('main *')].map(one => one.localName))].sort()"
        )
        assert set(inside) <= {
            *(
                "h1",
                "h2",
                "p",
                "dl",
                "dt",
                "dd",
                "div",
                "ul",
                "ol",
                "li",
                "table",
                "thead",
                "tbody",
                "tfoot",
                "tr",
                "th",
            ),
            *("td", "button", "details", "summary", "code", "span", "pre"),
        }
        names = [shown(name) for name in HOSTILE]
        assert page.locator("h1").evaluate_all("all => all.map(one => one.textContent)") == names
        assert page.locator("main > p").evaluate_all("all => all.map(one => one.textContent)") == names
        cells = page.locator("tbody td:first-child").evaluate_all("all => all.map(one => one.textContent)")
        assert cells == names


def test_a_hostile_name_stays_in_its_cell_of_a_long_table(browser: Browser, tmp_path: Path) -> None:
    rows = [[f"{name}{index}", name] for index in range(8) for name in HOSTILE]
    with opened(browser, written(tmp_path, [Table(["a", "b"], rows, "ll")])) as page:
        read = page.evaluate("rowsOf(document.querySelector('.table'), null)")
        assert read == [[shown(cell) for cell in row] for row in rows]
        page.locator("th button").first.click()
        page.locator("input").fill("script")
        assert page.locator("main script").count() == 1


def test_a_command_is_copied(browser: Browser, tmp_path: Path) -> None:
    path = written(tmp_path, [Code("qwen-inspect params\nmore", "sh")])
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(path.as_uri())
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "qwen-inspect params\nmore"
    context.close()


def test_a_figure_stands_in_the_page_in_its_own_colours(browser: Browser, tmp_path: Path) -> None:
    svg = architecture_figure(inspect("Qwen/Qwen3-0.6B", source="catalog"), Language("en"))
    figure = Figure(svg, "a] [b](c) <i>", "a figure>.svg")
    with opened(browser, written(tmp_path, [figure, figure])) as page:
        page.emulate_media(color_scheme="dark")
        assert page.locator("figure svg text").count() > 100
        assert page.evaluate("getComputedStyle(document.querySelector('svg rect')).fill") == "rgb(13, 17, 23)"
    assert markdown.render([figure]) == "![a\\] \\[b\\](c) &lt;i&gt;](<a%20figure%3E.svg>)\n"
    assert terminal.render([figure]) == "[a] [b](c) <i>: a figure>.svg]\n"


def test_the_command_line_writes_a_page(tmp_path: Path) -> None:
    assert run("params", "--format", "html", "-o", tmp_path / "params.html").code == 0
    page = (tmp_path / "params.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page == run("params", "--format", "html").out
