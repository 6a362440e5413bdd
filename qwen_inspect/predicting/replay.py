"""A run through the caching allocator: what it takes, when, what was alive at its peak; and how weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..results.timeline import ADAPTER, Allocate, Event, Free, Timeline, living
from .allocator import MIB, Allocator, Block, OutOfMemory, Usage

WARM_UP = "caching_allocator_warmup"  # the operator of the loader's block, by the name of transformers' function


@dataclass(frozen=True, slots=True)
class Alive:
    """A request that is alive, and the block that it was handed."""

    request: Allocate
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUsage:
    """`peak`: each figure's own maximum in a stage, what it began with included, as after reset_peak_memory_stats."""

    name: str
    peak: Usage
    end: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a run takes of an allocator.

    peak: each figure's own maximum, as max_memory_allocated and max_memory_reserved report them. peak_event: the first event
    at which allocated is largest, at_peak and alive the state then. allocated, reserved, requested: bytes after each event, and
    course all three. end: the state after the last. out_of_memory_event: the request that found no room, where the run ended.
    """

    peak: Usage
    peak_event: int | None
    at_peak: Usage
    alive: tuple[Alive, ...]
    stages: tuple[StageUsage, ...]
    end: Usage
    allocated: tuple[int, ...]
    reserved: tuple[int, ...]
    requested: tuple[int, ...]
    out_of_memory_event: int | None

    @property
    def course(self) -> tuple[Usage, ...]:
        return tuple(map(Usage, self.allocated, self.reserved, self.requested))


def replay(timeline: Timeline, allocator: Allocator | None = None, *, with_course: bool = True) -> Replay:
    """Run a timeline through an allocator, which is left as the run leaves it; a fresh one with torch's defaults if None.

    with_course: also the state after each event, and by stages; otherwise these are empty.
    """
    allocator = allocator or Allocator()
    allocator.reset_peak()
    at_peak = allocator.usage
    figures: tuple[list[int], ...] = tuple([figure] for figure in at_peak)  # of Usage, each after each event
    allocated, reserved, requested = figures
    blocks: dict[int, Block] = {}
    block_bytes: dict[int, int] = {}
    most, peak_event, out_of_memory_event = -1, None, None
    for index, event in enumerate(timeline.events):
        if isinstance(event, Free):
            allocator.free(blocks.pop(event.id))
        else:
            try:
                block = blocks[event.id] = allocator.allocate(event.size_bytes)
            except OutOfMemory:
                out_of_memory_event = index
                break
            block_bytes[event.id] = block.size_bytes
            if allocator.allocated_bytes > most:
                most, peak_event, at_peak = allocator.allocated_bytes, index, allocator.usage
        if with_course:
            allocated.append(allocator.allocated_bytes)
            reserved.append(allocator.reserved_bytes)
            requested.append(allocator.requested_bytes)
    before_peak = timeline.events[: 0 if peak_event is None else peak_event + 1]
    return Replay(
        peak=allocator.peak,
        peak_event=peak_event,
        at_peak=at_peak,
        alive=tuple(Alive(request, block_bytes[request.id]) for request in living(before_peak)),
        stages=tuple(_stages(timeline, figures)) if with_course else (),
        end=_usage(figures, -1) if with_course else allocator.usage,
        allocated=tuple(allocated[1:]),
        reserved=tuple(reserved[1:]),
        requested=tuple(requested[1:]),
        out_of_memory_event=out_of_memory_event,
    )


def _usage(figures: Sequence[Sequence[int]], index: int) -> Usage:
    return Usage(*(figure[index] for figure in figures))


def _stages(timeline: Timeline, figures: Sequence[Sequence[int]]) -> Iterator[StageUsage]:
    """`figures` begin with the state before the first event. A stage that the run did not reach is left out."""
    bounds = [stage.first_event for stage in timeline.stages] + [len(timeline.events)]
    for stage, end in zip(timeline.stages, bounds[1:], strict=True):
        parts = [figure[stage.first_event : end + 1] for figure in figures]
        if parts[0]:
            yield StageUsage(name=stage.name, peak=Usage(*map(max, parts)), end=_usage(parts, -1))


# --- loading weights


def load_one_by_one(weights: Iterable[Allocate]) -> tuple[Event, ...]:
    """Each weight a request of its own: transformers before 4.50, and any version where `.to("cuda")` moves the model."""
    return tuple(weights)


def load_from_warm_up_block(
    weights: Sequence[Allocate], *, block_id: int, total_memory_bytes: int | None = None
) -> tuple[Event, ...]:
    """A block for all weights, taken as `block_id` and freed before they are: with `device_map`, transformers from 4.50 on.

    weights: the state dict's parameters and buffers, a tied one once. Buffers that are not stored follow after them. The loader
    takes them by name, as four threads come to them (core_model_loading.py), which changes no sum (recorded: file-0.6B).
    """
    size_bytes = warm_up_bytes(sum(weight.size_bytes for weight in weights), total_memory_bytes=total_memory_bytes)
    return (Allocate(block_id, size_bytes, "", WARM_UP), Free(block_id), *weights)


def load_and_cast(loaded: Sequence[Allocate], *, first_id: int, warm_up: bool) -> tuple[Event, ...]:
    """A base of 4 bits made ready to train: loaded in 16 bits where it is not quantised, and cast to 32 bits one by one; then
    LoRA's matrices likewise.

    loaded: as they are held in the end. warm_up: whether a block for all weights, but not their scales, is made and freed first.
    Sources: transformers 5.23, get_total_byte_count; PEFT 0.21, prepare_model_for_kbit_training and cast_adapter_dtype
    """
    weights = [event for event in loaded if event.operator == "parameter"]
    times = Counter(weight.module for weight in weights)
    packed = {
        weight.module: weight for weight in reversed(weights) if times[weight.module] > 1
    }  # each beside its scales
    stored = [
        weight if weight.module in packed else weight._replace(id=first_id + number, size_bytes=weight.size_bytes // 2)
        for number, weight in enumerate(loaded)
        if weight.operator == "parameter"
    ]
    adapters = [event for event in loaded if event.operator == ADAPTER]
    matrices = [
        event._replace(id=first_id + len(loaded) + number, size_bytes=event.size_bytes // 2)
        for number, event in enumerate(adapters)
    ]
    others = [event for event in loaded if event.operator not in ("parameter", ADAPTER)]

    def cast(before: Sequence[Allocate], after: Sequence[Allocate]) -> Iterator[Event]:
        for old, new in zip(before, after, strict=True):
            if old.id != new.id:
                yield from (new, Free(old.id))

    block_id = first_id + len(loaded) + len(adapters)
    counted = sum(one.size_bytes for one in stored if packed.get(one.module, one) is one)
    first: list[Event] = []
    if warm_up:
        first = [Allocate(block_id, warm_up_bytes(counted), "", WARM_UP), Free(block_id)]
    return (*first, *stored, *others, *cast(stored, weights), *matrices, *cast(matrices, adapters))


def warm_up_bytes(weights_bytes: int, *, total_memory_bytes: int | None = None) -> int:
    """What the first model in a process asks for: its weights in whole float16, up to 1.2 GiB less than the device has.

    4.50 and 4.51 count a tied head again, and go up to 95 % of the free memory.
    Source: transformers 5.23, modeling_utils.caching_allocator_warmup and get_total_byte_count
    """
    elements = weights_bytes // 2
    if total_memory_bytes is not None:
        elements = min(elements, max(0, (5 * total_memory_bytes - 6 * 1024 * MIB) // 10))  # (total - 1.2 GiB) // 2
    return 2 * elements
