"""Weights that bitsandbytes holds in 4 or 8 bits, put into a model on fake tensors, and what multiplying by them allocates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .adapting import FourBits, hold_in_four_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class EightBits:
    """A base held by bitsandbytes in 8 bits. modules: those that are, by full name. threshold: of outliers, 0 for none."""

    modules: frozenset[str]
    threshold: float


Base = FourBits | EightBits


def hold(model: Any, base: Base) -> None:
    """The linear modules of a fake model as bitsandbytes has them once they are loaded."""
    match base:
        case FourBits():
            hold_in_four_bits(model, base)
        case EightBits():
            hold_in_eight_bits(model, base)


def hold_in_eight_bits(model: Any, base: EightBits) -> None:
    """Linear modules in 8 bits, whose forward asks for what bitsandbytes' on CUDA does, in its order, and computes nothing.

    One column of each module's inputs holds outliers, which are multiplied apart: each one more takes 2 bytes for every row of
    inputs and of the weight. Left out: what CUDA takes to look for them, which is freed before anything is multiplied.
    Source: bitsandbytes 0.50, autograd/_functions.py, MatMul8bitLt.forward; backends/cuda/ops.py, int8_vectorwise_quant,
    int8_linear_matmul and int8_mm_dequant; backends/default/ops.py, int8_mixed_scaled_mm and int8_scaled_mm
    """
    import torch

    class Linear8bit(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, dense: Any) -> None:
            super().__init__()
            rows, columns = dense.weight.shape
            self.weight = torch.nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)
            self.SCB = torch.nn.Parameter(torch.empty(rows), requires_grad=False)  # a scale for each row
            self.bias = dense.bias

        def forward(self, inputs: Any) -> Any:
            rows = inputs.reshape(-1, inputs.shape[-1])
            scales, codes = _quantised(rows.to(torch.float16), outliers=base.threshold > 0)
            if base.threshold > 0:
                apart = rows[:, :1].clone()
                weight = (self.weight[:, :1].contiguous() * self.SCB.view(-1, 1)).to(rows.dtype).t()
                output = self.multiplied(codes, inputs.dtype)
                # The sum of both; cuBLASLt adds to a single row.
                output = torch.addmm(output, apart, weight) if len(rows) == 1 else torch.mm(apart, weight)
            else:
                output = self.multiplied(codes, inputs.dtype)
            del scales
            return output.reshape(*inputs.shape[:-1], -1)

        def multiplied(self, codes: Any, dtype: Any) -> Any:
            """In whole numbers, then in float16, then in the dtype of the inputs; the first are alive until the last are made."""
            product = codes.new_empty((len(codes), len(self.weight)), dtype=torch.int32)
            half = torch.empty_like(product, dtype=torch.float16)
            if self.bias is not None:
                half.add_(self.bias)
            return half.to(dtype)

    for name in base.modules:
        try:
            dense = model.get_submodule(name)
        except AttributeError:
            continue  # of a layer that is not traced
        model.set_submodule(name, Linear8bit(dense))


def _quantised(rows: Any, *, outliers: bool) -> tuple[Any, Any]:
    """A scale for each row of inputs, and the rows in 8 bits. outliers: after a look at which numbers are such."""
    import torch

    scales = rows.new_empty(len(rows), dtype=torch.float32)
    codes = torch.empty_like(rows, dtype=torch.int8)
    if outliers:
        torch.ge(rows.abs(), 0)
    return scales, codes
