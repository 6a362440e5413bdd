"""Replays a run through the caching allocator: usage over time and what is alive at the peak; and how weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from ...results.timeline import ADAPTER, Allocate, Event, Free, Timeline, living
from ...values import dataclass
from ..traces.token_loops import REPEATED, Turn, turns_of, unfolded
from .allocator import MIB, SMALL_BYTES, Allocator, Block, OutOfMemory, Settings, Usage

WARM_UP = "caching_allocator_warmup"  # operator of the loader's block, named after transformers' function


@dataclass(frozen=True, slots=True)
class Alive:
    """A living request and the size of its block."""

    request: Allocate
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUsage:
    """`peak`: each figure's own maximum in a stage, its start included, as after reset_peak_memory_stats."""

    name: str
    peak: Usage
    end: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A run's usage of an allocator.

    peak: each figure's own maximum, as max_memory_allocated and max_memory_reserved report them. peak_event: the first event
    at which allocated is largest, at_peak and alive the state then. allocated, reserved, requested: bytes after each event, and
    course all three. end: the state after the last. out_of_memory_event: the request that did not fit, at which the run ended.
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
    """Runs a timeline through an allocator and leaves it in the final state. None: a fresh one with torch's defaults.

    with_course: also record the state after each event and by stage; otherwise these are empty.
    """
    allocator = allocator or Allocator()
    allocator.reset_peak()
    at_peak = allocator.usage
    figures: tuple[list[int], ...] = tuple([figure] for figure in at_peak)  # the fields of Usage, after each event
    allocated, reserved, requested = figures
    block_bytes: dict[int, int] = {}
    most, peak_event, done = -1, None, 0
    with suppress(OutOfMemory):
        for index, (event, blocks) in enumerate(_played(timeline.events, allocator)):
            if blocks:
                block_bytes[event.id] = sum([block.size_bytes for block in blocks])
                if allocator.allocated_bytes > most:
                    most, peak_event, at_peak = allocator.allocated_bytes, index, allocator.usage
            done = index + 1
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
        out_of_memory_event=None if done == len(timeline.events) else done,
    )


def replay_folded(
    timeline: Timeline, new_allocator: Callable[[], Allocator], *, with_course: bool = False
) -> tuple[Timeline, Replay]:
    """The replay of a run, and the timeline of its events: unfolded if the peak lies in a turn of a folded loop."""
    replayed = replay(timeline, new_allocator(), with_course=with_course)
    if replayed.peak.allocated_bytes == replayed.at_peak.allocated_bytes:
        return timeline, replayed
    timeline = unfolded(timeline)
    return timeline, replay(timeline, new_allocator(), with_course=with_course)


def least_reserved(timeline: Timeline, settings: Settings) -> int:
    """A lower bound of the bytes that a run reserves: the most that is in use of each pool, since neither serves the other."""
    in_use, most = [0, 0], [0, 0]  # of the small pool, of the large
    sizes: dict[int, tuple[bool, int]] = {}
    blocks = {
        size: size and settings.block_bytes(size) for size in {event[1] for event in timeline.events if len(event) > 1}
    }
    for index, event in enumerate(timeline.events):
        if isinstance(event, Free):
            is_large, size = sizes.pop(event.id)
            in_use[is_large] -= size
            continue
        times, block = 1, blocks[event.size_bytes]
        if event.operator.endswith(REPEATED) and (turn := Turn.ending_at(timeline.events, index)):
            times, block = turns_of(event, turn), settings.block_bytes(turn.output.size_bytes)
        is_large, size = sizes[event.id] = block > SMALL_BYTES, times * block
        in_use[is_large] += size
        if in_use[is_large] > most[is_large]:
            most[is_large] = in_use[is_large]
    return sum(most)


def reserved_up_to(timeline: Timeline, allocator: Allocator, most_bytes: int) -> int:
    """The bytes that a run reserves; if more than `most_bytes`, those up to the request that reserves more."""
    for _ in _played(timeline.events, allocator):
        if allocator.reserved_bytes > most_bytes:
            break
    return allocator.reserved_bytes


