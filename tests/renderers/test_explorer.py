"""The page's live parts: figures that follow the sliders are the command line's to the byte, and the treemap adds up."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page

from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.predicting.allocation.allocator import MIB, Allocator
from qwen_inspect.predicting.allocation.allocator_settings import read_settings
from qwen_inspect.predicting.allocation.replay import replay
from qwen_inspect.predicting.footprint import formula_footprint
from qwen_inspect.predicting.predict import explored, predict
from qwen_inspect.renderers import html
from qwen_inspect.renderers import json as json_renderer
from qwen_inspect.renderers.blocks import Live
from qwen_inspect.renderers.document import View, document
from qwen_inspect.renderers.explorer import explorer
from qwen_inspect.renderers.treemap import Area, Box, areas, parameter_treemap, squarified
from qwen_inspect.results.cache import Workload
from qwen_inspect.results.exploration import Exploration, RequestSize
from qwen_inspect.results.memory import TERMS, MemoryReport, Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.timeline import Allocate, Event, Free, Stage, Timeline
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.units import count, size

from ..support.models import run
from ..support.pages import HOSTILE, opened
from ..support.runs import a_run

READ = """block => Object.fromEntries([...block.querySelectorAll('[data-term]')].map(row =>
    [row.dataset.term, [...row.cells].slice(1).map(cell => cell.textContent)]))"""
SET = """([block, name, value, kind]) => {
    const input = block.querySelectorAll(`input[type=${kind}]`)[["context", "batch", "fresh"].indexOf(name)];
    input.value = value;
    input.dispatchEvent(new Event("input"));
    return Number(block.querySelectorAll("input[type=number]")[["context", "batch", "fresh"].indexOf(name)].value);
}"""
ALLOCATORS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:64",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "large_segment_size_mb:40,max_non_split_rounding_mb:60,max_split_size_mb:50",
)


def written(directory: Path, memory: MemoryReport, language: str = "en") -> Path:
    path = directory / "page.html"
    say = Language(language)
    blocks = document("memory", explored(memory), say, View(live=True))
    path.write_text(html.render(blocks, say), encoding="utf-8")
    return path


@contextmanager
def shown(browser: Browser, path: Path) -> Iterator[Page]:
    with opened(browser, path) as page:
        page.wait_for_function("() => document.querySelector('.explorer').dataset.drawn")
        yield page


def number(text: str) -> int | None:
    return None if text == "–" else int(text.replace(",", ""))


def assert_told(figures: Mapping[str, list[str]], predicted: Mapping[str, Any]) -> None:
    """The page's table against the JSON of `memory` for the same run."""
    for column, moment in ((0, "steady"), (2, "peak")):
        told = predicted["moments"][moment]
        for term in (*TERMS, "allocated"):
            expected = None if told is None else told.get(f"{term}_bytes", 0)
            if term not in figures:
                assert not expected
                continue
            if term == "allocated" and moment == "peak" and predicted["peak_range"] is not None:
                continue
            bound = "at least " if term == "allocated" and told is not None and told["lower_bound_only"] else ""
            assert figures[term][column] == f"{bound}{count(expected)}", (term, moment)
            assert figures[term][column + 1] == f"{bound}{size(expected)}"  # halves to even, as Python rounds them
    required, between = predicted["required_bytes"], predicted["peak_range"]
    if between is not None:
        ends = between["low_bytes"], between["high_bytes"]
        assert figures["allocated"][2:] == [" to ".join(map(shown_as, ends)) for shown_as in (count, size)]
    else:
        assert number(figures["reserved"][2]) == predicted["peak_reserved_bytes"]
    if required is None:
        assert "required_0" not in figures
    else:
        assert [number(figures[f"required_{end}"][2]) for end in (0, 1)] == [required["low"], required["high"]]
        assert figures["required_1"][3] == size(required["high"])


def predicted(report: Report, workload: Run) -> dict[str, Any]:
    content = json.loads(json_renderer.render("memory", predict(report, workload), Language("en")))
    found: dict[str, Any] = content["predicted"]
    return found


