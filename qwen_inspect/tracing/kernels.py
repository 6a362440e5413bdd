"""Makes a trace, which runs on CPU, take CUDA's path: transformers' decisions by device, and the allocations of CUDA kernels."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from ..architectures.generic.building import quiet
from ..results.timeline import FLASH_SCRATCH, SCALES_SCRATCH
from ..typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recorder import Recorder

FLASH_ATTENTION_2 = "flash_attention_2"  # operator of the flash-attn package's allocations
EFFICIENT_ATTENTION = "aten._scaled_dot_product_efficient_attention.default"
FLASH_BLOCK = 128  # rows of a block of flash attention
BIAS_ALIGNMENT = 8  # a mask's rows are padded to a multiple of this. Source: torch 2.13, attention.cpp, preprocess_mask
WIDE_HEAD_DIM = 128  # above it the memory-efficient kernel accumulates in memory. Source: torch 2.13, cutlassF.h, kMaxK
CUDNN_HEAD_DIM = 256  # the most on Hopper. Source: torch 2.13, sdp_utils.cpp, check_cudnn_tensor_shapes

# bitsandbytes' operators that multiply by a 4-bit weight, and that dequantise it.
GEMM_4BIT, DEQUANTISE = "bitsandbytes.gemm_4bit.default", "bitsandbytes.dequantize_4bit.default"
BIASED_GEMM_4BIT = "bitsandbytes.gemm_4bit.bias"  # GEMM_4BIT with a bias

# Gradients of activations that are laid out as their operands, the gradient first, but not on fake tensors; each with the place
# of its other operand. Source: torch 2.13, aten/src/ATen/native/Activation.cpp, build_borrowing_binary_op
ACTIVATION_GRADIENTS = {
    "elu_backward": 5,
    "hardsigmoid_backward": 1,
    "hardswish_backward": 1,
    "hardtanh_backward": 1,
    "logit_backward": 1,
    "softplus_backward": 1,
}

# Whether SDPA's math path runs, which adds the mask to the scores in place, but not where a dispatch mode is on.
# Source: torch 2.13, aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math
in_math_attention: ContextVar[bool] = ContextVar("in_math_attention", default=False)

# Whether a sliding layer's cache is being made, whose counter is on the host until the layer gets its first tokens.
# Source: transformers 5.23, cache_utils.DynamicSlidingWindowLayer, __init__ and lazy_initialization
makes_cache: ContextVar[bool] = ContextVar("makes_cache", default=False)


@contextmanager
def replaced(replacements: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Sets attributes, given as (owner, name, value), and restores them on exit."""
    with ExitStack() as stack:
        for owner, name, value in replacements:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextmanager
