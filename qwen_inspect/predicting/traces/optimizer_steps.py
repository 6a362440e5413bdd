"""An optimizer's step from the sizes of the parameters that it updates: its states, temporary tensors, and the gradients dropped.

Sources: torch 2.13, optim/adamw.py (_init_group, _single_tensor_adamw, _multi_tensor_adamw), optim/sgd.py and
optim/optimizer.py (zero_grad); bitsandbytes 0.50, optim/optimizer.py, Optimizer2State.init_state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile

from ...checkpoint import Tensor
from ...results.timeline import Stage
from ...spec import Module, each_module
from ...typed import NamedTuple
from ...values import replace
from ..training import BLOCK_8BIT, LEAST_8BIT, TABLE_8BIT_BYTES
from .kept_trace import Coefficients, KeptTrace, fixed_size
from .segments import BACKWARD

COPY = "aten.clone.default"  # operator of a trace
OPTIMIZER, INPUTS = "optimizer", "inputs"  # modules of a trace
COVERED = ("adamw_foreach", "adamw_fused", "adamw_for_loop", "adamw_8bit", "sgd")


class Make(NamedTuple):
    size_bytes: int
    operator: str


class Drop(NamedTuple):
    """Frees the step's request of that number."""

    number: int


def with_steps(trace: KeptTrace, trained: Sequence[Tensor], optimizer: str, *, backwards: int) -> KeptTrace:
    """The run with a step after every `backwards` backwards. The trace names by parameter, in `kept`, the gradients that a step
    drops; trained: the parameters, in the order of the model.
    """
    gradients = dict(trace.kept)
    place = {tensor.name: number for number, tensor in enumerate(trained)}
    named = set(gradients.values())
    updated = [tensor for tensor in trained if tensor.name in named]
    allocations: list[tuple[Coefficients, str, str]] = []
    order: list[int] = []
    stages: list[Stage] = []
    numbers: list[int] = []  # of each request of the trace, in the whole run
    alive: list[int] = []  # gradients, of the trace
    bounds = [*(stage.first_event for stage in trace.stages), len(trace.order)]
    done = 0
    for stage, (begin, end) in zip(trace.stages, pairwise(bounds), strict=True):
        stages.append(Stage(name=stage.name, first_event=len(order)))
        for entry in trace.order[begin:end]:
            if entry < 0:
                order.append(-1 - numbers[-1 - entry])
                continue
            if entry in gradients:
                alive.append(entry)
            order.append(len(allocations))
            numbers.append(len(allocations))
            allocations.append(trace.allocations[entry])
        if stage.name != BACKWARD:
            continue
        done += 1
        if done % backwards:
            continue
        stages.append(Stage(name=OPTIMIZER, first_event=len(order)))
        made: list[int] = []
        for event in _step(updated, optimizer, is_first=done == backwards):
            if isinstance(event, Drop):
                order.append(-1 - made[event.number])
                continue
            order.append(len(allocations))
            made.append(len(allocations))
            allocations.append((fixed_size(event.size_bytes), OPTIMIZER, event.operator))
        order += [-1 - numbers[entry] for entry in sorted(alive, key=lambda entry: place[gradients[entry]])]
        alive = []
    order += [-1 - numbers[entry] for entry in _last_inputs(trace)]
    return replace(
        trace,
        stages=tuple(stages),
        allocations=tuple(allocations),
        order=tuple(order),
        sums=tuple((numbers[summed[0]], *summed[1:]) for summed in trace.sums),
        buffers=tuple((numbers[entry], buffer) for entry, buffer in trace.buffers),
        kept=(),
    )


def with_average(trace: KeptTrace, tree: Module) -> KeptTrace:
    """The run whose first forward begins with a copy of each parameter and buffer, which is then updated in place.

    Source: torch 2.13, optim/swa_utils.py, AveragedModel
    """
    begin = trace.stages[1].first_event  # all before is loaded, and is as many requests
    copied = [
        (fixed_size(tensor.size_bytes), OPTIMIZER, COPY)
        for _, module in each_module(tree)
        for tensor in (*module.tensors, *module.buffers)
        if tensor.size_bytes
    ]

    def moved(number: int) -> int:
        return number + len(copied) if number >= begin else number

    order = [moved(entry) if entry >= 0 else -1 - moved(-1 - entry) for entry in trace.order]
    order[begin:begin] = range(begin, begin + len(copied))
    events = (stage.first_event for stage in trace.stages)
    return replace(
        trace,
        stages=tuple(
            replace(stage, first_event=event + len(copied) * (number > 1))
            for number, (stage, event) in enumerate(zip(trace.stages, events, strict=True))
        ),
        allocations=(*trace.allocations[:begin], *copied, *trace.allocations[begin:]),
        order=tuple(order),
        sums=tuple((moved(summed[0]), *summed[1:]) for summed in trace.sums),
        owners=tuple((moved(number), module) for number, module in trace.owners),
        buffers=tuple((moved(number), buffer) for number, buffer in trace.buffers),
    )


def _last_inputs(trace: KeptTrace) -> Iterator[int]:
    """The last micro-batch, which the training loop drops when it ends."""
    begin = max(stage.first_event for stage in trace.stages if stage.name != BACKWARD)
    made = (entry for entry in trace.order[begin:] if entry >= 0)
    return takewhile(lambda entry: trace.allocations[entry][1] == INPUTS, made)


def _step(updated: Sequence[Tensor], optimizer: str, *, is_first: bool) -> Iterator[Make | Drop]:
    """The events of a step but for the gradients'. Step counters of the fused AdamW are on the device, of others on the host."""
    sizes = [tensor.size_bytes for tensor in updated]
    states = [*_states(updated, optimizer)] if is_first else []
    yield from states
    begin = len(states)
    if optimizer == "adamw_foreach":
        for size_bytes in sizes:
            yield Make(size_bytes, "aten._foreach_sqrt.default")
        yield from map(Drop, range(begin + len(sizes) - 1, begin - 1, -1))
    elif optimizer == "adamw_for_loop":
        for number, size_bytes in enumerate(sizes):
            yield Make(size_bytes, "aten.sqrt.default")
            yield Make(size_bytes, "aten.div.Tensor")
            yield Drop(begin + 2 * number)
            if number:
                yield Drop(begin + 2 * number - 1)
        yield Drop(begin + 2 * len(sizes) - 1)


def _states(updated: Sequence[Tensor], optimizer: str) -> Iterator[Make]:
    if optimizer == "sgd":
        return
    like, zeros = "aten.zeros_like.default", "aten.zeros.default"
    if optimizer == "adamw_8bit":
        for _ in range(2):
            yield Make(TABLE_8BIT_BYTES, "aten.empty.memory_format")
    for tensor in updated:
        if optimizer == "adamw_fused":
            yield Make(4, zeros)
        if optimizer != "adamw_8bit":
            sizes = {like: tensor.size_bytes}
        elif tensor.elements < LEAST_8BIT:
            sizes = {like: 4 * tensor.elements}
        else:
            sizes = {like: tensor.elements, zeros: 4 * -(-tensor.elements // BLOCK_8BIT)}
        for operator, size_bytes in sizes.items():
            for _ in range(2):
                yield Make(size_bytes, operator)
