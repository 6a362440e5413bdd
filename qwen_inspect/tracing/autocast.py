"""torch.autocast around a run, with CUDA's operator lists even on fake CPU tensors; and float16's gradient scaler.

The casting itself is torch's: it caches the casts of float32 leaf parameters until the outermost autocast ends.
Source: torch 2.13, ATen/autocast_mode.cpp, cached_cast; torch/amp/autocast_mode.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

from ..results.timeline import Event
from ..typed import Any
from .kernels import replaced
from .one_rank import by_mesh

# CUDA's operator lists by compute dtype, where they differ from CPU's; listed operators in none of these compute in float32.
# Source: torch 2.13, ATen/autocast_mode.h: AT_FORALL_LOWER_PRECISION_FP and autocast_mode.cpp, AT_FORALL_PROMOTE, and
# AT_FORALL_FP32_SET_OPT_DTYPE with AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE, which cast no input
LOWER = frozenset({
    "_convolution", "convolution", "cudnn_convolution", "cudnn_convolution_transpose", "addmv", "addr", "einsum", "mv",
    "chain_matmul", "linalg_multi_dot", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell",
    "rnn_relu_cell", "_scaled_dot_product_flash_attention",
})  # fmt: skip
WIDEST = frozenset({
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot", "scatter_add",
})  # fmt: skip
SUMMED = frozenset({
    "prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "linalg_matrix_norm", "sum", "norm",
})  # fmt: skip
WITH_DTYPE = {"Scalar": "ScalarOpt_dtype", "ScalarOpt_dim": "ScalarOpt_dim_dtype"}  # overloads of norm

Policy = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def autocast(dtype: str | None, device: str) -> Any:
    """The context that a forward runs in. device: of the model's tensors.

    Without a dtype it is no autocast at all, because even a disabled one caches casts made inside. Not modelled: Trainer converts
    outputs to float32 (accelerate 1.15, convert_outputs_to_fp32); they reuse the block of the loss's own float32 logits, so the
    peak is the same.
    """
    import torch

    return nullcontext() if dtype is None else torch.autocast(device, dtype=getattr(torch, dtype))


@contextmanager
def cuda_lists() -> Iterator[None]:
    """Makes autocast on `cpu` follow CUDA's lists. Operators that both cast alike keep torch's kernels and cached casts;
    operators of LOWER cast again each time."""
    import torch

    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of replaced kernels
            for name, on_cuda, on_cpu in _listed():
                packet = name.partition(".")[0]
                if not on_cuda:
                    library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")
                elif not on_cpu or packet in WIDEST | SUMMED:
                    library.impl(name, _kernel(name, _policy(packet)), "AutocastCPU")
        yield
    finally:
        library._destroy()


@contextmanager
def let_go_in_order(events: list[Event]) -> Iterator[None]:
    """Frees cached casts in the order they were made. torch frees them by address, which would differ in every trace."""
    import torch

    clear = torch.clear_autocast_cache

    def clear_in_order() -> None:
        first = len(events)
        clear()
        events[first:] = sorted(events[first:])

    with replaced([(torch, "clear_autocast_cache", clear_in_order)]):
        yield


def _listed() -> Iterator[tuple[str, bool, bool]]:
    """(name, on CUDA, on CPU) of each operator that autocast casts on either device."""
    import torch

    for name in torch._C._dispatch_get_all_op_names():
        on_cuda, on_cpu = (
            torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in ("AutocastCUDA", "AutocastCPU")
        )
        if name.startswith("aten::") and (on_cuda or on_cpu):
            yield name.removeprefix("aten::"), on_cuda, on_cpu


def _kernel(name: str, policy: Policy) -> Callable[..., Any]:
    import torch

    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    itself = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def kernel(*arguments: Any, **options: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(itself):
            return policy(operator, arguments, options)

    return kernel


def _policy(packet: str) -> Policy:
    """How CUDA's autocast calls an operator of this name."""
    import torch

    def in_dtype(dtype: Any) -> Policy:
        return lambda operator, arguments, options: operator(*_cast(arguments, dtype), **options)

    def lower(operator: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return in_dtype(torch.get_autocast_dtype("cpu"))(operator, arguments, options)

    def widest(operator: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        wide = torch.float32 in _dtypes(arguments)
        return in_dtype(torch.float32 if wide else torch.get_autocast_dtype("cpu"))(operator, arguments, options)

    def summed(operator: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not _is_cast(arguments[0]):
            return operator(*arguments, **options)
        schema = operator._schema.arguments
        keywords = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        keywords |= dict(zip([argument.name for argument in schema], arguments, strict=False)) | options
        if keywords.get("dtype") is None:
            keywords["dtype"] = torch.float32
        overload = operator._overloadname
        return getattr(operator.overloadpacket, WITH_DTYPE.get(overload, overload))(**keywords)

    if packet in LOWER:
        return lower
    if packet in WIDEST:
        return widest
    return summed if packet in SUMMED else in_dtype(torch.float32)


def _is_cast(value: Any) -> bool:
    """Whether autocast casts this value: a floating-point tensor other than float64."""
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _dtypes(values: Iterable[Any]) -> Iterator[Any]:
    """The dtypes of the tensors that are cast, including those in lists."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _dtypes(value)
        elif _is_cast(value):
            yield value.dtype


def _cast(values: Iterable[Any], dtype: Any) -> list[Any]:
    return [
        _cast(value, dtype) if isinstance(value, (list, tuple)) else value.to(dtype) if _is_cast(value) else value
        for value in values
    ]


def scaler_of(dtype: str | None, device: str) -> Any:
    """The gradient scaler for training in `dtype`; None if it needs none.

    It never skips a step for an overflow; in a real run the data decide whether the first steps are skipped. It allocates two
    numbers for the whole run and a few of 4 or 8 bytes in each step.
    Source: torch 2.13, torch/amp/grad_scaler.py; transformers 5.23, Trainer's fp16=True
    """
    import torch

    class Scaler(torch.amp.GradScaler):  # type: ignore[misc]
        def _maybe_opt_step(self, optimizer: Any, *_: Any, **__: Any) -> None:
            optimizer.step()

    return Scaler(device, init_scale=1.0) if dtype == "float16" else None


def step(optimizer: Any, scaler: Any) -> None:
    """Runs the optimizer's step; a scaler unscales the gradients first."""
    if scaler is None:
        optimizer.step()
        return
    scaler.step(optimizer)
    scaler.update()


def clip(model: Any, optimizer: Any, scaler: Any) -> Any:
    """Scales the gradients to a norm of at most 1 with torch's function; returns their norm. A scaler unscales them first.

    In place, beside a norm of each gradient. Not counted: partial norms of CUDA's kernel, 4 B for each gradient and each 65,536
    elements of the largest (torch 2.13, aten/src/ATen/native/cuda/ForeachReduceOp.cu).

    Source: transformers 5.23, trainer.py, _clip_grad_norm; accelerate 1.15, Accelerator.clip_grad_norm_
    """
    import torch

    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    groups = by_mesh(parameter.grad for parameter in parameters)
    if len(groups) < 2:
        return torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    return _clip_by_mesh(parameters, groups)


def _clip_by_mesh(parameters: list[Any], gradients: list[list[Any]]) -> Any:
    """Where ranks share some parameters and have others whole. Source: transformers 5.23, trainer.py, _mixed_mesh_grad_norm"""
    import torch

    norms = []
    for group in gradients:
        norm = torch.nn.utils.get_total_norm(group)
        norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    total = torch.linalg.vector_norm(torch.stack(norms))
    for group in by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(group, 1.0, total)
    return total
