"""The page, opened in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

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


@contextmanager
def opened(browser: Browser, path: Path, **options: Any) -> Iterator[Page]:
    """The page as a reader opens it, from disk; at the end nothing may have been fetched, refused or thrown."""
    page = browser.new_page(**options)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(path.as_uri())
        yield page
        assert requests == [path.as_uri()]
        assert complaints == []
        assert page.evaluate("window.broken") is None
    finally:
        page.close()
