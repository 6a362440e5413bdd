"""Which attention each layer has, by the configuration and by the shapes of its projections: the shapes decide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..checkpoint import Tensor
from ..language import Message
from ..report import AttentionReport, LayerAttention
from ..spec import FullAttention, ModelSpec, SlidingAttention


def attention_report(spec: ModelSpec, stored: Sequence[Tensor] | None) -> AttentionReport:
    by_config = tuple(_by_config(spec))
    if stored is None:
        return AttentionReport(by_config=by_config, by_shapes=None, findings=())
    shapes = {tensor.name: tensor.shape for tensor in stored}
    by_shapes = tuple(_by_shapes(layer, shapes) for layer in by_config)
    if any(layer is None for layer in by_shapes):
        return AttentionReport(by_config=by_config, by_shapes=None, findings=(Message("finding_no_projections"),))
    known = tuple(layer for layer in by_shapes if layer is not None)
    return AttentionReport(by_config=by_config, by_shapes=known, findings=tuple(_findings(by_config, known)))


def _by_config(spec: ModelSpec) -> list[LayerAttention]:
    layers = []
    for index, layer in enumerate(spec.layers):
        match layer.attention:
            case FullAttention(query_heads=query, kv_heads=kv, head_dim=dim):
                window = None
            case SlidingAttention(query_heads=query, kv_heads=kv, head_dim=dim, window_tokens=tokens):
                window = tokens
        layers.append(LayerAttention(index=index, query_heads=query, kv_heads=kv, head_dim=dim, window_tokens=window))
    return layers


def _by_shapes(layer: LayerAttention, shapes: dict[str, tuple[int, ...]]) -> LayerAttention | None:
    """Heads from the rows of q_proj and k_proj; head_dim from q_norm, whose one weight a channel shows it, else as configured."""
    for prefix in ("model.layers", "layers"):
        block = f"{prefix}.{layer.index}.self_attn"
        query, key = shapes.get(f"{block}.q_proj.weight"), shapes.get(f"{block}.k_proj.weight")
        if query is None or key is None or len(query) != 2 or len(key) != 2:
            continue
        norm = shapes.get(f"{block}.q_norm.weight")
        head_dim = norm[0] if norm else layer.head_dim
        if head_dim == 0 or query[0] % head_dim or key[0] % head_dim or not key[0] or not query[0]:
            return None
        return LayerAttention(
            index=layer.index,
            query_heads=query[0] // head_dim,
            kv_heads=key[0] // head_dim,
            head_dim=head_dim,
            window_tokens=layer.window_tokens,
        )
    return None


def _findings(by_config: Sequence[LayerAttention], by_shapes: Sequence[LayerAttention]) -> list[Message]:
    """One finding for each run of layers whose shapes contradict the configuration in the same way."""
    findings = []
    pairs = zip(by_config, by_shapes, strict=True)
    for (said, seen), run in groupby(pairs, key=lambda pair: (pair[0].heads, pair[1].heads)):
        layers = list(run)
        if said == seen:
            continue
        (first_said, first_seen), (last_said, _) = layers[0], layers[-1]
        findings.append(
            Message(
                "finding_heads_disagree",
                first=first_said.index,
                last=last_said.index,
                said=_heads(first_said),
                said_kind=first_said.kind,
                seen=_heads(first_seen),
                seen_kind=first_seen.kind,
            )
        )
    return findings


def _heads(layer: LayerAttention) -> str:
    return f"{layer.query_heads}/{layer.kv_heads}/{layer.head_dim}"
