"""Images, videos and audio in a trace against the truth: small models that see or hear, really run on CPU, request by request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.errors import UnsupportedError
from qwen_inspect.media.counting import media_of
from qwen_inspect.results.media import Media, Medium, Request, Shape, Typed
from qwen_inspect.results.timeline import CUDA_SCRATCH, Allocate, Event, Timeline
from qwen_inspect.results.training import LoopName, loop_of
from qwen_inspect.tracing.adapting import ALL_LINEAR, Adapters, adapt, checkpoint
from qwen_inspect.tracing.media import media_inputs
from qwen_inspect.tracing.selecting import NONZERO
from qwen_inspect.tracing.steps import train

from ..support.families import FAMILIES
from ..support.following import Change, Run, follow, profiled
from ..support.hearing import heard, hearing, speaking
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


def generating(model: Any, media: Media, *, batch: int, prompt_tokens: int = PROMPT) -> Callable[[], object]:
    def run() -> object:
        given = media_inputs(model, media, batch=batch, prompt_tokens=prompt_tokens)
        return given, model.generate(
            **given, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, eos_token_id=None
        )

    return run


def large_changes(changes: Sequence[Change], least: int = LEAST) -> list[Change]:
    alive, found = set(), []
    for change in changes:
        if change.size_bytes >= least:
            alive.add(change.address)
        elif change.size_bytes >= 0 or change.address not in alive:
            continue
        else:
            alive.remove(change.address)
        found.append(change)
    return found


def on_cpu(timeline: Timeline) -> list[Event]:
    """Without the scratch of CUDA's kernels."""
    requests = (event for event in timeline.events if isinstance(event, Allocate))
    on_cuda = {event.id for event in requests if event.operator in CUDA_SCRATCH}
    return [event for event in after_load(timeline) if event.id not in on_cuda]


def large_events(events: Sequence[Event], least: int = LEAST) -> list[Event]:
    small = {event.id for event in events if isinstance(event, Allocate) and event.size_bytes < least}
    return [event for event in events if event.id not in small]


OTHERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5")


@pytest.mark.parametrize(
    "family", ["qwen3_vl", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in OTHERS)]
)
def test_images_of_two_sizes_and_a_video_in_a_batch_take_what_the_trace_says(family: str) -> None:
    """Two sequences, each with two images and a video; of Qwen2-VL its slices are one run of tokens, of Qwen3-VL a run each."""
    video = medium(2, 6, 6, frames=4, marks=0 if family.startswith("qwen2") else None)
    assert_generating_takes_what_the_trace_says({**FAMILIES[family], **TOKENS}, video)


def test_states_of_linear_attention_are_written_to_where_they_are() -> None:
    """That of the convolution, of a size that shows, is zeros at first, with known values as positions have, then without."""
    config = {**FAMILIES["qwen3_5"], **TOKENS}
    config["text_config"] = {**config["text_config"], "linear_num_key_heads": 16, "linear_num_value_heads": 16}
    assert_generating_takes_what_the_trace_says(config, medium(2, 6, 6, frames=4, marks=None))


def assert_generating_takes_what_the_trace_says(config: dict[str, Any], video: Medium) -> None:
    media = Media(items=(medium(1, 8, 12), medium(1, 10, 6), video), images=None, videos=None)
    model = real_model(config).eval()

    changes = profiled(generating(model, media, batch=2))
    workload = {"mode": "generate", "batch": 2, "prompt_tokens": PROMPT, "new_tokens": 2, "device": "cpu"}
    timeline = traced(config, **workload, media=media)
    assert [stage.name for stage in timeline.stages] == ["load", "vision", "prefill", "decode"]
    left = follow(large_changes(changes), large_events(after_load(timeline)), Run({}, {}, {}))
    assert left.scratch == {}


def small(family: str) -> dict[str, Any]:
    """A small model of the family, whose tower and decoder fit together."""
    config = varied(family, 1)
    config |= {"architectures": list(CLASSES[family][:1]), **TOKENS, "image_token_index": 5, "dtype": "bfloat16"}
    text, vision = config["text_config"], config.get("vision_config", {})
    # Else `generate` takes the prompt's text, which is of zeros, for padding.
    text["pad_token_id"] = 9 if family == "gemma4" else None
    text.pop("dtype", None)
    tower = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    match family:
        case "gemma3":
            config["mm_tokens_per_image"] = 4
        case "gemma4":
            config["audio_config"] = None
            text["vocab_size_per_layer_input"] = text["vocab_size"]
            vision["position_embedding_size"] = 512
        case "glm4v" | "glm4v_moe":
            vision |= {"depth": 3, "out_hidden_size": text["hidden_size"], "spatial_merge_size": 2}
        case "internvl":
            config |= {"image_seq_length": 4, "downsample_ratio": 0.5}
            vision |= {**tower, "intermediate_size": 48, "image_size": [28, 28], "patch_size": [7, 7]}
        case "llama4":
            widths = {"projector_input_dim": 24, "projector_output_dim": 24, "vision_output_dim": 24}
            vision |= {**tower, "intermediate_size": 128, "image_size": 56, "patch_size": 14, **widths}
    return config


