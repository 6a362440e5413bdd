"""What CUDA keeps in memory longer, or moves, so that it can compute several nodes of a mixture by one kernel.

Source: llama.cpp b11434, ggml/src/ggml-cuda/ggml-cuda.cu (ggml_backend_cuda_graph_optimize, ggml_cuda_topk_moe_fusion,
ggml_cuda_match_moe_weighted_reduction, ggml_cuda_match_shared_expert), topk-moe.cu (ggml_cuda_should_use_topk_moe).
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
            weights = nodes[at + 1].sources[1:] if nodes[at + 1].op == "MUL" else []
            yield [*nodes[at].sources, *weights], nodes[at + length - 1]
        else:
            length = _routing_length(nodes, ops, at)
            if length and at + length < len(nodes):
                fused = nodes[at : at + length]
                kept = [each for node in fused for each in (node, *node.sources)]
                yield list({id(node): node for node in kept}.values()), nodes[at + length]
        at += max(length, 1)


def shared_beside_routed(nodes: Sequence[Node]) -> tuple[list[Node], list[tuple[list[Node], Node]]]:
    """The nodes with each shared expert's first part right after the routed experts', and what stays until then.

    It is moved where both have one quantised type and one shape, for batches of every size.
    """
    moved, kept = list(nodes), []
    at = 0
    while at + 5 < len(moved):
        shared = _shared_expert(moved, at)
        if shared:
            moved[at + 3 : shared + 3] = [*moved[shared : shared + 3], *moved[at + 3 : shared]]
            kept.append((moved[at].sources[1:], moved[at + 5]))
            at += 5
        at += 1
    return moved, kept


def _shared_expert(nodes: Sequence[Node], at: int) -> int:
    """Where the shared expert's gate and up are that belong to the routed experts' at `at`; 0 if there are none."""
    routed = _gated(nodes, at, "MUL_MAT_ID")
    if routed is None:
        return 0
    for start in range(at + 3, len(nodes) - 2):
        if nodes[start].op == nodes[start + 1].op == "MUL_MAT_ID":
            return 0
        shared = _gated(nodes, start, "MUL_MAT")
        if shared is not None and _computes_alike(routed, shared):
            return start
    return 0


def _gated(nodes: Sequence[Node], at: int, op: str) -> Node | None:
    """`up` of two multiplications by `op` that a GLU follows, if it alone uses them."""
    first, second, joined = nodes[at : at + 3]
    if not first.op == second.op == op or joined.op != "GLU" or set(map(id, joined.sources)) != {id(first), id(second)}:
        return None
    gate, up = joined.sources
    alike = gate.sources[0].type == up.sources[0].type and gate.sources[0].shape == up.sources[0].shape
    same_inputs = all(left is right for left, right in zip(gate.sources[1:], up.sources[1:], strict=True))
    return up if alike and same_inputs else None


def _computes_alike(routed: Node, shared: Node) -> bool:
    weight, shared_weight, inputs = routed.sources[0], shared.sources[0], routed.sources[1]
    same_weight = weight.type == shared_weight.type and weight.shape[:2] == shared_weight.shape[:2]
    same_inputs = inputs.op == "RESHAPE" and inputs.sources[0] is shared.sources[1]
    return same_weight and same_inputs and weight.device is not None and weight.type.numbers > 1


def _weighted_length(nodes: Sequence[Node], ops: Sequence[str], at: int) -> int:
    """Of a sum over experts with their weights: MUL (twice with a scale), a view of each expert, and the additions; else 0."""
    if not _weighs(nodes[at]):
        return 0
    used = nodes[at].shape[1]
    scaled = at + 1 < len(nodes) and _weighs(nodes[at + 1]) and nodes[at + 1].sources[0] is nodes[at]
    start = at + 2 if scaled else at + 1
    rest = ops[start : start + 2 * used - 1]
    return start - at + 2 * used - 1 if rest.count("VIEW") == used and rest.count("ADD") == used - 1 else 0


def _weighs(node: Node) -> bool:
    if node.op != "MUL" or len(node.sources) != 2:
        return False
    experts, weights = node.sources
    return weights.shape == (1, *node.shape[1:]) and experts.shape == node.shape and 2 <= node.shape[1] <= MOST_USED


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
