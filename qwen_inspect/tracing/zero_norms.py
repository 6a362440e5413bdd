"""Norms of gradients, and what is made of them, as DeepSpeed's ZeRO takes them in every stage.

Source: DeepSpeed 0.19.8, runtime, whose names stand at each function.
"""

from __future__ import annotations

import math

from ..typed import Any


def is_not_finite(tensor: Any) -> Any:
    """Source: utils.py, has_inf_or_nan"""
    import torch

    return torch.isfinite(tensor.amax()).logical_and(torch.isfinite(tensor.amin())).logical_not()


def is_invalid(norm: Any) -> None:
    """Source: utils.py, is_invalid_grad_norm"""
    import torch

    (~torch.isfinite(norm) | (norm < 0)).any()


def combined(norms: list[Any]) -> Any:
    """Source: utils.py, combine_grad_norm_groups"""
    import torch

    stacked = torch.stack(norms)
    invalid = (~torch.isfinite(stacked) | (stacked < 0)).any()
    norm = torch.linalg.vector_norm(stacked, ord=2)
    return torch.where(invalid, torch.full_like(norm, math.inf), norm)


def clip(part: Any, norm: Any) -> None:
    """Source: zero/stage_1_and_2.py and stage3.py, unscale_and_clip_grads"""
    import torch

    largest = ((norm / 1.0) + 1e-6) / 1.0
    largest = torch.clamp(largest, min=1.0)
    scale = largest * 1.0
    part.mul_(1.0 / scale)
