"""Images, videos and audio -> their sizes, grids and tokens, by the rules of the model's processors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from ..architectures.reading import number, optional_integer
from ..architectures.thinkers import thinker_config
from ..errors import UsageError
from ..results.media import Media, MediaKind, Medium, Request, Rules, Shape, Typed
from ..typed import Any
from ..values import replace
from . import resizing, sampling
from .processors import (
    GEMMA3,
    GEMMA4,
    GEMMA4_VIDEO,
    GLM,
    GLM46,
    GLM46_VIDEO,
    GLM_VIDEO,
    GOT_OCR,
    INTERNVL_VIDEO,
    LLAMA4,
    PIXTRAL,
    QWEN2,
    QWEN2_VIDEO,
    QWEN3_VIDEO,
    Processor,
    processor_of,
)

CHANNELS = 3  # of every released tower
MOST_FRAMES = 1_000_000  # of a video, of which the rules loop over each
# Source: transformers 5.23, get_rope_index of modeling_qwen2_5_omni.py and modeling_qwen3_omni_moe.py
BOUNDED = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
Numbers = Mapping[str, Any]


def media_of(config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], request: Request) -> Media:
    """The request's images, videos and audio for the model of `config`. files: its processors' files, by name.

    Llama 4's processor makes pixels in bfloat16. Source: Llama4ImageProcessor.rescale_and_normalize
    """
    config = thinker_config(config)
    tower = _tower(config)
    kinds = {typed.kind for typed in request.typed}
    processors = {kind: _with_limits(processor_of(kind, config, files, tower), kind, request) for kind in sorted(kinds)}
    rules = {kind: Rules(processor=processor.name, file=processor.file) for kind, processor in processors.items()}
    items = tuple(_medium(typed, processors[typed.kind]) for typed in request.typed)
    images = processors.get("image")
    dtype = "bfloat16" if images is not None and images.name == LLAMA4 else "float32"
    media = Media(items=items, images=rules.get("image"), videos=rules.get("video"), pixel_dtype=dtype)
    media = replace(media, bounded=str(config.get("model_type")) in BOUNDED)
    if not request.audio:
        return media
    from .hearing import clips_of, feature_dtype

    extractor, clips = clips_of(config, files, request.audio)
    used = Rules(processor=extractor.name, file=extractor.file)
    return replace(media, clips=clips, audio=used, feature_dtype=feature_dtype(config))


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the model itself fixes, by the names of the processors' numbers."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return {}
    named = {
        "patch_size": _side(vision, "patch_size"),
        "temporal_patch_size": optional_integer(vision, "temporal_patch_size", at_least=1),
        "merge_size": optional_integer(
            vision if "spatial_merge_size" in vision else config, "spatial_merge_size", at_least=1
        ),
        "pooling_kernel_size": optional_integer(vision, "pooling_kernel_size", at_least=1),
        "side": _side(vision, "image_size"),
        "longest": _side(vision, "image_size"),
        "tokens": optional_integer(
            config, "mm_tokens_per_image" if "mm_tokens_per_image" in config else "image_seq_length", at_least=1
        ),
        "shuffle": vision.get("pixel_shuffle_ratio") and number(vision, "pixel_shuffle_ratio", default=0.5),
    }
    return {key: value for key, value in named.items() if value}


def _side(vision: Mapping[str, Any], key: str) -> int | None:
    """A size that is written as a number or as two equal ones."""
    value = vision.get(key)
    first = value[0] if isinstance(value, list | tuple) and value else value
    return optional_integer({key: first}, key, at_least=1)


def _with_limits(processor: Processor, kind: MediaKind, request: Request) -> Processor:
    """The processor with the request's limits in place of its own. UsageError for one that its rules do not know."""
    numbers = dict(processor.numbers)
    by_pixels = "least" in numbers and "most" in numbers and processor.name not in (PIXTRAL, GEMMA3, LLAMA4, GOT_OCR)
    whole = processor.name in (QWEN3_VIDEO, GLM_VIDEO, GLM46_VIDEO)  # limits are for all frames of a video
    if kind == "image" or not whole:
        for name, key in (("min_pixels", "least"), ("max_pixels", "most")):
            if (value := getattr(request, name)) is not None:
                if not by_pixels:
                    raise UsageError("media_no_pixels", option=f"--{name.replace('_', '-')}", processor=processor.name)
                numbers[key] = value
    if kind == "video" and request.total_pixels is not None:
        if not by_pixels:
            raise UsageError("media_no_pixels", option="--total-pixels", processor=processor.name)
        numbers["most" if whole else "total"] = request.total_pixels
    if kind == "video" and request.fps is not None:
        numbers |= {"fps": request.fps, "do_sample_frames": True, "num_frames": None}
    if by_pixels and numbers["least"] > numbers["most"]:
        raise UsageError("media_limits", least=numbers["least"], most=numbers["most"])
    return replace(processor, numbers=numbers)