OTHER_TOWERS = ("gemma4", "glm4v_moe", "internvl", "llama4", "mistral3")


@pytest.mark.parametrize(
    "family", ["gemma3", "glm4v", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in OTHER_TOWERS)]
)
def test_images_of_other_families_take_what_the_trace_says(family: str) -> None:
    """Sizes by the family's own rules. Gemma 3 normalises patches that are not contiguous, which takes a copy first; GLM-V's
    convolution of patches whose channels are side by side takes none. Llama 4 and InternVL see tiles, Gemma 4 padded patches.
    """
    config = small(family)
    sizes = ((200, 120), (90, 260)) if family == "glm4v_moe" else ((60, 40), (64, 90))
    typed = tuple(Typed(text="", width=width, height=height) for width, height in sizes)
    media = media_of(config, {}, Request(typed=typed))
    tokens = media.context_tokens + 20
    changes = profiled(generating(real_model(config).eval(), media, batch=1, prompt_tokens=tokens))
    timeline = traced(config, mode="generate", prompt_tokens=tokens, new_tokens=2, device="cpu", media=media)
    least = max(LEAST, 16 * tokens)
    left = follow(large_changes(changes, least), large_events(on_cpu(timeline), least), Run({}, {}, {}))
    assert left.scratch == {}


HEARING = ("qwen2_audio", "qwen3_omni_moe_thinker", "qwen3_asr")


@pytest.mark.parametrize(
    "family", ["qwen2_5_omni_thinker", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in HEARING)]
)
def test_audio_of_two_lengths_in_a_batch_takes_what_the_trace_says(family: str) -> None:
    """The audio's tower runs in the forward that also fills the cache. Qwen3's encoders attend within windows, whose outputs are
    smaller than what is followed: CPU's kernel has scratch of their size.
    """
    config = hearing(family)
    media = heard(config, 11.0) if family == "qwen3_asr" else heard(config, 3.3, 5.5)
    tokens = media.context_tokens + 20
    changes = profiled(generating(real_model(config).eval(), media, batch=2, prompt_tokens=tokens))
    timeline = traced(config, mode="generate", batch=2, prompt_tokens=tokens, new_tokens=2, device="cpu", media=media)
    assert [stage.name for stage in timeline.stages] == ["load", "audio", "prefill", "decode"]
    left = follow(large_changes(changes, 7_000), large_events(on_cpu(timeline), 7_000), Run({}, {}, {}))
    assert left.scratch == {}


@pytest.mark.parametrize(
    "family", ["qwen2_5_omni_thinker", pytest.param("qwen3_omni_moe_thinker", marks=pytest.mark.exhaustive)]
)
def test_images_a_video_and_audio_of_omni_take_what_the_trace_says(family: str) -> None:
    """Marks stand around each, from which positions are told."""
    config = hearing(family)
    image = Typed(text="", width=200, height=120)
    moving = Typed(text="", width=90, height=60, seconds=Fraction(2), fps=Fraction(2))
    media = heard(config, 3.3, seen=(image, moving))
    tokens = media.least_tokens
    changes = profiled(generating(real_model(config).eval(), media, batch=1, prompt_tokens=tokens))
    timeline = traced(config, mode="generate", prompt_tokens=tokens, new_tokens=2, device="cpu", media=media)
    assert [stage.name for stage in timeline.stages] == ["load", "vision", "audio", "prefill", "decode"]
    least = max(LEAST, 16 * tokens)
    left = follow(large_changes(changes, least), large_events(on_cpu(timeline), least), Run({}, {}, {}))
    assert left.scratch == {}


