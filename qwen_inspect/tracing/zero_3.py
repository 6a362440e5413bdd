"""DeepSpeed's ZeRO stage 3 on one rank: its gradients and its step, around the weights of `partitioned`.

Its own code runs here on fake tensors, function by function and without communication, which is in place, and without what is on
the host. The configuration is DeepSpeed's default but for the numbers of `Partitioning`: contiguous gradients, reduce_scatter,
gradients accumulated in the weights' dtype, and gradient_clipping 1.0. It gathers and reduces in streams of their own
(overlap_comm); requests are in the order in which the host makes them.
Source: DeepSpeed 0.19.8, runtime/zero/stage3.py, whose names stand at each function; runtime/comm/coalesced_collectives.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from ..results.timeline import ADAPTER
from ..typed import Any
from .optimizers import optimizer_of
from .partitioned import Part, Partitioning, Weights, is_leaf
from .partitioned_modules import around, with_hooks
from .recorder import Recorder
from .zero import GRADIENTS, OPTIMIZER, ROOT
from .zero_norms import clip, combined, is_invalid

NORM_ELEMENTS = 250_000_000  # _constant_buffered_norm2


class Partitioned:
    """DeepSpeedZeroOptimizer_Stage3 on one rank."""

    def __init__(self, model: Any, how: Partitioning, recorder: Recorder) -> None:
        self.how, self.recorder = how, recorder
        self.parts = [
            Part(number, name, parameter, how) for number, (name, parameter) in enumerate(model.named_parameters())
        ]
        self.of_parameter = {id(part.parameter): part for part in self.parts}
        self.trained = [part for part in self.parts if part.parameter.requires_grad]
        self.dtype = self.parts[0].parameter.dtype
        self.weights = Weights(self.parts, how, recorder)
        self.module = model
        if any(part.use == ADAPTER for part in self.parts):
            self.module = around(around(model))  # LoraModel and PeftModelForCausalLM
        self.groups = [*groups(self.trained, how.group)]
        self.filled: list[Part] = []
        self.elements = 0
        self.accumulated = 0  # micro-batches of the step before this one
        self.norms: dict[Part, Any] = {}
        self.norm: Any = None
        with_hooks(self.module, self.weights)
        leaves = {module: self.weights.of(module) for module in model.modules() if is_leaf(module)}
        for module, parts in leaves.items():
            module.register_full_backward_hook(partial(self._receive_all, parts))
        in_leaves = {part for parts in leaves.values() for part in parts}
        for part in self.trained:
            if part not in in_leaves:
                part.parameter.register_post_accumulate_grad_hook(self._receive)

    # --- what stays

    def load(self) -> None:
        """This rank's parts in place of whole weights. Source: _create_fp16_partitions_with_defragmentation"""
        import torch

        self.flat = self._made(sum(part.size for part in self.trained), self.dtype, self.trained[0].use, ROOT)
        at = 0
        for part in self.parts:
            if part.parameter.requires_grad:
                part.held = self.flat.narrow(0, at, part.size)
                at += part.size
            else:
                part.held = self._made(part.size, part.parameter.dtype, part.use, part.module)
            with self.recorder.paused():
                part.parameter.data = torch.empty(0, dtype=part.held.dtype)

    def make_states(self) -> None:
        """Source: _create_fp32_partitions, _setup_for_real_optimizer"""
        import torch

        self.steps: list[tuple[Any, Any]] = []  # of each group its float32 part and its optimizer
        total = sum(part.size for part in self.trained)
        if not self.how.offload_optimizer:
            for group in self.groups:
                holder = torch.nn.Module()
                size = sum(part.size for part in group)
                holder.part = torch.nn.Parameter(self._made(size, torch.float32, "aten.clone.default", OPTIMIZER))
                self.steps.append((holder.part, optimizer_of(self.how.optimizer, holder)))
        self.bucket = self._made(self.how.bucket, self.dtype, "aten.empty.memory_format", ROOT)
        self.recorder.keep(self.bucket, GRADIENTS)
        with self.recorder.paused():
            self.sums = torch.empty(total, dtype=self.dtype)
        if not self.how.offload_optimizer:
            self.infinite = self._made(1, torch.bool, "aten.zeros.default", ROOT)
            self.recorder.see(self.sums, "aten.zeros.default", module=ROOT)
            self.recorder.keep(self.sums, GRADIENTS)
        else:
            self.recorder.leave_out(self.sums)
        at = 0
        self.sum_of: dict[Part, Any] = {}
        for part in self.trained:
            self.sum_of[part] = self.sums.narrow(0, at, part.size)
            at += part.size

    def _made(self, elements: int, dtype: Any, operator: str, module: str) -> Any:
        """A tensor made before the run."""
        import torch

        with self.recorder.paused():
            tensor = torch.empty(elements, dtype=dtype)
        self.recorder.see(tensor, operator, module=module)
        return tensor

    # --- gradients

    def _receive_all(self, parts: Sequence[Part], *_: Any) -> None:
        """Gradients of a leaf. Source: create_reduce_and_remove_grad_hooks, reduce_leaf_module_grads"""
        import torch

        for part in parts:
            if part.parameter.requires_grad:
                if part.parameter.grad is None:
                    part.parameter.grad = torch.zeros_like(part.parameter)
                self._receive(part.parameter)

    def _receive(self, parameter: Any) -> None:
        """Source: reduce_independent_p_g_buckets_and_remove_grads, __add_grad_to_ipg_bucket"""
        import torch

        part = self.of_parameter[id(parameter)]
        with torch.no_grad():
            if self.elements and self.elements + part.elements > self.how.bucket:
                self._reduce()
            gradient = parameter.grad
            if self.elements + part.elements <= self.how.bucket:
                view = self.bucket.narrow(0, self.elements, part.elements).view_as(gradient)
                view.copy_(gradient)
                gradient.data = view
        self.filled.append(part)
        self.elements += part.elements

    def reduced(self) -> None:
        """A backward is over. Source: independent_gradient_partition_epilogue, backward_epilogue"""
        import torch

        with torch.no_grad():
            self._reduce()
            self.weights.release_left()
        self.accumulated += 1

    def _reduce(self) -> None:
        """Source: __reduce_and_partition_ipg_grads, __avg_scatter_grads, partition_grads"""
        if not self.filled:
            return
        self.filled.sort(key=lambda part: part.number)
        pieces = self._scattered([part.parameter.grad for part in self.filled])
        brought = None
        for part, piece in zip(self.filled, pieces, strict=True):
            if part.real:
                total = self.sum_of[part].narrow(0, 0, piece.numel())
                if self.accumulated and self.how.offload_optimizer:
                    brought = total.to(total.device, copy=True)  # from the host
                    brought.add_(piece)
                elif self.accumulated:
                    total.add_(piece)
                elif self.how.offload_optimizer:
                    brought = None
                    brought = total.to(total.device, copy=True)
                else:
                    total.copy_(piece)
                if self.how.offload_optimizer and self.accumulated == self.how.accumulate - 1:
                    self._send(part, brought)
            part.parameter.grad = None
        self.filled.clear()
        self.elements = 0

    def _scattered(self, gradients: Sequence[Any]) -> list[Any]:
        """This rank's pieces. Source: coalesced_collectives.py, reduce_scatter_coalesced"""
        import torch

        ranks = self.how.ranks
        sizes = [-(-gradient.numel() // ranks) for gradient in gradients]
        flats = [gradient.view(-1) for gradient in gradients]
        if len(gradients) == 1 and gradients[0].numel() % ranks == 0:
            (flat,) = flats
        else:
            pieces = []
            for rank in range(ranks):
                for each, size in zip(flats, sizes, strict=True):
                    piece = each[rank * size : (rank + 1) * size]
                    pieces.append(piece)
                    if piece.numel() < size:
                        pieces.append(torch.empty(size - piece.numel(), dtype=piece.dtype))
            flat = torch.cat(pieces)
            self.recorder.keep(flat, GRADIENTS)
        flat.div_(ranks)
        own = torch.chunk(flat, ranks)[self.how.rank]
        found, at = [], 0
        for each, size in zip(flats, sizes, strict=True):
            found.append(own.narrow(0, at, each[self.how.rank * size : (self.how.rank + 1) * size].numel()))
            at += size
        return found

    def _send(self, part: Part, gradient: Any) -> None:
        """To the optimizer on the host. Source: _offload_grad_partition_at_boundary"""
        import torch

        self.norms[part] = _norm_by_blocks(gradient)
        gradient.to(torch.float32)

    # --- the step

    def step(self) -> None:
        """Source: step, _pre_step, _post_step; engine.py, _take_model_step"""
        import torch

        self.accumulated = 0
        self.recorder.outside = ROOT
        with torch.no_grad():
            self.weights.release_all()
            if self.how.offload_optimizer:
                for group in self.groups:
                    self._norm_for_host(group)
                self.norms.clear()
                self.weights.gather_persistent()
                return
            if self.dtype == torch.float16:
                self._overflow()
            norms = [self._norm(group) for group in self.groups]  # which live as long as DeepSpeed's step
            norm = combined(norms)
            is_invalid(norm)
            self.norm, before = norm / 1.0, self.norm
            for group, (part, optimizer) in zip(self.groups, self.steps, strict=True):
                part.grad = self._gradient(group)
                clip(part.grad, norm)
                self.recorder.outside = OPTIMIZER
                optimizer.step()
                self.recorder.outside = ROOT
                part.grad = None
            self.weights.gather_persistent()
            del before  # of the engine

    def _overflow(self) -> None:
        """Source: has_overflow; torch's isinf, which compares absolute values"""
        import torch

        self.infinite.logical_or_((self.sums.abs() == math.inf).any())
        self.infinite.logical_or_(torch.isnan(self.sums).any())
        self.infinite.clone().to(torch.uint8)

    def _norm_for_host(self, group: Sequence[Part]) -> None:
        """Source: complete_grad_norm_calculation_for_cpu_offload"""
        import torch

        total: Any = 0.0
        for part in group:
            if part in self.norms:
                total += self.norms[part] ** 2
        number = torch.tensor([0.0], dtype=torch.float)
        total = number[0] ** (1.0 / 2.0)
        infinite, undefined = total.isinf(), total.isnan()
        invalid = undefined.logical_or(infinite)
        total.masked_fill_(invalid, torch.tensor(-1.0, dtype=torch.float))

    def _norm(self, group: Sequence[Part]) -> Any:
        """Source: get_grad_norm_direct"""
        import torch

        norms = [self.sum_of[part].to(torch.double).norm(2.0) for part in group]
        summed = torch.sum(torch.pow(torch.stack(norms), 2.0))
        total = summed ** (1.0 / 2.0)
        infinite, undefined = total.isinf(), total.isnan()
        invalid = undefined.logical_or(infinite)
        return torch.where(invalid, torch.tensor(-1.0, dtype=torch.float), total)

    def _gradient(self, group: Sequence[Part]) -> Any:
        """Source: _prepare_fp32_grad_for_sub_group"""
        import torch
        from torch._utils import _flatten_dense_tensors

        flat = _flatten_dense_tensors([self.sum_of[part] for part in group])
        self.recorder.keep(flat, GRADIENTS)
        gradient = flat.to(torch.float32)
        self.recorder.keep(gradient, GRADIENTS)
        return gradient


def groups(parts: Sequence[Part], most: int) -> Iterator[list[Part]]:
    """What steps at a time. Source: _create_fp16_sub_groups"""
    if most >= sum(part.size for part in parts):
        yield list(parts)
        return
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(one.size for one in group) >= most or part is parts[-1]:
            yield group
            group = []


def _norm_by_blocks(gradient: Any) -> Any:
    """Source: _constant_buffered_norm2"""
    import torch

    norm: Any = None
    for block in gradient.view(-1).split(NORM_ELEMENTS):
        if norm is None:
            norm = block.to(torch.double).norm(2) ** 2.0
        else:
            norm += block.to(torch.double).norm(2) ** 2.0
    return norm**0.5
