"""A real run on CPU followed request by request: what torch's profiler recorded, side by side with the events of a trace."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from qwen_inspect.results.timeline import GATHERED, Allocate, Event, Free

# What is taken besides what the trace has, by the operator that takes it. None of it outlives its operator.
OWN_SCRATCH: Mapping[str, str] = {
    "aten::mm": "oneDNN packs its operands",
    "aten::addmm": "the same",
    "aten::addmm_": "the same",
    "aten::bmm": "the same",
    "aten::baddbmm": "the same",
    "aten::bitwise_and": "it brings both sides to one type",
    "aten::add": "the same",
    "aten::mul": "the same",
    "aten::div": "the same",
    "aten::conv1d": "it makes its operands contiguous",
    "aten::conv2d": "the same, and oneDNN packs them",
    "aten::conv3d": "the same",
    "aten::convolution_backward": "oneDNN packs its operands",
    "aten::cumsum": "it adds up booleans as integers",
    "aten::sum": "the same: transformers looks whether a mask masks anything",
    "aten::embedding": "it makes its indices contiguous",
    "aten::avg_pool2d_backward": "its output in the gradient's order of dimensions; CUDA's kernel copies the gradient",
    "aten::copy_": "a block of a transposed copy",
    "aten::index_add_": "it adds 16-bit numbers up as float32",
    "aten::gather": "it gathers 16-bit numbers as float32",
    "aten::masked_select": "it numbers what it selects; CUDA's kernel takes the places instead",
    "aten::histc": "counts of one thread",
    "aten::sort": "it numbers what it sorts",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "tiles of one thread",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "tiles of one thread",
    "aten::eq": "`generate` looks for padding and for the end",
    "aten::lt": "`generate` looks for negative tokens",
    "aten::ne": "the loss counts its labels",
    "bitsandbytes::dequantize_blockwise": "scales without their offset",
    "bitsandbytes::optimizer_update_32bit": "it computes in float32, CUDA's kernel in registers",
    "aten::_chunk_cat": "it fills up to equal parts first, which CUDA's kernel does on the way",
}
GLOO = ("c10d::", "gloo:")  # what begins so is gloo's, which copies what it sends and gets; NCCL does not
NUMBER_BYTES = 8  # A number of Python's, made a tensor: on the host, whatever the device.
RANDOM_STATE_BYTES = 5_056  # Kept by checkpointing: on the host too.
# Operators that only take memory for the one that they are called by.
ALLOCATING = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::resize_", "aten::zeros"}
# What the profiler calls an operator that is another below autograd.
ALSO_CALLED = {
    "aten::new_zeros": "aten::zeros",
    "aten::bmm": "aten::mm",  # of one row, whose strides are others on tensors without data
}


@dataclass(frozen=True)
class Change:
    """Memory taken (or, where negative, given back) inside these operators, the innermost last; 0 bytes are a mark."""

    size_bytes: int
    address: int
    operators: tuple[str, ...]


def mark(*_: Any) -> None:
    from torch.profiler import record_function

    with record_function("mark"):
        pass


def profiled(run: Callable[[], object]) -> list[Change]:
    """What `run` takes and gives back, in order; what it returns outlives the record."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        held = run()
    rows = []

    def walk(event: Any, operators: tuple[str, ...]) -> None:
        kind, found = event.typed
        if kind == torch._C._profiler._EventType.Allocation:
            rows.append((event.start_time_ns, Change(found.alloc_size, found.ptr, operators)))
        elif event.name == "mark":
            rows.append((event.start_time_ns, Change(0, 0, ())))
        for child in event.children:
            walk(child, (*operators, event.name))

    for event in profiler.profiler.kineto_results.experimental_event_tree():
        walk(event, ())
    del held
    return _convolved([change for _, change in sorted(rows, key=lambda row: row[0])])


