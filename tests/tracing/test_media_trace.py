"""Images and videos in a trace against the truth: small models that see, really run on CPU, request by request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest

from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.media.counting import media_of
from qwen_inspect.results.media import Media, Medium, Request, Shape, Typed
from qwen_inspect.results.timeline import CUDA_SCRATCH, Allocate, Event
from qwen_inspect.tracing.media import media_inputs
from qwen_inspect.tracing.steps import train

from ..support.families import FAMILIES
from ..support.following import Change, Run, follow, profiled
from ..support.outlines import varied
from ..support.real_runs import after_load, real_model, traced

LEAST = 2_500  # bytes; smaller are positions and masks, of which CPU's operators make more than CUDA's
PROMPT = 128
TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}


def medium(*grid: int, frames: int | None = None, marks: int | None = 0) -> Medium:
    slices, rows, columns = grid
    typed = Typed(text="", width=1, height=1, seconds=None if frames is None else Fraction(1))
    shape = Shape(
        height=4 * rows,
        width=4 * columns,
        grid=(slices, rows, columns),
        tokens=slices * rows * columns // 4,
        marks=marks,
    )
    return Medium(typed=typed, shape=shape, frames=frames)


def generating(model: Any, media: Media, *, batch: int) -> Callable[[], object]:
    def run() -> object:
        given = media_inputs(model, media, batch=batch, prompt_tokens=PROMPT)
        return given, model.generate(
            **given, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, eos_token_id=None
        )

    return run


def large_changes(changes: Sequence[Change]) -> list[Change]:
    alive, found = set(), []
    for change in changes:
        if change.size_bytes >= LEAST:
            alive.add(change.address)
        elif change.size_bytes >= 0 or change.address not in alive:
            continue
        else:
            alive.remove(change.address)
        found.append(change)
    return found


def large_events(events: Sequence[Event]) -> list[Event]:
    small = {event.id for event in events if isinstance(event, Allocate) and event.size_bytes < LEAST}
    return [event for event in events if event.id not in small]


OTHERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5")


@pytest.mark.parametrize(
    "family", ["qwen3_vl", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in OTHERS)]
)
def test_images_of_two_sizes_and_a_video_in_a_batch_take_what_the_trace_says(family: str) -> None:
    """Two sequences, each with two images and a video; of Qwen2-VL its slices are one run of tokens, of Qwen3-VL a run each."""
    config = {**FAMILIES[family], **TOKENS}
    video = medium(2, 6, 6, frames=4, marks=0 if family.startswith("qwen2") else None)
    media = Media(items=(medium(1, 8, 12), medium(1, 10, 6), video), images=None, videos=None)
    model = real_model(config).eval()

    changes = profiled(generating(model, media, batch=2))
    workload = {"mode": "generate", "batch": 2, "prompt_tokens": PROMPT, "new_tokens": 2, "device": "cpu"}
    timeline = traced(config, **workload, media=media)
    assert [stage.name for stage in timeline.stages] == ["load", "vision", "prefill", "decode"]
    left = follow(large_changes(changes), large_events(after_load(timeline)), Run({}, {}, {}))
    assert left.scratch == {}


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
def test_images_of_other_families_take_what_the_trace_says(family: str) -> None:
    """Sizes by the family's own rules. Gemma 3 normalises patches that are not contiguous, which takes a copy first."""
    config = varied(family, 1)
    config |= {"architectures": [CLASSES[family][0]], "image_token_id": 5, "image_token_index": 5}
    config["text_config"]["pad_token_id"] = (
        None  # else `generate` takes the prompt's text, which is of zeros, for padding
    )
    if family == "gemma3":
        config |= {"mm_tokens_per_image": 4}
    typed = tuple(Typed(text="", width=width, height=height) for width, height in ((40, 40), (64, 32)))
    media = media_of(config, {}, Request(typed=typed))
    changes = profiled(generating(real_model(config).eval(), media, batch=1))
    workload = {"mode": "generate", "prompt_tokens": PROMPT, "new_tokens": 2, "device": "cpu"}
    timeline = traced(config, **workload, media=media)
    left = follow(large_changes(changes), large_events(after_load(timeline)), Run({}, {}, {}))
    assert left.scratch == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_training_the_decoder_with_images_takes_what_the_trace_says(family: str) -> None:
    """The tower is frozen. Each image's features are written into the first layers' outputs, whose gradients are copied."""
    import torch

    config = {**FAMILIES[family], **TOKENS}
    media = Media(items=(medium(1, 8, 12), medium(1, 10, 6)), images=None, videos=None)
    model = real_model(config).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=True)

    def run() -> object:
        return train(
            model,
            lambda: media_inputs(model, media, batch=1, prompt_tokens=PROMPT),
            lambda _: None,
            optimizer=optimizer,
            scaler=None,
            steps=1,
            accumulate=1,
            autocast_dtype=None,
            device="cpu",
        )

    workload = {"mode": "train", "batch": 1, "prompt_tokens": PROMPT, "device": "cpu", "trained": "language_model"}
    timeline = traced(config, **workload, media=media)
    requests = (event for event in timeline.events if isinstance(event, Allocate))
    on_cuda = {event.id for event in requests if event.operator in CUDA_SCRATCH}
    events = [event for event in large_events(after_load(timeline)) if event.id not in on_cuda]
    assert follow(large_changes(profiled(run)), events, Run({}, {}, {})).scratch == {}


def test_a_tower_that_trains_with_images_is_refused() -> None:
    media = Media(items=(medium(1, 8, 12),), images=None, videos=None)
    with pytest.raises(UnsupportedError, match=re.escape("model.visual")):
        traced({**FAMILIES["qwen3_vl"], **TOKENS}, mode="train", prompt_tokens=PROMPT, media=media)