def as_on_cuda(
    masked: Recorder | None = None, *, cudnn: bool = False, device: str = "cuda", packed: bool = False
) -> Iterator[None]:
    """Makes transformers decide by device or value as on CUDA, and print nothing.

    masked: the recorder of a run with masks of padding or packed sequences; masked calls then allocate as on CUDA. transformers
    assumes that a mask on fake tensors masks something. cudnn, packed: as in `TraceRequest`. device: "cpu" has a fused kernel for
    float32 with GQA.
    """
    import logging

    import torch
    import torch._meta_registrations as shapes
    from transformers import masking_utils
    from transformers.cache_utils import DynamicSlidingWindowLayer
    from transformers.integrations import moe, sdpa_attention

    make_layer = DynamicSlidingWindowLayer.__init__
    initialize_layer = DynamicSlidingWindowLayer.lazy_initialization
    grouped_mm = shapes._meta_grouped_mm_common
    find_packed_sequence_indices = masking_utils.find_packed_sequence_indices
    attend = torch.nn.functional.scaled_dot_product_attention

    def find_none(position_ids: Any) -> None:
        """Finds no packed sequences: on fake tensors it would assume that there may be some, and keep a mask."""
        find_packed_sequence_indices(position_ids)

    def make_on_host(layer: Any, *arguments: Any, **options: Any) -> None:
        token = makes_cache.set(True)
        try:
            make_layer(layer, *arguments, **options)
        finally:
            makes_cache.reset(token)

    def initialize_on_device(layer: Any, *states: Any) -> None:
        initialize_layer(layer, *states)
        layer._sliding_window_tensor = layer._sliding_window_tensor.to(copy=True, device="cpu")

    def as_dispatched(query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        """Flash attention, or memory-efficient attention for a mask, float32 or a narrower V; both allocate like CPU's fused one.
        The memory-efficient kernel has no GQA, so float32 with GQA takes the math path; so do broadcast heads, and a narrower V
        on CPU.

        Source: torch 2.13, aten/src/ATen/native/transformers, cuda/sdp_utils.cpp and sdp_utils_cpp.h (check_head_dim_size_cpp)
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        # Autocast casts the inputs later, inside the call.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        if options.get("enable_gqa"):
            fused = device == "cpu" or dtype in (torch.float16, torch.bfloat16)
        else:
            fused = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        if device == "cpu" and value.shape[-1] != query.shape[-1]:
            fused = False
        if fused:
            value_dim = value.shape[-1]  # CPU's kernel requires one width for Q, K and V, CUDA's only for Q and K.
            query, key = query[..., :value_dim], key[..., :value_dim]
            options["dropout_p"] = 0.0  # CPU's kernel has no dropout, and CUDA's stores no mask for it.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if fused else SDPBackend.MATH):
            by_cudnn = cudnn and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= CUDNN_HEAD_DIM
            if masked is not None and fused and options.get("attn_mask") is not None and not by_cudnn:
                return efficient_attention(masked, attend, query, key, value, **options)
            token = in_math_attention.set(not fused)
            try:
                return attend(query, key, value, *arguments, **options)
            finally:
                in_math_attention.reset(token)

    def grouped_mm_of_any_dtype(mat_a: Any, mat_b: Any, **options: Any) -> Any:
        """Makes the output for float16 and float32 too: the kernels accept them, torch's shape function only bfloat16.

        Source: torch 2.13, aten/src/ATen/native/GroupedMMUtils.h, _grouped_mm_validate_inputs and _grouped_mm_fallback
        """
        if mat_a.dtype not in (torch.float16, torch.float32):
            return grouped_mm(mat_a, mat_b, **options)
        return shapes._create_grouped_mm_output_tensor(mat_a, mat_b, options["offs"], options["out_dtype"])

    replacements: tuple[tuple[Any, str, Any], ...] = (
        (logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True),  # it would log a traceback
        (torch.nn.functional, "scaled_dot_product_attention", as_dispatched),
        # These decide whether KV heads are repeated: on CUDA not for an unmasked call.
        (sdpa_attention, "_is_torch_mps_available", False),
        (sdpa_attention, "_is_torch_npu_available", False),
        (sdpa_attention, "_is_torch_xpu_available", False),
        (shapes, "_meta_grouped_mm_common", grouped_mm_of_any_dtype),
        # As in a process that has compiled nothing: torch._dynamo ends the checks of distributions, which allocate.
        (torch.distributions.Distribution, "_validate_args", True),
        # From compute capability 8.0 on.
        (moe, "_can_use_grouped_mm", lambda *_: True),
    )
    if not packed:
        replacements += ((masking_utils, "find_packed_sequence_indices", find_none),)
    if device == "cuda":
        replacements += (
            (DynamicSlidingWindowLayer, "__init__", make_on_host),
            (DynamicSlidingWindowLayer, "lazy_initialization", initialize_on_device),
        )
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(quiet())
        stack.enter_context(replaced(replacements))
        if device == "cuda":
            stack.enter_context(composed_as_on_cuda())
        yield


@contextmanager
def composed_as_on_cuda() -> Iterator[None]:
    """Makes torch choose the kernels that these functions have on CUDA alone: dropout that keeps a mask of bools instead of a
    factor for each number of its input, and a softmax in float32 that reads float16 without a copy.

    Source: torch 2.13, aten/src/ATen/native, Dropout.cpp (dropout, is_fused_kernel_acceptable) and SoftMax.cpp (softmax,
    log_softmax)
    """
    import torch

    def drop(values: Any, share: float, train: bool) -> Any:
        if not train or share == 0 or not values.numel():
            return values
        return torch.native_dropout(values, share, True)[0] if share < 1 else values * values.new_zeros(())

    def softmax_by(kernel: Any) -> Any:
        def softmax(values: Any, dim: int, dtype: Any = None) -> Any:
            widens = values.dtype == torch.float16 and dtype == torch.float32
            return kernel(values if widens or dtype is None else values.to(dtype), dim, widens)

        return softmax

    library = torch.library.Library("aten", "IMPL")
    library.impl("dropout", drop, "AutogradCPU")
    library.impl("softmax.int", softmax_by(torch._softmax), "AutogradCPU")
    library.impl("log_softmax.int", softmax_by(torch._log_softmax), "AutogradCPU")
    try:
        yield
    finally:
        library._destroy()


@contextmanager
def masks_of_ones(model: Any) -> Iterator[None]:
    """Makes transformers see that a batch's mask masks nothing, which it cannot see on fake tensors."""
    from transformers import masking_utils

    def without(decides: Callable[..., Any]) -> Callable[..., Any]:
        return lambda _, *arguments: decides(None, *arguments)

    replacements = [
        (masking_utils, name, without(getattr(masking_utils, name)))
        for name in ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")
    ]
    code, recurrent = sys.modules[type(model).__module__], "create_recurrent_attention_mask"
    if hasattr(code, recurrent):
        replacements.append((code, recurrent, lambda *_, **__: None))
    with replaced(replacements):
        yield


def efficient_attention(
    recorder: Recorder, attend: Callable[..., Any], query: Any, key: Any, value: Any, *, attn_mask: Any, **options: Any
) -> Any:
    """Makes the allocations of CUDA's memory-efficient attention with a mask: the mask as an additive bias, a padded copy if its
    rows are no multiple of 8, a float32 output for wide heads, and a log-sum-exp only if there is a backward.

    With a backward CPU's kernel runs, which makes the same tensors. Not counted: rounding of the log-sum-exp to 32 tokens, and
    accumulators for the gradients of K and V of wide heads. Sources: torch 2.13, aten/src/ATen/native/transformers,
    attention.cpp (convert_boolean_attn_mask, preprocess_mask, should_compute_logsumexp) and cuda/attention.cu,
    _efficient_attention_forward; mem_eff_attention/kernel_forward.h (kNeedsOutputAccumulatorBuffer)
    """
    import torch

    bias = attn_mask
    if bias.dtype is torch.bool:
        bias = torch.where(bias, 0.0, torch.scalar_tensor(-torch.inf, dtype=query.dtype))
    if any(stride % BIAS_ALIGNMENT for stride in bias.stride()[:-1]):
        tokens = bias.shape[-1]
        bias = torch.nn.functional.pad(bias, (0, BIAS_ALIGNMENT - tokens % BIAS_ALIGNMENT))[..., :tokens]
    batch, heads, tokens, head_dim = query.shape
    wide = head_dim > WIDE_HEAD_DIM and query.dtype is not torch.float32
    backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    with recorder.named(EFFICIENT_ATTENTION):
        output = None if backward else query.new_empty((batch, tokens, heads, head_dim)).transpose(1, 2)
        added_up = query.new_empty(query.shape, dtype=torch.float32) if wide else None
    if backward:
        output = attend(query, key, value, attn_mask=bias, **options)
    del added_up
    return output


def flash_attention_2(
    recorder: Recorder, *, repeated: bool, sequences: int | None = None
) -> Callable[..., tuple[Any, None]]:
    """An attention function with the allocations of the flash-attn package and transformers' wrapper; it computes nothing.
    sequences: of one row, which the varlen kernels keep apart; None for rows of equal lengths.

    Sources: flash-attn 2.8, csrc/flash_attn/flash_api.cpp, mha_fwd and mha_bwd, and flash_attn_interface.py, which copies only
    tensors whose last dimension is not dense; transformers 5.23, integrations/flash_attention.py. Not counted: the check for
    packed sequences, 8 bytes a token, and the parts of a split KV, whose number depends on the GPU.
    """
    import torch
    from torch.nn.functional import pad
    from transformers.integrations.flash_attention import get_target_dtype
    from transformers.integrations.sdpa_attention import repeat_kv

    class Attention(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, query: Any, key: Any, value: Any) -> Any:
            batch, tokens, heads, _ = query.shape
            with recorder.named(FLASH_ATTENTION_2):
                output = torch.empty_like(query)
                log_sum_exp = query.new_empty((batch, heads, tokens), dtype=torch.float32)
                random_state = query.new_empty(2, dtype=torch.int64)
            context.save_for_backward(query, key, value, output, log_sum_exp, random_state)
            return output

        @staticmethod
        def backward(context: Any, gradient: Any) -> tuple[Any, Any, Any]:
            query, key, value, *_ = context.saved_tensors
            with recorder.named(FLASH_ATTENTION_2):
                gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
                gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
            with recorder.named(FLASH_SCRATCH):
                flash_backward_scratch(query.transpose(1, 2), key.transpose(1, 2), sequences=sequences or 0)
            return gradients

    def attend(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        target = get_target_dtype(query, module)
        if target is not None:
            query, key, value = (tensor.to(target) for tensor in (query, key, value))
        head_dim, value_dim = query.shape[-1], value.shape[-1]
        if value_dim != head_dim:
            value = pad(value, [0, head_dim - value_dim])
        if repeated:
            key, value = (repeat_kv(tensor, query.shape[1] // tensor.shape[1]) for tensor in (key, value))
        tensors = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        if padding := -head_dim % 8:
            tensors = [pad(tensor, [0, padding]) for tensor in tensors]
        tensors = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
        return Attention.apply(*tensors)[..., :value_dim], None

    return attend


def safe_softmax_scratch(scores: Any) -> Iterator[Any]:
    """Scratch of a softmax that turns rows of only -inf into zeros: a mask of -inf elements, a mask of such rows, a zero.

    Source: torch 2.13, aten/src/ATen/native/transformers/attention.cpp, _safe_softmax
    """
    import torch

    yield torch.empty_like(scores, dtype=torch.bool)
    yield scores.new_empty((*scores.shape[:-1], 1), dtype=torch.bool)
    yield scores.new_empty(())


def batched_scratch(operands: Sequence[Any]) -> list[Any]:
    """Contiguous copies of the matrices of a batched product in which neither rows nor columns are contiguous.

    Source: torch 2.13, aten/src/ATen/native/cuda/Blas.cpp, prepare_batch_matrix_for_cublas
    """
    import torch

    return [
        operand.clone(memory_format=torch.contiguous_format)
        for operand in operands
        if 1 not in operand.stride()[1:] and not operand.is_contiguous()
    ]


def is_channels_last(tensor: Any) -> bool:
    """Whether its channels are side by side, which cuDNN keeps.

    Source: torch 2.13, native/ConvUtils.h, cudnn_conv_suggest_memory_format
    """
    import torch

    if tensor.dim() != 4 or tensor.is_contiguous():
        return False
    return bool(tensor.is_contiguous(memory_format=torch.channels_last))


def convolution_operands(gradient: Any, inputs: Any, *others: Any) -> tuple[Any, ...]:
    """Arguments of a convolution's gradient, made contiguous: the gradient of its output always, its input where the weight
    trains and in one dimension.

    Sources: torch 2.13, aten/src/ATen/native, Convolution.cpp, convolution_backward; cuda/DepthwiseConv2d.cu,
    conv_depthwise2d_backward_cuda_out; cudnn/ConvShared.cpp, cudnn_convolution_backward
    """
    import torch

    layout = torch.channels_last if is_channels_last(inputs) else torch.contiguous_format
    if inputs.dim() == 3 or others[-1][1]:
        inputs = inputs.contiguous(memory_format=layout)
    return (gradient.contiguous(memory_format=layout), inputs, *others)


def flash_rounded(head_dim: int) -> int:
    """The width of heads in flash attention's scratch. Source: see `flash_backward_scratch`"""
    return head_dim + -head_dim % (32 if head_dim <= 128 else 64)


def flash_backward_scratch(query: Any, key: Any, *, sequences: int = 0) -> list[Any]:
    """Scratch of flash attention's backward: row sums, the query's gradient in float32, and with GQA the gradients of K and V
    per query head. The kernel rounds tokens up to blocks of 128; ignored here, so that sizes stay linear. sequences: of varlen
    kernels, which add such a block for each.

    query, key: (batch, heads, tokens, head_dim). Source: flash-attn 2.8 and torch 2.13, flash_api.cpp, mha_bwd, mha_varlen_bwd.
    """
    import torch

    batch, heads, tokens, head_dim = query.shape
    rounded_dim = flash_rounded(head_dim)
    rows = tokens + FLASH_BLOCK * sequences
    scratch = [
        query.new_empty((batch, heads, rows), dtype=torch.float32),
        query.new_empty((batch, rows, heads, rounded_dim), dtype=torch.float32),
    ]
    if key.shape[1] != heads:
        scratch += [key.new_empty((batch, key.shape[2], heads, head_dim)) for _ in ("key", "value")]
    return scratch


def dequantised(
    inputs: Any, _: Any, shape: Any, absmax: Any, blocks: Any, kind: Any, bias: Any = None, codes: Any = None, *__: Any
) -> tuple[tuple[str, Any], ...]:
    """(operator, tensor) pairs that bitsandbytes makes of a 4-bit weight before it multiplies: nested scales (on CUDA twice:
    without and with their offset), then the dense weight.

    Its fused kernels need none of this, but accept at most 1,536 rows of inputs, and not on every card.
    Source: bitsandbytes 0.50, backends/cuda/ops.py, _dequant_linear_fallback; on CPU backends/default/ops.py.
    """
    import torch

    weight = (DEQUANTISE, inputs.new_empty(tuple(shape)))
    if codes is None:
        return (weight,)
    return *(
        (name, torch.empty_like(codes, dtype=torch.float32)) for name in (SCALES_SCRATCH, "aten.add.Tensor")
    ), weight


def adds_bias(_: Any, __: Any, shape: Any, absmax: Any, blocks: Any, kind: Any, bias: Any = None, *___: Any) -> bool:
    """Whether bitsandbytes multiplies by a 4-bit weight of a linear layer that has a bias."""
    return bias is not None
