"""Runs with images composed from a family's trace are those that torch traces, for models and images not in its samples."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.image_samples import FAMILIES, kinds_of
from benchmarks.keep_image_traces import GROWN, Learner
from benchmarks.keep_traces import report_of
from benchmarks.structures import bases
from qwen_inspect.errors import MalformedError
from qwen_inspect.media.counting import media_of
from qwen_inspect.predicting import sources
from qwen_inspect.predicting.families.family_file import SHIPPED
from qwen_inspect.predicting.families.few_layers import traced_in_few_layers
from qwen_inspect.predicting.families.image_file import dump, image_file, load, read
from qwen_inspect.predicting.families.image_trace import ImageTrace
from qwen_inspect.results.media import Request, Typed
from qwen_inspect.results.memory import Run
from qwen_inspect.structure.inspect import inspect

from ..support.runs import without_torch
from .test_few_layers import numbered

# Of each family one run, in turn, of so many that are spread over all; the others are in `make exhaustive`,
# as are Gemma 4's, which take long: of it there are releases below.
UNSEEN = [
    pytest.param(
        model_type,
        turn,
        turns,
        marks=() if turn == number % turns and model_type != "gemma4" else pytest.mark.exhaustive,
    )
    for number, model_type in enumerate(FAMILIES)
    for turns in [len(GROWN) * len(kinds_of(model_type))]
    for turn in range(turns)
]


def family(model_type: str) -> ImageTrace:
    found = read(image_file(model_type))
    assert found is not None
    return found


@pytest.mark.parametrize(("model_type", "turn", "turns"), UNSEEN)
def test_an_unseen_model_with_unseen_images_has_the_run_that_transformers_makes(
    model_type: str, turn: int, turns: int
) -> None:
    """Random sizes, layers and images or videos: one, several of different sizes, or one or several in each of several
    sequences."""
    trace = family(model_type)
    learner = Learner(next(bases(model_type)), trace.defaults, trace.vision_defaults)
    runs = sorted(learner.regimes(), key=lambda run: [*GROWN].index(run[1]))
    kind, grown, regime = runs[len(runs) * turn // turns]
    windows, batch = learner.some(Random(f"{model_type} {regime}"), kind, 9, regime)
    _, report, _, _, run, theirs = learner.sample(("unseen", regime), windows, batch, grown, deep=True, regime=regime)
    found = sources.image_trace(report, run)
    assert found is not None
    assert numbered(found[0]) == numbered(theirs)


# GLM-4.1V-9B as its class describes it, with the biases that its release states and its decoder's class has anyway.
GLM_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
GLM: dict[str, Any] = {
    "architectures": ["Glm4vForConditionalGeneration"],
    "model_type": "glm4v",
    "dtype": "bfloat16",
    "text_config": {"model_type": "glm4v_text", "attention_bias": True, "rope_parameters": GLM_ROPE},
    "vision_config": {"model_type": "glm4v_vision"},
}
# GLM-4.5V likewise, whose release states a head_dim.
GLM_MOE: dict[str, Any] = {
    **GLM,
    "architectures": ["Glm4vMoeForConditionalGeneration"],
    "model_type": "glm4v_moe",
    "text_config": {"model_type": "glm4v_moe_text", "head_dim": 128, "rope_parameters": GLM_ROPE},
    "vision_config": {"model_type": "glm4v_moe_vision"},
}


def seen(model: str | dict[str, Any], *sizes: tuple[int, ...], **changes: Any) -> tuple[Any, Run]:
    """sizes: width and height of each image, and seconds of a video."""
    report = inspect(f"catalog:{model}") if isinstance(model, str) else report_of(model)
    typed = tuple(
        Typed(text="", width=width, height=height, seconds=Fraction(*seconds) if seconds else None)
        for width, height, *seconds in sizes
    )
    media = media_of(report.config or {}, {}, Request(typed=typed))
    run = Run(media=media, prompt_tokens=500 + media.context_tokens, gpu="H100 SXM")
    return report, sources.with_kernel(replace(run, **changes), report)


@pytest.mark.parametrize(
    ("model", "sizes", "changes"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", [(700, 300), (333, 444)], {}),  # images have windows that are not full
        ("Qwen/Qwen2.5-VL-3B-Instruct", [(700, 300), (333, 444), (200, 160, 4)], {}),
        ("google/gemma-3-4b-it", [(1024, 768)], {"gpu": "A100-80GB"}),
        ("google/gemma-3-4b-it", [(1024, 768), (300, 300)], {"batch": 3, "prompt_tokens": 900}),
        pytest.param(
            "google/gemma-3-27b-it", [(1024, 768)], {"batch": 2, "gpu": "A100-80GB"}, marks=pytest.mark.exhaustive
        ),
        pytest.param("google/gemma-3-12b-it", [(64, 64)], {}, marks=pytest.mark.exhaustive),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", [(320, 200), (200, 320)], {}),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", [(200, 160, 5)], {}),
        ("Qwen/Qwen3.5-0.8B", [(320, 256)], {"batch": 3, "prompt_tokens": 320}),  # whole chunks
        ("Qwen/Qwen3.5-0.8B", [(320, 256), (96, 64)], {"batch": 2, "prompt_tokens": 192}),
        ("Qwen/Qwen3.5-35B-A3B", [(500, 300), (96, 64)], {"prompt_tokens": 2_100}),
        ("Qwen/Qwen3-VL-2B-Instruct", [(200, 160), (160, 200)], {"batch": 3, "new_tokens": 2}),
        (GLM, [(500, 300), (300, 200)], {}),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", [(1024, 768), (300, 300)], {"batch": 2, "prompt_tokens": 4_000}),
        ("google/gemma-4-31B-it", [(1024, 768), (300, 300)], {"gpu": "A100-80GB", "prompt_tokens": 1_201}),
        pytest.param("google/gemma-4-26B-A4B", [(640, 480)], {"batch": 2}, marks=pytest.mark.exhaustive),
        pytest.param("meta-llama/Llama-4-Maverick-17B-128E-Instruct", [(300, 300)], {}, marks=pytest.mark.exhaustive),
        (GLM_MOE, [(500, 300)], {"batch": 2}),
        ("OpenGVLab/InternVL3_5-1B-HF", [(1024, 768), (300, 300)], {"batch": 2}),
        pytest.param("OpenGVLab/InternVL3-38B-hf", [(448, 448)], {}, marks=pytest.mark.exhaustive),
        pytest.param(GLM, [(200, 160, 3)], {"gpu": "A100-80GB"}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-2B-Instruct", [(200, 160, 8), (160, 200, 5)], {}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-2B-Instruct", [(300, 200), (160, 200, 5)], {}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-4B-Instruct", [(300, 200)] * 4 + [(160, 200, 5)], {}, marks=pytest.mark.exhaustive),
        pytest.param(
            "Qwen/Qwen2-VL-2B-Instruct", [(320, 96), (300, 200), (160, 200, 5)], {}, marks=pytest.mark.exhaustive
        ),
        pytest.param("Qwen/Qwen3.5-0.8B", [(64, 64)], {"prompt_tokens": 65}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3.5-9B", [(300, 200)], {"prompt_tokens": 128}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3.5-9B", [(300, 200)] * 9, {"new_tokens": 1}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3.5-4B", [(300, 200), (640, 480)], {"batch": 3}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3.5-0.8B", [(200, 160, 8)], {}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3.5-35B-A3B", [(200, 160, 5), (64, 96, 3)], {}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3.5-0.8B", [(300, 200), (160, 200, 5)], {}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3.5-35B-A3B", [(300, 200), (160, 200, 3)], {}, marks=pytest.mark.exhaustive),
        pytest.param("Qwen/Qwen3-VL-30B-A3B-Instruct", [(96, 64), (200, 160, 5)], {}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_release_has_the_run_that_transformers_makes(
    model: str | dict[str, Any], sizes: list[tuple[int, ...]], changes: dict[str, Any]
) -> None:
    report, run = seen(model, *sizes, **changes)
    found = sources.image_trace(report, run)
    assert found is not None
    request = sources.trace_request(run)
    theirs = traced_in_few_layers(report, report.config or {}, request, sources.point_of(run))
    assert numbered(found[0]) == numbered(theirs)


@pytest.mark.parametrize(
    "changes",
    [{"mode": "forward"}, {"padded": True}, {"autocast": "float16"}, {"cache": "static"}, {"device": "cpu"},
     {"attention": "eager"}],
)  # fmt: skip
def test_a_run_that_no_sample_was_like_is_not_composed(changes: dict[str, Any]) -> None:
    model, images = "Qwen/Qwen3-VL-2B-Instruct", ((300, 200), (200, 300))
    report, run = seen(model, *images)
    assert sources.image_trace(report, run) is not None
    assert sources.image_trace(report, replace(run, **changes)) is None


def test_a_hybrid_is_composed_for_prompts_of_several_chunks() -> None:
    """A convolution of linear attention longer than the prompt, and a prompt of one chunk, do something else."""
    report, run = seen("Qwen/Qwen3.5-0.8B", (96, 96))
    assert run.media is not None
    for tokens, covered in ((64, False), (65, True), (20_000, True)):
        assert (sources.image_trace(report, replace(run, prompt_tokens=tokens)) is not None) == covered
    config = report.config or {}
    for changes in (
        {"linear_conv_kernel_dim": 66},
        {"layer_types": 8 * ["linear_attention", "linear_attention", "full_attention"]},
    ):
        other = report_of({**config, "text_config": {**config["text_config"], **changes}})
        assert sources.image_trace(other, replace(run, prompt_tokens=65)) is None
    two = replace(run.media, items=run.media.items * 2)
    for batch in (1, 2):
        assert sources.image_trace(report, replace(run, media=two, prompt_tokens=200, batch=batch)) is not None


@pytest.mark.parametrize(("model", "several"), [("Qwen/Qwen3-VL-2B-Instruct", True), ("Qwen/Qwen3.5-0.8B", False)])
def test_videos_in_a_batch_or_with_images_behind_them_are_not_composed(model: str, several: bool) -> None:
    """several: whether one behind several images is."""
    image, video = (160, 200), (200, 160, 8)
    assert sources.image_trace(*seen(model, video)) is not None
    assert sources.image_trace(*seen(model, image, video)) is not None
    assert (sources.image_trace(*seen(model, image, image, video)) is not None) == several
    for sizes in ((video, image), (image, video, video)):
        assert sources.image_trace(*seen(model, *sizes)) is None
    assert sources.image_trace(*seen(model, video, batch=2)) is None
    assert sources.image_trace(*seen(model, image, video, batch=2)) is None


def test_images_and_towers_that_no_sample_was_like_are_not_composed() -> None:
    report, run = seen("Qwen/Qwen3-VL-2B-Instruct", (300, 200))
    assert run.media is not None
    assert sources.image_trace(report, replace(run, prompt_tokens=run.media.least_tokens)) is None  # no text behind it
    item = run.media.items[0]
    flat = replace(run.media, items=(replace(item, shape=replace(item.shape, grid=(1, 2, 40), tokens=20)),))
    assert sources.image_trace(report, replace(run, media=flat)) is None
    config = report.config or {}
    assert sources.image_trace(report_of(config), run) is not None
    for changes in (
        {"hidden_act": "relu"},
        {"spatial_merge_size": 4},
        {"deepstack_visual_indexes": [0, 1, 2]},
    ):
        other = report_of({**config, "vision_config": {**config["vision_config"], **changes}})
        assert sources.image_trace(other, run) is None
    report, run = seen(GLM, (300, 200))
    assert sources.image_trace(report, run) is not None
    for key, value in {"attention_bias": True, "hidden_act": "gelu", "spatial_merge_size": 4, "in_channels": 4}.items():
        other = report_of({**GLM, "vision_config": {**GLM["vision_config"], key: value}})
        assert sources.image_trace(other, run) is None


def test_llama_4_of_another_dtype_and_prompts_of_its_chunk_and_more_are_not_composed() -> None:
    """Its processor makes pixels in bfloat16, which a model in float16 casts."""
    report, run = seen("meta-llama/Llama-4-Scout-17B-16E-Instruct", (1024, 768))
    assert sources.image_trace(report, replace(run, prompt_tokens=8_000)) is not None
    for prompt_tokens in (8_100, 8_192, 9_000):  # and 128 new ones
        assert sources.image_trace(report, replace(run, prompt_tokens=prompt_tokens)) is None
    config = report.config or {}
    assert sources.image_trace(report_of({**config, "dtype": "float16"}), run) is None
    for key, value in {"pixel_shuffle_ratio": 1.0, "num_channels": 4, "image_size": 448}.items():
        other = report_of({**config, "vision_config": {**config["vision_config"], key: value}})
        assert sources.image_trace(other, run) is None


def test_gemma_4_with_images_without_padding_or_of_other_patches_is_not_composed() -> None:
    """Its processor pads all images to 2,520 patches, and the tower's attention has a mask for that."""
    report, run = seen("google/gemma-4-31B-it", (640, 480))
    assert run.media is not None
    assert sources.image_trace(report, run) is not None
    _, whole = seen("google/gemma-4-31B-it", (960, 672))
    assert whole.media is not None
    assert whole.media.items[0].shape.patches == 2_520
    assert sources.image_trace(report, whole) is None
    item = run.media.items[0]
    odd = replace(item, shape=replace(item.shape, grid=(1, 18, 24), tokens=48, pixels=item.shape.pixels // 4))  # 630
    assert sources.image_trace(report, replace(run, media=replace(run.media, items=(odd,)))) is None
    assert sources.image_trace(report, replace(run, prompt_tokens=1_000)) is None
    assert sources.image_trace(report, replace(run, new_tokens=1)) is None
    config = report.config or {}
    for part, changes in (
        ("vision_config", {"use_clipped_linears": True}),
        ("vision_config", {"standardize": False}),
        ("vision_config", {"num_key_value_heads": 8}),
        ("text_config", {"use_bidirectional_attention": None}),
    ):
        other = report_of({**config, part: {**config[part], **changes}})
        assert sources.image_trace(other, run) is None


def test_a_prompt_of_just_the_window_and_images_of_other_sides_are_not_composed() -> None:
    """Gemma 3's window is 1,024 tokens, and its tower takes images of 896 pixels alone, each of 256 tokens."""
    report, run = seen("google/gemma-3-4b-it", (300, 200))
    assert run.media is not None
    assert sources.image_trace(report, run) is not None
    assert sources.image_trace(report, replace(run, prompt_tokens=1024)) is None
    item = run.media.items[0]
    config = report.config or {}
    odd = {**config, "vision_config": {**config["vision_config"], "deepstack_visual_indexes": 1.5}}
    assert sources.image_trace(report_of(odd), run) is None
    for changes in ({"grid": (1, 32, 32)}, {"tokens": 64}):
        other = replace(run.media, items=(replace(item, shape=replace(item.shape, **changes)),))
        assert sources.image_trace(report, replace(run, media=other)) is None


def test_a_plain_install_says_what_images_take_and_what_it_does_not_know() -> None:
    model = "catalog:Qwen/Qwen3.5-0.8B"
    for known in (model, "catalog:google/gemma-3-4b-it"):
        assert "Method: traced" in without_torch("memory", known, "--image", "640x480", "--lang", "en").stdout
    unknown = without_torch("memory", model, "--video", "640x480x4s", "--batch", "2", "--lang", "en").stdout
    assert "no shipped trace covers this run and torch is not installed" in unknown.splitlines()[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_file_reads_back_to_the_same_bytes_and_is_small(model_type: str) -> None:
    content = Path(SHIPPED, image_file(model_type)).read_bytes()
    assert len(content) < 170_000
    assert dump(load(content, file="")) == content
    for damaged in (b"x", content[:-9]):
        with pytest.raises(MalformedError):
            load(damaged, file="")