@pytest.mark.parametrize(
    ("model", "inspected", "changes"),
    [
        ("Qwen/Qwen3-0.6B", {}, {}),
        ("Qwen/Qwen3-0.6B", {}, {"loader": "per-tensor", "gpu": "H100"}),
        *(("Qwen/Qwen3-0.6B", {}, {"allocator": settings}) for settings in ALLOCATORS[1:]),
        ("Qwen/Qwen3-30B-A3B", {}, {}),
        ("Qwen/Qwen2.5-7B", {}, {"allocator": "expandable_segments:True"}),
        ("Qwen/Qwen3-8B", {"workload": Workload(cache_format="q8_0")}, {"cache_format": "q8_0"}),  # by formula: no peak
        ("Qwen/Qwen3-8B", {"dtype": "awq-int4"}, {}),
        (
            "Qwen/Qwen3-Next-80B-A3B-Instruct",
            {"workload": Workload(cache_format="fp8")},
            {"cache_format": "fp8"},
        ),  # states beside the cache
    ],
)
def test_the_page_tells_what_the_command_line_tells(
    browser: Browser, tmp_path: Path, model: str, inspected: Any, changes: Any
) -> None:
    chance = random.Random(f"{model} {inspected} {changes}")
    report = inspect(model, source="catalog", **inspected)
    with shown(browser, written(tmp_path, predict(report, a_run(**changes)))) as page:
        block = page.locator(".explorer").element_handle()
        sliders = page.locator(".explorer input[type=range]").evaluate_all("all => all.map(one => Number(one.max))")
        assert_told(page.evaluate(READ, block), predicted(report, a_run(**changes)))
        for turn in range(6):
            # By slider, which goes in steps, and by number, which takes any.
            kind = ("range", "number")[turn % 2]
            wanted = [chance.randint(0, most) for most in sliders] if kind == "range" else []
            wanted = wanted or [chance.randint(1, 40_000), chance.randint(1, 200), chance.randint(2, 3_000)]
            context, batch, fresh = (
                page.evaluate(SET, [block, name, value, kind])
                for name, value in zip(("context", "batch", "fresh"), wanted, strict=True)
            )
            there = a_run(**changes, prompt_tokens=context, batch=batch, new_tokens=fresh)
            assert_told(page.evaluate(READ, block), predicted(report, there))


def test_where_a_trace_tells_of_one_run_alone_the_sliders_go_by_the_formula(browser: Browser, tmp_path: Path) -> None:
    report = inspect("Qwen/Qwen3.5-0.8B", source="catalog")
    memory = predict(report, a_run(prompt_tokens=64))
    assert memory.predicted.method == "trace"
    with shown(browser, written(tmp_path, memory)) as page:
        block = page.locator(".explorer").element_handle()
        for context, batch, fresh in ((64, 1, 128), (4_000, 7, 1), (131_072, 3, 999)):
            for name, value in (("context", context), ("batch", batch), ("fresh", fresh)):
                page.evaluate(SET, [block, name, value, "number"])
            there = a_run(prompt_tokens=context, batch=batch, new_tokens=fresh)
            by_formula = replace(memory, run=there, predicted=formula_footprint(report.tree, report.cache, there))
            content = json.loads(json_renderer.render("memory", by_formula, Language("en")))
            assert_told(page.evaluate(READ, block), content["predicted"])
        assert "by formula" in page.locator("body").inner_text()


def test_a_page_of_the_command_line_begins_with_its_own_run(browser: Browser, tmp_path: Path) -> None:
    options = ("catalog:Qwen/Qwen3-8B", "--batch", "5", "--context", "3001", "--new-tokens", "77")
    env = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    page_file = tmp_path / "memory.html"
    assert run("memory", *options, "--format", "html", "-o", page_file, env=env).code == 0
    told = json.loads(run("memory", *options, "--format", "json", env=env).out)["predicted"]
    with shown(browser, page_file) as page:
        assert_told(page.evaluate(READ, page.locator(".explorer").element_handle()), told)


# --- the allocator's model in the page


