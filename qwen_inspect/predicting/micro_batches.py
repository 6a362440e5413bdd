"""Micro-batches that a trace leaves out: all do the same as its second, but Trainer has a step's inputs on the device at once.

Source: transformers 5.23, trainer.py, get_batch_samples; `tracing.steps.train`
"""

from __future__ import annotations

from itertools import takewhile

from ..results.memory import Run
from ..results.timeline import Allocate, Event, Free, Timeline
from ..values import replace

SUM_OF_LOSSES, COUNTED = "aten.lift_fresh.default", "aten.ne.Scalar"  # made before a step's inputs, and after them
MICRO_BATCH_IDS = 1 << 59


def with_all_micro_batches(timeline: Timeline, run: Run) -> Timeline:
    """The run of Trainer's loop with the inputs of every micro-batch of a step, which go as the next step's have come."""
    names = [stage.name for stage in timeline.stages]
    steps = names.count("optimizer")
    traced = names.count("backward") // max(1, steps)
    if not run.loop.by_trainer or not 1 < traced < run.accumulate:
        return timeline
    events: list[Event] = []
    stages = []
    inputs: list[Allocate] = []  # of the step before
    added: list[Allocate] = []
    ends = (*(stage.first_event for stage in timeline.stages[1:]), len(timeline.events))
    for index, (stage, end) in enumerate(zip(timeline.stages, ends, strict=True)):
        stages.append(replace(stage, first_event=len(events)))
        own = timeline.events[stage.first_event : end]
        if stage.name != "forward" or names[index - 1] not in ("load", "optimizer"):
            events += own
            continue
        leading = list(takewhile(lambda event: getattr(event, "operator", "") != COUNTED, own))
        earlier, gone = {event.id for event in inputs}, added
        inputs = [each for each in leading if isinstance(each, Allocate) and each.operator != SUM_OF_LOSSES]
        last = inputs[-(len(inputs) // traced) :] * (run.accumulate - traced)
        added = [each._replace(id=MICRO_BATCH_IDS + len(events) + place) for place, each in enumerate(last)]
        events += (*leading, *added)
        for event in own[len(leading) :]:
            if gone and isinstance(event, Free) and event.id in earlier:
                events += (Free(each.id) for each in gone)
                gone = []
            events.append(event)
    return replace(timeline, events=tuple(events), stages=tuple(stages))
