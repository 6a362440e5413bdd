"""A deep model's trace from a shallow one's: equal layers make equal events, so one stands for all between first and last.

The run is read as passes over the layers, with events of no layer between them. What a layer frees is told by whose it is:
its own, its neighbour's, or no layer's. The result is to be held against a real trace of the whole model before it is believed.
"""

from __future__ import annotations

import re
from functools import cache

from ..errors import UnsupportedError
from ..timeline import Stage
from .kept_trace import Coefficients, KeptTrace

LAYER = re.compile(r"(?<=\blayers\.)\d+\b")
SHALLOW = 3  # first, middle and last

Allocation = tuple[Coefficients, str, str]
# Where an allocation is made: the how-many-eth of a segment, which is a layer's part of a pass (or no layer's, None).
Place = tuple[int, int | None, int]


def deepen(shallow: KeptTrace, layers: int) -> KeptTrace:
    """The trace of a model of `layers` equal layers, from that of one with SHALLOW; UnsupportedError where it has no period."""
    segments = _segments(shallow)
    places = _places(shallow, segments)
    made: list[Allocation] = []
    order: list[int] = []
    stages: list[Stage] = []
    numbers: dict[Place, int] = {}
    begins = {stage.first_event: stage.name for stage in shallow.stages}
    for layer, first, stop in segments:
        for copy in _copies(layer, layers):
            name = None if copy is None else str(copy)
            for index in range(first, stop):
                if index in begins and copy in (None, 0):
                    stages.append(Stage(name=begins[index], first_event=len(order)))
                entry = shallow.order[index]
                if entry < 0:
                    segment, owner, ordinal = places[-1 - entry]
                    for target in _targets(owner, layer, copy, layers):
                        order.append(-1 - numbers[segment, target, ordinal])
                    continue
                coefficients, module, operator = shallow.allocations[entry]
                segment, _, ordinal = places[entry]
                numbers[segment, copy, ordinal] = len(made)
                order.append(len(made))
                made.append((coefficients, module if name is None else _renumbered(module, name), operator))
    return KeptTrace(stages=tuple(stages), allocations=tuple(made), order=tuple(order), made_by=shallow.made_by)


@cache
def _renumbered(module: str, layer: str) -> str:
    return LAYER.sub(layer, module, count=1)


def _segments(trace: KeptTrace) -> list[tuple[int | None, int, int]]:
    """(layer or None, first event, stop) of each stretch of events; a free belongs to where it happens."""
    found: list[tuple[int | None, int, int]] = []
    current: int | None = None
    first = 0
    bounds = {stage.first_event for stage in trace.stages}
    for index, entry in enumerate(trace.order):
        layer = current
        if entry >= 0:
            match = LAYER.search(trace.allocations[entry][1])
            layer = int(match[0]) if match else None
        if index in bounds and entry < 0:
            layer = None
        if layer != current or (index in bounds and index > first):
            found.append((current, first, index))
            current, first = layer, index
    return [one for one in [*found, (current, first, len(trace.order))] if one[1] < one[2]]


def _places(trace: KeptTrace, segments: list[tuple[int | None, int, int]]) -> dict[int, Place]:
    places: dict[int, Place] = {}
    for number, (layer, first, stop) in enumerate(segments):
        # The segment of layer 0 begins the pass of a layer's segment; a segment of no layer is its own.
        begin = number if layer is None else number - layer
        made = [entry for entry in trace.order[first:stop] if entry >= 0]
        places |= {entry: (begin, layer, ordinal) for ordinal, entry in enumerate(made)}
    return places


def _copies(layer: int | None, layers: int) -> tuple[int | None, ...]:
    match layer:
        case None:
            return (None,)
        case 0:
            return (0,)
        case 1:
            return tuple(range(1, layers - 1))
        case 2:
            return (layers - 1,)
        case _:
            raise UnsupportedError("trace_no_period")


def _targets(owner: int | None, layer: int | None, copy: int | None, layers: int) -> tuple[int | None, ...]:
    """The layers whose allocation a free frees in the deep trace, where that in the shallow one is `owner`'s."""
    if owner is None:
        return (None,)
    if layer is not None and copy is not None:
        return (copy + owner - layer,)
    return _copies(owner, layers)
