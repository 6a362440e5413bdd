"""What a caller passes to a model that sees or hears: a prompt with the places of images, videos and audio, their pixels and
spectrograms, and what places them.

Source: transformers 5.23, models/*/processing_*.py, image_processing_*.py and feature_extraction_*.py for names and shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from ..errors import UnsupportedError
from ..results.media import Clip, Media, Medium
from ..typed import Any

# Held request by request against real models on CPU; of Qwen's also against a card.
WITH_VIDEOS = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("gemma4", "glm4v", "glm4v_moe", "internvl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
)
BOUNDED = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")  # positions are told by a mark before and after each run
TRACED = (*WITH_VIDEOS, "gemma3", "llama4", "mistral3")
# Whose training with a tower that trains was held so.
TRAINED = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("gemma3", "gemma4", "glm4v", "glm4v_moe", "internvl", "llama4", "mistral3", "qwen2_audio"),
)
# A video's tokens have the id of an image's, and in some its frames are images to the tower too.
MARKED_AS_IMAGES, FRAMES_AS_IMAGES = ("glm4v", "glm4v_moe", "internvl"), ("internvl",)
TRACED_AUDIO = ("qwen2_audio", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen3_asr", "gemma4")
FRAMES_FIRST = ("gemma4",)  # their spectrograms have a row for each frame, and their masks are truth values
TYPES = {"image": 1, "video": 2, "audio": 3}  # Source: transformers 5.23, processing_utils.create_mm_token_type_ids


def media_inputs(model: Any, media: Media, *, batch: int, prompt_tokens: int, masked: bool = False) -> dict[str, Any]:
    """The inputs of `batch` equal sequences, each with all of the media in order, text between them and after; `masked`, with
    their attention mask, where processors have it.
    """
    import torch

    config, items = model.config, media.items
    if media.clips and config.model_type not in TRACED_AUDIO:
        raise UnsupportedError("media_audio_untraced", model_type=config.model_type)
    if items and config.model_type not in TRACED:
        raise UnsupportedError("media_untraced", model_type=config.model_type)
    if config.model_type not in WITH_VIDEOS and any(item.kind == "video" for item in items):
        raise UnsupportedError("media_videos_untraced", model_type=config.model_type)
    accepted = inspect.signature(model.forward).parameters
    tokens = {kind: getattr(config, f"{kind}_token_id", None) for kind in TYPES}
    if config.model_type in MARKED_AS_IMAGES:
        tokens["video"] = tokens["image"]
    runs = [(item.kind, length) for item in items for length in item.runs]
    starts = {}
    if config.model_type in BOUNDED:
        marks = {"image": "vision", "video": "vision", "audio": "audio"}
        starts = {kind: getattr(config, f"{name}_start_token_id") for kind, name in marks.items()}
    row, types = _row([*runs, *(("audio", clip.tokens) for clip in media.clips)], tokens, starts, prompt_tokens)
    inputs = {"input_ids": torch.tensor([row] * batch)}
    if masked:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in accepted:
            inputs[name] = torch.tensor([types] * batch)
            break
    whole = config.model_type in FRAMES_AS_IMAGES
    for kind, suffix in (("image", ""), ("video", "_videos")):
        seen = [item for item in items if item.kind == kind or (whole and kind == "image")] * batch
        if seen and not (whole and suffix):
            inputs |= _pixels(model, seen, kind, f"pixel_values{suffix}", getattr(torch, media.pixel_dtype))
            if kind == "video" and "video_second_per_grid" in accepted:
                inputs["video_second_per_grid"] = torch.ones(len(seen))
    return inputs | _spectrograms(model, [*media.clips] * batch, getattr(torch, media.feature_dtype))


def stages_of(media: Media | None) -> list[str]:
    """The stages of a prompt: images and videos pass their tower first, audio in the forward that also fills the cache."""
    if media is None:
        return ["prefill"]
    return [*(["vision"] if media.items else []), "audio" if media.clips else "prefill"]


def tower_that_hears(model: Any) -> str:
    """The name of its module."""
    return str(next(name for name, _ in model.named_modules() if name.rpartition(".")[2] == "audio_tower"))


def refuse_a_trained_tower(model: Any) -> None:
    """Raises UnsupportedError for a tower, or what is behind it, that trains where that was not held against a real run."""
    if model.config.model_type in TRAINED:
        return
    decoder = model.get_decoder()
    inside = {id(parameter) for part in (decoder, model.get_output_embeddings()) for parameter in part.parameters()}
    trained = (
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in inside
    )
    if (name := next(trained, None)) is not None:
        raise UnsupportedError("trace_tower_trained", name=name, model_type=model.config.model_type)


def _pixels(model: Any, items: Sequence[Medium], kind: str, name: str, dtype: Any) -> dict[str, Any]:
    """The pixels of all sequences, and where they are."""
    import torch

    vision, accepted = model.config.vision_config, inspect.signature(model.forward).parameters
    slices = sum(item.shape.grid[0] for item in items)
    side, channels = _side(vision.patch_size), getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
    if f"{kind}_grid_thw" in accepted:
        patches = sum(item.shape.patches for item in items)
        width = channels * getattr(vision, "temporal_patch_size", 1) * side**2
        grids = torch.tensor([list(item.shape.grid) for item in items])
        return {name: torch.zeros(patches, width, dtype=dtype), f"{kind}_grid_thw": grids}
    if vision.model_type == "pixtral":
        sizes = [[item.shape.height, item.shape.width] for item in items]
        height, width = map(max, zip(*sizes, strict=True))
        return {
            name: torch.zeros(len(items), channels, height, width, dtype=dtype),
            f"{kind}_sizes": torch.tensor(sizes),
        }
    if f"{kind}_position_ids" in accepted:
        width = channels * side**2
        most = max(item.shape.pixels // item.shape.grid[0] for item in items) // width
        places = torch.tensor(
            [_places(*item.shape.grid[1:], most) for item in items for _ in range(item.shape.grid[0])]
        )
        counted = [item.shape.grid[0] for item in items]
        return {
            name: torch.zeros(slices, most, width, dtype=dtype),
            f"{kind}_position_ids": places,
            **({"num_frames_per_video": torch.tensor(counted)} if kind == "video" else {}),
        }
    height, width = (side * length for length in items[0].shape.grid[1:])
    return {name: torch.zeros(slices, channels, height, width, dtype=dtype)}


def _spectrograms(model: Any, clips: Sequence[Clip], dtype: Any) -> dict[str, Any]:
    """Of all sequences, each as long as the longest, and the masks that mark their frames."""
    import torch

    if not clips:
        return {}
    by_frames = model.config.model_type in FRAMES_FIRST
    bins, frames = clips[0].bins, clips[0].frames
    marked = [[1] * clip.valid + [0] * (frames - clip.valid) for clip in clips]
    mask = torch.tensor(marked, dtype=torch.bool if by_frames else torch.int32)
    accepted = inspect.signature(model.forward).parameters
    name = next(name for name in ("feature_attention_mask", "input_features_mask") if name in accepted)
    sides = (frames, bins) if by_frames else (bins, frames)
    return {"input_features": torch.zeros(len(clips), *sides, dtype=dtype), name: mask}


def _places(rows: int, columns: int, most: int) -> list[tuple[int, int]]:
    """The column and row of each patch, and -1 for padding to the most patches. Source: Gemma4ImageProcessor"""
    places = [(column, row) for row in range(rows) for column in range(columns)]
    return places + [(-1, -1)] * (most - len(places))


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _row(
    runs: Sequence[tuple[str, int]], tokens: dict[str, int | None], starts: dict[str, int], prompt_tokens: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Ids and types of a sequence's tokens. A token of text is between two runs of an image's, a video's or a clip's.

    starts: marks before each run, if there are any; then the token of text stands for the mark after it.
    """
    row: list[int] = []
    types: list[int] = []
    for kind, length in runs:
        token = tokens[kind]
        assert token is not None
        between = [0] if row else []
        between += [starts[kind]] if starts else []
        row += between + [token] * length
        types += [0] * len(between) + [TYPES[kind]] * length
    rest = [0] * (prompt_tokens - len(row))
    return row + rest, types + rest