def _convolved(changes: list[Change]) -> list[Change]:
    """With oneDNN's own result of a convolution as scratch where a copy of it follows, which is what the operator gives.

    So where the processor computes in bfloat16 (AMX, AVX512_BF16); elsewhere no copy is made. Its gradient of a weight
    is copied likewise where the input has its channels side by side.
    """
    made = list(changes)
    for index, (change, after) in enumerate(pairwise(changes)):
        cast = ("aten::convolution_backward", "aten::to", "aten::_to_copy", "aten::empty")
        if after.operators[-4:] == cast and change.operators[-2:] == (cast[0], cast[-1]):
            made[index] = replace(change, operators=change.operators[:-1])
            made[index + 1] = replace(after, operators=change.operators)
        within = change.operators[:-1]
        copied = after.operators[: len(within) + 1] == (*within, "aten::contiguous")
        if change.operators[-2:] == ("aten::mkldnn_convolution", "aten::empty") and copied:
            made[index] = replace(change, operators=within)
    return made


def is_scratch(change: Change) -> bool:
    operators = [name for name in change.operators if name not in ALLOCATING]
    named = any(name in OWN_SCRATCH or name.startswith(GLOO) for name in operators)
    return named or change.size_bytes <= NUMBER_BYTES or change.size_bytes == RANDOM_STATE_BYTES


def is_made_by(change: Change, request: Allocate) -> bool:
    """By the request's operator itself, not by a cast within it."""
    name = "::".join(request.operator.split(".")[:2])
    called = [operator.replace("_for_cpu", "") for operator in change.operators]
    name = name if name in called else ALSO_CALLED.get(name, name)
    packed = {"aten::mkldnn_convolution", "aten::convolution_backward"} & {*called}  # by oneDNN
    if packed and called[-1] not in ("aten::empty", "aten::resize_"):
        return False
    if any(operator.startswith(GLOO) for operator in called):
        return False
    if (
        request.operator == "parameter"
    ):  # a bias, cast to what bitsandbytes computes in; a rank's part, filled up by FSDP
        made_so = "aten::_to_copy" in called or "aten::new_zeros" in called
        return change.size_bytes == request.size_bytes and made_so
    if request.operator == GATHERED:
        return change.size_bytes == request.size_bytes and any(operator.startswith("FSDP::") for operator in called)
    if request.operator == "aten.clone.default" and not change.operators:  # deepcopy copies a buffer's storage
        return change.size_bytes == request.size_bytes
    if request.operator == "aten.lift_fresh.default":  # torch.tensor(number)
        return change == Change(request.size_bytes, change.address, ("aten::empty",))
    casts = name in called and "aten::_to_copy" in called[called.index(name) + 1 :]
    return change.size_bytes == request.size_bytes and name in called and not casts


@dataclass
class Run:
    """What lives on each side, a real run's own scratch apart."""

    real: dict[int, Change]
    scratch: dict[int, Change]
    traced: dict[int, Allocate]
    real_peak_bytes: int = 0
    traced_peak_bytes: int = 0

    @property
    def real_bytes(self) -> int:
        return sum(change.size_bytes for change in self.real.values())

    @property
    def traced_bytes(self) -> int:
        return sum(request.size_bytes for request in self.traced.values())


def follow(changes: Sequence[Change], events: Sequence[Event], run: Run) -> Run:
    """Both side by side: every request of the trace has been made, in this order, with as many bytes alive before it."""
    remaining = list(reversed(events))

    def release() -> None:
        while remaining and isinstance(remaining[-1], Free):
            run.traced.pop(remaining.pop().id, None)

    for change in changes:
        if change.size_bytes < 0:
            run.real.pop(change.address, None)
            run.scratch.pop(change.address, None)
        elif change.size_bytes:
            release()
            request = remaining[-1] if remaining else None
            if isinstance(request, Allocate) and is_made_by(change, request):
                assert run.real_bytes == run.traced_bytes, request
                run.traced[request.id] = request
                run.real[change.address] = change
                remaining.pop()
            else:
                assert is_scratch(change), (change, request)
                run.scratch[change.address] = change
        run.real_peak_bytes = max(run.real_peak_bytes, run.real_bytes)
        run.traced_peak_bytes = max(run.traced_peak_bytes, run.traced_bytes)
    release()
    assert not remaining, remaining[-1]
    assert run.real_bytes == run.traced_bytes
    assert run.real_peak_bytes == run.traced_peak_bytes
    return run
