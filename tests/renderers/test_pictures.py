"""Pictures: what they show is what was computed, nothing in them overlaps, and no name breaks out of them."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import resvg_py
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_inspect.checkpoint import Checkpoint, ModelRef
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.output import write_whole
from qwen_inspect.predicting.course import FEWEST_POINTS, thinned
from qwen_inspect.predicting.predict import predict
from qwen_inspect.renderers.cache_plot import cache_course, cache_plot
from qwen_inspect.renderers.figure import architecture_figure
from qwen_inspect.renderers.plot import MOST_TICKS, axis_ticks, timeline_plot
from qwen_inspect.renderers.svg import fitted, missing_glyphs, picture, png, text, text_width
from qwen_inspect.results.cache import CacheLayer, CacheReport
from qwen_inspect.results.course import Course, CourseStage
from qwen_inspect.results.memory import Footprint
from qwen_inspect.structure.inspect import analyse, inspect

from ..support.boxes import SVG, assert_nothing_overlaps_or_is_cut, parsed, text_boxes
from ..support.hostile import HOSTILE_NAMES
from ..support.models import TINY_QWEN3, run, write_config
from ..support.runs import a_run, without_torch

GIB = 1 << 30
STAGES = ("load", "prefill", "decode", "forward", "backward", "optimizer")
TERMS = ("weights", "cache", "activations", "rounding")


def predicted(model: str, *, points: int, **changes: Any) -> tuple[Footprint, Course]:
    footprint = predict(inspect(model, source="catalog"), a_run(**changes), course_points=points).predicted
    assert footprint.course is not None
    return footprint, footprint.course


@st.composite
def courses(draw: st.DrawFn, longest: int = 300) -> Course:
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=len(STAGES)))
    points = sum(lengths)
    numbers = draw(st.randoms(use_true_random=False))
    scale = draw(st.sampled_from([1, 1 << 20, 80 * GIB, 1 << 50]))
    allocated = tuple(tuple(numbers.randrange(scale + 1) for _ in TERMS) for _ in range(points))
    return Course(
        stages=tuple(
            CourseStage(name=name, first_point=first)
            for name, first in zip(STAGES, itertools.accumulate(lengths, initial=0), strict=False)
        )[: len(lengths)],
        terms=TERMS,
        events=tuple(range(points)),
        allocated=allocated,
        reserved=tuple(sum(values) + numbers.randrange(scale + 1) for values in allocated),
    )


# --- the course of a run


def test_a_course_adds_up_to_the_footprint() -> None:
    footprint, course = predicted("Qwen/Qwen3-0.6B", points=1_000_000, prompt_tokens=2048, new_tokens=64)
    assert footprint.peak is not None
    assert max(course.totals) == footprint.peak.allocated
    assert max(course.reserved) == footprint.peak_reserved
    assert course.totals[-1] == footprint.steady.allocated
    at_end = dict(zip(course.terms, course.allocated[-1], strict=True))
    assert at_end["weights"] == 596_049_920 * 2
    assert at_end["cache"] == 114_688 * (2048 + 63)
    assert [stage.name for stage in course.stages] == ["load", "prefill", "decode"]
    # The loader's block is as large as all the weights, alone, and freed before they are loaded.
    assert course.allocated[0][course.terms.index("loader")] == 596_049_920 * 2
    assert at_end["loader"] == 0


def test_a_course_is_built_only_when_asked_for() -> None:
    assert predict(inspect("Qwen/Qwen3-0.6B", source="catalog"), a_run()).predicted.course is None


def test_training_shows_gradients_and_optimizer_states() -> None:
    footprint, course = predicted("Qwen/Qwen3-0.6B", points=500, mode="train", prompt_tokens=32)
    assert footprint.peak is not None
    assert max(course.totals) == footprint.peak.allocated
    assert {stage.name for stage in course.stages} == {"load", "forward", "backward", "optimizer"}
    assert dict(zip(course.terms, course.allocated[-1], strict=True))["optimizer"] == 2 * 2 * 596_049_920


@settings(max_examples=50, deadline=None)
@given(course=courses(), most=st.integers(1, 400))
def test_thinning_keeps_the_peaks_and_the_ends_of_every_stage(course: Course, most: int) -> None:
    thin = thinned(course, most_points=most)
    assert len(thin.events) <= max(most, FEWEST_POINTS * len(course.stages))
    assert list(thin.events) == sorted(set(thin.events))
    assert [stage.name for stage in thin.stages] == [stage.name for stage in course.stages]
    for (_, first, end), (_, thin_first, thin_end) in zip(course.spans, thin.spans, strict=True):
        assert max(thin.totals[thin_first:thin_end]) == max(course.totals[first:end])
        assert max(thin.reserved[thin_first:thin_end]) == max(course.reserved[first:end])
        assert (thin.events[thin_first], thin.events[thin_end - 1]) == (first, end - 1)
    for index, event in enumerate(thin.events):
        assert (thin.allocated[index], thin.reserved[index]) == (course.allocated[event], course.reserved[event])


# --- the plot


@settings(max_examples=25, deadline=None)
@given(course=courses(longest=40), name=st.sampled_from(HOSTILE_NAMES), language=st.sampled_from(LANGUAGES))
def test_nothing_in_a_plot_overlaps_or_is_cut(course: Course, name: str, language: str) -> None:
    measured = thinned(course, most_points=10)
    svg = timeline_plot(course, Language(language), title=name, caption=name, measured=measured)
    assert_nothing_overlaps_or_is_cut(svg)


def test_a_plot_says_the_peak_and_every_term() -> None:
    course = Course(
        stages=(CourseStage(name="load", first_point=0), CourseStage(name="prefill", first_point=1)),
        terms=TERMS,
        events=(0, 1, 2),
        allocated=((GIB, 0, 0, 512), (GIB, GIB // 2, GIB // 4, 512), (GIB, GIB // 2, 0, 512)),
        reserved=(GIB * 2, GIB * 2, GIB * 2),
    )
    said = {box.content for box in text_boxes(parsed(timeline_plot(course, Language("en"), title="T", caption="C")))}
    assert {
        "T",
        "C",
        "Allocated at the peak: 1.75 GiB",
        "Weights: 1.00 GiB",
        "KV cache: 512.00 MiB",
        "Activations: 256.00 MiB",
    } <= said
    assert {"load", "prefill", "Reserved, at most 2.00 GiB", "0 GiB", "0.5 GiB", "2 GiB"} <= said


def test_a_term_that_a_run_does_not_have_is_left_out() -> None:
    _, course = predicted("Qwen/Qwen3-0.6B", points=100)
    said = "".join(
        box.content for box in text_boxes(parsed(timeline_plot(course, Language("en"), title="", caption="")))
    )
    assert "Weights" in said
    assert "Gradients" not in said


@given(highest=st.integers(1, 1 << 60))
def test_ticks_are_few_and_reach_up(highest: int) -> None:
    ticks = axis_ticks(highest)
    values = [value for value, _ in ticks]
    assert values[0] == 0
    assert len(ticks) <= MOST_TICKS + 1
    assert values[-1] <= highest
    assert len({label for _, label in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("highest", "labels"),
    [
        (17 * GIB, ["0 GiB", "5 GiB", "10 GiB", "15 GiB"]),
        (700 << 20, ["0 MiB", "100 MiB", "200 MiB", "300 MiB", "400 MiB", "500 MiB", "600 MiB", "700 MiB"]),
        (3 << 40, ["0 TiB", "0.5 TiB", "1 TiB", "1.5 TiB", "2 TiB", "2.5 TiB", "3 TiB"]),
    ],
)
def test_ticks_are_round(highest: int, labels: list[str]) -> None:
    shown = [label for _, label in axis_ticks(highest)]
    assert shown == labels or shown == labels[::2]


# --- SVG and PNG


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_a_hostile_text_is_one_text(name: str) -> None:
    root = parsed(picture(100, 20, text(name, 0, 15), title=name))
    assert [element.tag for element in root] == [f"{SVG}{tag}" for tag in ("title", "style", "rect", "text")]


@given(name=st.text())
def test_any_text_can_be_written_as_xml(name: str) -> None:
    svg = picture(100, 20, text(name + "\ud800\ufffe\uffff\x00", 0, 15), title=name)
    svg.encode("utf-8")
    assert (parsed(svg)[-1].text or "").endswith("\\ud800\\ufffe\\uffff\\x00")


@given(name=st.one_of(st.text(), st.sampled_from(HOSTILE_NAMES)), width=st.integers(20, 400), bold=st.booleans())
def test_a_text_is_cut_to_its_width_and_never_otherwise(name: str, width: int, bold: bool) -> None:
    cut = fitted(name, width, bold=bold)
    assert text_width(cut, bold=bold) <= width
    if len(name) <= 1000 and text_width(name, bold=bold) <= width:
        assert cut == name


def test_a_png_is_drawn_with_its_letters() -> None:
    blank, lettered = (png(picture(40, 20, *children, title="")) for children in ([], [text("x", 0, 15)]))
    assert blank.startswith(b"\x89PNG\r\n\x1a\n")
    assert blank != lettered


def test_glyphs_that_no_font_has_are_noticed() -> None:
    assert missing_glyphs(picture(40, 20, text("x &", 0, 15), title="")) == ""
    assert missing_glyphs(picture(40, 20, text("x\u2e9a", 0, 15), title="")) == "\u2e9a"  # unassigned in Unicode 17


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-Next-80B-A3B-Instruct"])
def test_formulas_have_their_glyphs_on_a_machine_without_fonts(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    bare = functools.partial(resvg_py.svg_to_bytes, skip_system_fonts=True)
    monkeypatch.setattr(resvg_py, "svg_to_bytes", bare)
    report = inspect(model, source="catalog")
    english, chinese = (architecture_figure(report, Language(language)) for language in ("en", "zh"))
    assert "QKᵀ / √" in english
    assert missing_glyphs(english) == ""
    missing = missing_glyphs(chinese)
    assert "层" in missing
    assert not [
        character
        for character in missing
        if not unicodedata.name(character).startswith(("CJK", "FULLWIDTH", "IDEOGRAPHIC"))
    ]


# --- the command line


def test_a_run_is_plotted_beside_its_table(tmp_path: Path) -> None:
    for name in ("plot.svg", "plot.PNG"):
        shown = run("memory", "--plot", tmp_path / name)
        assert shown.code == 0, shown.err
        assert "Allocated" in shown.out
        assert f"Saved to {tmp_path / name}" in shown.err
    assert_nothing_overlaps_or_is_cut((tmp_path / "plot.svg").read_text(encoding="utf-8"))
    assert (tmp_path / "plot.PNG").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "plot.svg").read_bytes()) < 100_000


def test_a_plot_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        assert run("memory", "--lang", "zh", "--plot", tmp_path / name).code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_plot_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    there = tmp_path / "there.svg"
    there.write_text("mine")
    for path, message in [(there, "--overwrite"), (tmp_path / "plot.pdf", ".svg or .png"), (tmp_path / "svg", ".svg")]:
        refused = run("memory", "--plot", path)
        assert (refused.code, refused.out) == (2, "")
        assert message in refused.err
    assert there.read_text() == "mine"
    assert run("memory", "--plot", there, "--overwrite").code == 0
    assert there.read_text(encoding="utf-8").startswith("<svg")


def test_a_formula_cannot_be_plotted(tmp_path: Path) -> None:
    write_config(tmp_path, {**TINY_QWEN3, "hidden_act": "relu"})  # no release is so: no trace is shipped
    refused = without_torch("memory", tmp_path, "--plot", tmp_path / "plot.svg", "--lang", "en")
    assert (refused.returncode, refused.stdout) == (8, "")
    assert "a plot needs a trace" in refused.stderr
    assert not (tmp_path / "plot.svg").exists()


def test_png_without_its_extra_names_the_line_that_installs_it(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['resvg_py'] = None; from qwen_inspect.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "memory", "--lang", "en", "--plot", str(tmp_path / "plot.png")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (8, "")
    assert 'pip install "qwen-inspect[png]"' in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_whole(str(tmp_path / "x"), b"\r\n\x00\xff", overwrite=False)
    assert (tmp_path / "x").read_bytes() == b"\r\n\x00\xff"


# --- the cache against the context

NEXT_STATES = 36 * (32 * 128 * 128 * 4 + 4 * 8192 * 2)


@pytest.mark.parametrize(
    ("model", "totals"),
    [
        # 28 layers x 8 KV heads x 128 x (K, V) x 2 bytes = 114,688 a token, from nothing.
        ("Qwen/Qwen3-0.6B", {0: 0, 40_960: 114_688 * 40_960}),
        # 12 of 48 layers keep 2 x 2 x 256 x 2 = 2,048 bytes a token; 36 have 32 states of 128 x 128 in float32, and 4 columns
        # of 8,192 channels in bfloat16 (transformers 5.23, held against its own cache in test_hybrids).
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {0: NEXT_STATES, 262_144: NEXT_STATES + 12 * 2048 * 262_144}),
    ],
)
def test_the_cache_is_drawn_from_its_own_figures(model: str, totals: dict[int, int]) -> None:
    course = cache_course(inspect(model, source="catalog").cache, batch=1, longest=max(totals))
    assert dict(zip(course.contexts, course.totals, strict=True)) == totals


@given(
    layers=st.lists(
        st.tuples(
            st.integers(0, 1 << 20), st.lists(st.integers(0, 1 << 24), max_size=2), st.none() | st.integers(2, 5000)
        ),
        min_size=1,
        max_size=6,
    ),
    batch=st.integers(1, 300),
    longest=st.integers(1, 1 << 20),
    within=st.floats(0, 1),
)
def test_between_its_points_the_drawn_cache_is_a_straight_line(
    layers: list[tuple[int, list[int], int | None]], batch: int, longest: int, within: float
) -> None:
    """What stands at any context by `size_bytes` lies on the line between the two points that are drawn beside it."""
    cache = CacheReport(
        dtype="bfloat16",
        layers=tuple(
            CacheLayer(
                index=index, kind="full", bytes_per_token=bytes_, states_bytes=tuple(states), window_tokens=window
            )
            for index, (bytes_, states, window) in enumerate(layers)
        ),
    )
    course = cache_course(cache, batch=batch, longest=longest)
    assert list(course.contexts) == sorted(set(course.contexts))
    tokens = round(within * longest)
    right = next(index for index, context in enumerate(course.contexts) if context >= max(tokens, 1))
    left = right - 1
    (first, low), (last, high) = ((course.contexts[one], course.totals[one]) for one in (left, right))
    assert (cache.size_bytes(tokens=tokens, batch=batch) - low) * (last - first) == (high - low) * (tokens - first)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["model", *HOSTILE_NAMES])
def test_nothing_in_a_cache_plot_overlaps_or_is_cut(name: str, language: str) -> None:
    for config in (
        TINY_QWEN3,
        {**TINY_QWEN3, "use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
    ):
        report = analyse(Checkpoint(ref=ModelRef(source="local", id=name), config=config, tensors=None))
        assert_nothing_overlaps_or_is_cut(cache_plot(report, Language(language)))


def test_a_cache_is_plotted_beside_its_table(tmp_path: Path) -> None:
    plot = tmp_path / "cache.svg"
    done = run("attention", "catalog:Qwen/Qwen3-Next-80B-A3B-Instruct", "--plot", plot)
    assert done.code == 0
    texts = [box.content for box in text_boxes(parsed(plot.read_text()))]
    assert "6.07 GiB in all" in texts  # 6.00 GiB of 262,144 tokens and 36 states, 74.25 MiB
    page = run("attention", "--format", "html")
    assert "KV cache by context" in page.out
    assert run("attention", "--plot", tmp_path / "cache.txt").code == 2
