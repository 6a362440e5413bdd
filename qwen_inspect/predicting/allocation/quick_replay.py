"""A run's peak by the quick allocator: the same bytes as `replay`, without what the allocator holds after each event."""

from __future__ import annotations

from ...results.timeline import Timeline, operators_of
from ...values import dataclass
from ..traces.token_loops import REPEATED
from .allocator import UNLIMITED_BYTES, Settings
from .reserved import QuickAllocator, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The first event at which most is allocated, what rounding adds then and at the run's end, and the reserved bytes."""

    event: int
    rounding_bytes: int
    end_rounding_bytes: int
    reserved_bytes: int


def quick_peak(timeline: Timeline, settings: Settings) -> Peak | None:
    """None for a run that allocates nothing, one whose sizes exceed the address space, and one with its peak in folded turns."""
    if any(operator.endswith(REPEATED) for operator in operators_of(timeline.events)):
        from .folded_replay import folded_peak  # few runs have such turns

        return folded_peak(timeline, settings)
    order, size_of, sizes, events = _stream(timeline)
    quick = QuickAllocator([settings.block_bytes(size) for size in sizes], Stream(order, size_of), settings)
    quick.replay()
    if not order or quick.reserved_bytes > UNLIMITED_BYTES:
        return None
    rounding = [block - sizes[kind] for block, kind in zip(quick.block_sizes, size_of, strict=True)]
    return _located(order, quick.block_sizes, rounding, events, quick.reserved_bytes)


def quick_reserved(timeline: Timeline, settings: Settings) -> int | None:
    """The reserved bytes of `quick_peak`, for a timeline without folded turns."""
    order, size_of, sizes, _ = _stream(timeline)
    quick = QuickAllocator([settings.block_bytes(size) for size in sizes], Stream(order, size_of), settings)
    quick.replay()
    return quick.reserved_bytes if order and quick.reserved_bytes <= UNLIMITED_BYTES else None


def _stream(timeline: Timeline) -> tuple[list[int], list[int], list[int], list[int]]:
    """A stream's order and the size of each request, then the distinct sizes in bytes, and each request's event."""
    # A `Free` is told from an `Allocate` in the quickest way: there are many.
    events = [index for index, event in enumerate(timeline.events) if len(event) > 1 and event[1]]  # of each request
    size_of = [
        event[1] for event in timeline.events if len(event) > 1 and event[1]
    ]  # bytes, then the distinct size's number
    numbers = {timeline.events[event][0]: number for number, event in enumerate(events)}  # of the requests, by id
    order = [
        numbers[event[0]] if len(event) > 1 else ~numbers[event[0]]  # -1 - number
        for event in timeline.events
        if event[0] in numbers
    ]
    kinds = {size: kind for kind, size in enumerate(dict.fromkeys(size_of))}
    return order, list(map(kinds.__getitem__, size_of)), list(kinds), events


def _located(
    order: list[int], block_sizes: list[int], rounding: list[int], events: list[int], reserved_bytes: int
) -> Peak:
    allocated = most = added = at_peak = first = 0
    for entry in order:
        if entry < 0:
            allocated -= block_sizes[-1 - entry]
            added -= rounding[-1 - entry]
            continue
        allocated += block_sizes[entry]
        added += rounding[entry]
        if allocated > most:
            most, at_peak, first = allocated, added, entry
    return Peak(event=events[first], rounding_bytes=at_peak, end_rounding_bytes=added, reserved_bytes=reserved_bytes)
