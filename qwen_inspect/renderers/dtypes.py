"""Tensors by number format, for every output format."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint import Tensor


def by_dtype(tensors: Sequence[Tensor]) -> list[tuple[str, int, int, int]]:
    """(dtype, tensors, elements, bytes) of each number format there is, the one with most bytes first."""
    sums: dict[str, tuple[int, int, int]] = {}
    for tensor in tensors:
        found, elements, size_bytes = sums.get(str(tensor.dtype), (0, 0, 0))
        sums[str(tensor.dtype)] = found + 1, elements + tensor.elements, size_bytes + tensor.size_bytes
    return sorted(((dtype, *found) for dtype, found in sums.items()), key=lambda row: (-row[3], row[0]))
