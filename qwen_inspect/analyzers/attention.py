"""Which attention each layer has, by the configuration and by the shapes of its projections: the shapes decide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..checkpoint import Tensor
from ..language import Message
from ..report import AttentionReport, LayerAttention
from ..spec import FullAttention, ModelSpec, SlidingAttention


def attention_report(spec: ModelSpec, stored: Sequence[Tensor] | None) -> AttentionReport:
    """By the configuration, and by the shapes of what is stored; a layer without stored projections stands as configured."""
    by_config = tuple(_by_config(spec))
    if stored is None:
        return AttentionReport(by_config=by_config, by_shapes=None, findings=())
    shapes = {tensor.name: tensor.shape for tensor in stored}
    seen = [_by_shapes(layer, shapes) for layer in by_config]
    by_shapes = tuple(
        one if isinstance(one, LayerAttention) else said for one, said in zip(seen, by_config, strict=True)
    )
    findings = list(_findings(by_config, by_shapes))
    for key in dict.fromkeys(one for one in seen if isinstance(one, str)):
        layers = [said.index for one, said in zip(seen, by_config, strict=True) if one == key]
        findings.append(Message(key, count=len(layers), first=layers[0]))
    read_any = any(isinstance(one, LayerAttention) for one in seen)
    return AttentionReport(by_config=by_config, by_shapes=by_shapes if read_any else None, findings=tuple(findings))


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


def _by_shapes(layer: LayerAttention, shapes: dict[str, tuple[int, ...]]) -> LayerAttention | str:
    """Heads from the rows of q_proj and k_proj; head_dim from q_norm, whose one weight a channel shows it, else as configured.

    The key of a finding where there are no projections, or no whole number of heads in them.
    """
    for prefix in ("model.layers", "layers"):
        block = f"{prefix}.{layer.index}.self_attn"
        query, key = shapes.get(f"{block}.q_proj.weight"), shapes.get(f"{block}.k_proj.weight")
        if query is None or key is None or len(query) != 2 or len(key) != 2:
            continue
        norm = shapes.get(f"{block}.q_norm.weight")
        head_dim = norm[0] if norm else layer.head_dim
        if head_dim == 0 or query[0] % head_dim or key[0] % head_dim or not key[0] or not query[0]:
            return "finding_no_whole_heads"
        return LayerAttention(
            index=layer.index,
            query_heads=query[0] // head_dim,
            kv_heads=key[0] // head_dim,
            head_dim=head_dim,
            window_tokens=layer.window_tokens,
        )
    return "finding_no_projections"


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
