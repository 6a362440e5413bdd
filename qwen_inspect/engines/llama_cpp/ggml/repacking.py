"""Weights that llama.cpp repacks for the CPU, into a buffer that no card reads.

Source: llama.cpp b11549, ggml/src/ggml-cpu/repack.cpp (ggml_repack_get_optimal_repack_type, extra_buffer_type), with AVX2.
"""

from __future__ import annotations

from .tensors import Node

REPACKED = "CPU_REPACK"
TYPES = frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"))
ROWS = 8
MATRIX, EXPERTS = 2, 3


def can_be_repacked(kind: str, rows: int, dimensions: int, *, experts: bool) -> bool:
    """kind: a type's name. dimensions: of the tensor. experts: whether it is multiplied by MUL_MAT_ID."""
    return kind in TYPES and rows % ROWS == 0 and dimensions == (EXPERTS if experts else MATRIX)


def is_repacked(node: Node, weight: Node) -> bool:
    """Whether the weight of a product would be."""
    if node.op not in ("MUL_MAT", "MUL_MAT_ID"):
        return False
    dimensions = max(at for at, count in enumerate(weight.shape, start=1) if count > 1 or at == 1)
    return can_be_repacked(weight.type.name, weight.shape[1], dimensions, experts=node.op == "MUL_MAT_ID")
