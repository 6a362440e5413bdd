"""DeepSpeed's ZeRO stages 1 and 2 on one rank: what its optimizer takes and gives back around a traced forward and backward.

Its own code runs here on fake tensors, function by function and without what takes no memory of the device: communication, which
is in place, and what is on the host. The configuration is DeepSpeed's default: no overlap_comm (so one stream), contiguous
gradients, reduce_scatter, gradients accumulated in the weights' dtype, and gradient_clipping 1.0.
Source: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py, whose names stand at each function; runtime/utils.py, runtime/engine.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..results.ranks import Place
from ..results.timeline import Allocate, Free, Ready, Timeline
from ..typed import Any
from .optimizers import optimizer_of
from .recorder import Recorder, recording
from .without_data import fake_mode
from .zero_norms import clip, combined, is_invalid, is_not_finite

ALIGNMENT = 2  # nccl_start_alignment_factor
REDUCE_BUCKET = 5 * 10**8  # elements; zero/config.py, reduce_bucket_size
ROOT = "deepspeed"  # stands for a module where DeepSpeed's own code takes memory
OPTIMIZER, GRADIENTS = "optimizer", "gradients"


class Parameter:
    """A trained parameter: where it begins in the flat buffer, and its gradient, if there is one."""

    def __init__(self, elements: int, begins: int) -> None:
        self.elements, self.begins = elements, begins
        self.gradient: Any = None

    def slices(self, partition: int) -> Iterator[tuple[int, int, int]]:
        """(rank, first element, elements) of its parts, which are the ranks'."""
        first = self.begins // partition
        for rank in range(first, (self.begins + self.elements - 1) // partition + 1):
            start = max(0, rank * partition - self.begins)
            yield rank, start, min(self.elements, (rank + 1) * partition - self.begins) - start


def on_rank(trace: Timeline, place: Place, *, dtype: str, optimizer: str, bucket: int = REDUCE_BUCKET) -> Timeline:
    """The training run of one rank. trace: with `ready`, of the forwards and backwards. dtype: torch's name of the parameters'.

    optimizer: as in `results.memory.Optimizer`, which steps on the rank's part in float32. bucket: elements of the buffer in
    which gradients are reduced.
    """
    import torch

    recorder = Recorder()
    recorder.outside = ROOT
    module = torch.nn.Module().train()
    with fake_mode(), recording(recorder, module, ROOT, ()), torch.no_grad():
        rank = _Rank(trace, place, recorder, getattr(torch, dtype), bucket)
        held = rank.run(optimizer)
        recorder.closed = True
        del held
    return Timeline(
        events=tuple(recorder.events),
        stages=tuple(recorder.stages),
        kept=tuple(recorder.kept.items()),
        sums=tuple((rank.moved[identity], each) for identity, each in trace.sums if identity in rank.moved),
    )


class _Rank:
    """DeepSpeedZeroOptimizer on one rank."""

    def __init__(self, trace: Timeline, place: Place, recorder: Recorder, dtype: Any, bucket: int) -> None:
        self.trace, self.recorder, self.dtype, self.bucket_elements = trace, recorder, dtype, bucket
        self.ranks, self.rank, self.keeps_whole = place.how.fsdp, place.rank, place.how.zero_stage == 1
        self.offloaded = place.how.offload_optimizer
        self.moved: dict[int, int] = {}  # ids in the trace -> here
        self.taken: set[int] = set()  # gradients that are freed here
        self.whole: dict[int, int] = {}  # gradients that wait for the end of the backward, by parameter
        trained = {ready.parameter for ready in trace.ready}
        sizes = {
            event.id: event.size_bytes // dtype.itemsize
            for event in trace.events[: trace.stages[1].first_event]
            if isinstance(event, Allocate) and event.id in trained
        }
        self.parameters: dict[int, Parameter] = {}
        begins = 0
        for identity, elements in sizes.items():
            self.parameters[identity] = Parameter(elements, begins)
            begins += elements
        alignment = ALIGNMENT * self.ranks
        self.flat_elements = math.ceil(begins / alignment) * alignment
        self.partition = self.flat_elements // self.ranks
        self.own = [one for one in self.parameters.values() if self.part_of(one) is not None]
        self.filled: list[Parameter] = []
        self.elements = 0
        self.buffer: Any = None
        self.large: Parameter | None = None
        self.own_gradients: Any = None
        self.own_offset = 0
        self.averaged: list[Any] = []
        self.summed: list[Any] = []  # gradients of the parameters of this rank's part, over micro-batches
        self.norms: list[Any] = []
        self.norm: Any = None

    def part_of(self, parameter: Parameter) -> tuple[int, int] | None:
        """First element and number of elements of this rank's part."""
        parts = (each[1:] for each in parameter.slices(self.partition) if each[0] == self.rank)
        return next(parts, None)

    # --- the run

    def run(self, optimizer: str) -> object:
        """Records the trace's events, with those of this rank among them; returns what stays alive."""
        recorder = self.recorder
        stages: dict[int, list[str]] = {}
        for stage in self.trace.stages:
            stages.setdefault(stage.first_event, []).append(stage.name)
        ready: dict[int, list[Ready]] = {}
        for one in self.trace.ready:
            ready.setdefault(one.event, []).append(one)
        loading, flat = True, None
        for index, event in enumerate((*self.trace.events, None)):
            for one in ready.get(index, ()):
                self._receive(one)
            for name in stages.get(index, ()):
                recorder.stage(name)
                if name != "load" and loading:
                    loading = False
                    self._make_states(optimizer)
                if name == OPTIMIZER:
                    self._step()
            if isinstance(event, Allocate):
                if event.id in self.parameters:  # of which the first brings all, in one buffer
                    flat = self._made(self.flat_elements, self.dtype, event.operator, ROOT) if flat is None else flat
                else:
                    self.moved[event.id] = recorder.take(event.size_bytes, event.operator, module=event.module)
            elif isinstance(event, Free) and event.id not in self.taken:
                recorder.let_go(self.moved[event.id])
        return flat

    def _receive(self, ready: Ready) -> None:
        """A gradient is there, or all of the step's. Source: process_gradients, reduce_gradients"""
        if ready.parameter is None or ready.gradient is None:
            whole = [identity for identity in self.parameters if identity in self.whole]
            for identity in whole:
                self._take_over(identity, self.whole.pop(identity))
            for identity in whole:
                self._fill(self.parameters[identity])
            following = next(stage.name for stage in self.trace.stages if stage.first_event >= ready.event)
            self._end_backward(last=following == OPTIMIZER)
            return
        self._set_up_bucket()
        if self.keeps_whole:
            self.whole[ready.parameter] = ready.gradient
        else:
            self._take_over(ready.parameter, ready.gradient)
            self._fill(self.parameters[ready.parameter])

    def _take_over(self, parameter: int, gradient: int) -> None:
        import torch

        with self.recorder.paused():
            tensor = torch.empty(self.parameters[parameter].elements, dtype=self.dtype)
        self.taken.add(gradient)
        self.recorder.adopt(tensor, self.moved[gradient])
        self.recorder.keep(tensor, GRADIENTS)
        self.parameters[parameter].gradient = tensor

    def _made(self, elements: int, dtype: Any, operator: str, module: str) -> Any:
        """A tensor made before the run."""
        import torch

        with self.recorder.paused():
            tensor = torch.empty(elements, dtype=dtype)
        self.recorder.see(tensor, operator, module=module)
        return tensor

    def _make_states(self, optimizer: str) -> None:
        """What stays: on the device the float32 part, or of an optimizer on the host the buffer through which gradients return.

        Source: __init__, single_partition_of_fp32_groups and temp_grad_buffer_for_gpu_offload
        """
        import torch

        if self.offloaded:
            largest = max(parameter.elements for parameter in self.parameters.values())
            self.states = self._made(largest, self.dtype, "aten.zeros.default", OPTIMIZER)
            return
        holder = torch.nn.Module()
        master = self._made(self.partition, torch.float32, "aten._to_copy.default", OPTIMIZER)
        holder.part = self.master = torch.nn.Parameter(master)
        self.optimizer = optimizer_of(optimizer, holder)

    # --- gradients

    def _set_up_bucket(self) -> None:
        """Source: setup_buckets"""
        import torch

        if self.buffer is None:
            self.buffer = torch.empty(self.bucket_elements, dtype=self.dtype)
            self.recorder.keep(self.buffer, GRADIENTS)

    def _fill(self, parameter: Parameter) -> None:
        """Source: reduce_independent_p_g_buckets_and_remove_grads"""
        import torch

        if self.elements + parameter.elements > self.bucket_elements:
            self._reduce()
        if parameter.elements > self.bucket_elements:
            if self.offloaded:
                parameter.gradient = parameter.gradient.detach().clone(memory_format=torch.contiguous_format)
            self.large = parameter
        else:
            view = self.buffer.narrow(0, self.elements, parameter.elements)
            view.copy_(parameter.gradient.view(-1))
            parameter.gradient = view
        self.elements += parameter.elements
        self.filled.append(parameter)

    def _reduce(self) -> None:
        """Source: reduce_ipg_grads"""
        if self.large is not None:
            self._average(self.large.gradient.view(-1))
            self.large = None
        else:
            self._average(self.buffer.narrow(0, 0, self.elements))
        for parameter in self.filled:
            if self.part_of(parameter) is not None:
                self._keep(parameter)
            elif not self.keeps_whole:
                parameter.gradient = None
        self.filled.clear()
        self.elements = 0

    def _average(self, tensor: Any) -> None:
        """Source: average_tensor, allreduce_and_scatter"""
        ranges: list[tuple[int, int, int]] = []  # rank, first element, elements
        first = 0
        for parameter in self.filled:
            for rank, _, elements in parameter.slices(self.partition):
                if ranges and ranges[-1][0] == rank:
                    ranges[-1] = (rank, ranges[-1][1], ranges[-1][2] + elements)
                else:
                    ranges.append((rank, first, elements))
                first += elements
        tensor.div_(self.ranks / 1.0)
        some: list[tuple[int, Any]] = []
        for rank, begins, elements in ranges:
            some.append((rank, tensor.narrow(0, begins, elements)))
            if sum(part.numel() for _, part in some) > self.bucket_elements:
                self._reduce_to_owners(some)
                some = []
        if some:
            self._reduce_to_owners(some)

    def _reduce_to_owners(self, parts: Sequence[tuple[int, Any]]) -> None:
        """Source: allreduce_and_copy_with_multiple_ranks, allreduce_bucket"""
        from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

        tensors = [part for _, part in parts]
        flat = _flatten_dense_tensors(tensors)
        self.recorder.keep(flat, GRADIENTS)
        for (rank, part), reduced in zip(parts, _unflatten_dense_tensors(flat, tensors), strict=True):
            if rank == self.rank:
                part.copy_(reduced)

    def _keep(self, parameter: Parameter) -> None:
        """Source: copy_grads_in_partition"""
        import torch

        if self.offloaded:
            self._to_host(parameter)
            return
        if self.own_gradients is None:
            self.own_offset = 0
            self.own_gradients = torch.empty(sum(one.elements for one in self.own), dtype=self.dtype)
            self.recorder.keep(self.own_gradients, GRADIENTS)
        view = self.own_gradients.view(-1).narrow(0, self.own_offset, parameter.elements)
        view.copy_(parameter.gradient.view(-1))
        parameter.gradient = view
        self.own_offset += parameter.elements

    def _to_host(self, parameter: Parameter) -> None:
        """Source: set_norm_for_param_grad_in_gpu, update_offload_overflow_tracker_for_param_grad,
        async_inplace_copy_grad_to_fp32_buffer_from_gpu
        """
        import torch

        own = self.part_of(parameter)
        assert own is not None
        self.norms.append(parameter.gradient.view(-1).narrow(0, *own).to(torch.double).norm(2))
        is_not_finite(parameter.gradient)
        parameter.gradient.view(-1).narrow(0, *own).to(torch.float32)
        parameter.gradient = None

    def _end_backward(self, *, last: bool) -> None:
        """Of a micro-batch. last: of the step's. Source: independent_gradient_partition_epilogue, get_all_grad_tensors,
        _get_flat_partition_unpadded, _release_ipg_buffers
        """
        import torch

        self._reduce()
        if not self.offloaded:
            made = [parameter.gradient for parameter in self.own]
            for place, parameter in enumerate(self.own):
                if made[place] is None:
                    made[place] = torch.zeros(parameter.elements, dtype=self.dtype)
            for total, gradient in zip(self.summed, made, strict=False):
                total.add_(gradient)
            self.summed = self.summed or made
            del made
        if not self.offloaded and last:
            left = self.partition
            for parameter, gradient in zip(self.own, self.summed, strict=True):
                own = self.part_of(parameter)
                assert own is not None
                self.averaged.append(gradient.view(-1).narrow(0, *own) if own[1] < parameter.elements else gradient)
                left -= own[1]
            if left:
                self.averaged.append(torch.zeros(left, dtype=self.dtype))
            self.summed = []
        self.buffer = self.own_gradients = None
        for parameter in self.parameters.values():
            parameter.gradient = None

    # --- the step

    def _step(self) -> None:
        """Source: step; engine.py, _take_model_step"""
        import torch

        if self.offloaded:  # the rest is on the host
            self.norms.clear()
            return
        if self.dtype != torch.float32:
            overflow = self._overflow()
            overflow.byte()
            del overflow
        norm = self._norm()
        if self.dtype != torch.float32:
            is_invalid(norm)
        self.norm, before = norm / 1.0, self.norm
        self._step_on_part(norm)
        del before

    def _overflow(self) -> Any:
        """Source: has_overflow, has_overflow_partitioned_grads_serial"""
        import torch

        count = torch.zeros([1], dtype=torch.float)
        for gradient in self.averaged:
            count += is_not_finite(gradient)
        return count.bool()

    def _norm(self) -> Any:
        """Source: scaled_global_norm, get_grad_norm_direct, mask_nan_or_inf_with_val_inplace"""
        import torch

        norms = []
        for gradient, _ in zip(self.averaged, self.own, strict=False):
            norms.append(torch.linalg.vector_norm(gradient.to(torch.double).detach(), ord=2.0))
        total = torch.stack(norms).pow(2.0).sum().float() if norms else torch.tensor(0.0, dtype=torch.float32)
        total = total.pow(1.0 / 2.0)
        infinite, undefined = total.isinf(), total.isnan()
        invalid = undefined.logical_or(infinite)
        total.masked_fill_(invalid, torch.tensor(-1.0, dtype=torch.float))
        del norms, infinite, undefined, invalid
        return combined([total])

    def _step_on_part(self, norm: Any) -> None:
        import torch
        from torch._utils import _flatten_dense_tensors

        flat = _flatten_dense_tensors(self.averaged)
        part = flat.to(torch.float32)
        self.recorder.keep(flat, GRADIENTS)
        self.recorder.keep(part, GRADIENTS)
        del flat
        self.master.grad = part
        self.averaged.clear()
        is_invalid(norm)
        clip(part, norm)
        self.recorder.outside = OPTIMIZER
        self.optimizer.step()
        self.recorder.outside = ROOT
        self.master.grad = None


def in_one_dtype(model: Any, dtype: Any) -> None:
    """Parameters as the engine casts them, PEFT's float32 adapters too. Source: engine.py, _cast_module_mixed_precision"""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