def _played(events: Sequence[Event], allocator: Allocator) -> Iterator[tuple[Event, Sequence[Block]]]:
    """Each event, when it is done, and the blocks that its request got."""
    blocks: dict[int, Block] = {}
    outputs: dict[int, list[Block]] = {}  # of requests that stand for turns of a loop
    for index, event in enumerate(events):
        if isinstance(event, Free):
            for block in outputs.pop(event.id, None) or (blocks.pop(event.id),):
                allocator.free(block)
            yield event, ()
        elif event.operator.endswith(REPEATED) and (turn := Turn.ending_at(events, index)):
            from .turning import replay_turns  # few runs have such loops

            outputs[event.id] = replay_turns(allocator, blocks, turn, turns_of(event, turn))
            yield event, outputs[event.id]
        else:
            blocks[event.id] = allocator.allocate(event.size_bytes)
            yield event, (blocks[event.id],)


def _usage(figures: Sequence[Sequence[int]], index: int) -> Usage:
    return Usage(*(figure[index] for figure in figures))


def _stages(timeline: Timeline, figures: Sequence[Sequence[int]]) -> Iterator[StageUsage]:
    """Skips stages that the run did not reach. `figures` begin with the state before the first event."""
    bounds = [stage.first_event for stage in timeline.stages] + [len(timeline.events)]
    for stage, end in zip(timeline.stages, bounds[1:], strict=True):
        parts = [figure[stage.first_event : end + 1] for figure in figures]
        if parts[0]:
            yield StageUsage(name=stage.name, peak=Usage(*map(max, parts)), end=_usage(parts, -1))


# --- loading weights


def load_one_by_one(weights: Iterable[Allocate]) -> tuple[Event, ...]:
    """A separate request for each weight: transformers before 4.50, and any version where `.to("cuda")` moves the model."""
    return tuple(weights)


def load_from_warm_up_block(
    weights: Sequence[Allocate], *, block_id: int, total_memory_bytes: int | None = None
) -> tuple[Event, ...]:
    """A block of all weights' size, allocated as `block_id` and freed, then each weight: `device_map`, transformers 4.50 on.

    weights: the state dict's parameters and buffers, tied ones once. Buffers that are not stored come after them. The loader
    takes them by name in four threads, so their order varies (core_model_loading.py), but no sum does (recorded: file-0.6B).
    """
    size_bytes = warm_up_bytes(sum(weight.size_bytes for weight in weights), total_memory_bytes=total_memory_bytes)
    return (Allocate(block_id, size_bytes, "", WARM_UP), Free(block_id), *weights)


def load_and_cast(loaded: Sequence[Allocate], *, first_id: int, warm_up: bool) -> tuple[Event, ...]:
    """Loads a 4-bit base for training: what is not quantised in 16 bits, then cast to 32 bits tensor by tensor; then LoRA's
    matrices likewise.

    loaded: the final allocations. warm_up: first allocate and free a block of all weights' size, without their scales.
    Sources: transformers 5.23, get_total_byte_count; PEFT 0.21, prepare_model_for_kbit_training and cast_adapter_dtype
    """
    weights = [event for event in loaded if event.operator == "parameter"]
    times = Counter(weight.module for weight in weights)
    # A quantised weight shares its module with its scales.
    packed = {weight.module: weight for weight in reversed(weights) if times[weight.module] > 1}
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
    counted = sum(weight.size_bytes for weight in stored if packed.get(weight.module, weight) is weight)
    first: list[Event] = []
    if warm_up:
        first = [Allocate(block_id, warm_up_bytes(counted), "", WARM_UP), Free(block_id)]
    return (*first, *stored, *others, *cast(stored, weights), *matrices, *cast(matrices, adapters))


def warm_up_bytes(weights_bytes: int, *, total_memory_bytes: int | None = None) -> int:
    """Size of the warm-up block of a process's first model: its weights in whole float16 numbers, at most the device's memory
    less 1.2 GiB.

    transformers 4.50 and 4.51 count a tied head twice, and limit the block to 95 % of the free memory instead.
    Source: transformers 5.23, modeling_utils.caching_allocator_warmup and get_total_byte_count
    """
    elements = weights_bytes // 2
    if total_memory_bytes is not None:
        elements = min(elements, max(0, (5 * total_memory_bytes - 6 * 1024 * MIB) // 10))  # (total - 1.2 GiB) // 2
    return 2 * elements
