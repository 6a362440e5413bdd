"""Random configurations of models that see, in a few layers of tower and decoder, and random images for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from random import Random
from typing import Any

from benchmarks.keep_traces import first_layers
from benchmarks.sampling import sampled
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.media.counting import media_of
from qwen_inspect.predicting.families.image_towers import tower_in
from qwen_inspect.predicting.traces.class_rules import decoder_of
from qwen_inspect.results.media import Media, Medium, Request, Shape, Typed
from qwen_inspect.tracing.kernels import BIAS_ALIGNMENT
from qwen_inspect.tracing.towers import ADDING, FULL

IMAGES = ("one", "several", "batch")  # kinds of workloads
VIDEOS = ("batch of several", "one video", "several videos")
# What families are learnt with too.
MORE = {
    "glm4v": VIDEOS,
    "glm4v_moe": VIDEOS,
    "qwen2_5_vl": (*VIDEOS, "one and one video", "several and one video"),
    "qwen2_vl": (*VIDEOS, "one and one video", "several and one video"),
    "qwen3_5": (*VIDEOS, "one and one video"),
    "qwen3_5_moe": (*VIDEOS, "one and one video"),
    "qwen3_vl": (*VIDEOS, "one and one video", "several and one video"),
    "qwen3_vl_moe": (*VIDEOS, "one and one video"),
}
# Whose videos' frames have runs of tokens, between timestamps.
STAMPED = ("glm4v", "glm4v_moe", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe")
WINDOW = 4  # rows and columns of merged tokens in a window
LEAST = 2  # rows and columns of an image; a whole window of a tower that has them: of fewer, views need no copy


def kinds_of(model_type: str) -> tuple[str, ...]:
    """Of images and sequences that make regimes of their own."""
    tower = tower_in({"model_type": model_type})
    if tower.together and not tower.tiled:
        return ("one", "several")
    return IMAGES + MORE.get(model_type, ())


def seeing(base: Mapping[str, Any], kinds: Sequence[Any], layers: int, random: Random) -> dict[str, Any]:
    """A random configuration like `base`. kinds: of its tower's layers, as in a `Design`. layers: of its decoder."""
    config = first_layers(sampled(base, random), layers)
    config.setdefault("architectures", [CLASSES[config["model_type"]][0]])
    text, vision = decoder_of(config), config["vision_config"]
    assert isinstance(text, dict)
    text["num_hidden_layers"] = layers
    TOWERS.get(config["model_type"], _qwen)(config, vision, kinds, random)
    return config


