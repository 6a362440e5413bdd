"""What CUDA keeps in memory longer, so that it can compute several nodes of a mixture's routing by one kernel.

Source: llama.cpp b11434, ggml/src/ggml-cuda/ggml-cuda.cu (ggml_backend_cuda_graph_optimize, ggml_cuda_topk_moe_fusion,
ggml_cuda_match_moe_weighted_reduction), topk-moe.cu (ggml_cuda_should_use_topk_moe).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .tensors import Node

MOST_EXPERTS = 512
OTHER_EXPERTS = (288, 576)
MOST_USED = 15  # MOE_WEIGHTED_REDUCTION_MAX_EXPERTS
CHOICE = ("RESHAPE", "ARGSORT", "VIEW", "GET_ROWS")
BIASED_CHOICE = ("RESHAPE", "ADD", "ARGSORT", "VIEW", "GET_ROWS")
NORM = ("RESHAPE", "SUM_ROWS", "CLAMP", "DIV", "RESHAPE")


def kept_nodes(nodes: Sequence[Node]) -> Iterator[tuple[list[Node], Node]]:
    """Nodes of a card's split that stay until after another one is computed."""
    ops = [node.op for node in nodes]
    at = 0
    while at < len(nodes):
        length = _weighted_length(nodes, ops, at)
        if length:
            yield nodes[at].sources[:2], nodes[at + length - 1]
        else:
            length = _routing_length(nodes, ops, at)
            if length and at + length < len(nodes):
                fused = nodes[at : at + length]
                kept = [each for node in fused for each in (node, *node.sources)]
                yield list({id(node): node for node in kept}.values()), nodes[at + length]
        at += max(length, 1)


def _weighted_length(nodes: Sequence[Node], ops: Sequence[str], at: int) -> int:
    """Of a sum over experts with their weights: MUL, a view of each expert, and the additions; else 0."""
    first = nodes[at]
    if first.op != "MUL" or len(first.sources) != 2:
        return 0
    experts, weights = first.sources
    if weights.shape != (1, *first.shape[1:]) or experts.shape != first.shape or not 2 <= first.shape[1] <= MOST_USED:
        return 0
    used = first.shape[1]
    rest = ops[at + 1 : at + 2 * used]
    return 2 * used if rest.count("VIEW") == used and rest.count("ADD") == used - 1 else 0


def _routing_length(nodes: Sequence[Node], ops: Sequence[str], at: int) -> int:
    """Of a router's scores, choice and weights; else 0."""
    experts = nodes[at].shape[0]
    power_of_two = experts & (experts - 1) == 0 and experts <= MOST_EXPERTS
    if ops[at] not in ("SOFT_MAX", "UNARY") or len(nodes[at].sources) != 1:
        return 0
    if not power_of_two and experts not in OTHER_EXPERTS:
        return 0
    for choice in (CHOICE, BIASED_CHOICE):
        end = at + 1 + len(choice)
        if tuple(ops[at + 1 : end]) == choice:
            break
    else:
        return 0
    if tuple(ops[end : end + len(NORM)]) == NORM:
        end += len(NORM)
    if ops[end : end + 1] == ["SCALE"]:
        end += 1
    return end - at
