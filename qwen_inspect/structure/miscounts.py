"""Why a published count differs: the usual mistakes, each with the parameters it adds or omits for this model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from ..checkpoint import Tensor
from ..language import Message
from ..results.counts import Cause, Check
from ..spec import (
    DenseMlp,
    FullAttention,
    GatedAttention,
    LinearAttention,
    ModelSpec,
    Module,
    MoeMlp,
    SlidingAttention,
    each_tensor,
)
from ..typed import TYPE_CHECKING
from .accounting import components

if TYPE_CHECKING:
    from .packing import Packing

MOST_AT_ONCE = 3
# Roles of the stored tensors of a quantised matrix, other than its packed numbers, that a count may include.
BESIDE = {
    "scales_counted": ("scales", "tables"),
    "zeros_counted": ("zeros",),
    "all_beside_counted": ("scales", "tables", "zeros", "group_index", "notes"),
}


def against_claim(
    spec: ModelSpec,
    tree: Module,
    claimed: int,
    prediction: tuple[Tensor, ...] = (),
    packing: Packing | None = None,
) -> Check:
    """Theory against a published count: the fewest usual mistakes, at most three, that add up to the difference.

    prediction: tensors of a prediction layer, which some releases store and some counts include. packing: how quantised weights
    are stored; some counts take stored elements for parameters.
    """
    mistakes = [mistake for mistake in _mistakes(spec, tree) if mistake.parameters]
    if packing is not None:
        mistakes += [mistake for mistake in _packing_mistakes(packing) if mistake.parameters]
    if prediction:
        mistakes.append(_mistake("prediction_layer_counted", sum(tensor.elements for tensor in prediction), 1))
    difference = claimed - tree.parameters
    causes: tuple[Cause, ...] = ()
    for size in range(1, MOST_AT_ONCE + 1):
        groups = (group for group in combinations(mistakes, size) if sum(m.parameters for m in group) == difference)
        if difference and (group := next(groups, None)):
            causes = group
            break
    return Check(
        left="theory", right="claimed", left_parameters=tree.parameters, right_parameters=claimed, causes=causes
    )


def _mistakes(spec: ModelSpec, tree: Module) -> Iterator[Cause]:
    """Each mistake's signed effect on the count; 0 if this model cannot be miscounted that way."""
    table = spec.vocab_size * spec.hidden_size
    if spec.headed:
        yield _mistake("tied_counted_twice", table if spec.tied_embeddings else 0, 1)
        yield _mistake("head_left_out", 0 if spec.tied_embeddings else -table, 1)
    yield _mistake("embedding_left_out", -table, 1)
    yield _mistake("only_active", tree.active_parameters - tree.parameters, 0)

    wide = narrow_norms = as_queries = derived = plain = gates = 0
    layers = len(spec.layers)
    for layer in spec.layers:
        match layer.attention:
            case LinearAttention():
                pass
            case FullAttention() | SlidingAttention() | GatedAttention() as kind:
                gated = isinstance(kind, GatedAttention)
                query, key_value = kind.query_heads * kind.head_dim, kind.kv_heads * kind.head_dim
                if isinstance(kind, GatedAttention) or kind.qk_norm:
                    wide += query - kind.head_dim + key_value - kind.head_dim
                    narrow_norms -= 2 * kind.head_dim
                rows = spec.hidden_size + kind.qkv_bias
                as_queries += 2 * (query - key_value) * rows
                other_dim = spec.hidden_size // kind.query_heads
                gate = query * rows if gated else 0
                gates -= gate
                ratio_rows = (query + 2 * key_value) * rows + query * spec.hidden_size + gate
                # All four projections scale with head_dim; exact because each holds a whole number of heads.
                derived += ratio_rows // kind.head_dim * (other_dim - kind.head_dim)
        match layer.mlp:
            case DenseMlp(intermediate_size=width):
                plain -= spec.hidden_size * width
            case MoeMlp(experts=experts, intermediate_size=width):
                plain -= experts * spec.hidden_size * width
    yield _mistake("qk_norm_wide", wide, layers)
    yield _mistake("qk_norm_left_out", narrow_norms, layers)
    yield _mistake("kv_heads_as_query_heads", as_queries, layers)
    yield _mistake("head_dim_derived", derived, layers)
    yield _mistake("mlp_not_gated", plain, layers)
    yield _mistake("output_gate_left_out", gates, layers)
    parts = {part.name: part.parameters for part in components(tree)}
    biases = sum(tensor.elements for tensor in each_tensor(tree) if tensor.name.endswith(".bias"))
    yield _mistake("biases_left_out", -biases, layers)
    yield _mistake("norms_left_out", -parts.get("norm", 0), layers)
    yield _mistake("router_left_out", -parts.get("router", 0), layers)
    yield _mistake("shared_expert_left_out", -parts.get("shared_expert", 0), layers)
    yield _mistake("vision_left_out", -parts.get("vision", 0), layers)


def _packing_mistakes(packing: Packing) -> Iterator[Cause]:
    """Stored elements taken for parameters: a packed word counted once, and scales, zeros and the like counted too.

    `safetensors.total` of a hub's API counts so: the elements of every stored tensor.
    """
    elements: Counter[str] = Counter()
    matrices, parameters = 0, 0
    for matrix, parts, times in packing.quantised():
        matrices += times
        parameters += times * matrix.elements
        for part in parts:
            elements[part.role] += times * part.tensor.elements
    yield _mistake("packed_words", elements["packed"] - parameters, matrices)
    for name, roles in BESIDE.items():
        yield _mistake(name, sum(elements[role] for role in roles), matrices)


def _mistake(name: str, parameters: int, layers: int) -> Cause:
    message = Message(f"miscount_{name}", parameters=abs(parameters), layers=layers)
    return Cause(name=name, message=message, parameters=parameters, tensors=0)
