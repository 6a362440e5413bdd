"""Puts bitsandbytes' 4-bit or 8-bit weights into a fake model, with the allocations of multiplying by them."""

from __future__ import annotations

from ..typed import Any
from ..values import dataclass
from .adapting import FourBits, hold_in_four_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class EightBits:
    """A base quantised by bitsandbytes to 8 bits. modules: their full names. threshold: of outliers, 0 for none."""

    modules: frozenset[str]
    threshold: float


Base = FourBits | EightBits


def hold(model: Any, base: Base) -> None:
    """Replaces a fake model's linear modules by bitsandbytes' loaded ones."""
    match base:
        case FourBits():
            hold_in_four_bits(model, base)
        case EightBits():
            hold_in_eight_bits(model, base)


def hold_in_eight_bits(model: Any, base: EightBits) -> None:
    """Replaces linear modules by 8-bit ones whose forward makes the allocations of bitsandbytes' CUDA path and computes nothing.

    Assumed: one column of each module's inputs has outliers, which are multiplied separately; each further column adds 2 bytes
    per row of inputs and of the weight. Not counted: CUDA's scratch for the outlier search, freed before the product.
    Source: bitsandbytes 0.50, autograd/_functions.py, MatMul8bitLt.forward; backends/cuda/ops.py, int8_vectorwise_quant,
    int8_linear_matmul and int8_mm_dequant; backends/default/ops.py, int8_mixed_scaled_mm and int8_scaled_mm
    """
    import torch

    class Linear8bit(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, dense: Any) -> None:
            super().__init__()
            rows, columns = dense.weight.shape
            self.weight = torch.nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)
            self.SCB = torch.nn.Parameter(torch.empty(rows), requires_grad=False)  # one scale per row
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
            """The product as int32, then float16, then the inputs' dtype; the int32 one is alive until the last is made."""
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
    """One scale per row of inputs, and the rows in 8 bits. outliers: also search for outliers."""
    import torch

    scales = rows.new_empty(len(rows), dtype=torch.float32)
    codes = torch.empty_like(rows, dtype=torch.int8)
    if outliers:
        torch.ge(rows.abs(), 0)
    return scales, codes
