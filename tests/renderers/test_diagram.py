"""The architecture figure: what the configuration says and the module tree counts, with nothing overlapping and nothing cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser

from qwen_inspect.architectures.reading import MOST_EXPERTS
from qwen_inspect.checkpoint import Checkpoint, ModelRef
from qwen_inspect.language import LANGUAGES, Language
from qwen_inspect.renderers.figure import MOST_PANELS, architecture_figure, folded
from qwen_inspect.results.model import Report
from qwen_inspect.spec import FullAttention
from qwen_inspect.structure.inspect import analyse, inspect

from ..support.boxes import assert_nothing_overlaps_or_is_cut, parsed, rectangles, text_boxes
from ..support.families import FAMILIES, TINY_QWEN3_MOE
from ..support.hostile import HOSTILE_NAMES
from ..support.models import run
from ..support.pages import blank_page

HYBRIDS = ["Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen/Qwen3.5-0.8B"]
RELEASES = [
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen1.5-MoE-A2.7B",
    "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen3-VL-8B-Instruct",
]


def report_of(config: dict[str, Any]) -> Report:
    return analyse(Checkpoint(ref=ModelRef(source="local", id="model"), config=config, tensors=None))


def said(report: Report, language: str = "en") -> set[str]:
    return {box.content for box in text_boxes(parsed(architecture_figure(report, Language(language))))}


def assert_is_laid_out(svg: str) -> None:
    """No text overlaps another or a border, and boxes lie inside each other or apart."""
    assert_nothing_overlaps_or_is_cut(svg)
    root = parsed(svg)
    boxes = rectangles(root)
    for box in text_boxes(root):
        for border in boxes:
            assert box.within(border) or not box.overlaps(border), (box, border)
    for index, box in enumerate(boxes):
        for other in boxes[:index]:
            assert not box.overlaps(other) or box.within(other) or other.within(box), (box, other)


# What the models' own configurations and published counts say.
@pytest.mark.parametrize(
    ("model", "expected", "absent"),
    [
        (
            "Qwen/Qwen3-0.6B",
            {
                "Qwen/Qwen3-0.6B",
                "Qwen3ForCausalLM, 596.05M parameters, 28 layers, context 40,960, bfloat16",
                "151,936 × 1,024",
                "155.58M",
                "28 × layer",
                "15.73M each",
                "Grouped-query attention",
                "16 query heads, 8 KV, head_dim 128",
                "RoPE, QK-Norm",
                "softmax(QKᵀ / √128) · V",  # Vaswani et al. 2017, equation 1
                "KV heads: 8; query heads that read each: 2",
                "1,024 → 3,072 → 1,024",
                "shares the embedding's weight",
                "[B, L, 151,936]",
            },
            {"with bias", "Mixture of experts"},
        ),
        (
            "Qwen/Qwen2.5-7B",
            {
                "28 query heads, 4 KV, head_dim 128",
                "RoPE, bias on Q, K, V",
                "3,584 → 18,944 → 3,584",
                "3,584 → 152,064",
                "with bias",
                "545.00M",  # 152,064 x 3,584, once for the embedding and once for the head
            },
            {"shares the embedding's weight", "RoPE, QK-Norm"},
        ),
        (
            "Qwen/Qwen1.5-MoE-A2.7B",
            {
                "Multi-head attention",
                "60 experts, 4 for each token",
                "and one that every token takes",
                "Shared expert",
                "2,048 → 5,632 → 2,048",
                "2,048 → 1,408 → 2,048",
                "Router",
            },
            {"SwiGLU MLP"},
        ),
        (
            "Qwen/Qwen3-30B-A3B",
            {"Grouped-query attention", "128 experts, 8 for each token", "48 × layer", "2,048 → 768 → 2,048"},
            {"Shared expert", "SwiGLU MLP"},
        ),
    ],
)
def test_a_release_is_drawn_as_it_is(model: str, expected: set[str], absent: set[str]) -> None:
    shown = said(inspect(model, source="catalog"))
    assert expected - shown == set()
    assert absent & shown == set()


def test_a_decoder_without_its_head_ends_in_hidden_states() -> None:
    shown = said(report_of(dict(FAMILIES["qwen3 without its head"])))
    assert "Hidden states" in shown
    assert not {"Logits", "Output layer"} & shown


def test_a_quantised_model_says_by_what() -> None:
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}
    report = inspect("Qwen/Qwen3-0.6B", source="catalog")
    shown = said(report_of({**(report.config or {}), "quantization_config": quantised}))
    assert "Qwen3ForCausalLM, 596.05M parameters, 28 layers, context 40,960, bfloat16, fp8" in shown


def test_one_kv_head_is_multi_query() -> None:
    shown = said(report_of({**FAMILIES["qwen3"], "num_key_value_heads": 1}))
    assert {"Multi-query attention", "4 query heads, 1 KV, head_dim 16"} <= shown


def test_equal_layers_are_one_box_and_patterns_are_said_once() -> None:
    kinds = ["full_attention", *["sliding_attention", "sliding_attention", "full_attention"] * 4]
    config = {
        **TINY_QWEN3_MOE,
        "num_hidden_layers": 13,
        "mlp_only_layers": [0],
        "use_sliding_window": True,
        "sliding_window": 4096,
        "layer_types": kinds,
    }
    shown = said(report_of(config))
    assert {"layers 0, 20.90K each", "4 ×", "layers 1-12", "2 × layer", "1 × layer"} <= shown | {
        "layers 0, 20.90K each"
    }
    assert "sliding window: the last 4,096 tokens" in shown
    halves = {"Grouped-query attention", "Grouped-query attention, sliding window", "Mixture of experts", "SwiGLU MLP"}
    assert halves <= shown


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_folding_loses_no_layer(items: list[str]) -> None:
    unfolded = chain.from_iterable(
        [item] * times for group in folded(items) for _ in range(group.times) for item, _, times in group.runs
    )
    assert list(unfolded) == items


def test_folding_finds_the_pattern() -> None:
    (group,) = folded("aaab" * 12)
    assert (group.times, group.runs) == (12, (("a", 0, 3), ("b", 3, 1)))
    first, rest = folded("a" + "bc" * 5)
    assert (first.times, rest.times, rest.runs) == (1, 5, (("b", 1, 1), ("c", 2, 1)))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("model", RELEASES)
def test_a_releases_figure_fits_a_readme(model: str, language: str) -> None:
    svg = architecture_figure(inspect(model, source="catalog"), Language(language))
    assert_is_laid_out(svg)
    assert parsed(svg).attrib["width"] == "800"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_laid_out(family: str) -> None:
    for language in LANGUAGES:
        assert_is_laid_out(architecture_figure(report_of(dict(FAMILIES[family])), Language(language)))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(HOSTILE_NAMES), language=st.sampled_from(LANGUAGES))
def test_large_numbers_and_hostile_names_overlap_nothing(data: st.DataObject, name: str, language: str) -> None:
    layers = data.draw(st.integers(1, 40))
    size = st.integers(1, 1 << 31)
    heads = data.draw(st.integers(1, 40))
    config = {
        **FAMILIES[data.draw(st.sampled_from(["qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]))],
        "num_hidden_layers": layers,
        "hidden_size": data.draw(st.integers(1, 1 << 20)) * heads * 2,
        "num_attention_heads": heads,
        "num_key_value_heads": data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])),
        "intermediate_size": data.draw(size),
        "moe_intermediate_size": data.draw(size),
        "vocab_size": data.draw(size),
        "num_experts": data.draw(st.integers(2, min(1 << 14, MOST_EXPERTS // layers))),
        "max_position_embeddings": data.draw(size),
        "decoder_sparse_step": 1,
        "mlp_only_layers": data.draw(st.lists(st.integers(0, layers - 1))),
        "use_sliding_window": True,
        "sliding_window": data.draw(st.integers(2, 1 << 31)),
        "layer_types": data.draw(
            st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=layers, max_size=layers)
        ),
    }
    report = report_of(config)
    assert report.design is not None
    spec = replace(report.spec, class_name=name)
    hostile = replace(report, ref=replace(report.ref, id=name), design=replace(report.design, spec=spec))
    assert_is_laid_out(architecture_figure(hostile, Language(language)))


def test_more_kinds_of_layer_than_can_be_drawn_are_counted() -> None:
    report = report_of({**FAMILIES["qwen3"], "num_hidden_layers": 30})
    assert report.design is not None
    layer = report.spec.layers[0]
    attention = layer.attention
    assert isinstance(attention, FullAttention)
    layers = [replace(layer, attention=replace(attention, head_dim=2 * width)) for width in range(1, MOST_PANELS + 3)]
    many = replace(report.spec, layers=tuple((layers * 3)[:30]))
    shown = said(replace(report, design=replace(report.design, spec=many)))
    assert "… and 3 more kinds, not drawn" in shown
    assert any("more layers" in one for one in shown)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("model", RELEASES)
def test_a_browser_sets_no_text_wider_than_its_box(browser: Browser, model: str, language: str) -> None:
    svg = architecture_figure(inspect(model, source="catalog"), Language(language))
    boxes = {box.content: box.right - box.left for box in text_boxes(parsed(svg))}
    page = blank_page(browser)
    page.set_content(f"<body>{svg}</body>")
    inks: dict[Literal["light", "dark"], str] = {"light": "rgb(31, 35, 40)", "dark": "rgb(240, 246, 252)"}
    for scheme, ink in inks.items():
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("""[...document.querySelectorAll("svg text")].map(
            text => [text.textContent, text.getComputedTextLength(), getComputedStyle(text).fill])""")
        assert len(found) > 50
        for content, width, _ in found:
            assert width <= boxes[content] * 1.02 + 0.5, content
        assert ink in {colour for _, _, colour in found}


# --- the command line


def test_a_diagram_goes_to_stdout_or_to_a_file(tmp_path: Path) -> None:
    shown = run("diagram", "catalog:Qwen/Qwen3-8B")
    assert shown.code == 0
    assert "8.19B parameters" in "".join(box.content for box in text_boxes(parsed(shown.out)))
    for name in ("figure.svg", "figure.png"):
        assert run("diagram", "catalog:Qwen/Qwen3-8B", "-o", tmp_path / name).code == 0
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8") == shown.out
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_diagram_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    assert run("diagram", "-o", tmp_path / "figure.jpg").code == 2
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    refused = run("diagram", tmp_path)
    assert (refused.code, refused.out) == (7, "")
    assert run("diagram", "--format", "md").code == 2


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("model", HYBRIDS)
def test_a_hybrid_is_drawn_as_its_pattern(model: str, language: str) -> None:
    report = inspect(model, source="catalog")
    svg = architecture_figure(report, Language(language))
    assert_is_laid_out(svg)
    shown = {one.content for one in text_boxes(parsed(svg))}
    say = Language(language)
    assert {f"{len(report.spec.layers) // 4} ×", say("figure_block", times=3), say("figure_linear")} <= shown
    assert (say("figure_vision") in shown) == (report.spec.vision is not None)
    assert float(parsed(svg).get("width", "")) < 850
