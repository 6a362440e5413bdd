"""Runs with images without torch: composed from a family's run in a few layers, whose sizes are formulas of the configuration's
dimensions and of the images' numbers.

A variant is a structure of decoder and tower, a kernel and the options of the class. Videos, several sequences of several images,
images too small for all that a larger one does, and a prompt without text behind the last image are not covered.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress

from ..errors import UnsupportedError
from ..results.media import Media
from ..results.memory import Run
from ..results.model import Report
from ..results.timeline import Stage, Timeline
from ..spec import each_module
from ..typed import Any, NamedTuple
from ..values import dataclass, replace
from .composition import composed_of
from .family_trace import Loaded, NotCovered, Variables, loaded_of
from .few_layers import around, tower_of
from .image_numbers import images_of, numbers_of, windows_of
from .kept_trace import KeptTrace, Point
from .outline import TOWERS, UNRELATED, Outline, options_of, structure_of
from .repeats import Program
from .scans import FLASH_HEAD_DIM
from .shallow_training import stack_of

FULL, ADDING = "fullatt_block_indexes", "deepstack_visual_indexes"
SIZES = ("num_heads", "spatial_merge_size", "patch_size", "temporal_patch_size", "window_size")  # that no tensor shows
# Of a tower's configuration, what changes nothing that a run takes, and what the tensors show.
SHOWN = UNRELATED | {
    *SIZES, FULL, ADDING, "depth", "embed_dim", "hidden_size", "in_channels", "mlp_ratio",
    "num_position_embeddings", "out_hidden_size", "tokens_per_second",
}  # fmt: skip


class Design(NamedTuple):
    """A model that sees. structure: of decoder and tower, as text. tower, decoder: what each of their layers does, and the name
    of the module that has them. window: rows and columns of merged tokens in a window of the tower, 0 if it has none.
    """

    structure: str
    dimensions: tuple[int, ...]
    tower: tuple[Hashable, ...]
    tower_stack: str
    decoder: tuple[Hashable, ...]
    decoder_stack: str
    window: int


def design_of(report: Report, outline: Outline, defaults: Mapping[str, Any]) -> Design:
    """defaults: of the tower's configuration, in the class. NotCovered for other towers than are known here."""
    vision = _vision_of(report.config or {}, defaults)
    sizes = tuple(vision.get(key) or 0 for key in SIZES)
    full, adding = (vision.get(key) or () for key in (FULL, ADDING))
    towers = [module for _, module in each_module(report.tree) if module.name in TOWERS]
    containers = [module for _, module in each_module(towers[0]) if module.name == "blocks"] if towers else []
    if len(set(outline.layers)) != 1 or len(towers) != 1 or len(containers) != 1:
        raise NotCovered
    dtype = report.spec.dtype
    ways = {structure_of(block, dtype) for block in containers[0].children}
    if len(ways) != 1 or not all(type(size) is int for size in (*sizes, *full, *adding)):
        raise NotCovered
    depth = sum(block.repeats for block in containers[0].children)
    stacks = tower_of(report.tree, depth), stack_of(report.tree, len(outline.layers))
    heads, merged, side, _, window = sizes
    if None in stacks or not (heads and merged and side):
        raise NotCovered
    around_blocks, block = structure_of(towers[0], dtype, without=containers[0]), ways.pop()
    width = block.dimensions[0]
    path = width // heads % 8 > 0, width // heads > FLASH_HEAD_DIM, width % heads > 0
    layer = outline.layers[0]
    return Design(
        structure=" ".join(
            (outline.outside.structure, layer.structure, around_blocks.structure, block.structure, repr(path))
        ),
        dimensions=(
            *outline.outside.dimensions,
            *layer.dimensions,
            *around_blocks.dimensions,
            *block.dimensions,
            *sizes,
        ),
        tower=tuple((layer in full, [*adding].index(layer) if layer in adding else None) for layer in range(depth)),
        tower_stack=str(stacks[0]),
        decoder=tuple(min(layer, len(adding) + 1) for layer in range(len(outline.layers))),
        decoder_stack=str(stacks[1]),
        window=window // (merged * side),
    )


