"""The sliders of images: at each stop the page says what `memory` and `attention --image` print."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from qwen_inspect import inspect

from ..support.models import run
from ..support.pages import opened

SIDES = (224, 336, 448, 560, 672, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096)
NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
READ = """block => Object.fromEntries([...block.querySelectorAll('[data-figure]')].map(row =>
    [row.dataset.figure, row.cells[1].textContent]))"""


def moved(page: Page, side: int, number: int, batch: int) -> dict[str, str]:
    """The page's figures after its sliders were moved there by what they are called."""
    sliders = page.locator(".live.images").get_by_role("slider")
    for slider, position in zip(sliders.all(), (SIDES.index(side), NUMBERS.index(number), batch - 1), strict=True):
        slider.evaluate("(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", position)
    told = [slider.get_attribute("aria-valuetext") for slider in sliders.all()]
    assert told == [f"{side:,} × {side:,}", f"{number:,}", f"{batch:,}"]
    return dict(page.locator(".live.images").evaluate(READ))


@pytest.mark.parametrize(
    ("model", "stops"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", [(224, 1, 1), (1024, 3, 7), (4096, 12, 2)]),
        ("google/gemma-3-4b-it", [(560, 64, 3)]),  # layers with a window, marks around each image
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", [(1536, 2, 1)]),  # a mark ends each row
    ],
)
def test_each_stop_says_what_the_command_prints(
    browser: Browser, tmp_path: Path, model: str, stops: list[tuple[int, int, int]]
) -> None:
    path = tmp_path / "memory.html"
    assert run("memory", f"catalog:{model}", "--format", "html", "-o", path, "--quiet").code == 0
    with opened(browser, path) as page:
        for side, number, batch in stops:
            images = ["--image", f"{side}x{side}"] * number
            text = run("attention", f"catalog:{model}", *images, "--batch", str(batch), "--quiet").out
            row = re.search(rf"\| {side}x{side} +\| +(\d+ × \d+) \|[^|]+\| +([\d,]+) \| +([\d,]+) \|", text)
            cache = re.search(r"The KV cache of these ([\d,]+) tokens takes ([^\n]+)\.\n", text)
            pixels = re.search(r"Their pixels take ([^\n]+) on the card", text)
            assert row is not None
            assert cache is not None
            assert pixels is not None
            figures = moved(page, side, number, batch)
            assert [figures["resized"].replace(",", ""), figures["tokens"], figures["marks"]] == list(row.groups())
            assert figures["of_prompt"] == cache[1]
            assert figures["cache"].split(" (")[0] == cache[2]
            assert figures["pixels"].split(" (")[0] == pixels[1]
        assert "The peak with images is not known here" in page.locator("body").inner_text()


def test_the_shortest_prompt_is_the_shortest_that_the_command_takes(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report"
    model, images = "catalog:Qwen/Qwen2-VL-2B-Instruct", ["--image", "448x448"] * 3
    assert run("report", model, "--format", "html", "-o", path, "--quiet").code == 0
    with opened(browser, path / "Qwen2-VL-2B-Instruct.en.html") as page:
        figures = moved(page, 448, 3, 1)
    least = int(figures["least_prompt"].replace(",", ""))
    assert least == 3 * 256 + 2  # a token of text between two images
    assert run("attention", model, *images, "--context", str(3 * 256 - 1)).code == 2
    refused = run("memory", model, *images, "--context", str(least - 1))
    assert (refused.code, f"{least:,}" in refused.err) == (2, True)


def test_a_model_that_sees_no_image_has_no_such_sliders(tmp_path: Path) -> None:
    path = tmp_path / "memory.html"
    assert run("memory", "catalog:Qwen/Qwen3-0.6B", "--format", "html", "-o", path, "--quiet").code == 0
    assert 'class="live images"' not in path.read_text(encoding="utf-8")


def test_a_damaged_processor_takes_the_sliders_alone(tmp_path: Path) -> None:
    config = inspect("Qwen/Qwen2-VL-2B-Instruct", source="catalog").config
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = []
    for patch in (14, -14):
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "Qwen2VLImageProcessor", "patch_size": patch})
        )
        path = tmp_path / f"{patch}.html"
        assert run("memory", tmp_path, "--format", "html", "-o", path, "--quiet").code == 0
        shown.append('class="live images"' in path.read_text(encoding="utf-8"))
    assert shown == [True, False]
    assert run("attention", tmp_path, "--image", "448x448", "--quiet").code == 6