@pytest.mark.parametrize(
    "family", ["qwen2_5_omni_thinker", pytest.param("qwen3_omni_moe_thinker", marks=pytest.mark.exhaustive)]
)
def test_a_whole_omni_model_that_answers_in_text_takes_what_the_trace_says(family: str) -> None:
    """Its weights, in the dtypes that it gives them, and the run of its thinker with an image and audio."""
    config = speaking(family)
    model = real_model(config).eval()
    media = heard(config, 3.3, seen=(Typed(text="", width=200, height=120),))
    tokens = media.least_tokens
    model.speaker_map = {"Chelsie": {}}  # which `from_pretrained` reads from a file
    options = {"thinker_max_new_tokens": 2, "thinker_do_sample": False, "thinker_eos_token_id": None}

    def run() -> object:
        given = media_inputs(model.thinker, media, batch=1, prompt_tokens=tokens)
        made = model.generate(**given, generation_mode="text", **options, thinker_return_dict_in_generate=True)
        return given, made

    timeline = traced(config, mode="generate", prompt_tokens=tokens, new_tokens=2, device="cpu", media=media)
    loaded = [event for event in timeline.events[: timeline.stages[1].first_event] if isinstance(event, Allocate)]
    held = {
        kind: [(name.rpartition(".")[0], tensor.numel() * tensor.element_size()) for name, tensor in named]
        for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers()))
    }
    for kind, expected in held.items():
        assert [(each.module, each.size_bytes) for each in loaded if each.operator == kind] == expected
    assert any(module.startswith("talker.") for module, _ in held["parameter"])
    least = max(LEAST, 16 * tokens)
    left = follow(large_changes(profiled(run), least), large_events(on_cpu(timeline), least), Run({}, {}, {}))
    assert left.scratch == {}


@pytest.mark.parametrize("images", [(), pytest.param((60, 40), marks=pytest.mark.exhaustive)])
def test_audio_of_gemma_4_takes_what_the_trace_says(images: tuple[int, ...]) -> None:
    """Beside an image, too, which passes its tower first."""
    config = hearing("gemma4")
    typed = (Typed(text="", width=images[0], height=images[1]),) if images else ()
    media = heard(config, 3.3, 0.5, seen=typed)
    tokens = media.context_tokens + 20
    least = max(LEAST, 16 * tokens)
    changes = profiled(generating(real_model(config, None).eval(), media, batch=1, prompt_tokens=tokens))
    timeline = traced(config, mode="generate", prompt_tokens=tokens, new_tokens=2, device="cpu", media=media)
    assert [stage.name for stage in timeline.stages][-3:] == ["audio", "prefill", "decode"]
    left = follow(large_changes(changes, least), large_events(on_cpu(timeline), least), Run({}, {}, {}))
    assert left.scratch == {}


@pytest.mark.parametrize(
    "family",
    ["gemma4", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in ("glm4v", "glm4v_moe", "internvl"))],
)
def test_videos_of_other_families_take_what_the_trace_says(family: str) -> None:
    """Two videos of other lengths and sizes; of InternVL, whose processor stacks them, of one length. Its frames are
    images to the tower, Gemma 4's are padded, and the tokens of both GLMs' have the id of an image's.
    """
    config = small(family)
    lengths = (2, 2) if family == "internvl" else (2, 4)
    sizes = zip(lengths, ((200, 120), (90, 260)), strict=True)
    typed = tuple(
        Typed(text="", width=width, height=height, seconds=Fraction(seconds), fps=Fraction(2))
        for seconds, (width, height) in sizes
    )
    numbers = {"do_sample_frames": False, **({"num_frames": None} if family in ("gemma4", "internvl") else {})}
    size = {"size": {"height": 28, "width": 28}} if family == "internvl" else {}
    media = media_of(config, {"video_preprocessor_config.json": {**numbers, **size}}, Request(typed=typed))
    tokens = media.least_tokens + 20
    changes = profiled(generating(real_model(config).eval(), media, batch=1, prompt_tokens=tokens))
    timeline = traced(config, mode="generate", prompt_tokens=tokens, new_tokens=2, device="cpu", media=media)
    least = max(
        LEAST, 16 * tokens, 10_000 if family == "glm4v_moe" else 0
    )  # CPU's attention has scratch as large as a frame
    left = follow(large_changes(changes, least), large_events(on_cpu(timeline), least), Run({}, {}, {}))
    assert left.scratch == {}


def test_videos_of_towers_that_take_none_are_refused() -> None:
    media = Media(items=(medium(2, 4, 4, frames=2),), images=None, videos=None)
    with pytest.raises(UnsupportedError, match="gemma3"):
        traced(small("gemma3"), mode="generate", prompt_tokens=PROMPT, media=media)


