"""Towers that see, by family: which of their numbers no tensor shows, and which attention of a prompt with images has a mask."""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint import DType
from ...media.counting import media_of
from ...results.media import Media, Request
from ...tracing.towers import ADDING, DEPTHS, FULL
from ...typed import Any, NamedTuple
from ..traces.outline import UNRELATED


class Tower(NamedTuple):
    """sizes: keys of numbers that no tensor shows, first the tower's heads; 0 where a class has none. beside: keys of the whole
    configuration that the tower's code reads. masked: whose attention has a mask in every run with images, and so the length of
    its rows: those of the "prompt", or the "patches" of all images. sided: whether the model fixes its images' sides. tiled:
    whether an image is taken apart into tiles of these sides. stacked: whether images are stacked in a canvas as high and as wide
    as any of them, from which narrower ones are copied. padded: whether each image is padded to as many patches, of which so
    many on each side as the last of `sizes` says become a token. pixels: the dtype in which the processor makes them; if not
    float32, that of the model too, so that nothing is cast.
    """

    sizes: tuple[str, ...]
    beside: tuple[str, ...] = ()
    masked: str = ""
    sided: bool = False
    tiled: bool = False
    stacked: bool = False
    padded: bool = False
    pixels: str = "float32"

    @property
    def together(self) -> bool:
        """Whether all images pass the tower as one batch, so that nothing is done for each."""
        return self.sided or self.padded

    def takes(self, dtype: DType) -> bool:
        """Whether a model of this dtype does with its pixels what samples did."""
        return self.pixels in ("float32", str(dtype))

    def settings(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """What a configuration says of the tower. defaults: what its classes do."""
        vision = config.get("vision_config")
        beside = {key: config[key] for key in self.beside if key in config}
        return {**defaults, **beside, **(vision if isinstance(vision, Mapping) else {})}

    def options(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """What a configuration sets otherwise than the classes, of what a design does not show."""
        settings = self.settings(config, defaults)
        return {key: settings[key] for key, value in defaults.items() if key not in SHOWN and settings[key] != value}

    def sees(self, config: Mapping[str, Any], media: Media) -> bool:
        """Whether the images have the sides and tokens that the model's configuration fixes, whatever its processor says."""
        if not self.sided:
            return True
        own = media_of(config, {}, Request(typed=tuple(item.typed for item in media.items)))
        shapes = ([item.shape for item in seen.items] for seen in (media, own))
        return all(
            (shape.grid[1:], shape.tokens * fixed.grid[0]) == (fixed.grid[1:], fixed.tokens * shape.grid[0])
            for shape, fixed in zip(*shapes, strict=True)
        )


QWEN = Tower(("num_heads", "spatial_merge_size", "patch_size", "temporal_patch_size", "window_size"))
# Source: transformers 5.23, models/*/modeling_*.py
FAMILIES: Mapping[str, Tower] = {
    "gemma3": Tower(
        ("num_attention_heads", "patch_size", "image_size", "mm_tokens_per_image"),
        beside=("mm_tokens_per_image",),
        masked="prompt",  # create_masks_for_vision_model: an image's tokens attend to all of it
        sided=True,
    ),
    "gemma4": Tower(
        ("num_attention_heads", "patch_size", "pooling_kernel_size"),
        masked="prompt",  # create_masks_for_vision_model, in layers with a window
        padded=True,
    ),
    "internvl": Tower(
        ("num_attention_heads", "patch_size", "image_size"),
        beside=(
            *("downsample_ratio", "projector_hidden_act"),
            *("vision_feature_layer", "vision_feature_select_strategy"),
        ),
        sided=True,
        tiled=True,
    ),
    "llama4": Tower(
        ("num_attention_heads", "patch_size", "image_size"),
        sided=True,
        tiled=True,
        pixels="bfloat16",  # Llama4ImageProcessor.rescale_and_normalize
    ),
    "mistral3": Tower(
        ("num_attention_heads", "patch_size", "image_size", "head_dim", "spatial_merge_size"),
        beside=("spatial_merge_size", "vision_feature_layer", "projector_hidden_act"),
        masked="patches",  # modeling_pixtral.generate_block_attention_mask: an image's patches attend to each other
        stacked=True,
    ),
}


def size_in(vision: Mapping[str, Any], key: str) -> Any:
    """A number of a tower, or two equal ones, as a number; 0 if there is none."""
    size = vision.get(key) or 0
    return size[0] if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1] else size


ABSENT = frozenset({"temporal_patch_size", "window_size"})  # sizes that not all towers have
# Of a tower's configuration, what changes nothing that a run takes, and what the tensors show.
SHOWN = (
    UNRELATED
    | {FULL, ADDING, *DEPTHS, *QWEN.sizes, *(size for tower in FAMILIES.values() for size in tower.sizes)}
    | {
        "default_output_length", "embed_dim", "global_head_dim", "hidden_size", "in_channels", "mlp_ratio", "num_channels",
        "num_key_value_heads", "num_position_embeddings", "out_hidden_size", "position_embedding_size", "projector_input_dim",
        "projector_output_dim", "tokens_per_second", "vision_output_dim",
    }
)  # fmt: skip


def tower_in(config: Mapping[str, Any]) -> Tower:
    """That of the model's family; Qwen's names where no others are known."""
    return FAMILIES.get(str(config.get("model_type")), QWEN)
