"""torch.autocast around a run, on fake tensors too, by CUDA's lists of operators; and the scaler that float16 trains with.

What autocast itself does is torch's: it casts, and keeps the casts of parameters that are leaves in float32 until the outermost
autocast is left. Source: torch 2.13, ATen/autocast_mode.cpp, cached_cast; torch/amp/autocast_mode.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ..results.timeline import Event
from .kernels import replaced

# CUDA's lists of operators by what they compute in, as far as CPU's are others; those in none of these compute in float32.
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

    Without a dtype none at all, for even one that is not enabled keeps the casts that are made within. Left out: Trainer's
    outputs come back in float32 (accelerate 1.15, convert_outputs_to_fp32), in the block of the loss's own float32 logits, so
    that no peak is another.
    """
    import torch

    return nullcontext() if dtype is None else torch.autocast(device, dtype=getattr(torch, dtype))


@contextmanager
def cuda_lists() -> Iterator[None]:
    """Autocast of tensors on `cpu` as that of tensors on `cuda`. What both cast alike stays with torch, and with its kept casts;
    operators of LOWER make theirs anew."""
    import torch

    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of kernels that are replaced
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
    """When the casts go, they go as they were made: by their addresses, as torch has them, every trace would be another."""
    import torch

    clear = torch.clear_autocast_cache

    def clear_in_order() -> None:
        first = len(events)
        clear()
        events[first:] = sorted(events[first:])

    with replaced([(torch, "clear_autocast_cache", clear_in_order)]):
        yield


def _listed() -> Iterator[tuple[str, bool, bool]]:
    """Each operator that autocast casts on one of the two: its name, whether on CUDA, whether on CPU."""
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
    """How CUDA's autocast calls an operator of that name."""
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
        given = {one.name: one.default_value for one in schema if one.has_default_value()}
        given |= dict(zip([one.name for one in schema], arguments, strict=False)) | options
        if given.get("dtype") is None:
            given["dtype"] = torch.float32
        overload = operator._overloadname
        return getattr(operator.overloadpacket, WITH_DTYPE.get(overload, overload))(**given)

    if packet in LOWER:
        return lower
    if packet in WIDEST:
        return widest
    return summed if packet in SUMMED else in_dtype(torch.float32)


def _is_cast(value: Any) -> bool:
    """Whether it is a tensor that autocast casts: of float64 none is."""
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _dtypes(values: Iterable[Any]) -> Iterator[Any]:
    """Of the tensors that are cast, of lists too."""
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
    """The gradient scaler of a run that trains in `dtype`; None where it has none.

    It finds no overflow, so that no step is skipped: whether the first ones are is up to the data. It adds two numbers for good,
    and for each step some of 4 or 8 bytes. Source: torch 2.13, torch/amp/grad_scaler.py; transformers 5.23, Trainer's fp16=True
    """
    import torch

    class Scaler(torch.amp.GradScaler):  # type: ignore[misc]
        def _maybe_opt_step(self, optimizer: Any, *_: Any, **__: Any) -> None:
            optimizer.step()

    return Scaler(device, init_scale=1.0) if dtype == "float16" else None


def step(optimizer: Any, scaler: Any) -> None:
    """The optimizer's step, of unscaled gradients."""
    if scaler is None:
        optimizer.step()
        return
    scaler.step(optimizer)
    scaler.update()
