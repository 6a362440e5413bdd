"""Records the storages that a model allocates and frees, below autograd, with the module and the operator of each."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from ..results.timeline import (
    ADAPTER,
    BATCHED_SCRATCH,
    FILTER_SCRATCH,
    FLASH_SCRATCH,
    GATHERED,
    SOFTMAX_SCRATCH,
    Allocate,
    ColumnSum,
    Event,
    Free,
    Ready,
    Stage,
)
from ..typed import Any
from .contiguous import Copied, copied_operands
from .kernels import (
    ACTIVATION_GRADIENTS,
    BIASED_GEMM_4BIT,
    GEMM_4BIT,
    adds_bias,
    batched_scratch,
    convolution_operands,
    dequantised,
    flash_backward_scratch,
    in_math_attention,
    is_channels_last,
    makes_cache,
    safe_softmax_scratch,
)
from .scratch import SUMS, WIDE_EMBEDDING_GRADIENT, column_sum

# Up to this many rows of inputs bitsandbytes multiplies without dequantising, on every card. Source: bitsandbytes 0.50,
# backends/cuda/ops.py, _GEMM_4BIT_CUSTOM_FLOOR_M
FUSED_ROWS = 4
NOT_COPIED = Copied()


class Recorder:
    """Turns allocated and freed storages into events. device: whose order of them is recorded where kernels differ."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = device
        self.events: list[Event] = []
        self.stages: list[Stage] = []
        self.modules: list[str] = []  # now running, innermost last
        self.after: dict[str, str] = {}  # the stages that begin when modules have run, by name
        self.outside = ""  # module name when none is running
        self.operator: str | None = None  # replaces the name of torch's operator
        self.owner: str | None = None  # replaces the name of the running module
        self.recording = True
        self.step_on_host = False  # what the stage "optimizer" makes is not recorded
        self.closed = False
        self.kept: dict[int, str] = {}  # use of each cached storage, by id
        self.sums: dict[int, ColumnSum] = {}  # sums over rows, by the id of their output
        self.ready: list[Ready] = []  # gradients
        self.owners: dict[int, str] = {}  # module of the parameter for which an optimizer allocates a storage, by id
        self._owned: dict[int, str] = {}  # that of parameters, gradients and what is made of them, by address
        self._owner = ""  # that of the optimizer's last operator
        self._ids: dict[int, int] = {}  # ids of living storages by address
        self._left_out: set[int] = set()  # addresses of living storages that are not recorded
        self._allocations: list[Allocate] = []

    def stage(self, name: str) -> None:
        self.stages.append(Stage(name=name, first_event=len(self.events)))
        self.recording = not (self.step_on_host and name == "optimizer")

    def see(self, tensor: Any, operator: str, *, module: str) -> None:
        """Records the tensor's storage if it is new."""
        if tensor.device.type == "meta":
            return  # DTensor inferring a shape
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if address in self._ids or address in self._left_out or self.closed or not (size_bytes := storage.nbytes()):
            return
        allocation = Allocate(len(self._allocations), size_bytes, module, operator)
        self._ids[address] = allocation.id
        self._allocations.append(allocation)
        self.events.append(allocation)
        weakref.finalize(storage, self._release, address, allocation.id).atexit = False

    @property
    def next_id(self) -> int:
        return len(self._allocations)

    def take(self, size_bytes: int, operator: str, *, module: str) -> int:
        """Records an allocation of no tensor, which `let_go` frees; returns its id."""
        allocation = Allocate(self.next_id, size_bytes, module, operator)
        self._allocations.append(allocation)
        self.events.append(allocation)
        return allocation.id

    def let_go(self, identity: int) -> None:
        self.events.append(Free(identity))

    def adopt(self, tensor: Any, identity: int) -> None:
        """Lets a tensor's storage stand for what `take` recorded: it is freed with the tensor."""
        storage = tensor.untyped_storage()
        self._ids[storage._cdata] = identity
        weakref.finalize(storage, self._release, storage._cdata, identity).atexit = False

    def gradient(self, parameter: Any) -> None:
        """Records that the parameter's gradient is made."""
        storages = (tensor.untyped_storage()._cdata for tensor in (parameter, parameter.grad))
        self.ready.append(Ready(len(self.events), *(self._ids[address] for address in storages)))

    def reduced(self) -> None:
        """Records that the backward's gradients are all made, and are to be reduced."""
        self.ready.append(Ready(len(self.events)))

    def resize(self, tensor: Any, size_bytes: int) -> None:
        """Records that a storage is about to be freed (0 bytes) or allocated again while Python keeps the object."""
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if size_bytes == 0 and address in self._ids:
            self._release(address, self._ids[address])
        elif size_bytes and storage.nbytes() == 0:
            storage.resize_(size_bytes)
            self.see(tensor, GATHERED, module=self.owner or self.outside)

    def leave_out(self, tensor: Any, *_: Any, **__: Any) -> None:
        """Excludes the tensor's storage, which is on the host."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ids and storage._cdata not in self._left_out:
            self._left_out.add(storage._cdata)
            weakref.finalize(storage, self._left_out.discard, storage._cdata).atexit = False

    def keep(self, tensor: Any, use: str) -> None:
        """Marks the tensor's storage as part of a cache."""
        identity = self._ids.get(tensor.untyped_storage()._cdata)
        if identity is not None:
            self.kept[identity] = use

    def own(self, parameters: Iterable[tuple[str, Any]]) -> None:
        """Begins to follow what an optimizer makes of (module, parameter) pairs."""
        self._owner = ""
        for module, parameter in parameters:
            for tensor in (parameter, parameter.grad):
                if tensor is not None:
                    self._owned[tensor.untyped_storage()._cdata] = module

    def follow(self, outputs: Any, arguments: Sequence[Any]) -> None:
        """Records the owners of an optimizer's outputs: that of the first argument, of lists the one at the same place; else
        that of the operator before."""
        for place, output in enumerate(tensors_in(outputs)):
            sources = (
                source[min(place, len(source) - 1)] if isinstance(source, (list, tuple)) and source else source
                for source in arguments
            )
            addresses = (source.untyped_storage()._cdata for source in sources if hasattr(source, "untyped_storage"))
            self._owner = next((self._owned[address] for address in addresses if address in self._owned), self._owner)
            address = output.untyped_storage()._cdata
            self._owned[address] = self._owner
            if self._owner and address in self._ids:
                self.owners.setdefault(self._ids[address], self._owner)

    def sum(self, output: Any, tensor: Any, dims: Any) -> None:
        """Records that `output` is a sum of `tensor` over `dims`."""
        summed = column_sum(tensor, dims)
        identity = self._ids.get(output.untyped_storage()._cdata)
        if summed is not None and identity is not None:
            self.sums[identity] = summed

    def rename(self, parameters: Iterable[Any], operator: str) -> None:
        """Relabels storages that became parameters after their allocation: biases that bitsandbytes cast to its compute dtype."""
        for parameter in parameters:
            allocation = self._allocations[self._ids[parameter.untyped_storage()._cdata]]
            if allocation.operator not in (operator, ADAPTER):
                self.events[self.events.index(allocation)] = allocation._replace(operator=operator)

    def origin(self, tensor: Any) -> tuple[str, str]:
        """Module and operator that allocated the tensor's storage."""
        allocation = self._allocations[self._ids[tensor.untyped_storage()._cdata]]
        return allocation.module, allocation.operator

    def regrown(self, tensor: Any, shape: tuple[int, ...]) -> Any:
        """The tensor itself if it has this shape, else a new one recorded with the same module and operator."""
        if tensor.shape == shape:
            return tensor
        module, operator = self.origin(tensor)
        with self.paused():
            larger = tensor.new_zeros(shape)
        self.see(larger, operator, module=module)
        return larger

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not record allocations made inside; still records frees."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    @contextmanager
    def named(self, operator: str | None, module: str | None = None) -> Iterator[None]:
        """Records allocations made inside under this operator and module; None: under those that make them."""
        self.operator, self.owner = operator, module
        try:
            yield
        finally:
            self.operator = self.owner = None

    def _release(self, address: int, identity: int) -> None:
        if self._ids.get(address) != identity:
            return  # freed earlier by `resize`
        del self._ids[address]
        self._owned.pop(address, None)
        if not self.closed:
            self.events.append(Free(identity))


