"""Extends a shallow model's trace to a deep one: equal blocks make equal events, so one block stands for all inner ones.

A block is the shortest run of layers that repeats: one layer where all are alike, four in a hybrid. The forward is read as passes
over the blocks, with events outside any block between them. What a block frees is addressed by its owner: the block itself, its
neighbour, or no block. The result must be compared with a real trace of the whole model before it is used.
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
# Where an allocation is made: (first segment of the pass, block or None, index within the segment).
Place = tuple[int, int | None, int]


def period_of(layers: Sequence[object]) -> int | None:
    """How many layers make a block, of which the model has SHALLOW or more; None if no run of layers repeats that often."""
    most = len(layers) // SHALLOW
    return next((size for size in range(1, most + 1) if _repeats(layers, size)), None)


def _repeats(layers: Sequence[object], size: int) -> bool:
    return len(layers) % size == 0 and all(layer == layers[index % size] for index, layer in enumerate(layers))


def fixed(timeline: Timeline) -> KeptTrace:
    """A trace of one workload in the form that `deepen` takes, with constant sizes."""
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
    """The trace of a model of `layers` layers in equal blocks of `period`, from the trace of a model of SHALLOW blocks.

    UnsupportedError if the events do not repeat.
    """
    blocks = layers // period
    segments = _segments(shallow, period)
    places = _places(shallow, segments)
    allocations: list[Allocation] = []
    order: list[int] = []
    stages: list[Stage] = []
    begun: dict[tuple[int, int | None], int] = {}  # index of the first allocation of each copy of a segment
    begins = {stage.first_event: stage.name for stage in shallow.stages}
    for number, (block, first, stop) in enumerate(segments):
        begin = _begin(number, block)
        for copy in _copies(block, blocks):
            shift = 0 if copy is None or block is None else period * (copy - block)
            begun[begin, copy] = len(allocations)
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
                order.append(len(allocations))
                allocations.append((coefficients, _shifted(module, shift) if shift else module, operator))
    return KeptTrace(stages=tuple(stages), allocations=tuple(allocations), order=tuple(order), made_by=shallow.made_by)


@cache
def _shifted(module: str, layers: int) -> str:
    return LAYER.sub(lambda match: str(int(match[0]) + layers), module, count=1)


def _segments(trace: KeptTrace, period: int) -> list[tuple[int | None, int, int]]:
    """(block or None, first event, stop) of each run of events; a free belongs to the segment in which it happens."""
    segments: list[tuple[int | None, int, int]] = []
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
            segments.append((current, first, index))
            current, first = block, index
    return [segment for segment in [*segments, (current, first, len(trace.order))] if segment[1] < segment[2]]


def _places(trace: KeptTrace, segments: list[tuple[int | None, int, int]]) -> dict[int, Place]:
    places: dict[int, Place] = {}
    for number, (block, first, stop) in enumerate(segments):
        begin = _begin(number, block)
        requests = [entry for entry in trace.order[first:stop] if entry >= 0]
        places |= {entry: (begin, block, ordinal) for ordinal, entry in enumerate(requests)}
    return places


def _begin(number: int, block: int | None) -> int:
    """The first segment of a pass, which is block 0's; a segment outside any block is its own pass."""
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