def a_random_run(chance: random.Random) -> tuple[Exploration, Timeline, str]:
    """Requests of all sizes that matter to the allocator, freed in any order."""
    text = chance.choice(ALLOCATORS)
    sizes = [chance.choice((0, 1, 511, 512, 513, MIB - 1, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 20 * MIB + 1))]
    sizes += [int(2 ** chance.uniform(0, 34)) for _ in range(12)]
    events: list[Event] = []
    order: list[int] = []
    requests: list[tuple[int, int]] = []
    alive: list[int] = []
    for _ in range(chance.randint(1, 300)):
        if alive and chance.random() < 0.45:
            gone = alive.pop(chance.randrange(len(alive)))
            order.append(-1 - gone)
            events.append(Free(gone))
        else:
            index = chance.randrange(len(sizes))
            order.append(len(requests))
            alive.append(len(requests))
            events.append(Allocate(len(requests), sizes[index], "", ""))
            requests.append((index, 0))
    found = Exploration(
        method="trace",
        terms=("weights",),
        sizes=tuple(RequestSize((value, 0, 0, 0, 0, 0, 0, 0)) for value in sizes),
        requests=tuple(requests),
        order=tuple(order),
        stages=(Stage(name="load", first_event=0),),
        allocator=text,
        least_new_tokens=2,
    )
    return found, Timeline(events=tuple(events), stages=found.stages), text


def test_any_requests_take_what_the_allocators_model_says(browser: Browser, tmp_path: Path) -> None:
    chance, say = random.Random(20), Language("en")
    memory = predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run())
    cases = [a_random_run(chance) for _ in range(60)]
    path = tmp_path / "page.html"
    path.write_text(html.render([explorer(memory, found, say) for found, _, _ in cases], say), encoding="utf-8")
    with shown(browser, path) as page:
        tables = page.locator(".explorer").evaluate_all(f"all => all.map({READ})")
    for figures, (_, timeline, settings) in zip(tables, cases, strict=True):
        expected = replay(timeline, Allocator(read_settings(settings)))
        assert number(figures["allocated"][0]) == expected.end.allocated_bytes
        assert number(figures["weights"][0]) == expected.end.requested_bytes
        assert number(figures["rounding"][2]) == expected.at_peak.rounding_bytes
        assert number(figures["allocated"][2]) == expected.peak.allocated_bytes
        assert number(figures["reserved"][2]) == expected.peak.reserved_bytes


def test_what_no_number_can_count_is_not_told(browser: Browser, tmp_path: Path) -> None:
    """Beyond 2^53 JavaScript's numbers skip bytes."""
    say = Language("en")
    memory = predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run())
    found, _, _ = a_random_run(random.Random(1))
    large = Live(
        "explorer",
        {**explorer(memory, found, say).content, "sizes": [[[2**53, 0, 0, 0, 0, 0, 0, 0], None, 0]] * 13},
        "",
    )
    path = tmp_path / "page.html"
    path.write_text(html.render([large], say), encoding="utf-8")
    with shown(browser, path) as page:
        figures = page.evaluate(READ, page.locator(".explorer").element_handle())
        assert {cell for row in figures.values() for cell in row} <= {"–", ""}


# --- the page


def test_sliders_follow_the_keyboard_and_say_what_they_stand_for(browser: Browser, tmp_path: Path) -> None:
    memory = predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run(prompt_tokens=2048))
    with shown(browser, written(tmp_path, memory)) as page:
        block = page.locator(".explorer")
        before = page.evaluate(READ, block.element_handle())
        slider = block.get_by_role("slider", name="Prompt tokens")
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == "3,072"
        assert block.get_by_role("spinbutton").first.input_value() == "3072"
        after = page.evaluate(READ, block.element_handle())
        # 114,688 bytes a token of cache, at the end.
        assert number(after["cache"][0]) == (number(before["cache"][0]) or 0) + 1024 * 114_688
        box = block.get_by_role("spinbutton").nth(1)
        box.fill("0")
        assert box.get_attribute("aria-invalid") == "true"
        assert page.evaluate(READ, block.element_handle()) == after
        box.fill("7")
        assert box.get_attribute("aria-invalid") is None
        page.locator(".charts .bar.chosen title", has_text=re.compile("^Batch 7:")).wait_for(state="attached")


def test_a_bar_is_chosen_by_a_click(browser: Browser, tmp_path: Path) -> None:
    memory = predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run(prompt_tokens=2048))
    with shown(browser, written(tmp_path, memory)) as page:
        page.locator(".charts figure").first.locator(".bar").nth(3).click()
        assert page.locator(".explorer input[type=number]").first.input_value() == "8192"


