"""What ik_llama.cpp leaves to the host: -rtr repacks weights there into types of which cards know few.

Source: ik_llama.cpp 45cd1bcd5 (May 2025) and 5236c98b (June 2025), ggml/src/ggml-cuda.cu (ggml_backend_cuda_offload_op and
_supports_op), ggml/src/iqk/iqk_quantize.cpp (get_repack_info).
"""

from __future__ import annotations

from ..builds import Build
from .tensors import Node

LEAST_ROWS = 32
NOT_REPACKED = frozenset(("float32", "Q4_1", "Q5_1", "IQ1_S", "IQ1_M", "IQ6_K"))
KNOWN_REPACKED = frozenset(("IQ2_K", "IQ3_K", "IQ4_K", "IQ4_KS", "IQ5_K", "IQ5_KS"))  # by cards, since June 2025


def offloads(node: Node, weight: Node, build: Build, *, repacked: bool) -> bool:
    """Whether a card computes with a weight that lies on the host."""
    name = weight.type.name
    if repacked and name not in NOT_REPACKED and not (build.offloads_by_experts and name in KNOWN_REPACKED):
        return False
    if build.offloads_by_experts and node.op in ("MUL_MAT_ID", "MOE_FUSED_UP_GATE"):
        tokens, used, experts = node.shape[2], node.shape[1], node.sources[0].shape[2]
        return tokens >= LEAST_ROWS and tokens * used >= LEAST_ROWS * experts
    if node.op == "MUL_MAT_ID" and node.shape[2] >= LEAST_ROWS:
        return True
    return node.op != "GET_ROWS" and node.shape[1] >= LEAST_ROWS