def _qwen(config: Mapping[str, Any], vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    text = decoder_of(config)
    assert isinstance(text, dict)
    for key in ("layer_types", "mlp_only_layers"):
        text.pop(key, None)
    heads = random.randint(2, 7)
    width = heads * 8 * random.randint(2, 9)
    vision["depth"], vision["num_heads"] = len(kinds), heads
    if "embed_dim" in vision:  # Qwen2-VL: the hidden size is the decoder's
        vision["embed_dim"], vision["mlp_ratio"], vision["hidden_size"] = (
            width,
            random.randint(2, 5),
            text["hidden_size"],
        )
    else:
        vision["hidden_size"], vision["out_hidden_size"] = width, text["hidden_size"]
        vision["intermediate_size"] = random.randint(11, 97) * 4
    if "num_position_embeddings" in vision:
        vision["num_position_embeddings"] = random.randint(5, 30) ** 2
    if any(full for full, _ in kinds) or FULL in vision:
        vision[FULL] = [layer for layer, (full, _) in enumerate(kinds) if full]
    if ADDING in vision:
        vision[ADDING] = [layer for layer, (_, adding) in enumerate(kinds) if adding is not None]


def _glm(config: dict[str, Any], vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    """A table of positions for a square image of so many patches, which is interpolated."""
    _qwen(config, vision, kinds, random)
    vision["image_size"] = vision["patch_size"] * random.randint(5, 30) + random.randint(0, vision["patch_size"] - 1)


def _vit(vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    """Sizes that most towers have by these names."""
    heads = random.randint(2, 7)
    vision |= {
        "num_hidden_layers": len(kinds),
        "num_attention_heads": heads,
        "hidden_size": heads * 8 * random.randint(2, 9),
        "intermediate_size": random.randint(11, 97) * 4,
        "patch_size": random.randint(3, 9),
    }


def _gemma3(config: dict[str, Any], vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    """An image's patches are averaged to a square of tokens."""
    _vit(vision, kinds, random)
    side, pooled = random.randint(2, 4), random.randint(2, 4)
    vision["image_size"], config["mm_tokens_per_image"] = vision["patch_size"] * side * pooled, side**2
    _whole_windows(config)


def _mistral3(config: dict[str, Any], vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    _vit(vision, kinds, random)
    vision["head_dim"] = vision["hidden_size"] // vision["num_attention_heads"]
    vision["image_size"] = random.randint(600, 1600)


def _gemma4(config: dict[str, Any], vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    """Images with padding, whose squares of patches are averaged to tokens."""
    _vit(vision, kinds, random)
    vision["num_key_value_heads"] = vision["num_attention_heads"]
    vision["head_dim"] = vision["global_head_dim"] = vision["hidden_size"] // vision["num_attention_heads"]
    vision["pooling_kernel_size"] = random.randint(2, 4)
    vision["position_embedding_size"] = random.randint(200, 400)
    text = decoder_of(config)
    assert isinstance(text, dict)
    text["sliding_window"] = 8 * random.randint(12, 40)  # about as long as prompts with some images


def _llama4(config: dict[str, Any], vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    """Tiles of so many patches that half as many on each side are tokens."""
    _vit(vision, kinds, random)
    vision["image_size"] = vision["patch_size"] * 2 * random.randint(2, 5)
    text = decoder_of(config)
    assert isinstance(text, dict)
    text["attention_chunk_size"] = 8 * random.randint(12, 75)  # about as long as prompts with some tiles
    vision["intermediate_size"] = 4 * vision["hidden_size"]
    width = 8 * random.randint(3, 19)
    vision |= dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), width)


def _internvl(config: dict[str, Any], vision: dict[str, Any], kinds: Sequence[Any], random: Random) -> None:
    """Tiles, of whose patches four are joined to a token."""
    _vit(vision, kinds, random)
    side = random.randint(2, 5)
    vision["image_size"], config["image_seq_length"] = vision["patch_size"] * 2 * side, side**2


def _whole_windows(config: dict[str, Any]) -> None:
    """A decoder's window as releases have it: rows of a mask that is as long need no padding."""
    text = decoder_of(config)
    assert isinstance(text, dict)
    text["sliding_window"] += -text["sliding_window"] % BIAS_ALIGNMENT


# By family, what makes its tower random; Qwen's where there is none.
TOWERS: Mapping[str, Callable[[dict[str, Any], dict[str, Any], Sequence[Any], Random], None]] = {
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "glm4v": _glm,
    "glm4v_moe": _glm,
    "internvl": _internvl,
    "llama4": _llama4,
    "mistral3": _mistral3,
}
FAMILIES = (
    *("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
    *("gemma3", "mistral3", "glm4v", "llama4", "gemma4", "glm4v_moe", "internvl"),
)


def image(rows: int, columns: int, vision: Mapping[str, Any], frames: int = 0, *, stamped: bool = False) -> Medium:
    """rows, columns: of merged tokens. frames: of a video, else 0. stamped: whether each has a run of tokens of its own."""
    side, channels = vision["patch_size"], vision.get("in_channels", 3)
    slices = frames or 1
    numbers = 4 * slices * rows * columns * channels * vision["temporal_patch_size"] * side**2
    shape = Shape(
        height=2 * side * rows,
        width=2 * side * columns,
        grid=(slices, 2 * rows, 2 * columns),
        tokens=slices * rows * columns,
        marks=None if frames and stamped else 0,
        pixels=numbers,
    )
    seconds = Fraction(frames) if frames else None
    typed = Typed(text="", width=shape.width, height=shape.height, seconds=seconds)
    return Medium(typed=typed, shape=shape, frames=2 * frames or None)


def images(
    windows: Sequence[Sequence[int]], config: Mapping[str, Any], vision: Mapping[str, Any], random: Random
) -> Media:
    """An image with so many rows and columns of windows each, the last of which may be partial, a video with frames as well; of a
    tower that stacks images of so many columns of tokens twice, and one, so that some are as wide as others.
    """
    least = WINDOW if vision.get("window_size") else LEAST

    def length(count: int) -> int:
        return random.randint(max(least, WINDOW * (count - 1) + 1), WINDOW * count)

    known = tower_in(config)
    if known.tiled:
        side = vision["image_size"]
        tiles = tuple(Typed(text="", width=side * columns, height=side * rows) for rows, columns in windows)
        return media_of(config, {}, Request(typed=tiles))
    if known.padded:
        most = 8 * random.randint(2, 5)
        files = {"preprocessor_config.json": {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": most}}
        while True:
            sides = [(random.randint(100, 200), random.randint(100, 200)) for _ in windows]
            typed = tuple(Typed(text="", width=width, height=height) for height, width in sides)
            media = media_of(config, files, Request(typed=typed))
            if all(item.shape.tokens < most for item in media.items):
                return media
    if known.sided:
        return media_of(config, {}, Request(typed=tuple(Typed(text="", width=64, height=48) for _ in windows)))
    if known.stacked:
        side = vision["patch_size"] * config.get("spatial_merge_size", 1)
        sides = [(side * length(rows), side * (2 * columns + 1)) for rows, columns in windows]
        typed = tuple(Typed(text="", width=width, height=height) for height, width in sides)
        return media_of(config, {}, Request(typed=typed))
    stamped = config["model_type"] in STAMPED
    sizes = ((length(rows), length(columns), *frames) for rows, columns, *frames in windows)
    items = (image(rows, columns, vision, *frames, stamped=stamped) for rows, columns, *frames in sizes)
    return Media(items=tuple(items), images=None, videos=None)