# What trains, with checkpointing or without. In float32, for which CPU's attention has no scratch as large as an output, or in
# bfloat16 where that is no matter.
TRAINING = [
    ("qwen2_5_vl", "", False),
    ("qwen3_vl", "", True),
    ("gemma3", "vision", False),
    ("gemma4", "", False),
    ("glm4v", "", True),
    ("llama4", "", False),
    ("qwen3_vl", "language_model", False),
    ("qwen2_5_vl", "language_model", False),
    ("qwen2_5_vl", "visual", True),
    ("qwen2_vl", "", False),
    ("qwen3_vl", "merger", False),
    ("qwen3_vl_moe", "", False),
    ("internvl", "", False),
    ("mistral3", "", True),
    ("qwen3_5", "language_model", False),
    ("qwen3_5", "", False),
    ("glm4v_moe", "", False),
    *((family, "", True) for family in ("gemma3", "gemma4", "glm4v_moe", "llama4", "qwen3_5")),
    ("qwen3_5_moe", "", False),
    *((family, "language_model", False) for family in ("gemma3", "gemma4", "glm4v", "glm4v_moe", "llama4", "mistral3")),
]
QUICK = 6


def training_run(
    config: dict[str, Any],
    media: Media,
    *,
    trained: str,
    lora: Adapters | None,
    checkpointing: bool,
    loop: LoopName | None = None,
    **workload: int,
) -> tuple[list[Change], list[Event]]:
    """What a real training step takes and gives back, and its trace."""
    import torch

    tokens, batch, accumulate = (workload.get(name, 1) for name in ("prompt_tokens", "batch", "accumulate"))
    model = real_model(config, None if config["model_type"] == "gemma4" else "sdpa").train()
    if checkpointing:
        checkpoint(model)
    if lora is not None:
        adapt(model, lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name if lora is None else parameter.requires_grad)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], foreach=True)

    def run() -> object:
        return train(
            model,
            lambda: media_inputs(model, media, batch=batch, prompt_tokens=tokens, masked=loop is not None),
            lambda _: None,
            loop=loop_of(loop),
            optimizer=optimizer,
            scaler=None,
            steps=1,
            accumulate=accumulate,
            autocast_dtype=None,
            device="cpu",
        )

    options: dict[str, Any] = {"trained": trained, "lora": lora, "checkpointing": checkpointing, **workload}
    timeline = traced(config, mode="train", device="cpu", media=media, loop=loop_of(loop), **options)
    return profiled(run), on_cpu(timeline)


