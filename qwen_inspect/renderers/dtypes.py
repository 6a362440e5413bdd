"""Sums of tensors by dtype, for every output format."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint import Tensor


def by_dtype(tensors: Sequence[Tensor]) -> list[tuple[str, int, int, int]]:
    """(dtype, tensors, elements, bytes) of each dtype, the largest in bytes first."""
    sums: dict[str, tuple[int, int, int]] = {}
    for tensor in tensors:
        tensor_count, elements, size_bytes = sums.get(str(tensor.dtype), (0, 0, 0))
        sums[str(tensor.dtype)] = tensor_count + 1, elements + tensor.elements, size_bytes + tensor.size_bytes
    return sorted(((dtype, *totals) for dtype, totals in sums.items()), key=lambda row: (-row[3], row[0]))