def _vision_of(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    vision = config.get("vision_config")
    return {**defaults, **vision} if isinstance(vision, Mapping) else {**defaults}


def vision_options(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration sets otherwise than the tower's class, of what a design does not show."""
    vision = _vision_of(config, defaults)
    return {key: vision[key] for key, value in defaults.items() if key not in SHOWN and vision[key] != value}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageVariant:
    """tower, decoder: kinds of the few layers. least: rows and columns of a sample's smallest images, in merged tokens."""

    kernel: str
    options: Mapping[str, Any]
    structure: str
    tower: tuple[Hashable, ...]
    decoder: tuple[Hashable, ...]
    least: int
    variables: Variables
    programs: Mapping[str, Program]

    def at(self, design: Design, media: Media, point: Point, loaded: Loaded) -> KeptTrace:
        """The run of a design with this structure, all sizes in bytes; NotCovered for other workloads than were learnt from."""
        regime = regime_of(media, point)
        if regime not in self.programs or not is_covered(media, point, self.least):
            raise NotCovered
        numbers, items = workload_of(media, point, design.window)
        few = self.programs[regime].run(self.variables.values(design.dimensions), numbers, items)
        try:
            tower = composed_of(few, around(self.tower), around(design.tower), design.tower_stack)
            whole = composed_of(tower, around(self.decoder), around(design.decoder), design.decoder_stack)
        except UnsupportedError:
            raise NotCovered from None
        return _after_loading(whole, loaded)


def is_covered(media: Media, point: Point, least: int) -> bool:
    """least: rows and columns of merged tokens that each image must have."""
    grids = [item.shape.grid for item in media.items]
    return (
        1 in (point.batch, len(media.items))
        and media.pixel_dtype == "float32"
        and point.prompt_tokens > media.least_tokens
        and all(item.kind == "image" and item.shape.grid[0] == 1 for item in media.items)
        and all(min(rows, columns) >= 2 * least for _, rows, columns in grids)
    )


def regime_of(media: Media, point: Point) -> str:
    """Whether there is one image, several in a sequence, or one in each of several; and whether the cache grows before the last
    step, is as long as the prompt's, or has no step.
    """
    images = "several" if len(media.items) > 1 else "one" if point.batch == 1 else "batch"
    return f"{images}, {('no step', 'first step', 'grown')[min(point.total_tokens - point.prompt_tokens, 2)]}"


def workload_of(
    media: Media, point: Point, window: int
) -> tuple[dict[str, int], dict[str, Sequence[Mapping[str, int]]]]:
    """The numbers of a run, and those of each image and window."""
    numbers = numbers_of(media, point.batch, point.prompt_tokens, point.total_tokens)
    whole = replace(media, items=media.items * point.batch)
    items: dict[str, Sequence[Mapping[str, int]]] = {"images": images_of(whole, window)}
    if window:
        of_all, items["windows"] = windows_of(whole, window)
        numbers |= of_all
    return numbers, items


def _after_loading(trace: KeptTrace, loaded: Loaded) -> KeptTrace:
    before = len(loaded)
    order = (entry + before if entry >= 0 else entry - before for entry in trace.order)
    stages = (Stage(name=stage.name, first_event=stage.first_event + before) for stage in trace.stages)
    return replace(
        trace,
        stages=(Stage(name="load", first_event=0), *stages),
        allocations=(*loaded, *trace.allocations),
        order=(*range(before), *order),
        kept=tuple((number + before, use) for number, use in trace.kept),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTrace:
    """defaults, vision_defaults: of the options that a design does not show, each one's value in the class."""

    made_by: str
    defaults: Mapping[str, Any]
    vision_defaults: Mapping[str, Any]
    variants: tuple[ImageVariant, ...]

    def at(self, report: Report, outline: Outline, run: Run) -> Timeline | None:
        """The run on CUDA; None if it is not covered."""
        generates = run.mode == "generate" and run.cache == "dynamic" and not run.padded and run.autocast is None
        if run.media is None or not generates or run.device == "cpu":
            return None
        config = report.config or {}
        options = {**options_of(config, self.defaults), **vision_options(config, self.vision_defaults)}
        point = Point(run.batch, run.prompt_tokens, run.cached_tokens)
        with suppress(NotCovered):
            design = design_of(report, outline, self.vision_defaults)
            loaded = loaded_of(report.tree)
            for variant in self.variants:
                same = (variant.kernel, variant.structure, variant.options) == (
                    run.attention,
                    design.structure,
                    options,
                )
                if same:
                    with suppress(NotCovered):
                        return variant.at(design, run.media, point, loaded).at(point)
        return None