def test_bars_are_stacked_to_what_a_card_must_have(browser: Browser, tmp_path: Path) -> None:
    memory = predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run(prompt_tokens=2048))
    with shown(browser, written(tmp_path, memory)) as page:
        figures = page.evaluate(READ, page.locator(".explorer").element_handle())
        heights = page.locator(".charts .bar.chosen").first.evaluate(
            """bar => [...bar.querySelectorAll('[class^=f-]')].map(
                one => [one.getAttribute('class').slice(2), +one.getAttribute('height')])"""
        )
        required = [number(figures[f"required_{end}"][2]) or 0 for end in (0, 1)]
        context = required[0] - (number(figures["reserved"][2]) or 0)
        assert [term for term, _ in heights[-3:]] == ["reserved_only", "context", "context"]
        expected = [number(figures[term][2]) or 0 for term, _ in heights[:-2]] + [context, required[1] - required[0]]
        assert sum(expected) == required[1]
        total = sum(height for _, height in heights)
        for (_, height), size_bytes in zip(heights, expected, strict=True):
            assert height == pytest.approx(total * size_bytes / required[1], abs=0.01)
        title = page.locator(".charts .bar.chosen title").first.text_content()
        assert title == f"Prompt tokens 2,048: {size(required[0])} to {size(required[1])}"


def test_bars_of_a_lower_bound_say_that_they_are_one(browser: Browser, tmp_path: Path) -> None:
    report = inspect("Qwen/Qwen3-8B", source="catalog", workload=Workload(cache_format="q8_0"))
    memory = predict(report, a_run(prompt_tokens=2048, cache_format="q8_0"))
    with shown(browser, written(tmp_path, memory, "zh")) as page:
        assert "至少" in (page.locator(".charts .bar.chosen title").first.text_content() or "")


def test_bars_of_a_range_reach_to_its_upper_end(browser: Browser, tmp_path: Path) -> None:
    report = inspect("Qwen/Qwen3-8B", source="catalog", dtype="awq-int4")
    with shown(browser, written(tmp_path, predict(report, a_run(prompt_tokens=2048)))) as page:
        page.evaluate(SET, [page.locator(".explorer").element_handle(), "context", 30_000, "number"])
        required = predicted(report, a_run(prompt_tokens=30_000))["required_bytes"]
        # The context's range; a matrix of 4,096 x 12,288 and its inputs and outputs in bfloat16; a segment's rest for each.
        lighter = (890 - 135 + 3 * 2) * MIB + 2 * 4096 * 12_288 + 2 * 30_000 * (4096 + 12_288)
        assert required["high"] - required["low"] == lighter
        chosen = page.locator(".charts .bar.chosen")
        title = f"Prompt tokens 30,000: {size(required['low'])} to {size(required['high'])}"
        chosen.locator("title", has_text=title).wait_for(state="attached")
        heights = chosen.first.evaluate(
            "bar => [...bar.querySelectorAll('[class^=f-]')].map(part => +part.getAttribute('height'))"
        )
        assert heights[-1] / sum(heights) == pytest.approx(lighter / required["high"], abs=0.001)


def test_94_layers_of_experts_follow_a_slider_at_once_and_take_little_room(browser: Browser, tmp_path: Path) -> None:
    report = inspect("Qwen/Qwen3-235B-A22B", source="catalog", predict_files=True)
    path = written(tmp_path, predict(report, a_run()))
    assert path.stat().st_size < 600_000  # beside a table of 36,945 tensors, which takes 1.4 MB, less than 3 MB
    with shown(browser, path) as page:
        block = page.locator(".explorer").element_handle()
        begin = time.monotonic()
        page.evaluate(SET, [block, "context", 12_345, "number"])
        assert time.monotonic() - begin < 1  # here 0.03
        there = predicted(report, a_run(prompt_tokens=12_345))
        assert_told(page.evaluate(READ, block), there)


@pytest.mark.parametrize("changes", [{"mode": "forward"}, {"mode": "train"}, {"device": "cpu"}])
def test_a_run_of_which_one_workload_alone_is_known_has_no_sliders(changes: Any) -> None:
    memory = predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run())
    other = explored(replace(memory, run=replace(memory.run, **changes)))
    assert other.exploration is None
    blocks = document("memory", other, Language("en"), View(live=True))
    assert not [block for block in blocks if isinstance(block, Live)]


