"""A run's peak by the quick allocator: the same bytes as `replay`, without what the allocator holds after each event."""

from __future__ import annotations

from ...results.timeline import Timeline
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
    numbers: dict[int, int] = {}  # of the requests alive, by id
    order: list[int] = []
    size_of: list[int] = []  # its bytes, then the number of the distinct size
    events: list[int] = []  # of each request
    once: set[str] = set()  # operators of requests that stand for no others
    for index, event in enumerate(timeline.events):
        if len(event) == 1:  # a `Free`: events are many, and this is quicker than to ask for their type
            number = numbers.pop(event[0])
            if number >= 0:
                order.append(-1 - number)
            continue
        identity, size_bytes, _, operator = event
        if operator not in once:
            if operator.endswith(REPEATED):
                from .folded_replay import folded_peak  # few runs have such turns

                return folded_peak(timeline, settings)
            once.add(operator)
        if size_bytes:
            numbers[identity] = number = len(events)
            events.append(index)
            order.append(number)
            size_of.append(size_bytes)
        else:
            numbers[identity] = -1
    kinds = {size: kind for kind, size in enumerate(dict.fromkeys(size_of))}
    size_of = list(map(kinds.__getitem__, size_of))
    sizes = list(kinds)
    quick = QuickAllocator([settings.block_bytes(size) for size in sizes], Stream(order, size_of), settings)
    quick.replay()
    if not order or quick.reserved_bytes > UNLIMITED_BYTES:
        return None
    rounding = [block - sizes[kind] for block, kind in zip(quick.block_sizes, size_of, strict=True)]
    return _located(order, quick.block_sizes, rounding, events, quick.reserved_bytes)


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
