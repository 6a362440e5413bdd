"""Small models, really trained."""

from __future__ import annotations

from qwen_inspect.results.timeline import CUDA_SCRATCH, Allocate, Event, Timeline

from .real_runs import after_load

STEP_COUNTER_BYTES = 4


def on_cpu(timeline: Timeline) -> list[Event]:
    """The run without what is taken on CUDA alone."""
    found = after_load(timeline)
    gone = {event.id for event in found if isinstance(event, Allocate) and event.operator in CUDA_SCRATCH}
    return [event for event in found if event.id not in gone]


def is_of_loop(allocation: Allocate) -> bool:
    """Whether it is a micro-batch, the last loss or the gradients' norm; the sum of losses and a scaler outlive the loop."""
    is_norm = allocation.operator == "aten.linalg_vector_norm.default"
    outlives = allocation.operator in ("aten.lift_fresh.default", "aten.full.default")
    return is_norm or (allocation.module != "optimizer" and not outlives)
