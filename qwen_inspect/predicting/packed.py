"""A dense model's run with quantised weights in place of the dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..results.timeline import Allocate, Timeline
from .on_device import PARAMETER


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
    return Timeline(events=(*weights, *kept), stages=tuple(stages))