def in_numbers(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration with all of its parts in this dtype."""
    parts = {
        key: {**config[key], "dtype": dtype}
        for key in ("text_config", "vision_config", "audio_config")
        if config.get(key) is not None
    }
    return {**config, **parts, "dtype": dtype}


def small_images(config: Mapping[str, Any], dtype: str) -> tuple[Media, int]:
    """An image, and a prompt with it. Llama 4's processor makes pixels in bfloat16, which a model in float32 does not take."""
    media = media_of(config, {}, Request(typed=(Typed(text="", width=60, height=40),)))
    return replace(
        media, pixel_dtype=dtype if config["model_type"] == "llama4" else "float32"
    ), media.context_tokens + 20


@pytest.mark.parametrize(
    ("family", "trained", "checkpointing"),
    [
        pytest.param(*case, marks=() if number < QUICK else pytest.mark.exhaustive)
        for number, case in enumerate(TRAINING)
    ],
)
def test_training_with_images_takes_what_the_trace_says(family: str, trained: str, checkpointing: bool) -> None:
    """A tower that trains gets its gradients from the features' places in the prompt; windows attend one by one. Each image's
    features are also written into the first layers' outputs of Qwen3-VL, whose gradients are copied. Gemma 3 normalises patches
    that are not contiguous, Gemma 4 looks up columns of positions, GLM-V samples a grid: their gradients copy operands first.
    """
    config = in_numbers({**FAMILIES[family], **TOKENS} if family in FAMILIES else small(family), "float32")
    if family in FAMILIES:
        media, tokens = Media(items=(medium(1, 8, 14), medium(1, 8, 16)), images=None, videos=None), PROMPT
    else:
        media, tokens = small_images(config, "float32")
    changes, events = training_run(
        config, media, trained=trained, lora=None, checkpointing=checkpointing, prompt_tokens=tokens
    )
    assert follow(large_changes(changes), large_events(events), Run({}, {}, {})).scratch == {}


LOOPED: list[tuple[str, LoopName]] = [
    ("gemma3", "trainer"),
    *((family, "trainer") for family in ("mistral3", "glm4v", "internvl", "llama4", "qwen2_5_vl", "qwen3_5")),
    *((family, "plain") for family in ("gemma3", "mistral3", "qwen3_vl")),
]


@pytest.mark.parametrize(
    ("family", "loop"),
    [pytest.param(*case, marks=pytest.mark.exhaustive if number else ()) for number, case in enumerate(LOOPED)],
)
def test_training_with_images_in_a_loop_has_the_mask_that_processors_make(family: str, loop: LoopName) -> None:
    """Two sequences with two images of other sizes; the mask is large enough to be followed."""
    config = in_numbers({**FAMILIES[family], **TOKENS} if family in FAMILIES else small(family), "float32")
    typed = tuple(Typed(text="", width=width, height=height) for width, height in ((60, 40), (64, 90)))
    media = replace(media_of(config, {}, Request(typed=typed)), pixel_dtype="float32")
    tokens = media.context_tokens + 200
    assert 8 * 2 * tokens > LEAST
    options: dict[str, Any] = {"lora": None, "checkpointing": False, "prompt_tokens": tokens, "batch": 2}
    changes, events = training_run(config, media, trained="", loop=loop, **options)
    assert follow(large_changes(changes), large_events(events), Run({}, {}, {})).scratch == {}


ADAPTED = {
    "gemma3": ("q_proj", "fc1"),
    "gemma4": ("linear",),
    "glm4v": ("qkv", "q_proj"),
    "glm4v_moe": ("qkv", "q_proj"),
    "llama4": ("q_proj", "fc1"),
    "mistral3": ("q_proj", "linear_1"),
    "internvl": ("q_proj", "fc1"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ADAPTED)
def test_training_with_images_in_bfloat16_and_of_adapters_in_the_tower_takes_what_the_trace_says(family: str) -> None:
    """The whole model; adapters on some modules of tower and decoder, in two micro-batches; on all, with checkpointing."""
    small_config = small(family)
    lora = {targets: Adapters(rank=4, targets=targets) for targets in (ADAPTED[family], (ALL_LINEAR,))}
    runs: list[tuple[str, dict[str, Any]]] = [
        ("bfloat16", {"lora": None, "checkpointing": False, "batch": 1 if family == "glm4v_moe" else 2}),
        ("float32", {"lora": lora[ADAPTED[family]], "checkpointing": False, "accumulate": 2}),
        *([("bfloat16", {"lora": lora[ALL_LINEAR,], "checkpointing": True})] if family != "llama4" else []),
    ]  # PEFT cannot add to the two outputs of Llama 4's router
    for dtype, options in runs:
        config = in_numbers(small_config, dtype)
        media, tokens = small_images(config, dtype)
        changes, events = training_run(config, media, trained="", prompt_tokens=tokens, **options)
        assert follow(large_changes(changes), large_events(events), Run({}, {}, {})).scratch == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("family", "trained"),
    [
        *((family, "language_model") for family in ("qwen2_5_omni_thinker", *HEARING, "gemma4")),
        *((family, "") for family in ("qwen2_audio", "gemma4")),
    ],
)
def test_training_with_audio_takes_what_the_trace_says(family: str, trained: str) -> None:
    """The decoder behind a frozen tower, and all."""
    config = hearing(family) if trained else in_numbers(hearing(family), "float32")
    media = heard(config, 3.3)
    options: dict[str, Any] = {"lora": None, "checkpointing": False, "prompt_tokens": PROMPT}
    changes, events = training_run(config, media, trained=trained, **options)
    least = LEAST if trained else 7_000
    assert follow(large_changes(changes, least), large_events(events, least), Run({}, {}, {})).scratch == {}


def test_the_gradient_of_features_takes_their_places_in_the_prompt_on_cuda() -> None:
    """One number for each dimension of every value. Source: torch 2.13, cuda/IndexKernel.cpp, masked_select_out_cuda_impl"""
    config = {**FAMILIES["qwen2_vl"], **TOKENS}
    media = Media(items=(medium(1, 8, 12),), images=None, videos=None)
    timeline = traced(config, mode="train", prompt_tokens=PROMPT, media=media)
    requests = [event for event in timeline.events if isinstance(event, Allocate)]
    (selected,) = (number for number, event in enumerate(requests) if event.operator == "aten.masked_select.default")
    values = media.tokens * config["hidden_size"]
    assert requests[selected].size_bytes == 2 * values
    assert (requests[selected - 1].operator, requests[selected - 1].size_bytes) == (NONZERO, 3 * 8 * values)


def test_a_tower_that_trains_and_was_not_held_against_any_is_refused() -> None:
    config = hearing("qwen2_5_omni_thinker")
    with pytest.raises(UnsupportedError, match=re.escape("audio_tower")):
        traced(config, mode="train", prompt_tokens=PROMPT, media=heard(config, 3.3))
