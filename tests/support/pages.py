"""The page, opened in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, ViewportSize

from .hostile import HOSTILE_NAMES

ATTACKS = [
    "</script><script>window.broken = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.broken = 1'>",
    '"><svg onload=window.broken=1>',
    "javascript:window.broken=1",
    "</td></tr></table><h1>out</h1>",
]

HOSTILE = [*HOSTILE_NAMES, *ATTACKS, "\ud800", "𝟙𝟚 astral", "𝟙𝟛 astral"]


VIEWPORT: ViewportSize = {"width": 1280, "height": 720}


@cache
def _page_of(browser: Browser) -> Page:
    return browser.new_page()


def blank_page(browser: Browser) -> Page:
    """One for all tests: a new page takes a second, as much as most of what is done on it."""
    page = _page_of(browser)
    page.goto("about:blank")
    page.set_viewport_size(VIEWPORT)
    page.emulate_media(media="screen", color_scheme="light")
    return page


@contextmanager
def opened(browser: Browser, path: Path) -> Iterator[Page]:
    """The page as a reader opens it, from disk; at the end nothing may have been fetched, refused or thrown."""
    page = blank_page(browser)
    requests: list[str] = []
    complaints: list[str] = []
    heard: dict[Any, Callable[[Any], None]] = {
        "request": lambda request: requests.append(request.url),
        "console": lambda message: complaints.append(message.text),
        "pageerror": lambda error: complaints.append(str(error)),
    }
    for event, hear in heard.items():
        page.on(event, hear)
    try:
        page.goto(path.as_uri())
        yield page
        assert requests == [path.as_uri()]
        assert complaints == []
        assert page.evaluate("window.broken") is None
    finally:
        for event, hear in heard.items():
            page.remove_listener(event, hear)
