"""A deep model's trace from a shallow one's: equal blocks make equal events, so one stands for all between first and last.

A block is the shortest run of layers that repeats: one layer where all are alike, four of a hybrid. The forward is read as passes
over the blocks, with events of no block between them. What a block frees is told by whose it is: its own, its neighbour's, or
no block's. The result is to be held against a real trace of the whole model before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from ..errors import UnsupportedError
from ..results.timeline import Free, Stage, Timeline
from .kept_trace import Coefficients, KeptTrace

LAYER = re.compile(r"(?<=\blayers\.)\d+\b")
SHALLOW = 3  # blocks: first, middle and last

Allocation = tuple[Coefficients, str, str]
# Where an allocation is made: the how-many-eth of a segment, which is a block's part of a pass (or no block's, None).
Place = tuple[int, int | None, int]


def period_of(layers: Sequence[object]) -> int | None:
    """How many layers make a block, of which the model has SHALLOW or more; None where nothing repeats so often."""
    most = len(layers) // SHALLOW
    return next((size for size in range(1, most + 1) if _repeats(layers, size)), None)


def _repeats(layers: Sequence[object], size: int) -> bool:
    return len(layers) % size == 0 and all(layer == layers[index % size] for index, layer in enumerate(layers))


def fixed(timeline: Timeline) -> KeptTrace:
    """A trace of one workload in the form that `deepen` takes: its sizes are what they are at any point."""
    numbers: dict[int, int] = {}
    allocations: list[Allocation] = []
    order = []
    for event in timeline.events:
        if isinstance(event, Free):
            order.append(-1 - numbers[event.id])
            continue
        numbers[event.id] = len(allocations)
        order.append(len(allocations))
        allocations.append(((event.size_bytes,), event.module, event.operator))
    return KeptTrace(stages=timeline.stages, allocations=tuple(allocations), order=tuple(order), made_by="")


def deepen(shallow: KeptTrace, layers: int, period: int = 1) -> KeptTrace:
    """The trace of a model of `layers` layers in equal blocks of `period`, from that of one with SHALLOW blocks.

    UnsupportedError where its events do not repeat.
    """
    blocks = layers // period
    segments = _segments(shallow, period)
    places = _places(shallow, segments)
    made: list[Allocation] = []
    order: list[int] = []
    stages: list[Stage] = []
    begun: dict[tuple[int, int | None], int] = {}  # the first allocation of each copy of a segment
    begins = {stage.first_event: stage.name for stage in shallow.stages}
    for number, (block, first, stop) in enumerate(segments):
        begin = _begin(number, block)
        for copy in _copies(block, blocks):
            shift = 0 if copy is None or block is None else period * (copy - block)
            begun[begin, copy] = len(made)
            for index in range(first, stop):
                if index in begins and copy in (None, 0):
                    stages.append(Stage(name=begins[index], first_event=len(order)))
                entry = shallow.order[index]
                if entry < 0:
                    segment, owner, ordinal = places[-1 - entry]
                    if owner is not None and copy is not None and block is not None:
                        order.append(-1 - begun[segment, copy + owner - block] - ordinal)
                    else:
                        order += [-1 - begun[segment, target] - ordinal for target in _copies(owner, blocks)]
                    continue
                coefficients, module, operator = shallow.allocations[entry]
                order.append(len(made))
                made.append((coefficients, _shifted(module, shift) if shift else module, operator))
    return KeptTrace(stages=tuple(stages), allocations=tuple(made), order=tuple(order), made_by=shallow.made_by)


@cache
def _shifted(module: str, layers: int) -> str:
    return LAYER.sub(lambda match: str(int(match[0]) + layers), module, count=1)


def _segments(trace: KeptTrace, period: int) -> list[tuple[int | None, int, int]]:
    """(block or None, first event, stop) of each stretch of events; a free belongs to where it happens."""
    found: list[tuple[int | None, int, int]] = []
    current: int | None = None
    first = 0
    bounds = {stage.first_event for stage in trace.stages}
    for index, entry in enumerate(trace.order):
        block = current
        if entry >= 0:
            match = LAYER.search(trace.allocations[entry][1])
            block = int(match[0]) // period if match else None
        if index in bounds and entry < 0:
            block = None
        if block != current or (index in bounds and index > first):
            found.append((current, first, index))
            current, first = block, index
    return [one for one in [*found, (current, first, len(trace.order))] if one[1] < one[2]]


def _places(trace: KeptTrace, segments: list[tuple[int | None, int, int]]) -> dict[int, Place]:
    places: dict[int, Place] = {}
    for number, (block, first, stop) in enumerate(segments):
        begin = _begin(number, block)
        made = [entry for entry in trace.order[first:stop] if entry >= 0]
        places |= {entry: (begin, block, ordinal) for ordinal, entry in enumerate(made)}
    return places


def _begin(number: int, block: int | None) -> int:
    """The segment of block 0 begins the pass of a block's segment; a segment of no block is its own."""
    return number if block is None else number - block


def _copies(block: int | None, blocks: int) -> tuple[int | None, ...]:
    match block:
        case None:
            return (None,)
        case 0:
            return (0,)
        case 1:
            return tuple(range(1, blocks - 1))
        case 2:
            return (blocks - 1,)
        case _:
            raise UnsupportedError("trace_no_period")