@contextmanager
def recording(recorder: Recorder, model: Any, root: str, shared: Sequence[type]) -> Iterator[None]:
    """Records every operator below autograd under the module whose forward or gradient it computes.

    shared: tensor types whose operators run as operators on this rank's shards, which are recorded instead.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    owners: dict[int, str] = {id(weight): name.rpartition(".")[0] or root for name, weight in model.named_parameters()}
    module_of_node: dict[int, str] = {}  # by autograd's sequence number of a graph node
    names: dict[Any, str] = {}
    aten = torch.ops.aten
    add = aten.add.Tensor
    # Operators that autograd's engine runs in place, except under a dispatch mode. Sources: torch 2.13, torch/csrc/autograd,
    # input_buffer.cpp, can_accumulate_inplace; FunctionsManual.cpp, index_backward and value_selecting_reduction_backward
    in_place = {
        add: aten.add_.Tensor,
        aten.index_put.default: aten.index_put_.default,
        aten.scatter.src: aten.scatter_.src,
    }
    held_by_autograd: list[tuple[int, int]] = []
    flash_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    # Multiplies the gradient by the output first. Source: torch 2.11, aten/src/ATen/native/cuda/SoftMax.cu,
    # softmax_backward_cuda_out
    softmax_backward = aten._softmax_backward_data.default
    safe_softmax = aten._safe_softmax.default
    embedding_backward = aten.embedding_dense_backward.default
    batched = {aten.bmm.default: 0, aten.baddbmm.default: 1}  # where their matrices begin among the arguments
    laid_out = {getattr(aten, name).default: place for name, place in ACTIVATION_GRADIENTS.items()}
    copied = copied_operands(recorder.device)
    on_host = {aten.lift_fresh.default, aten.scalar_tensor.default}
    device_of = torch.ops.prim.device.default  # asked for more often than all that computes
    arrived = torch.ops._c10d_functional.wait_tensor.default if shared else None

    named_nodes = 0  # nodes below this sequence number are named

    def name_nodes(*_: Any) -> None:
        """Names the graph nodes made since the last call by the running module. An operator may make several: one in place also
        that of the copy of its input.
        """
        nonlocal named_nodes
        made = torch.autograd._get_sequence_nr()
        if recorder.modules:
            module_of_node.update(dict.fromkeys(range(named_nodes, made), recorder.modules[-1]))
        named_nodes = made

    def module_now() -> str:
        if recorder.modules:
            name_nodes()
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
        """Whether autograd's engine runs, and not a module that checkpointing recomputes."""
        return not (recorder.modules or torch.is_grad_enabled()) and torch._C._current_autograd_node() is not None

    def sums_gradients(first: Any, second: Any) -> bool:
        """Whether autograd adds two gradients of a tensor, the first referenced by autograd alone. Source: see `in_place`."""
        if not recorder.recording:
            held_by_autograd.append(holders(first))
        dense: bool = aten.is_non_overlapping_and_dense.default(first)
        return dense and first.shape == getattr(second, "shape", None) and holders(first) == held_by_autograd[0]

    def is_in_place(operator: Any, *arguments: Any) -> bool:
        """Of the operators of `in_place`. The gradient of what was written to is a copy. Source: derivatives.yaml, index_put_"""
        if operator is add:
            return sums_gradients(*arguments)
        return not torch._C._current_autograd_node().name().startswith("IndexPutBackward")

    class Recording(TorchDispatchMode):  # type: ignore[misc]
        _should_skip_dynamo = classmethod(lambda _: False)  # nothing is compiled here

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if shared and any(tensor_type in shared for tensor_type in types):
                return NotImplemented  # then its shards are dispatched here
            if operator is device_of:
                return args[0].device
            if operator is arrived:
                return args[0]  # what it returns for real tensors
            module = module_now()
            name = names.get(operator)
            if name is None:
                name = names[operator] = str(operator).replace("_for_cpu", "")
            if operator is embedding_backward and args[0].element_size() > 2:
                name = WIDE_EMBEDDING_GRADIENT
            adds_mask = operator is add and in_math_attention.get()
            if adds_mask or (operator in in_place and in_backward() and is_in_place(operator, *args)):
                operator = in_place[operator]
            # Makes its input contiguous first. Source: torch 2.13, Convolution.cpp
            if operator is aten.convolution.default:
                channels_last = is_channels_last(args[0])
                args = (args[0] if channels_last else args[0].contiguous(), *args[1:])
                if recorder.recording:
                    recorder.see(args[0], name, module=module)
            if operator is aten.convolution_backward.default:
                args = convolution_operands(*args)
                for tensor in args[1::-1] if recorder.recording else ():
                    recorder.see(tensor, name, module=module)
                    del tensor
            before, after = copied.get(operator, NOT_COPIED)
            operands = {place: args[place].contiguous() for place in (*before, *after)}
            for place in before if recorder.recording else ():
                recorder.see(operands[place], name, module=module)
            scratch: list[tuple[str, Any]] = []
            if name == GEMM_4BIT:
                if args[0].numel() > FUSED_ROWS * args[0].shape[-1]:
                    scratch = list(dequantised(*args, **(kwargs or {})))
                name = BIASED_GEMM_4BIT if adds_bias(*args, **(kwargs or {})) else name
            for made_by, tensor in scratch:
                recorder.see(tensor, made_by, module=module)
                del tensor
            if operator in laid_out:  # without its decomposition's layout
                outputs = aten.mul.Tensor(args[0], args[laid_out[operator]])
            elif operands:
                outputs = operator(*(operands.get(place, argument) for place, argument in enumerate(args)))
            else:
                outputs = operator(*args, **(kwargs or {}))
            if recorder.recording:
                # AdamW counts steps on the host unless fused; the mask of a sharded embedding is excluded too.
                masking = shared and module.endswith("embed_tokens")
                left_out = operator in on_host and (module == "optimizer" or masking or makes_cache.get())
                see = recorder.leave_out if left_out else recorder.see
                made = tensors_in(outputs)
                # Its mask is made first. Source: torch 2.13, aten/src/ATen/native/cuda/Dropout.cu, dropout_cuda
                for tensor in reversed([*made]) if operator is aten.native_dropout.default else made:
                    see(tensor, recorder.operator or name, module=recorder.owner or module)
                if module == "optimizer":
                    recorder.follow(outputs, args)
                if model.training and name in SUMS:
                    recorder.sum(outputs, *args[:2])
                for place in after:
                    recorder.see(operands[place], name, module=module)
            while operands:
                operands.popitem()
            while scratch:  # in Python's order for a function's locals: the scales with their offset are an argument
                scratch.pop(1 if len(scratch) > 2 else 0)
            if operator in batched:
                first = batched[operator]
                copies = batched_scratch(args[first : first + 2])
                for tensor in copies:
                    recorder.see(tensor, BATCHED_SCRATCH, module=module)
                    del tensor
                while copies:
                    copies.pop()
            if operator is aten.convolution.default and channels_last:
                # After its output. Source: torch 2.13, cudnn/ConvShared.cpp, cudnn_convolution_forward_out
                filters = args[1].contiguous(memory_format=torch.channels_last)
                recorder.see(filters, FILTER_SCRATCH, module=module)
                del filters
            if operator is flash_backward:
                for tensor in flash_backward_scratch(args[1], args[2]):
                    recorder.see(tensor, FLASH_SCRATCH, module=module)
            if operator is safe_softmax:
                softmax_scratch = []
                for tensor in safe_softmax_scratch(args[0]):
                    recorder.see(tensor, SOFTMAX_SCRATCH, module=module)
                    softmax_scratch.append(tensor)
                del tensor
                while softmax_scratch:
                    softmax_scratch.pop()
            if operator is softmax_backward:
                recorder.see(args[0] * args[1], SOFTMAX_SCRATCH, module=module)
            return outputs

    for name, module in model.named_modules():
        module.register_forward_pre_hook(name_nodes)
        module.register_forward_pre_hook(partial(_enter, recorder.modules, name or root))
        module.register_forward_hook(name_nodes)
        module.register_forward_hook(partial(_leave, recorder), always_call=True)
    with Recording():
        if model.training:
            with recorder.paused():  # Calibrates `sums_gradients`: autograd alone references the first gradient.
                twice = torch.zeros(1, requires_grad=True) * 2
                (twice.sigmoid() * twice).sum().backward()
        yield


def _enter(modules: list[str], name: str, *_: Any) -> None:
    modules.append(name)


def _leave(recorder: Recorder, *_: Any) -> None:
    if (stage := recorder.after.get(recorder.modules.pop())) is not None:
        recorder.stage(stage)


def tensors_in(outputs: Any) -> Iterator[Any]:
    if hasattr(outputs, "untyped_storage"):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from tensors_in(output)
