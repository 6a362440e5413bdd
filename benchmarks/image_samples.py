"""Random configurations of models that see, in a few layers of tower and decoder, and random images for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from benchmarks.sampling import sampled
from qwen_inspect.architectures.families import CLASSES
from qwen_inspect.predicting.class_rules import decoder_of
from qwen_inspect.results.media import Media, Medium, Shape, Typed

FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe")
FULL, ADDING = "fullatt_block_indexes", "deepstack_visual_indexes"
WINDOW = 4  # rows and columns of merged tokens in a window
LEAST = 2  # rows and columns of an image; a whole window of a tower that has them: of fewer, views need no copy


def seeing(base: Mapping[str, Any], kinds: Sequence[Any], layers: int, random: Random) -> dict[str, Any]:
    """A random configuration like `base`. kinds: of its tower's layers, as in a `Design`. layers: of its decoder."""
    config = sampled(base, random)
    config.setdefault("architectures", [CLASSES[config["model_type"]][0]])
    text, vision = decoder_of(config), config["vision_config"]
    assert isinstance(text, dict)
    text["num_hidden_layers"] = layers
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
    return config


def image(rows: int, columns: int, vision: Mapping[str, Any]) -> Medium:
    """rows, columns: of merged tokens."""
    side, channels = vision["patch_size"], vision.get("in_channels", 3)
    numbers = 4 * rows * columns * channels * vision["temporal_patch_size"] * side**2
    shape = Shape(
        height=2 * side * rows,
        width=2 * side * columns,
        grid=(1, 2 * rows, 2 * columns),
        tokens=rows * columns,
        pixels=numbers,
    )
    return Medium(typed=Typed(text="", width=shape.width, height=shape.height), shape=shape)


def images(windows: Sequence[tuple[int, int]], vision: Mapping[str, Any], random: Random) -> Media:
    """An image with so many rows and columns of windows each, the last of which may be partial."""

    least = WINDOW if vision.get("window_size") else LEAST

    def length(count: int) -> int:
        return random.randint(max(least, WINDOW * (count - 1) + 1), WINDOW * count)

    sizes = ((length(rows), length(columns)) for rows, columns in windows)
    return Media(items=tuple(image(*size, vision) for size in sizes), images=None, videos=None)
