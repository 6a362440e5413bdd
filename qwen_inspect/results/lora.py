"""Low-rank adapters as configured: which modules they change, and by matrices of which rank.

Source: Hu et al. 2021, "LoRA" (W + scale x B A, with A (rank, inputs) and B (outputs, rank)); PEFT 0.21, tuners/lora.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..checkpoint import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """takes, copies: by a module's full name, whether it gets matrices, and whether it is trained whole as a copy.

    rank_of, alpha_of: of a module that is taken. bias: which biases of the base are trained: "none", "lora_only" (of the modules
    taken) or "all". dora: with a magnitude for each output feature (Liu et al. 2024). matrix_bias: B has a bias.
    rank_stabilised: scaled by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023).
    """

    takes: Callable[[str], bool]
    copies: Callable[[str], bool]
    rank_of: Callable[[str], int]
    alpha_of: Callable[[str], float]
    bias: str
    dora: bool
    matrix_bias: bool
    rank_stabilised: bool


@dataclass(frozen=True, slots=True)
class TrainedTensor:
    """A tensor that an adapter trains, under its name in files.

    role: "matrix", "copy" (of a module of the base) or "bias" (the base's own).
    """

    tensor: Tensor
    role: str
    module: str
