"""What a caller passes to a model that sees: a prompt with the places of images and videos, their pixels, and what places them.

Source: transformers 5.23, models/*/processing_*.py and image_processing_*.py for names and shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from ..errors import UnsupportedError
from ..results.media import Media, Medium
from ..typed import Any

# Held request by request against real models on CPU; of Qwen's also against a card.
WITH_VIDEOS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
TRACED = (*WITH_VIDEOS, "gemma3", "gemma4", "glm4v", "glm4v_moe", "internvl", "llama4", "mistral3")
TYPES = {"image": 1, "video": 2}  # Source: transformers 5.23, processing_utils.create_mm_token_type_ids


def media_inputs(model: Any, media: Media, *, batch: int, prompt_tokens: int) -> dict[str, Any]:
    """The inputs of `batch` equal sequences, each with all of the media in order, text between them and after."""
    import torch

    config, items = model.config, media.items
    if config.model_type not in TRACED:
        raise UnsupportedError("media_untraced", model_type=config.model_type)
    if config.model_type not in WITH_VIDEOS and any(item.kind == "video" for item in items):
        raise UnsupportedError("media_videos_untraced", model_type=config.model_type)
    accepted = inspect.signature(model.forward).parameters
    names = {"image": "image_token_id", "video": "video_token_id"}
    tokens = {kind: getattr(config, name, None) for kind, name in names.items()}
    row, types = _row(items, tokens, prompt_tokens)
    inputs = {"input_ids": torch.tensor([row] * batch)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in accepted:
            inputs[name] = torch.tensor([types] * batch)
            break
    for kind, suffix in (("image", ""), ("video", "_videos")):
        seen = [item for item in items if item.kind == kind] * batch
        if seen:
            inputs |= _pixels(model, seen, kind, f"pixel_values{suffix}", getattr(torch, media.pixel_dtype))
    return inputs


def refuse_a_trained_tower(model: Any) -> None:
    """The gradient of a scatter into the prompt, which CUDA's kernel takes at full size, is not traced."""
    decoder = model.get_decoder()
    inside = {id(parameter) for part in (decoder, model.get_output_embeddings()) for parameter in part.parameters()}
    trained = (
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in inside
    )
    if (name := next(trained, None)) is not None:
        raise UnsupportedError("trace_tower_trained", name=name)


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
        most = max(item.shape.pixels for item in items) // width
        places = torch.tensor([_places(*item.shape.grid[1:], most) for item in items])
        return {name: torch.zeros(len(items), most, width, dtype=dtype), f"{kind}_position_ids": places}
    height, width = (side * length for length in items[0].shape.grid[1:])
    return {name: torch.zeros(slices, channels, height, width, dtype=dtype)}


def _places(rows: int, columns: int, most: int) -> list[tuple[int, int]]:
    """The column and row of each patch, and -1 for padding to the most patches. Source: Gemma4ImageProcessor"""
    places = [(column, row) for row in range(rows) for column in range(columns)]
    return places + [(-1, -1)] * (most - len(places))


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _row(
    items: Sequence[Medium], tokens: dict[str, int | None], prompt_tokens: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Ids and types of a sequence's tokens. A token of text is between two runs of an image's or a video's."""
    row: list[int] = []
    types: list[int] = []
    for item in items:
        token = tokens[item.kind]
        assert token is not None
        for length in item.runs:
            between = [0] if row else []
            row += between + [token] * length
            types += between + [TYPES[item.kind]] * length
    rest = [0] * (prompt_tokens - len(row))
    return row + rest, types + rest
