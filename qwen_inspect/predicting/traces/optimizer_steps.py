"""An optimizer's step from the sizes of the parameters that it updates: the norms by which gradients are clipped, its states,
temporary tensors, and the gradients dropped.

Sources: torch 2.13, nn/utils/clip_grad.py, optim/adamw.py (_init_group, _single_tensor_adamw, _multi_tensor_adamw), optim/sgd.py
and optim/optimizer.py (zero_grad); bitsandbytes 0.50, optim/optimizer.py, init_state of Optimizer1State and Optimizer2State.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice, pairwise, takewhile

from ...checkpoint import Tensor
from ...results.timeline import Stage
from ...results.training import Loop
from ...spec import Module, each_module
from ...tracing.optimizers import OF_BITSANDBYTES, UNDECAYED
from ...typed import NamedTuple
from ...values import replace
from ..training import BLOCK_8BIT, TABLE_8BIT_BYTES, embedded_in, is_in_8_bits, is_paged, states_of
from .kept_trace import Coefficients, KeptTrace, fixed_size
from .segments import BACKWARD, FORWARD

COPY, NORM, COUNT = "aten.clone.default", "aten.linalg_vector_norm.default", "aten.div.Tensor"  # operators of a trace
OPTIMIZER, INPUTS = "optimizer", "inputs"  # modules of a trace
LAYER_NORM = "LayerNorm"
COVERED = ("adamw_foreach", "adamw_fused", "adamw_for_loop", "sgd", "sgd_momentum", *OF_BITSANDBYTES)


class Make(NamedTuple):
    size_bytes: int
    operator: str


class Drop(NamedTuple):
    """Frees the step's request of that number."""

    number: int


def groups_of(trained: Sequence[Tensor], tree: Module, loop: Loop) -> tuple[tuple[Tensor, ...], ...]:
    """The parameters as the optimizer has them: Trainer puts those that no weight decay is meant for into a group of their own.

    Source: `tracing.optimizers`
    """
    if not loop.by_trainer:
        return (tuple(trained),)
    norms = {name for name, module in each_module(tree) if module.class_name == LAYER_NORM}

    def undecayed(tensor: Tensor) -> bool:
        module = tensor.name.rpartition(".")[0]
        return module in norms or UNDECAYED.search(tensor.name.lower()) is not None

    return tuple(tuple(tensor for tensor in trained if undecayed(tensor) is apart) for apart in (False, True))


