"""Runs with images or videos without torch: composed from a family's run in a few layers, whose sizes are formulas of the
configuration's dimensions and of the images' numbers.

A variant is a structure of decoder and tower, a kernel and the options of the class. Images behind a video, several
videos beside an image, several sequences with a video, images too small for all that a larger one does, and a prompt without
text behind the last image are not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain

from ...errors import UnsupportedError
from ...results.attention import LayerAttention
from ...results.media import Media
from ...results.memory import Run
from ...results.model import Report
from ...results.timeline import Stage, Timeline
from ...spec import each_module
from ...tracing.kernels import BIAS_ALIGNMENT, WIDE_HEAD_DIM
from ...tracing.towers import ADDING, DEPTHS, FULL
from ...typed import Any, NamedTuple
from ...values import dataclass, replace
from ..allocation.workspaces import has_cudnn_attention
from ..traces.half_softmax import READING
from ..traces.kept_trace import KeptTrace, Point
from ..traces.outline import TOWERS, Outline, options_of, structure_of
from ..traces.outline import regime_of as sides_of
from ..traces.scans import FLASH_HEAD_DIM
from .composition import composed_of
from .family_trace import Loaded, NotCovered, Variables, halves_of, loaded_of
from .image_numbers import (
    beside,
    by_kind,
    chunks_of,
    frames_of,
    images_of,
    mask_rows,
    masks_of,
    numbers_of,
    padded_of,
    stacked_of,
    windows_of,
)
from .image_towers import ABSENT, Tower, size_in, tower_in
from .repeats import Program
from .stacks import around, stack_of, tower_of

# The first words of regimes.
BATCH_OF_SEVERAL = "batch of several"
VIDEOS = {"one": "one video", "several": "several videos"}
BESIDE = " and "  # between those of images and of videos, which pass the tower one after the other


class Design(NamedTuple):
    """A model that sees. structure: of decoder and tower, as text. tower, decoder: what each of their layers does, and the name
    of the module that has them. window: rows and columns of merged tokens in a window of the tower, 0 if it has none. thresholds:
    as in an `Outline`, but for linear attention's. kernel: tokens of linear attention's convolution, 0 if no layer has it. known:
    what is known of such towers.
    """

    structure: str
    dimensions: tuple[int, ...]
    tower: tuple[Hashable, ...]
    tower_stack: str
    decoder: tuple[Hashable, ...]
    decoder_stack: str
    window: int
    known: Tower
    thresholds: tuple[tuple[str, int], ...] = ()
    kernel: int = 0
    tower_head_dim: int = 0


def design_of(report: Report, outline: Outline, defaults: Mapping[str, Any]) -> Design:
    """defaults: of the tower's configuration, in the class. NotCovered for other towers than are known here."""
    known = tower_in(report.config or {})
    vision = known.settings(report.config or {}, defaults)
    sizes = tuple(size_in(vision, key) for key in known.sizes)
    full, adding = (vision.get(key) or () for key in (FULL, ADDING))
    if not all(isinstance(numbers, (list, tuple)) for numbers in (full, adding)):
        raise NotCovered
    depth: Any = next((vision[key] for key in DEPTHS if key in vision), None)
    layers = {layer.structure: layer for layer in reversed(outline.layers)}  # one of each kind
    kinds = [*dict.fromkeys(layer.structure for layer in outline.layers)]
    if len(set(outline.layers)) != len(kinds) or not all(type(size) is int for size in (*sizes, *full, *adding, depth)):
        raise NotCovered
    stacks = tower_of(report.tree, depth), stack_of(report.tree, len(outline.layers))
    modules = dict(each_module(report.tree))
    towers = [module for module in modules.values() if module.name in TOWERS]
    if None in stacks or not all(size for key, size in zip(known.sizes, sizes, strict=True) if key not in ABSENT):
        raise NotCovered
    container, dtype = modules[str(stacks[0])], report.spec.dtype
    ways = {structure_of(block, dtype) for block in container.children}
    if len(ways) != 1:
        raise NotCovered
    parts = [*(structure_of(tower, dtype, without=container) for tower in towers), ways.pop()]
    width, heads = parts[-1].dimensions[0], sizes[0]
    path: tuple[bool, ...] = width // heads % 8 > 0, width // heads > FLASH_HEAD_DIM, width % heads > 0
    if known.masked:
        path += tuple(width > WIDE_HEAD_DIM for width in (width // heads, *_head_dims(report)))
        path += tuple(tokens % BIAS_ALIGNMENT > 0 for _, tokens in outline.thresholds)
    side = vision.get("spatial_merge_size", 0) * size_in(vision, "patch_size")
    return Design(
        structure=" ".join((outline.outside.structure, *kinds, *(part.structure for part in parts), repr(path))),
        dimensions=(
            *outline.outside.dimensions,
            *chain.from_iterable(layers[kind].dimensions for kind in kinds),
            *chain.from_iterable(part.dimensions for part in parts),
            *sizes,
        ),
        tower=tuple((layer in full, [*adding].index(layer) if layer in adding else None) for layer in range(depth)),
        tower_stack=str(stacks[0]),
        decoder=_decoder_of([kinds.index(layer.structure) for layer in outline.layers], len(adding) + 1),
        decoder_stack=str(stacks[1]),
        window=(vision.get("window_size") or 0) // side if side else 0,
        known=known,
        thresholds=tuple((kind, tokens) for kind, tokens in outline.thresholds if kind != "chunks"),
        kernel=max((tokens for kind, tokens in outline.thresholds if kind == "chunks"), default=0),
        tower_head_dim=width // heads,
    )


def _decoder_of(kinds: Sequence[int], adding: int) -> tuple[Hashable, ...]:
    """What each of the decoder's layers does. adding: those that may do something with features of the tower."""
    places = [min(layer, adding) for layer in range(len(kinds))]
    return tuple(places) if len({*kinds}) == 1 else tuple(zip(kinds, places, strict=True))


def _head_dims(report: Report) -> Iterator[int]:
    """Of the decoder's layers, one after another as they differ."""
    widths = [layer.head_dim for layer in report.attention.by_config if isinstance(layer, LayerAttention)]
    yield from dict.fromkeys(widths)


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

    def at(self, design: Design, media: Media, point: Point, loaded: Loaded, *, cudnn: bool) -> KeptTrace:
        """The run of a design with this structure, all sizes in bytes; NotCovered for other workloads than were learnt from.

        cudnn: as in a `TraceRequest`.
        """
        few = self.in_few_layers(design, media, point, regime_of(media, point, design, cudnn=cudnn))
        return self.whole(few, design, loaded, surroundings=around)

    def in_few_layers(self, design: Design, media: Media, point: Point, regime: str) -> KeptTrace:
        """The run in the layers of samples, without what is loaded; NotCovered as above."""
        if regime not in self.programs or not is_covered(media, point, self.least, design.known):
            raise NotCovered
        if point.prompt_tokens < design.kernel:
            raise NotCovered
        numbers, items = workload_of(media, point, design)
        if design.known.padded and (numbers["place"] % BIAS_ALIGNMENT or numbers["fullest"] >= numbers["place"]):
            raise NotCovered  # the tower's mask has padded rows, or an image has no padding, and there may be no mask
        return self.programs[regime].run(self.variables.values(design.dimensions), numbers, items)

    def whole(
        self,
        few: KeptTrace,
        design: Design,
        loaded: Loaded,
        *,
        surroundings: Callable[[Sequence[Hashable]], Sequence[Hashable]],
    ) -> KeptTrace:
        """The run in all layers, of which those with equal surroundings are alike, behind what is loaded."""
        stacks = (
            (self.tower, design.tower, design.tower_stack),
            (self.decoder, design.decoder, design.decoder_stack),
        )
        try:
            for shallow, deep, stack in stacks:
                few = composed_of(few, surroundings(shallow), surroundings(deep), stack)
        except UnsupportedError:
            raise NotCovered from None
        return _after_loading(few, loaded)


def is_covered(media: Media, point: Point, least: int, known: Tower) -> bool:
    """least: rows and columns of merged tokens that each image must have."""
    grids = [item.shape.grid for item in media.items]
    kinds = [item.kind for item in media.items]
    return (
        kinds == sorted(kinds)  # images before videos
        and ("video" not in kinds or point.batch == 1)
        and media.pixel_dtype == known.pixels
        and point.prompt_tokens > media.least_tokens
        and all(item.kind == "video" or known.tiled or item.shape.grid[0] == 1 for item in media.items)
        and all(min(rows, columns) >= 2 * least for _, rows, columns in grids)
    )


def regime_of(media: Media, point: Point, design: Design, *, cudnn: bool) -> str:
    """Which images or videos there are; whether the cache grows before the last step, is as long as the prompt's, or has no step;
    on which sides of its thresholds the workload is; which kernel takes a mask, and whether it pads the mask's rows.
    """
    step = ("no step", "first step", "grown")[min(point.total_tokens - point.prompt_tokens, 2)]
    sides = sides_of(design.thresholds, point, singles=0)
    mask = mask_of(media, point, design.known.masked, cudnn=cudnn)
    return ", ".join(filter(None, [images_in(media, point, design.known), step, sides, mask]))


def images_in(media: Media, point: Point, known: Tower) -> str:
    """Whether there is one image or video, several in a sequence, or one or several in each of several; of a tower that takes
    all of them together, one or several in all; of one that takes tiles, one or several of them in a sequence, or several
    sequences. Images beside videos are both.
    """
    if len(parts := by_kind(media)) > 1:
        return BESIDE.join(images_in(part, point, known) for part in parts)
    several = len(media.items) > 1
    if known.tiled:
        several = several or media.items[0].shape.grid[0] > 1
        images = "batch" if point.batch > 1 else "several" if several else "one"
    elif known.together or point.batch == 1:
        images = "several" if point.batch > 1 or several else "one"
    else:
        images = BATCH_OF_SEVERAL if several else "batch"
    return VIDEOS.get(images, images) if any(item.kind == "video" for item in media.items) else images


def mask_of(media: Media, point: Point, masked: str, *, cudnn: bool) -> str:
    if not masked or cudnn:
        return "cudnn" if masked else ""
    rows = mask_rows(media, point.batch, point.prompt_tokens, masked)
    return "padded rows" if rows % BIAS_ALIGNMENT else "whole rows"


def workload_of(
    media: Media, point: Point, design: Design
) -> tuple[dict[str, int], dict[str, Sequence[Mapping[str, int]]]]:
    """The numbers of a run, and those of each image or video, frame and window, and of each chunk of linear attention."""
    window, known = design.window, design.known
    batched = point.batch > 1 or known.together
    numbers = numbers_of(media, point.batch, point.prompt_tokens, point.total_tokens, batched=batched)
    if known.masked:
        numbers |= masks_of(media, point.batch, point.prompt_tokens, known.masked)
    whole = replace(media, items=media.items * point.batch)
    items: dict[str, Sequence[Mapping[str, int]]] = {"images": images_of(whole, window)}
    if point.batch > 1 and len(media.items) > 1 and not known.together:
        items |= {"own": images_of(media, window), "sequences": [{} for _ in range(point.batch)]}
    if known.stacked:
        of_all, items["narrow"] = stacked_of(whole)
        numbers |= of_all
    if known.padded:
        _, patch, pooling = design.dimensions[-len(known.sizes) :]
        numbers |= padded_of(whole, patch, pooling)
    if len(parts := by_kind(media)) > 1:
        of_all, of_each = beside(*parts, side=window)
        numbers |= of_all
        items |= of_each
    else:
        if any(item.kind == "video" for item in media.items):
            of_all, items["frames"] = frames_of(whole)
            numbers |= of_all
        if window:
            of_all, items["windows"] = windows_of(whole, window)
            numbers |= of_all
    if design.kernel:
        of_all, items["chunks"] = chunks_of(point.batch, point.prompt_tokens, design.kernel)
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
        sums=tuple((number + before, *rest) for number, *rest in trace.sums),  # type: ignore[misc]
        owners=tuple((number + before, owner) for number, owner in trace.owners),
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
        config = report.config or {}
        if run.media is None or not generates or run.device == "cpu":
            return None
        tower = tower_in(config)
        if not tower.takes(report.spec.dtype) or not tower.sees(config, run.media):
            return None
        if (halves := halves_of(report, run.device)) and (run.attention != "sdpa" or halves in READING):
            return None
        options = {**options_of(config, self.defaults), **tower.options(config, self.vision_defaults)}
        point, cudnn = Point(run.batch, run.prompt_tokens, run.cached_tokens), has_cudnn_attention(run.gpu)
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
                        return variant.at(design, run.media, point, loaded, cudnn=cudnn).at(point)
        return None
