"""The configuration of a LoRA adapter: which modules it changes, and the rank of their matrices.

Source: Hu et al. 2021, "LoRA" (W + scale x B A, with A (rank, inputs) and B (outputs, rank)); PEFT 0.21, tuners/lora.
"""

from __future__ import annotations

from collections.abc import Callable

from ..checkpoint import Tensor
from ..values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """takes, copies: whether the module of that full name gets matrices, or is trained whole as a copy. takes_parameter: whether
    a parameter itself gets matrices, such as the stacked weights of fused experts.

    rank_of, alpha_of: for a target module or parameter. bias: which biases of the base are trained: "none", "lora_only" (of the
    target modules) or "all". dora: with a magnitude for each output feature (Liu et al. 2024). matrix_bias: B has a bias.
    rank_stabilised: scaled by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023).
    """

    takes: Callable[[str], bool]
    takes_parameter: Callable[[str], bool]
    copies: Callable[[str], bool]
    rank_of: Callable[[str], int]
    alpha_of: Callable[[str], float]
    bias: str
    dora: bool
    matrix_bias: bool
    rank_stabilised: bool


@dataclass(frozen=True, slots=True)
class TrainedTensor:
    """A tensor that an adapter trains, under its name in the adapter's file.

    role: "matrix", "copy" (of a module of the base) or "bias" (the base's own).
    """

    tensor: Tensor
    role: str
    module: str