def _medium(typed: Typed, processor: Processor) -> Medium:
    numbers = processor.numbers
    if typed.kind == "image":
        return _checked(Medium(typed=typed, shape=IMAGES[processor.name](typed.height, typed.width, numbers)))
    frames = _sampled(typed, processor.name, numbers)
    return _checked(Medium(typed=typed, shape=VIDEOS[processor.name](frames, typed, numbers), frames=frames))


def _checked(medium: Medium) -> Medium:
    if medium.shape.patches < 1 or medium.shape.tokens < 1:
        raise UsageError("media_too_small", width=medium.typed.width, height=medium.typed.height)
    return medium


def _grid(height: int, width: int, numbers: Numbers, slices: int = 1) -> Shape:
    """The shape of towers that join squares of patches into tokens."""
    patch, merge = numbers["patch_size"], numbers["merge_size"]
    grid = slices, height // patch, width // patch
    patches = math.prod(grid)
    pixels = patches * CHANNELS * numbers.get("temporal_patch_size", 1) * patch**2
    return Shape(height=height, width=width, grid=grid, tokens=patches // merge**2, pixels=pixels)


# --- images


def _qwen2(height: int, width: int, numbers: Numbers) -> Shape:
    factor = numbers["patch_size"] * numbers["merge_size"]
    size = resizing.smart_resize(height, width, factor=factor, least=numbers["least"], most=numbers["most"])
    return _grid(*size, numbers)


def _glm(height: int, width: int, numbers: Numbers) -> Shape:
    return _grid(*_frame_size(numbers["temporal_patch_size"], height, width, numbers, numbers["most"]), numbers)


def _frame_size(frames: int, height: int, width: int, numbers: Numbers, most: int) -> tuple[int, int]:
    return resizing.smart_resize_frames(
        frames,
        height,
        width,
        factor=numbers["patch_size"] * numbers["merge_size"],
        temporal=numbers["temporal_patch_size"],
        least=numbers["least"],
        most=most,
    )


def _gemma3(height: int, width: int, numbers: Numbers) -> Shape:
    """As many tokens of any image, between a mark and a blank line on both sides.

    It is not cropped, whatever its file says, because the model's processor asks for none of it at each call.
    Source: processing_gemma3.Gemma3Processor (images_kwargs, full_image_sequence)
    """
    side = numbers["side"]
    rows = side // numbers["patch_size"]
    pixels = CHANNELS * side**2
    return Shape(height=side, width=side, grid=(1, rows, rows), tokens=numbers["tokens"], marks=4, pixels=pixels)


def _gemma4(height: int, width: int, numbers: Numbers) -> Shape:
    return replace(_pooled(height, width, numbers), marks=2)  # Source: Gemma4Processor.replace_image_token


def _pooled(height: int, width: int, numbers: Numbers, frames: int = 1) -> Shape:
    patch, pooling, most = numbers["patch_size"], numbers["pooling_kernel_size"], numbers["max_soft_tokens"]
    rows, columns = resizing.within_patches(height, width, patch=patch, pooling=pooling, most_tokens=most)
    grid = frames, rows // patch, columns // patch
    tokens, padded = frames * (grid[1] * grid[2] // pooling**2), most * pooling**2
    pixels = frames * padded * CHANNELS * patch**2
    return Shape(height=rows, width=columns, grid=grid, tokens=tokens, pixels=pixels)


def _llama4(height: int, width: int, numbers: Numbers) -> Shape:
    """Tiles, and if there are several, the whole image as one more. Source: Llama4Processor._prompt_split_image"""
    side = numbers["side"]
    rows, columns = resizing.canvas(
        height, width, side=side, most_tiles=numbers["max_patches"], largest=numbers["resize_to_max_canvas"]
    )
    several = rows * columns > 1
    across = side // numbers["patch_size"]
    each = across**2 // round(1 / numbers["shuffle"] ** 2)
    slices = rows * columns + several
    # Begin, <|image|> and end; after each tile of several a separator.
    marks = 3 + (rows * columns if several else 0)
    grid = slices, across, across
    pixels = slices * CHANNELS * side**2
    return Shape(height=rows * side, width=columns * side, grid=grid, tokens=slices * each, marks=marks, pixels=pixels)


def _pixtral(height: int, width: int, numbers: Numbers) -> Shape:
    """A mark ends each row. Source: PixtralProcessor.replace_image_token"""
    patch, merge = numbers["patch_size"], numbers["merge_size"]
    rows, columns = resizing.within_edge(height, width, longest=numbers["longest"], patch=patch * merge)
    shape = _grid(rows, columns, {"patch_size": patch, "merge_size": merge})
    return replace(shape, marks=rows // (patch * merge))


def _internvl(height: int, width: int, numbers: Numbers) -> Shape:
    """Tiles, and if there are several, the whole image as one more, between two marks.

    The model's processor asks for tiles whatever the image processor's file says. Source: processing_internvl.InternVLProcessor
    """
    side = numbers["side"]
    rows, columns = resizing.tiles(
        height, width, tile=(side, side), least=numbers["min_patches"], most=numbers["max_patches"]
    )
    shape = _tiles(rows * columns + (rows * columns > 1), numbers)
    return replace(shape, height=rows * side, width=columns * side, marks=2)


def _tiles(number: int, numbers: Numbers) -> Shape:
    side = numbers["side"]
    across = side // numbers["patch_size"]
    grid, pixels = (number, across, across), number * CHANNELS * side**2
    return Shape(height=side, width=side, grid=grid, tokens=number * numbers["tokens"], pixels=pixels)


IMAGES: Mapping[str, Callable[[int, int, Numbers], Shape]] = {
    QWEN2: _qwen2,
    GLM: _glm,
    GLM46: _glm,
    GEMMA3: _gemma3,
    GEMMA4: _gemma4,
    LLAMA4: _llama4,
    PIXTRAL: _pixtral,
    GOT_OCR: _internvl,
}


# --- videos


def _sampled(typed: Typed, processor: str, numbers: Numbers) -> int:
    """The frames that the processor takes of the video."""
    assert typed.seconds is not None
    rate = numbers.get("fps") or 2
    own = typed.fps or Fraction(rate)
    total = round(typed.seconds * own)
    if not 1 <= total <= MOST_FRAMES:
        raise UsageError("media_frames", found=total, most=MOST_FRAMES)
    if not numbers["do_sample_frames"]:
        return total
    temporal, fps, number = numbers.get("temporal_patch_size", 1), float(rate), numbers.get("num_frames")
    if number is not None and numbers.get("fps") is not None and processor != INTERNVL_VIDEO:
        raise UsageError("media_two_rates", processor=processor, number=number)
    match processor:
        case "Qwen2VLVideoProcessor":
            least, most = numbers["min_frames"], numbers["max_frames"]
            if number is not None:
                return sampling.fixed_of_qwen2(total, number, temporal=temporal)
            if numbers.get("fps") is None:
                return total
            return sampling.of_qwen2(total, float(own), fps, temporal=temporal, least=least, most=most)
        case "Qwen3VLVideoProcessor":
            if number is not None:
                return int(number)
            return sampling.of_qwen3(total, float(own), fps, least=numbers["min_frames"], most=numbers["max_frames"])
        case "Glm4vVideoProcessor":
            return sampling.of_glm(total, float(own), fps, typed.seconds, longest=numbers["max_duration"])
        case "Glm46VVideoProcessor":
            return sampling.of_glm46(total, float(own), typed.seconds, temporal=temporal)
    if number is not None:
        if number > total:
            raise UsageError("media_few_frames", frames=total, least=number)
        return int(number)
    if numbers.get("fps") is None and processor != INTERNVL_VIDEO:
        return total
    # Source: InternVLVideoProcessor.sample_frames, video_utils.default_sample_indices_fn
    wanted = 0 if numbers.get("fps") is None else int(total / float(own) * fps)
    wanted = wanted if processor == INTERNVL_VIDEO else max(1, wanted)
    if not 1 <= wanted <= total:
        raise UsageError("media_sampled", wanted=wanted, frames=total)
    return wanted


def _qwen2_video(frames: int, typed: Typed, numbers: Numbers) -> Shape:
    """Source: Qwen2VLVideoProcessor.resize"""
    factor, temporal = numbers["patch_size"] * numbers["merge_size"], numbers["temporal_patch_size"]
    most, total = numbers["most"], numbers.get("total")
    if total is None and numbers["cap_pixels_per_frame"]:
        total = int(numbers["max_video_tokens"] * factor * factor * 0.9)
    if total is not None:
        most = max(min(most, total * temporal // frames), int(numbers["least"] * 1.05))
    size = resizing.smart_resize(typed.height, typed.width, factor=factor, least=numbers["least"], most=most)
    return _grid(*size, numbers, slices=-(-frames // temporal))


def _qwen3_video(frames: int, typed: Typed, numbers: Numbers) -> Shape:
    """A time and two marks before each pair of frames. Source: Qwen3VLVideoProcessor.resize"""
    most = numbers["most"]
    if numbers["cap_pixels_per_frame"]:
        cap = numbers["max_video_tokens"] * (numbers["patch_size"] * numbers["merge_size"]) ** 2
        most = frames * max(min(cap, most // frames), int(numbers["least"] * 1.05))
    return _budgeted(frames, typed, numbers, most)


def _glm_video(frames: int, typed: Typed, numbers: Numbers) -> Shape:
    return _budgeted(frames, typed, numbers, numbers["most"])


def _budgeted(frames: int, typed: Typed, numbers: Numbers, most: int) -> Shape:
    size = _frame_size(frames, typed.height, typed.width, numbers, most)
    shape = _grid(*size, numbers, slices=-(-frames // numbers["temporal_patch_size"]))
    return replace(shape, marks=None)


def _gemma4_video(frames: int, typed: Typed, numbers: Numbers) -> Shape:
    return replace(_pooled(typed.height, typed.width, numbers, frames), marks=None)


def _internvl_video(frames: int, typed: Typed, numbers: Numbers) -> Shape:
    return replace(_tiles(frames, numbers), marks=None)


VIDEOS: Mapping[str, Callable[[int, Typed, Numbers], Shape]] = {
    QWEN2_VIDEO: _qwen2_video,
    QWEN3_VIDEO: _qwen3_video,
    GLM_VIDEO: _glm_video,
    GLM46_VIDEO: _glm_video,
    GEMMA4_VIDEO: _gemma4_video,
    INTERNVL_VIDEO: _internvl_video,
}
