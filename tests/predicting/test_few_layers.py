"""A run with images or audio traced in a few layers of the tower and of the decoder is that of all layers, event by event."""

from __future__ import annotations

import copy
import random
import re
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.cli import main
from qwen_inspect.media.counting import media_of
from qwen_inspect.predicting import sources
from qwen_inspect.predicting.families.few_layers import traced_in_few_layers
from qwen_inspect.predicting.families.shallow_training import composed_trace, question_of
from qwen_inspect.predicting.families.stacks import fewest_layers
from qwen_inspect.predicting.predict import predict
from qwen_inspect.predicting.training_plan import plan_of
from qwen_inspect.results.media import Media, Request, Typed
from qwen_inspect.results.memory import Run
from qwen_inspect.results.model import Report
from qwen_inspect.results.training import Loop
from qwen_inspect.structure.inspect import inspect
from qwen_inspect.tracing import trace as tracing

from ..support.families import FAMILIES
from ..support.hearing import heard, hearing, speaking
from ..support.models import write_config
from ..support.outlines import varied

TOKENS = {"image_token_id": 5, "image_token_index": 5, "vision_start_token_id": 7, "vision_end_token_id": 8}
HEARING = ("qwen2_audio", "qwen3_omni_moe_thinker", "qwen3_asr")
WHOLE = ("qwen2_5_omni", "qwen3_omni_moe")
ALSO = ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "gemma3", "mistral3")


