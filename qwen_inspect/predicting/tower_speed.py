"""What Qwen's towers multiply for the images and videos of a prompt, and the weights that they read for it.

Patches pass the blocks, and `spatial_merge_size` squared of them together pass a merger. Softmax attention is within an image or
a slice of a video, in some layers within a window of it.
Source: transformers 5.23, modeling_qwen2_vl.py, modeling_qwen2_5_vl.py, modeling_qwen3_vl.py (VisionAttention, PatchMerger)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..architectures.reading import integer, shown
from ..errors import MalformedError, UnsupportedError
from ..results.media import Media
from ..results.model import Report
from ..spec import Module, each_module
from ..typed import Any
from .families.image_numbers import windows_of

FAMILIES = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe",
)  # fmt: skip
TABLE = "pos_embed"  # whose rows are read
MERGERS = ("merger", "deepstack_merger_list")
FULL, WINDOW, MERGE = "fullatt_block_indexes", "window_size", "spatial_merge_size"
QKV = "qkv"  # the product of a block's queries, keys and values


def tower_work(report: Report, media: Media, batch: int) -> tuple[int, int]:
    """Operations of the tower for the media of all sequences, and its weights' bytes.

    UnsupportedError for other towers and for audio.
    """
    config = report.config or {}
    if config.get("model_type") not in FAMILIES or media.clips:
        raise UnsupportedError("speed_tower", model_type=str(config.get("model_type")))
    merged = integer(_vision(report), MERGE) ** 2
    patches = sum(item.shape.patches for item in media.items)
    products = sum(
        2 * elements * (patches // merged if merges else patches) for elements, merges in _matrices(report.tree)
    )
    return batch * (products + _attention_operations(report, media)), _tower_bytes(report.tree)


def _matrices(
    module: Module, *, inside: bool = False, merges: bool = False, repeats: int = 1
) -> Iterator[tuple[int, bool]]:
    """Elements of the tower's matrices, and whether merged patches pass them."""
    inside, repeats = inside or module.component == "vision", repeats * module.repeats
    if module.name == TABLE:
        return
    merges = merges or module.name in MERGERS
    if inside:
        elements = sum(tensor.elements for tensor in module.tensors if len(tensor.shape) > 1)
        yield repeats * elements, merges
    for child in module.children:
        yield from _matrices(child, inside=inside, merges=merges, repeats=repeats)


def _tower_bytes(module: Module) -> int:
    if module.component == "vision":
        return module.size_bytes
    return module.repeats * sum(map(_tower_bytes, module.children))


def _attention_operations(report: Report, media: Media) -> int:
    """Of one sequence's images: Q K^T and the product with V, of each pair of patches that see each other."""
    vision = _vision(report)
    width = next(module for _, module in each_module(report.tree) if module.name == QKV).tensors[0].shape[-1]
    depth = sum(_repeats(report.tree))
    grids = [item.shape.grid for item in media.items]
    whole = sum(slices * (rows * columns) ** 2 for slices, rows, columns in grids)
    if WINDOW not in vision:
        return 4 * width * depth * whole
    if integer(vision, MERGE) != 2:  # windows are counted for it
        raise UnsupportedError("speed_tower", model_type=str((report.config or {}).get("model_type")))
    merged = 2 * integer(vision, "patch_size")
    windows = windows_of(media, integer(vision, WINDOW, at_least=merged) // merged)[1]
    full = len(set(_numbers(vision, FULL)) & {*range(depth)})
    return 4 * width * (full * whole + (depth - full) * sum(window["patches"] ** 2 for window in windows))


def _numbers(vision: Mapping[str, Any], key: str) -> Sequence[int]:
    numbers = vision[key]
    if not isinstance(numbers, (list, tuple)) or not all(type(number) is int for number in numbers):
        raise MalformedError("config_not_list", key=key, found=shown(numbers))
    return numbers


def _repeats(module: Module, repeats: int = 1) -> Iterator[int]:
    """How many blocks each such product stands for."""
    repeats *= module.repeats
    if module.name == QKV:
        yield repeats
    for child in module.children:
        yield from _repeats(child, repeats)


def _vision(report: Report) -> Mapping[str, Any]:
    """The tower's configuration. Source of the defaults: transformers 5.23, configuration_qwen2_5_vl.py and its sisters"""
    config = report.config or {}
    defaults: dict[str, Any] = {"patch_size": 14, MERGE: 2}
    if config["model_type"] == "qwen2_5_vl":
        defaults |= {WINDOW: 112, FULL: (7, 15, 23, 31)}
    return {**defaults, **config["vision_config"]}
