"""Storages that come and go while a model runs, as events: below autograd, each with the module and the operator that made it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..results.timeline import (
    ADAPTER,
    FLASH_SCRATCH,
    GATHERED,
    SOFTMAX_SCRATCH,
    Allocate,
    ColumnSum,
    Event,
    Free,
    Stage,
)
from .kernels import (
    BIASED_GEMM_4BIT,
    GEMM_4BIT,
    adds_bias,
    dequantised,
    flash_backward_scratch,
    in_math_attention,
    safe_softmax_scratch,
)
from .scratch import SUMS, column_sum

# Up to so many rows of inputs bitsandbytes multiplies by a 4-bit weight as it is, on every card. Source: bitsandbytes 0.50,
# backends/cuda/ops.py, _GEMM_4BIT_CUSTOM_FLOOR_M
FUSED_ROWS = 4


class Recorder:
    """Turns storages that come and go into events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stages: list[Stage] = []
        self.modules: list[str] = []  # those being run, innermost last
        self.outside = ""  # what to name where none is
        self.operator: str | None = None  # what to name instead of torch's operators
        self.owner: str | None = None  # what to name instead of the module being run
        self.recording = True
        self.closed = False
        self.kept: dict[int, str] = {}  # uses of what a cache keeps, by id
        self.sums: dict[int, ColumnSum] = {}  # sums over rows, by the id of what they give
        self._ids: dict[int, int] = {}  # of living storages, by their address
        self._left_out: set[int] = set()  # addresses of living storages that are not counted
        self._allocations: list[Allocate] = []

    def stage(self, name: str) -> None:
        self.stages.append(Stage(name=name, first_event=len(self.events)))

    def see(self, tensor: Any, operator: str, *, module: str) -> None:
        """Count the tensor's storage, if it is a new one."""
        if tensor.device.type == "meta":
            return  # where DTensor works out a shape
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if address in self._ids or address in self._left_out or self.closed or not (size_bytes := storage.nbytes()):
            return
        allocation = Allocate(len(self._allocations), size_bytes, module, operator)
        self._ids[address] = allocation.id
        self._allocations.append(allocation)
        self.events.append(allocation)
        weakref.finalize(storage, self._release, address, allocation.id).atexit = False

    def resize(self, tensor: Any, size_bytes: int) -> None:
        """The tensor's storage is about to be given back (0 bytes), or taken again, though Python holds it all the time."""
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if size_bytes == 0 and address in self._ids:
            self._release(address, self._ids[address])
        elif size_bytes and storage.nbytes() == 0:
            storage.resize_(size_bytes)
            self.see(tensor, GATHERED, module=self.owner or self.outside)

    def leave_out(self, tensor: Any, *_: Any, **__: Any) -> None:
        """Never count the tensor's storage: it is on the host."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ids and storage._cdata not in self._left_out:
            self._left_out.add(storage._cdata)
            weakref.finalize(storage, self._left_out.discard, storage._cdata).atexit = False

    def keep(self, tensor: Any, use: str) -> None:
        """The tensor's storage is what a cache keeps."""
        identity = self._ids.get(tensor.untyped_storage()._cdata)
        if identity is not None:
            self.kept[identity] = use

    def sum(self, output: Any, tensor: Any, dims: Any) -> None:
        """The output is a sum of the tensor over some dimensions."""
        found = column_sum(tensor, dims)
        identity = self._ids.get(output.untyped_storage()._cdata)
        if found is not None and identity is not None:
            self.sums[identity] = found

    def rename(self, parameters: Iterable[Any], operator: str) -> None:
        """What has become a parameter since it was made is one: a bias that bitsandbytes cast to what it computes in."""
        for parameter in parameters:
            made = self._allocations[self._ids[parameter.untyped_storage()._cdata]]
            if made.operator not in (operator, ADAPTER):
                self.events[self.events.index(made)] = made._replace(operator=operator)

    def origin(self, tensor: Any) -> tuple[str, str]:
        """Module and operator that allocated the tensor's storage."""
        allocation = self._allocations[self._ids[tensor.untyped_storage()._cdata]]
        return allocation.module, allocation.operator

    def regrown(self, tensor: Any, shape: tuple[int, ...]) -> Any:
        """The tensor, or one of another shape from the same origin."""
        if tensor.shape == shape:
            return tensor
        module, operator = self.origin(tensor)
        with self.paused():
            larger = tensor.new_zeros(shape)
        self.see(larger, operator, module=module)
        return larger

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Storages made here are no events; those that go here are."""
        self.recording = False
        try:
            yield
        finally:
            self.recording = True

    @contextmanager
    def named(self, operator: str, module: str | None = None) -> Iterator[None]:
        """Storages made here are this operator's, and this module's."""
        self.operator, self.owner = operator, module
        try:
            yield
        finally:
            self.operator = self.owner = None

    def _release(self, address: int, identity: int) -> None:
        if self._ids.get(address) != identity:
            return  # given back before, though Python held it still
        del self._ids[address]
        if not self.closed:
            self.events.append(Free(identity))


@contextmanager
def recording(recorder: Recorder, model: Any, root: str, shared: Sequence[type]) -> Iterator[None]:
    """Record every operator below autograd, with the module whose forward it is part of, or whose gradient it computes.

    shared: types of tensors whose operators are made of others, on this rank's parts.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    owners: dict[int, str] = {id(weight): name.rpartition(".")[0] or root for name, weight in model.named_parameters()}
    module_of_node: dict[int, str] = {}  # by the sequence number that autograd gives the nodes of its graph
    names: dict[Any, str] = {}
    aten = torch.ops.aten
    add = aten.add.Tensor
    # What autograd's engine does in place, but not where a dispatch mode is on. Sources: torch 2.13, torch/csrc/autograd,
    # input_buffer.cpp, can_accumulate_inplace; FunctionsManual.cpp, index_backward and value_selecting_reduction_backward
    in_place = {
        add: aten.add_.Tensor,
        aten.index_put.default: aten.index_put_.default,
        aten.scatter.src: aten.scatter_.src,
    }
    held_by_autograd: list[tuple[int, int]] = []
    flash_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    # Which multiplies the gradient by the output first. Source: torch 2.11, aten/src/ATen/native/cuda/SoftMax.cu,
    # softmax_backward_cuda_out
    softmax_backward = aten._softmax_backward_data.default
    safe_softmax = aten._safe_softmax.default
    on_host = {aten.lift_fresh.default, aten.scalar_tensor.default}
    arrived = torch.ops._c10d_functional.wait_tensor.default if shared else None

    def module_now() -> str:
        if recorder.modules:
            if torch.is_grad_enabled():
                module_of_node[torch.autograd._get_sequence_nr() - 1] = recorder.modules[-1]
            return recorder.modules[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return recorder.outside
        if hasattr(node, "variable"):
            return owners.get(id(node.variable), recorder.outside)
        return module_of_node.get(node._sequence_nr(), recorder.outside)

    def holders(tensor: Any) -> tuple[int, int]:
        return tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)

    def in_backward() -> bool:
        """In autograd's own part of it, not where checkpointing runs a module again."""
        return not (recorder.modules or torch.is_grad_enabled()) and torch._C._current_autograd_node() is not None

    def sums_gradients(first: Any, second: Any) -> bool:
        """Whether autograd adds two gradients of a tensor, the first of which nobody else holds. Source: see `in_place`."""
        if not recorder.recording:
            held_by_autograd.append(holders(first))
        dense: bool = aten.is_non_overlapping_and_dense.default(first)
        return dense and first.shape == getattr(second, "shape", None) and holders(first) == held_by_autograd[0]

    class Recording(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(one in shared for one in types):
                return NotImplemented  # and its parts come here next
            if operator is arrived:
                return args[0]  # which is what it gives back, but not of fake tensors
            module = module_now()
            name = names.get(operator)
            if name is None:
                name = names[operator] = str(operator).replace("_for_cpu", "")
            adds_mask = operator is add and in_math_attention.get()
            if adds_mask or (operator in in_place and in_backward() and (operator is not add or sums_gradients(*args))):
                operator = in_place[operator]
            if (
                operator is aten.convolution.default
            ):  # which begins by making its input so. Source: torch 2.13, Convolution.cpp
                args = (args[0].contiguous(), *args[1:])
                if recorder.recording:
                    recorder.see(args[0], name, module=module)
            scratch: list[tuple[str, Any]] = []
            if name == GEMM_4BIT:
                if args[0].numel() > FUSED_ROWS * args[0].shape[-1]:
                    scratch = list(dequantised(*args, **(kwargs or {})))
                name = BIASED_GEMM_4BIT if adds_bias(*args, **(kwargs or {})) else name
            for made_by, tensor in scratch:
                recorder.see(tensor, made_by, module=module)
                del tensor
            outputs = operator(*args, **(kwargs or {}))
            if recorder.recording:
                # AdamW counts its steps on the host, unless it is fused; and what a rank's part of an embedding is masked with.
                masking = shared and module.endswith("embed_tokens")
                left_out = operator in on_host and (module == "optimizer" or masking)
                see = recorder.leave_out if left_out else recorder.see
                for tensor in _tensors(outputs):
                    see(tensor, recorder.operator or name, module=recorder.owner or module)
                if model.training and name in SUMS:
                    recorder.sum(outputs, *args[:2])
            while scratch:  # as Python lets go of a function's variables: the scales with their offset are its argument
                scratch.pop(1 if len(scratch) > 2 else 0)
            if operator is flash_backward:
                for tensor in flash_backward_scratch(args[1], args[2]):
                    recorder.see(tensor, FLASH_SCRATCH, module=module)
            if operator is safe_softmax:
                held = []
                for tensor in safe_softmax_scratch(args[0]):
                    recorder.see(tensor, SOFTMAX_SCRATCH, module=module)
                    held.append(tensor)
                del tensor
                while held:
                    held.pop()
            if operator is softmax_backward:
                recorder.see(args[0] * args[1], SOFTMAX_SCRATCH, module=module)
            return outputs

    for name, module in model.named_modules():
        module.register_forward_pre_hook(partial(_enter, recorder.modules, name or root))
        module.register_forward_hook(partial(_leave, recorder.modules), always_call=True)
    with Recording():
        if model.training:
            with recorder.paused():  # A sum of two gradients of which autograd holds the first alone.
                twice = torch.zeros(1, requires_grad=True) * 2
                (twice.sigmoid() * twice).sum().backward()
        yield


def _enter(modules: list[str], name: str, *_: Any) -> None:
    modules.append(name)


def _leave(modules: list[str], *_: Any) -> None:
    modules.pop()


def _tensors(outputs: Any) -> Iterator[Any]:
    if hasattr(outputs, "untyped_storage"):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)
