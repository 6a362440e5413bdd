"""A dense model's run with quantised weights in place of the dense ones."""

from __future__ import annotations

from collections.abc import Sequence

from ..results.timeline import Allocate, Timeline
from ..values import replace
from .allocation.on_device import PARAMETER
from .traces.kept_trace import KeptTrace


def packed_trace(dense: KeptTrace, weights_bytes: Sequence[int]) -> KeptTrace:
    """`packed` of a run with polynomials for sizes."""
    others = [index for index, (_, _, operator) in enumerate(dense.allocations) if operator != PARAMETER]
    numbers = {index: number for number, index in enumerate(others, len(weights_bytes))}
    order = [
        numbers[entry] if entry >= 0 else -1 - numbers[-1 - entry]
        for entry in dense.order
        if max(entry, -1 - entry) in numbers
    ]
    moved = len(weights_bytes) + len(order) - len(dense.order)
    stages = [
        stage if index == 0 else replace(stage, first_event=stage.first_event + moved)
        for index, stage in enumerate(dense.stages)
    ]
    weights = [((size, 0, 0, 0, 0, 0, 0, 0), "", PARAMETER) for size in weights_bytes]
    return replace(
        dense,
        allocations=(*weights, *(dense.allocations[index] for index in others)),
        order=(*range(len(weights)), *order),
        stages=tuple(stages),
        kept=tuple((numbers[index], use) for index, use in dense.kept),
    )


def packed(dense: Timeline, weights_bytes: Sequence[int]) -> Timeline:
    """The run with weights of these sizes at the start of its first stage, "load"."""
    parameter_ids = {event.id for event in dense.events if isinstance(event, Allocate) and event.operator == PARAMETER}
    weights = [Allocate(-1 - index, size, "", PARAMETER) for index, size in enumerate(weights_bytes)]
    kept = [event for event in dense.events if event.id not in parameter_ids]
    moved = len(weights) - len(parameter_ids)
    stages = [
        stage if index == 0 else replace(stage, first_event=stage.first_event + moved)
        for index, stage in enumerate(dense.stages)
    ]
    return replace(dense, events=(*weights, *kept), stages=tuple(stages))
