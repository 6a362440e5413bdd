"""Pages at a phone's, a tablet's and a desktop's width, in light and dark: nothing is cut, overlaps, or is too faint to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.loaders.resolve import Access
from qwen_inspect.predicting.predict import explored, predict
from qwen_inspect.renderers import html
from qwen_inspect.renderers.blocks import Answer, Block
from qwen_inspect.renderers.document import View, document
from qwen_inspect.reporting.compiling import compiled
from qwen_inspect.results.cache import Workload
from qwen_inspect.results.whole import ReportRequest
from qwen_inspect.structure.inspect import inspect

from ..support.layout import defects, faint_texts, resize
from ..support.pages import blank_page
from ..support.runs import a_run

WIDTHS = (390, 800, 1280)
PAPER = 720  # pixels, of A4 between Chromium's margins
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def report_page(model: str) -> Callable[[Language], Sequence[Block]]:
    whole = compiled(ReportRequest(model=f"catalog:{model}"), Access(offline=True))
    return lambda say: document("report", whole, say, View(live=True))


def memory_page(
    model: str, dtype: str | None = None, cache_format: str = "auto"
) -> Callable[[Language], Sequence[Block]]:
    """With `structure` and `attention` below it, and an answer above."""
    report = inspect(model, source="catalog", dtype=dtype, workload=Workload(cache_format=cache_format))
    memory = explored(predict(report, a_run(cache_format=cache_format)))
    view = View(live=True, explain=True)

    def blocks(say: Language) -> Sequence[Block]:
        answer = Answer([say("size_range", low="7.11 GiB", high="7.85 GiB"), say("explore_intro")])
        subjects = {"memory": memory, "structure": report, "attention": report}
        return [answer, *(block for name, subject in subjects.items() for block in document(name, subject, say, view))]

    return blocks


PAGES = {
    "experts": lambda: report_page("Qwen/Qwen1.5-MoE-A2.7B"),
    "vision": lambda: report_page("Qwen/Qwen3-VL-2B-Instruct"),
    "hybrid": lambda: memory_page(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", cache_format="fp8"
    ),  # by formula: no trace to take
    "dense, a range": lambda: memory_page("Qwen/Qwen3-8B", "awq-int4"),
}


@pytest.fixture
def page(browser: Browser) -> Page:
    return blank_page(browser)


@pytest.mark.parametrize("kind", PAGES)
def test_nothing_on_a_page_is_cut_or_faint_at_any_width(page: Page, tmp_path: Path, kind: str) -> None:
    blocks_in = PAGES[kind]()
    for language in LANGUAGES:
        say = Language(language)
        path = tmp_path / f"{language}.html"
        path.write_text(html.render(blocks_in(say), say), encoding="utf-8")
        page.emulate_media(media="screen", color_scheme="light")
        page.goto(path.as_uri())
        for width in WIDTHS:
            resize(page, width)
            assert (language, width, defects(page)) == (language, width, [])
            for scheme in SCHEMES if language == "en" else ():  # colours do not go by language, nor places by colours
                page.emulate_media(color_scheme=scheme)
                assert (width, scheme, faint_texts(page)) == (width, scheme, [])
    page.emulate_media(media="print", color_scheme="light")
    resize(page, PAPER)
    assert defects(page) == []


def test_what_is_cut_overlaps_or_is_faint_is_measured(page: Page) -> None:
    page.goto("about:blank")
    page.emulate_media(media="screen", color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 900})
    page.set_content("""<html><body style="margin: 0; background: white">
        <p style="white-space: nowrap">a sentence that goes on and on beyond the right edge of a phone</p>
        <div class="wider"><div class="scroll" style="overflow: auto; width: 200px"><table><tr>
            <td style="min-width: 300px">wide</td></tr></table></div></div>
        <figure><svg viewBox="0 0 400 100" width="400" style="font-size: 12px"><rect width="400" height="100" fill="#fff"/>
            <text x="10" y="20">one</text><text x="20" y="22">two</text><text x="390" y="80">outside</text>
            <text x="100" y="50" font-size="6">small</text><text x="200" y="50" fill="#999">grey</text></svg></figure>
        <figure><svg viewBox="0 0 100 100" width="100"><g class="treemap"><g tabindex="0"><rect width="30" height="30"/>
            <text x="10" y="20">model.layers</text></g></g></svg></figure></body></html>""")
    found = " ".join(defects(page))
    for named in (
        "the page is ",
        "beyond the page: a sentence",
        "hint false: wide",
        "overlap: two | one",
        "beyond its picture: outside",
        "letters too small: small",
        "beyond its tile: model.layers",
    ):
        assert named in found
    assert any("grey" in text for text in faint_texts(page))  # #999 on white: 2.85
