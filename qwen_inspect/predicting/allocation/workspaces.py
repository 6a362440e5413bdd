"""What cuBLAS takes on a card, by its compute capability or as it was measured."""

from __future__ import annotations

from ...loaders.gpus import compute_capability
from ...results.memory import Run
from ...standard import re

# Per cuBLAS handle and stream: 2 x 4096 KiB + 8 x 16 KiB; on Hopper (compute capability 9.0) 32 MiB.
# Source: torch 2.13, aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize.
WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
WORKSPACE_BYTES_HOPPER = 32 * 1024 * 1024
# Names missing from the table, such as variants with other memory: "NVIDIA H100 64GB HBM2".
UNLISTED_HOPPER = r"(?i)h100|h200|h20\b|h800|gh200|hopper"
# cuBLASLt's, for products with a bias: 1024 KiB on every card. Counted for a single row too, though that needs none.
# Source: the same file, parseCUDABlasLtWorkspaceSize; torch 2.13, aten/src/ATen/native/cuda/Blas.cpp, addmm_out_cuda_impl
LT_WORKSPACE_BYTES = 1024 * 1024


def workspace_bytes(gpu: str) -> int:
    """The size of cuBLAS's workspace on a card of this name; sm_80's for unknown names."""
    return WORKSPACE_BYTES_HOPPER if is_hopper(gpu) else WORKSPACE_BYTES


def is_hopper(gpu: str) -> bool:
    """Whether a card of this name has compute capability 9.0."""
    capability = compute_capability(gpu)
    return re.search(UNLISTED_HOPPER, gpu) is not None if capability is None else capability == (9, 0)


def has_cudnn_attention(gpu: str) -> bool:
    """Whether sdpa runs cuDNN's kernel on a card of this name: PyTorch prefers it on Hopper, with a mask too; as recorded in
    benchmarks/recorded.

    Source: torch 2.11, check_prefer_cudnn_attention in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
    """
    return is_hopper(gpu)


def workspace_of(run: Run) -> int:
    """One cuBLAS handle's workspace: as measured on this card, else by the card's name.

    A measurement may also cover two handles (training) and cuBLASLt's workspace (biases); then the name decides.
    """
    handle_bytes = workspace_bytes(run.gpu)
    if run.calibration is None or run.calibration.workspace_bytes in (
        handle_bytes + LT_WORKSPACE_BYTES,
        2 * handle_bytes,
        2 * handle_bytes + LT_WORKSPACE_BYTES,
    ):
        return handle_bytes
    return run.calibration.workspace_bytes