def deep(family: str, rng: random.Random) -> dict[str, Any]:
    """A small model of the family with many layers, full attention and added features in layers of any number."""
    config: dict[str, Any] = copy.deepcopy(dict(FAMILIES.get(family) or varied(family, 1)))
    config |= {"architectures": [CLASSES[family][0]], **TOKENS}
    text, vision = config.get("text_config", config), config["vision_config"]
    depth = rng.randint(12, 20)
    text["num_hidden_layers"] = 12
    text.pop("layer_types", None)
    vision["num_hidden_layers" if "num_hidden_layers" in vision else "depth"] = depth
    if family == "qwen2_5_vl":
        vision["fullatt_block_indexes"] = sorted(rng.sample(range(depth), 2))
    if "deepstack_visual_indexes" in vision:
        vision["deepstack_visual_indexes"] = sorted(rng.sample(range(depth), 2))
    if family == "gemma3":
        config["mm_tokens_per_image"] = 4
    return config


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in ALSO)]
)
def test_a_run_traced_in_a_few_layers_is_that_of_all_layers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is traced in all layers and in every call of attention."""
    for seed in range(1 if family == "qwen2_5_vl" else 3):
        rng = random.Random(f"{family}{seed}")
        report = inspect(str(write_config(tmp_path, deep(family, rng))))
        config = report.config or {}
        sizes = [(rng.randint(40, 300), rng.randint(40, 300)) for _ in range(rng.randint(1, 3))]
        typed = tuple(Typed(text="", width=width, height=height) for width, height in sizes)
        media = media_of(config, {}, Request(typed=typed))
        run = Run(media=media, prompt_tokens=rng.randint(20, 60) + media.context_tokens, batch=rng.randint(1, 2))
        assert_composed_is_whole(report, run, monkeypatch)


@pytest.mark.parametrize(
    "family",
    ["qwen2_5_omni_thinker", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in (*HEARING, *WHOLE))],
)
def test_a_run_with_audio_traced_in_a_few_layers_is_that_of_all_layers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = speaking(f"{family}_thinker") if family in WHOLE else hearing(family, layers=8)
    config.get("thinker_config", config)["text_config"] |= {"num_hidden_layers": 12, "layer_types": None}
    if family in WHOLE:  # a talker as deep as the thinker
        config["talker_config"].get("text_config", config["talker_config"])["num_hidden_layers"] = 12
    report = inspect(str(write_config(tmp_path, config)))
    seconds = (3.3,) if family == "qwen3_asr" else (3.3, 1.0)
    seen = (Typed(text="", width=200, height=120),) if "omni" in family else ()
    media: Media = heard(report.config or {}, *seconds, seen=seen)
    run = Run(media=media, prompt_tokens=30 + media.context_tokens, batch=2)
    assert_composed_is_whole(report, run, monkeypatch)


def assert_composed_is_whole(report: Report, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = sources.with_kernel(run, report), report.config or {}
    request = sources.trace_request(run)
    composed = traced_in_few_layers(report, config, request, sources.point_of(run))
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "alike_calls", lambda _: nullcontext())
        whole = tracing.trace(report.spec, config, request)
    assert composed is not None
    assert numbered(composed) == numbered(whole)


TRAINED: dict[str, dict[str, Any]] = {
    "all": {},
    "tower frozen, clipped": {"frozen": "visual|vision", "loop": Loop(clip=True)},
    "tower": {"trained": "visual|vision"},
    "checkpointed": {"checkpointing": True, "optimizer": "adamw_fused"},
    "8 bits": {"optimizer": "adamw_8bit", "accumulate": 2},
    "autocast": {"autocast": "bfloat16"},
    "LoRA": {"lora_rank": 4},
    "QLoRA": {"lora_rank": 4, "lora_targets": ("q_proj",), "dtype": "bnb-nf4-double", "checkpointing": True},
}
SEEING = ("qwen2_5_vl", *ALSO)
QUICK = {("qwen2_5_vl", "tower"), ("qwen3_vl", "tower frozen, clipped")}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param(family, options, marks=() if (family, options) in QUICK else pytest.mark.exhaustive)
        for family in SEEING
        for options in TRAINED
        if options != "QLoRA" or "moe" not in family  # bitsandbytes has no layout for experts
    ],
)
def test_training_with_images_in_a_few_layers_is_that_of_all_layers(
    family: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_INSPECT_CACHE", str(tmp_path / "cache"))
    rng, changes = random.Random(f"{family} {options}"), dict(TRAINED[options])
    path = str(write_config(tmp_path, deep(family, rng)))
    report = inspect(path, dtype=changes.pop("dtype", None))
    sizes = [(rng.randint(40, 300), rng.randint(40, 300)) for _ in range(rng.randint(1, 2))]
    typed = tuple(Typed(text="", width=width, height=height) for width, height in sizes)
    media = media_of(report.config or {}, {}, Request(typed=typed))
    tokens = rng.randint(20, 60) + media.context_tokens
    run = Run(mode="train", media=media, prompt_tokens=tokens, batch=rng.randint(1, 2), **changes)
    plan = plan_of(report, sources.with_kernel(run, report))
    request = sources.trace_request(plan.run, plan.four_bits)
    composed = composed_trace(question_of(report, plan, request, sources.installed_versions()))
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "alike_calls", lambda _: nullcontext())
        whole = tracing.trace(report.spec, report.config or {}, request)
    assert composed is not None
    found = composed.at(sources.point_of(plan.run))
    assert (found.sums, found.cast) == (whole.sums, whole.cast)
    assert with_sorted_frees(numbered(found)) == with_sorted_frees(numbered(whole))


def with_sorted_frees(numbers: tuple[Any, ...]) -> tuple[object, ...]:
    """With consecutive frees in the order of their allocations: what the allocator has after them is the same in any order."""
    rows, *others = numbers
    of_frees = groupby(rows, key=lambda row: len(row) == 1)
    return [row for frees, group in of_frees for row in (sorted(group) if frees else group)], others


def numbered(timeline: Any) -> tuple[object, ...]:
    """Everything of a trace, with the numbers of its allocations in place of their ids."""
    numbers: dict[int, int] = {}
    rows: list[object] = []
    for event in timeline.events:
        number = numbers.setdefault(event.id, len(numbers))
        rows.append((number, *event[1:]))
    kept = sorted((numbers[identity], use) for identity, use in timeline.kept)
    return rows, timeline.stages, kept


@pytest.mark.parametrize("mode", ["generate", "train"])
@pytest.mark.parametrize(("key", "value"), [("window_size", "x"), ("fullatt_block_indexes", [["a"]])])
def test_a_tower_of_wrong_values_is_refused_in_a_line(
    mode: str, key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = deep("qwen2_5_vl", random.Random(1))
    config["vision_config"][key] = value
    typed = ["--image", "64x64", "--mode", mode, "--context", "40", "--lang", "en"]
    assert main(["memory", str(write_config(tmp_path, config)), *typed]) == 7
    assert re.search(f"transformers .* cannot build this configuration: .*{key}", capsys.readouterr().err)


def test_the_fewest_layers_have_all_neighbours() -> None:
    """Of six equal layers four are left: after another, two between their like, of which one checks the other, before another."""
    assert fewest_layers("abbbbbbc") == (0, 3, 4, 5, 6, 7)
    assert fewest_layers("abc") is None


@pytest.mark.parametrize(("family", "trained"), [("qwen3_vl", ""), ("qwen3_5", "language_model")])
def test_the_convolution_of_patches_is_spoken_of_where_a_tower_trains(
    family: str, trained: str, tmp_path: Path
) -> None:
    """Linear attention has a convolution too, whose gradient takes none of cuDNN's workspace in bfloat16."""
    report = inspect(str(write_config(tmp_path, {**FAMILIES[family], **TOKENS})))
    media = media_of(report.config or {}, {}, Request(typed=(Typed(text="", width=64, height=64),)))
    run = Run(media=media, prompt_tokens=20 + media.context_tokens, mode="train", trained=trained)
    found = predict(report, run).predicted
    assert ("assume_tower_trained" in {message.key for message in found.assumptions}) == (family == "qwen3_vl")


@pytest.mark.parametrize(
    ("seen", "seconds", "expected"),
    [(False, (), "text_only_both"), (True, (), "no_audio"), (False, (3.3,), "no_images"), (True, (3.3,), None)],
)
def test_towers_that_do_not_run_are_named(
    seen: bool, seconds: tuple[float, ...], expected: str | None, tmp_path: Path
) -> None:
    report = inspect(str(write_config(tmp_path, hearing("qwen2_5_omni_thinker"))))
    media: Media | None = None
    if seen or seconds:
        media = heard(report.config or {}, *seconds, seen=(Typed(text="", width=200, height=120),) if seen else ())
    run = Run(media=media, prompt_tokens=30 + (media.context_tokens if media else 0), new_tokens=2)
    keys = {message.key for message in predict(report, run).predicted.assumptions}
    idle = {key for key in keys if key.startswith(("assume_text_only", "assume_no_"))}
    assert idle == ({f"assume_{expected}"} if expected else set())
