"""How far a command of llama.cpp could go, with all else as it is: the largest -c and -ngl, the smallest --n-cpu-moe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ...bisection import largest
from ...results.llama_cpp import Buffer, Reach
from ...units import MIB
from .buffers import Plan
from .ggml.scheduler import HOST
from .layer_cells import CELLS_MULTIPLE
from .options import EXPERTS, compiled, first_layers

# What llama.cpp's own fit leaves free on a card: --fit-target, common/common.h.
MARGIN_BYTES = 1024 * MIB
Judge = Callable[[Iterable[Buffer]], bool]
NO_REACH = Reach(context_tokens=None, offloaded=None, host_experts=None)


def reach(plan: Plan, buffers: Sequence[Buffer], judge: Judge) -> Reach:
    """judge: whether buffers fit their devices. buffers: the plan's. None for each if one of them is not known."""
    if any(buffer.high_bytes is None for buffer in buffers):
        return NO_REACH
    offloaded = plan.options.offloaded
    all_fit = (offloaded is None or offloaded >= plan.layers) and judge(buffers)
    return Reach(
        context_tokens=largest_context(plan, judge),
        offloaded=plan.layers if all_fit else most_offloaded(plan, judge),
        host_experts=fewest_host_experts(plan, judge),
    )


def largest_context(plan: Plan, judge: Judge) -> int | None:
    limit = plan.read.context_tokens
    if limit is None:
        return None
    step = CELLS_MULTIPLE * plan.sizes.streams
    steps = largest(lambda count: _fits(plan.changed(context_tokens=count * step), judge), -(-limit // CELLS_MULTIPLE))
    return min(steps * step, limit * plan.sizes.streams)


def most_offloaded(plan: Plan, judge: Judge) -> int:
    """Compute buffers do not grow with -ngl, so that only what is stored is bisected."""

    def stored(count: int) -> bool:
        return judge(plan.changed(offloaded=count).stored())

    counts = range(largest(stored, plan.layers), 0, -1)
    return next((count for count in counts if _fits(plan.changed(offloaded=count), judge)), 0)


def fewest_host_experts(plan: Plan, judge: Judge) -> int | None:
    """None if the model has no experts, or no number suffices."""
    read = plan.read
    if not read.experts.count:
        return None
    expert = f"blk.{read.layers - 1}.ffn_up_exps.weight"
    others = tuple(
        (pattern, device)
        for pattern, device in plan.options.overrides
        if device != HOST or (EXPERTS not in pattern and not compiled(pattern)(expert))
    )

    def with_host(count: int) -> Plan:
        hosted = ((first_layers(count, EXPERTS), HOST),) if count else ()
        return plan.changed(overrides=(*hosted, *others))

    on_cards = largest(lambda count: judge(with_host(read.layers - count).stored()), read.layers)
    counts = range(read.layers - on_cards, read.layers + 1)
    return next((count for count in counts if _fits(with_host(count), judge)), None)


def _fits(plan: Plan, judge: Judge) -> bool:
    """What is stored is judged first, because it takes less time to know."""
    return judge(plan.stored()) and judge(plan.buffers())
