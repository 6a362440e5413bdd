"""The encoder's part in the profile run: as many of the largest images as a step may hold, encoded and kept.

Source: vLLM 0.19.0, multimodal/encoder_budget.py, v1/worker/gpu_model_runner.py (profile_run), and each model's processing
class, whose sizes of the largest image are named below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ...typed import Any
from ...values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """kept_bytes: pixels and outputs, held until the sampler has run. peak_bytes: of the encoder itself."""

    kept_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The largest image of a model. tokens: in the decoder; values: numbers of its pixels; patches: in the tower."""

    tokens: int
    values: int
    patches: int


def encoder(
    config: Mapping[str, Any],
    hidden: int,
    tokens: int,
    context_tokens: int,
    sequences: int,
    element_bytes: int,
    *,
    expands: bool = False,
) -> Encoder | None:
    """Of a model that takes images; None for any other, or where the size of its largest image is not known here.

    expands: whether outputs are kept at the size of the budget, and beside them the last image's own, in all images' storage.
    """
    image = _image(config)
    if image is None:
        return None
    vision = config["vision_config"]
    budget = max(tokens, image.tokens)
    per_prompt = max(1, context_tokens // image.tokens)
    images = max(1, min(budget // image.tokens, sequences * per_prompt))
    outputs = images * image.tokens * hidden * (1 + _levels(vision))
    if expands and image.tokens < budget:
        outputs += images * budget * hidden * (1 + _levels(vision))
    kept = images * image.values + outputs
    peak = images * (image.values + image.patches * _block_columns(vision))
    return Encoder(kept_bytes=kept * element_bytes, peak_bytes=peak * element_bytes)


def deepstack_bytes(config: Mapping[str, Any], hidden: int, tokens: int, element_bytes: int) -> int:
    """Buffers for a step's features of Qwen3-VL's deeper mergers, made with the model. Source: models/qwen3_vl.py."""
    vision = config.get("vision_config")
    return (_levels(vision) if isinstance(vision, Mapping) else 0) * tokens * hidden * element_bytes


def _levels(vision: Mapping[str, Any]) -> int:
    """Mergers beside the last, whose outputs are as large."""
    indexes = vision.get("deepstack_visual_indexes")
    return len(indexes) if isinstance(indexes, list) else 0


def _block_columns(vision: Mapping[str, Any]) -> int:
    """Columns alive in a block's MLP: position embeddings, input, norm, the product (twice as wide if gated), the activation."""
    width = vision.get("embed_dim", vision.get("hidden_size"))
    inner = vision.get("intermediate_size")
    if type(width) is not int or width < 1 or type(inner) not in (int, type(None)):
        return 0
    gated = 1 if vision.get("model_type") in ("qwen2_5_vl", "pixtral") else 0
    return 3 * width + (2 + gated) * (inner or 4 * width)


def unsized(config: Mapping[str, Any]) -> bool:
    """Whether a model takes images whose largest size is not known here."""
    return isinstance(config.get("vision_config"), Mapping) and _image(config) is None


def _image(config: Mapping[str, Any]) -> Image | None:
    kind, vision = config.get("model_type"), config.get("vision_config")
    read = IMAGES.get(kind) if isinstance(kind, str) else None
    if read is None or not isinstance(vision, Mapping):
        return None
    try:
        image = read(config, vision)
        return image if min(image.tokens, image.values, image.patches) > 0 else None
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None


def _gemma3(config: Mapping[str, Any], vision: Mapping[str, Any]) -> Image:
    """One square of the tower's size, pooled; pan and scan is off. Source: models/gemma3_mm.py."""
    side = vision["image_size"]
    return Image(
        tokens=int(config.get("mm_tokens_per_image", 256)),
        values=3 * side**2,
        patches=(side // vision["patch_size"]) ** 2,
    )


def _pixtral(config: Mapping[str, Any], vision: Mapping[str, Any]) -> Image:
    """A square of the tower's size; a break after each row of tokens. Source: models/mistral3.py, models/pixtral.py."""
    side = vision["image_size"]
    patches = side // vision["patch_size"]
    rows = patches // int(config.get("spatial_merge_size", 1))
    return Image(tokens=rows * (rows + 1), values=3 * side**2, patches=patches**2)


def _llama4(config: Mapping[str, Any], vision: Mapping[str, Any]) -> Image:
    """16 tiles and the whole image; separators between tiles are tokens too. Source: models/mllama4.py."""
    side, tiles = vision["image_size"], 17
    patches = (side // vision["patch_size"]) ** 2
    return Image(
        tokens=tiles * int(patches * float(vision["pixel_shuffle_ratio"]) ** 2),
        values=tiles * 3 * side**2,
        patches=tiles * patches,
    )


def _qwen(config: Mapping[str, Any], vision: Mapping[str, Any]) -> Image:
    """16,384 tokens: max_pixels of the image processor. Source: models/qwen2_vl.py, qwen2_5_vl.py, qwen3_vl.py; the releases'
    preprocessor_config.json."""
    merged = int(vision["spatial_merge_size"]) ** 2
    tokens = 16_384
    channels = int(vision.get("in_channels", vision.get("in_chans", 3)))
    patch = channels * int(vision.get("temporal_patch_size", 2)) * int(vision["patch_size"]) ** 2
    return Image(tokens=tokens, values=tokens * merged * patch, patches=tokens * merged)


def _types() -> Iterator[tuple[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Image]]]:
    yield "gemma3", _gemma3
    yield "mistral3", _pixtral
    yield "llama4", _llama4
    for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"):
        yield kind, _qwen


IMAGES = dict(_types())
