"""A deep model's trace from a shallow one's: equal layers make equal events, so one stands for all between first and last.

The run is read as passes over the layers, with events of no layer between them. What a layer frees is told by whose it is:
its own, its neighbour's, or no layer's. The result is to be held against a real trace of the whole model before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import UnsupportedError
from ..timeline import Stage
from .kept_trace import Coefficients, KeptTrace

LAYER = re.compile(r"(?<=\blayers\.)\d+\b")
SHALLOW = 3  # first, middle and last

Allocation = tuple[Coefficients, str, str]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an allocation is made: the how-many-eth of a segment, which is a layer's part of a pass (or no layer's, None)."""

    segment: int
    layer: int | None
    ordinal: int


def deepen(shallow: KeptTrace, layers: int) -> KeptTrace:
    """The trace of a model of `layers` equal layers, from that of one with SHALLOW; UnsupportedError where it has no period."""
    segments = _segments(shallow)
    places = _places(shallow, segments)
    made: list[Allocation] = []
    order: list[int] = []
    stages: list[Stage] = []
    numbers: dict[_Place, int] = {}
    begins = {stage.first_event: stage.name for stage in shallow.stages}
    for number, (layer, first, stop) in enumerate(segments):
        for copy in _copies(layer, layers):
            for index in range(first, stop):
                if index in begins and copy in (None, 0):
                    stages.append(Stage(name=begins[index], first_event=len(order)))
                entry = shallow.order[index]
                if entry >= 0:
                    coefficients, module, operator = shallow.allocations[entry]
                    place = replace(places[entry], segment=_pass(segments, number), layer=copy)
                    numbers[place] = len(made)
                    order.append(len(made))
                    made.append(
                        (coefficients, module if copy is None else LAYER.sub(str(copy), module, count=1), operator)
                    )
                    continue
                for target in _targets(places[-1 - entry], layer, copy, layers):
                    order.append(-1 - numbers[replace(target, segment=_pass(segments, target.segment))])
    return KeptTrace(stages=tuple(stages), allocations=tuple(made), order=tuple(order), made_by=shallow.made_by)


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


def _places(trace: KeptTrace, segments: list[tuple[int | None, int, int]]) -> dict[int, _Place]:
    places: dict[int, _Place] = {}
    for number, (layer, first, stop) in enumerate(segments):
        made = [entry for entry in trace.order[first:stop] if entry >= 0]
        places |= {entry: _Place(number, layer, ordinal) for ordinal, entry in enumerate(made)}
    return places


def _pass(segments: list[tuple[int | None, int, int]], number: int) -> int:
    """The segment of layer 0 that begins the pass of a layer's segment; a segment of no layer is its own."""
    layer = segments[number][0]
    return number if layer is None else number - layer


def _copies(layer: int | None, layers: int) -> Iterator[int | None]:
    match layer:
        case None:
            yield None
        case 0:
            yield 0
        case 1:
            yield from range(1, layers - 1)
        case 2:
            yield layers - 1
        case _:
            raise UnsupportedError("trace_no_period")


def _targets(target: _Place, layer: int | None, copy: int | None, layers: int) -> Iterator[_Place]:
    """What a free of the shallow trace frees in the deep one."""
    if target.layer is None:
        yield target
    elif layer is not None and copy is not None:
        yield replace(target, layer=copy + target.layer - layer)
    else:
        for layer_of_copy in _copies(target.layer, layers):
            yield replace(target, layer=layer_of_copy)