def with_steps(
    trace: KeptTrace, trained: Sequence[Tensor], tree: Module, optimizer: str, loop: Loop, *, backwards: int
) -> KeptTrace:
    """The run with a step after every `backwards` backwards. The trace names by parameter, in `kept`, the gradients that a step
    drops; trained: the parameters, in the order of the model.
    """
    gradients = dict(trace.kept)
    named = set(gradients.values())
    clipped = [tensor.size_bytes // tensor.elements for tensor in trained if tensor.name in named] if loop.clip else []
    groups = [[one for one in group if one.name in named] for group in groups_of(trained, tree, loop)]
    place = {tensor.name: number for number, tensor in enumerate(one for group in groups for one in group)}
    wide = embedded_in(tree) if loop.by_trainer else frozenset[str]()
    allocations: list[tuple[Coefficients, str, str]] = []
    order: list[int] = []
    stages: list[Stage] = []
    numbers: list[int] = []  # of each request of the trace, in the whole run
    alive: list[int] = []  # gradients, of the trace
    norm: list[int] = []  # of the gradients, until the next is made
    bounds = [*(stage.first_event for stage in trace.stages), len(trace.order)]
    done = 0

    def happen(events: Iterable[Make | Drop]) -> list[int]:
        """Adds the events; returns the numbers of what they make."""
        made: list[int] = []
        for event in events:
            if isinstance(event, Drop):
                order.append(-1 - made[event.number])
                continue
            order.append(len(allocations))
            made.append(len(allocations))
            allocations.append((fixed_size(event.size_bytes), OPTIMIZER, event.operator))
        return made

    for stage, (begin, end) in zip(trace.stages, pairwise(bounds), strict=True):
        stages.append(Stage(name=stage.name, first_event=len(order)))
        entries = trace.order[begin:end]
        first, last = (
            len(numbers),
            max(len(numbers), 1 + max(entries, default=-1)),
        )  # of its requests, which are in order
        numbers += range(len(allocations), len(allocations) + last - first)
        allocations += trace.allocations[first:last]
        by_entry = [*numbers, *(-1 - number for number in reversed(numbers))]  # entry -1 - i frees request i
        order += map(by_entry.__getitem__, entries)
        alive += [entry for entry in gradients if first <= entry < last]
        if stage.name != BACKWARD:
            continue
        done += 1
        if done % backwards:
            continue
        stages.append(Stage(name=OPTIMIZER, first_event=len(order)))
        if clipped:
            order += [-1 - number for number in norm]
            made = happen(_clip(clipped))
            norm = made[len(clipped) + 1 : len(clipped) + 2]
        has_tables = False
        for group in groups:
            if done == backwards:
                happen(_states(group, optimizer, wide, has_tables=has_tables))
                has_tables = has_tables or any(
                    is_in_8_bits(tensor, optimizer, wide=tensor.name in wide) for tensor in group
                )
            happen(_temporary(group, optimizer))
        order += [-1 - numbers[entry] for entry in sorted(alive, key=lambda entry: place[gradients[entry]])]
        alive = []
    order += [-1 - numbers[entry] for entry in last_inputs(trace, loop)]
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


def last_inputs(trace: KeptTrace, loop: Loop) -> Sequence[int]:
    """What of the last step's inputs is dropped when the loop ends: of Trainer's, which returns its micro-batches, the number of
    labels if the class takes it; of the default loop, the last micro-batch.
    """
    forwards = [stage.first_event for stage in trace.stages if stage.name == FORWARD]
    if loop.by_trainer:
        begin = forwards[len(forwards) // 2]  # of two steps
        counts = (
            entry for entry in trace.order[begin:] if entry >= 0 and trace.allocations[entry][1:] == (INPUTS, COUNT)
        )
        return [*islice(counts, 1)]
    made = (entry for entry in trace.order[forwards[-1] :] if entry >= 0)
    return [*takewhile(lambda entry: trace.allocations[entry][1] == INPUTS, made)]


def _clip(widths: Sequence[int]) -> Iterator[Make | Drop]:
    """The norms of gradients with so many bytes for each number, the norm of these, and by what gradients are multiplied.

    Source: torch 2.13, nn/utils/clip_grad.py, _get_total_norm and _clip_grads_with_norm_
    """
    count, width = len(widths), widths[0]
    for each in widths:
        yield Make(each, NORM)
    yield Make(width * count, "aten.stack.default")
    yield Make(width, NORM)
    yield Drop(count)
    yield from map(Drop, range(count))
    yield Make(width, "aten.add.Tensor")
    yield Make(width, "aten.reciprocal.default")
    yield Make(width, "aten.mul.Tensor")
    yield Drop(count + 3)
    yield Drop(count + 2)
    yield Make(width, "aten.clamp.default")
    yield Drop(count + 4)
    yield Drop(count + 5)


def _temporary(updated: Sequence[Tensor], optimizer: str) -> Iterator[Make | Drop]:
    """What a step makes for a group of parameters and drops again."""
    sizes = [tensor.size_bytes for tensor in updated]
    if optimizer == "adamw_foreach":
        for size_bytes in sizes:
            yield Make(size_bytes, "aten._foreach_sqrt.default")
        yield from map(Drop, reversed(range(len(sizes))))
    elif optimizer == "adamw_for_loop":
        for number, size_bytes in enumerate(sizes):
            yield Make(size_bytes, "aten.sqrt.default")
            yield Make(size_bytes, "aten.div.Tensor")
            yield Drop(2 * number)
            if number:
                yield Drop(2 * number - 1)
        if sizes:
            yield Drop(2 * len(sizes) - 1)


def _states(updated: Sequence[Tensor], optimizer: str, wide: Collection[str], *, has_tables: bool) -> Iterator[Make]:
    """What the first step makes for a group of parameters and keeps. Fused AdamW counts steps on the device, others on
    the host. wide: parameters whose states have 32 bits. has_tables: another group has made those of 8-bit states.
    """
    like, zeros = "aten.zeros_like.default", "aten.zeros.default"
    of_bitsandbytes = optimizer in OF_BITSANDBYTES
    for tensor in updated:
        if optimizer == "sgd_momentum":
            yield Make(tensor.size_bytes, COPY)
        if not of_bitsandbytes:
            if optimizer == "adamw_fused":
                yield Make(4, zeros)
            if optimizer.startswith("adamw"):
                yield from [Make(tensor.size_bytes, like)] * 2
            continue
        count, in_8_bits = states_of(optimizer), is_in_8_bits(tensor, optimizer, wide=tensor.name in wide)
        if in_8_bits and not has_tables:
            yield from [Make(TABLE_8BIT_BYTES, "aten.empty.memory_format")] * count
            has_tables = True
        if not is_paged(tensor, optimizer):
            yield from [Make((1 if in_8_bits else 4) * tensor.elements, like)] * count
        if in_8_bits:
            yield from [Make(4 * -(-tensor.elements // BLOCK_8BIT), zeros)] * count