def test_other_formats_show_no_live_parts() -> None:
    memory = explored(predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run()))
    assert memory.exploration is not None
    text = run("memory", "--format", "md").out
    assert "another workload" not in text
    assert "treemap" not in text


# --- the treemap


def leaves(area: Area) -> Iterator[Area]:
    if not area.children:
        yield area
    for child in area.children:
        yield from leaves(child)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen1.5-MoE-A2.7B"])
def test_the_parts_add_up_to_the_model(model: str) -> None:
    report = inspect(model, source="catalog")
    root = areas(report.tree)
    assert sum(area.parameters for area in leaves(root)) == root.parameters == report.parameters.theory
    for area in [root, *root.children]:
        assert not area.children or sum(child.parameters for child in area.children) == area.parameters


def test_layers_that_differ_throughout_are_drawn_without_their_parts() -> None:
    """A configuration whose experts stand in every other layer has as many frames as layers."""
    config = {**(inspect("Qwen/Qwen3-30B-A3B", source="catalog").config or {}), "decoder_sparse_step": 2}
    for layers, deepest in (
        (20, "model.layers.19.self_attn.q_proj"),
        (400, "model.layers.399"),
    ):
        root = areas(tree_of({**config, "num_hidden_layers": layers}))
        assert deepest in {area.path for area in leaves(root)}
        assert sum(area.parameters for area in leaves(root)) == root.parameters


def tree_of(config: Mapping[str, Any]) -> Any:
    from qwen_inspect.architectures import architecture_of

    architecture = architecture_of(config)
    return architecture.tree


@given(
    values=st.lists(st.integers(1, 10**12), min_size=1, max_size=40),
    width=st.floats(1, 2000),
    height=st.floats(1, 2000),
)
def test_rectangles_fill_their_frame_by_their_share(values: list[int], width: float, height: float) -> None:
    values = sorted(values, reverse=True)
    places = squarified(values, Box(0, 0, width, height))
    assert len(places) == len(values)
    for value, place in zip(values, places, strict=True):
        expected = value / sum(values) * width * height
        assert place.width * place.height == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert place.x >= -1e-6
        assert place.y >= -1e-6
        assert place.x + place.width <= width * (1 + 1e-6)
        assert place.y + place.height <= height * (1 + 1e-6)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_treemap_is_walked_by_keyboard(browser: Browser, tmp_path: Path, language: str) -> None:
    memory = predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run())
    with shown(browser, written(tmp_path, memory, language)) as page:
        drawn = page.locator(".picture:visible", has=page.locator(".treemap"))  # of three, by the page's width
        first_part = drawn.locator("svg [tabindex='0']")
        assert first_part.count() == 1
        first_part.focus()
        told = drawn.locator("output")
        first = told.inner_text()
        assert (
            "440,466,432" in first
        )  # the 28 layers: 596,049,920 less the embedding's 155,582,464 and the last norm's 1,024
        page.keyboard.press("ArrowRight")
        assert "264,241,152" in told.inner_text()
        page.keyboard.press("End")
        assert "1,024" in told.inner_text()
        page.keyboard.press("Home")
        assert told.inner_text() == first
        assert drawn.locator("svg [tabindex='0']").count() == 1
        drawn.locator(".treemap title", has_text="embed_tokens").locator("..").hover()
        assert "155,582,464" in told.inner_text()


def test_no_name_breaks_out_of_the_treemap(browser: Browser, tmp_path: Path) -> None:
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    figures = [parameter_treemap(replace(report, ref=replace(report.ref, id=name)), Language("en")) for name in HOSTILE]
    path = tmp_path / "page.html"
    path.write_text(html.render(figures, Language("en")), encoding="utf-8")
    with opened(browser, path) as page:
        assert page.locator("figure").count() == len(HOSTILE)
        inside = page.evaluate(
            "[...new Set([...document.querySelectorAll('main svg *')].map(one => one.localName))].sort()"
        )
        assert inside == ["g", "rect", "style", "text", "title"]
