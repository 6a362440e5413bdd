"""Operands that kernels copy first where they are not contiguous, and when: before their outputs, or after them.

Sources: torch 2.13, aten/src/ATen/native: cuda/layer_norm_kernel.cu and layer_norm.cpp (native_layer_norm, its backward);
Im2Col.cpp, Col2Im.cpp, cuda/Im2Col.cu and cuda/Col2Im.cu; cuda/Embedding.cu and Embedding.cpp (embedding_dense_backward);
cpu/GridSamplerKernel.cpp (grid_sampler_2d_backward_cpu_kernel_impl), where cuda/GridSampler.cu reads any layout;
cuda/AveragePool2d.cu (avg_pool2d_backward_out_cuda), where CPU's kernel copies its output instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..typed import Any, NamedTuple


class Copied(NamedTuple):
    """The places of the arguments that are copied. They are let go in the opposite order."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


COPIED: Mapping[str, Copied] = {
    "native_layer_norm": Copied(before=(0,)),
    "native_layer_norm_backward": Copied(before=(1,), after=(0,)),
    "col2im": Copied(after=(0,)),
    "im2col": Copied(after=(0,)),
}
INDICES_AND_GRADIENT = 1, 0
ON_CUDA: Mapping[str, Copied] = {
    **COPIED,
    "avg_pool2d_backward": Copied(after=(1, 0)),
    "embedding_dense_backward": Copied(before=INDICES_AND_GRADIENT),
}
ON_CPU: Mapping[str, Copied] = {
    **COPIED,
    "embedding_dense_backward": Copied(after=INDICES_AND_GRADIENT),
    "grid_sampler_2d_backward": Copied(after=(0,)),
}


def copied_operands(device: str) -> dict[Any, Copied]:
    """What a device's kernels copy, by operator. device: "cuda" or "cpu"."""
    import torch

    named = ON_CPU if device == "cpu" else ON_CUDA
    return {getattr(torch.ops.aten, name).default: copied for name, copied in named.items()}
