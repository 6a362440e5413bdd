"""What a trace's storages are for: the cache, states, gradients, the optimizer, or activations."""

from __future__ import annotations

from collections.abc import Mapping

from ...results.timeline import ADAPTER, GATHERED, Allocate, Free, Timeline
from .on_device import BUFFER, GROWN_IDS, PARAMETER, WORKSPACE

LINEAR = "linear_attn"  # the module of linear attention in a layer
NORM = "aten.linalg_vector_norm.default"  # operator of the norm of all gradients, which a loop that clips them keeps
# Uses whose term has another name.
TERM_OF_USE = {
    PARAMETER: "weights",
    ADAPTER: "adapters",
    BUFFER: "buffers",
    GATHERED: "gathered",
    "activation": "activations",
}


def uses_of(timeline: Timeline) -> dict[int, str]:
    """Uses by id of the storages that are more than activations: "cache", "state", "gradients" or "optimizer"."""
    return {**_cache_uses(timeline), **_training_ids(timeline)}


def _cache_uses(timeline: Timeline) -> dict[int, str]:
    """The storages of the KV cache and of linear attention's states: those that the trace marks, else those that an attention
    module allocated and that are alive at the end of an inference stage."""
    if timeline.kept:
        return dict(timeline.kept)
    if any(stage.name == "backward" for stage in timeline.stages):
        return {}
    events = timeline.events
    ends = [*(stage.first_event for stage in timeline.stages[2:]), len(events)]
    freed = {event.id: index for index, event in enumerate(events) if isinstance(event, Free)}
    storages = (
        (event, index, freed.get(event.id, len(events)))
        for index, event in enumerate(events)
        if isinstance(event, Allocate)
        and event.module.endswith("attn")
        and event.operator not in (PARAMETER, BUFFER, GATHERED)
    )
    kept = {
        event.id: "state" if event.module.endswith(LINEAR) else "cache"
        for event, begins, ends_at in storages
        if any(begins < end <= ends_at for end in ends)
    }
    return {**kept, **dict.fromkeys(_regrown(timeline), "cache")}


def _regrown(timeline: Timeline) -> set[int]:
    """Ids of the full-length cache, allocated at the start of the decode stage."""
    begin = next((stage.first_event for stage in timeline.stages if stage.name == "decode"), None)
    if begin is None:
        return set()
    grown = set()
    for event in timeline.events[begin:]:
        if isinstance(event, Allocate):
            if not event.module.endswith("attn"):
                break
            grown.add(event.id)
    return grown


def _training_ids(timeline: Timeline) -> dict[int, str]:
    """Gradients: made by a backward, or by a fused loss's forward, and alive at the backward's end. Optimizer states: made by the
    optimizer and never freed.
    """
    if not any(stage.name == "backward" for stage in timeline.stages):
        return {}
    events = timeline.events
    freed = {event[0]: index for index, event in enumerate(events) if len(event) == 1}
    uses = {
        event[0]: "optimizer"
        for event in events
        if len(event) > 1 and event[2] == "optimizer" and event[3] != NORM and event[0] not in freed
    }
    bounds = [*(stage.first_event for stage in timeline.stages), len(events)]
    for stage, end in zip(timeline.stages, bounds[1:], strict=True):
        if stage.name == "backward":
            alive = [event for event in events[:end] if len(event) > 1 and freed.get(event[0], end) >= end]
            backward_ids = {event[0] for event in events[stage.first_event : end]}
            uses |= {
                event.id: "gradients"
                for event in alive
                if isinstance(event, Allocate) and (event.id in backward_ids or _is_heads_gradient(event))
            }
    return uses


def _is_heads_gradient(allocation: Allocate) -> bool:
    """Whether it is a head's gradient that the forward made (`tracing.fused_losses`), if it outlives the backward. The loss
    itself is a number, which may begin as a zero too.
    """
    made_of_zeros = allocation.operator in ("aten.zeros_like.default", "aten.zeros.default")
    return made_of_zeros and allocation.size_bytes > 4 and allocation.module not in ("inputs", "optimizer")


def use_of(event: Allocate, uses: Mapping[int, str]) -> str:
    if event.id >= GROWN_IDS:
        return "cache"
    if event.operator in (PARAMETER, ADAPTER, BUFFER, GATHERED, WORKSPACE):
        return event.operator
    return uses.get(event.id, "activation")


def term_of(use: str) -> str:
    """The term of a footprint that a use belongs to."""
    return TERM_OF_USE.get(use, use)
