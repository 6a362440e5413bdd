"""Each layer's attention: by the configuration, and by the shapes of its stored projections, which decide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..checkpoint import Tensor
from ..language import Message
from ..results.attention import (
    AnyLayerAttention,
    AttentionReport,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ..spec import FullAttention, GatedAttention, LinearAttention, ModelSpec, SlidingAttention
from ..values import replace

# Where the releases and transformers put the decoder's layers.
PREFIXES = ("model.layers", "model.language_model.layers", "layers", "language_model.layers")


def attention_report(spec: ModelSpec, stored: Sequence[Tensor] | None) -> AttentionReport:
    """Each layer's attention by the configuration and by stored shapes; without stored projections, as configured."""
    by_config = tuple(_by_config(spec))
    if stored is None:
        return AttentionReport(by_config=by_config, by_shapes=None, findings=())
    shapes = {tensor.name: tensor.shape for tensor in stored}
    # Of each layer its attention, or the key of a finding that says why the shapes do not show it.
    results = [_by_shapes(layer, shapes) for layer in by_config]
    by_shapes = tuple(
        layer if isinstance(result, str) else result for result, layer in zip(results, by_config, strict=True)
    )
    findings = list(_findings(by_config, by_shapes))
    for key in dict.fromkeys(result for result in results if isinstance(result, str)):
        indices = [layer.index for result, layer in zip(results, by_config, strict=True) if result == key]
        findings.append(Message(key, count=len(indices), first=indices[0]))
    read_any = not all(isinstance(result, str) for result in results)
    return AttentionReport(by_config=by_config, by_shapes=by_shapes if read_any else None, findings=tuple(findings))


def _by_config(spec: ModelSpec) -> list[AnyLayerAttention]:
    layers: list[AnyLayerAttention] = []
    for index, layer in enumerate(spec.layers):
        match layer.attention:
            case LinearAttention() as kind:
                layers.append(
                    LinearLayerAttention(
                        index=index,
                        key_heads=kind.key_heads,
                        value_heads=kind.value_heads,
                        key_head_dim=kind.key_head_dim,
                        value_head_dim=kind.value_head_dim,
                        conv_kernel=kind.conv_kernel,
                    )
                )
            case FullAttention() | SlidingAttention() | GatedAttention() as kind:
                layers.append(
                    LayerAttention(
                        index=index,
                        query_heads=kind.query_heads,
                        kv_heads=kind.kv_heads,
                        head_dim=kind.head_dim,
                        window_tokens=kind.window_tokens if isinstance(kind, SlidingAttention) else None,
                        gated=isinstance(kind, GatedAttention),
                    )
                )
    return layers


def _by_shapes(layer: AnyLayerAttention, shapes: dict[str, tuple[int, ...]]) -> AnyLayerAttention | str:
    """The layer as its stored tensors show it; a finding's key if they are absent or hold no whole number of heads."""
    for prefix in PREFIXES:
        path = f"{prefix}.{layer.index}"
        result: AnyLayerAttention | str | None
        match layer:
            case LayerAttention():
                result = _softmax_by_shapes(layer, path, shapes)
            case LinearLayerAttention():
                result = _linear_by_shapes(layer, path, shapes)
            case OtherLayerAttention() | EncoderLayerAttention():
                return layer
        if result is not None:
            return result
    return "finding_no_projections"


def _softmax_by_shapes(
    layer: LayerAttention, path: str, shapes: dict[str, tuple[int, ...]]
) -> LayerAttention | str | None:
    """Heads from the rows of q_proj and k_proj; head_dim from q_norm (one weight a channel), else as configured."""
    block = f"{path}.self_attn"
    query, key = shapes.get(f"{block}.q_proj.weight"), shapes.get(f"{block}.k_proj.weight")
    if query is None or key is None or len(query) != 2 or len(key) != 2:
        return None
    norm = shapes.get(f"{block}.q_norm.weight")
    head_dim = norm[0] if norm else layer.head_dim
    rows = head_dim * (2 if layer.gated else 1)
    if rows == 0 or query[0] % rows or key[0] % head_dim or not key[0] or not query[0]:
        return "finding_no_whole_heads"
    return replace(layer, query_heads=query[0] // rows, kv_heads=key[0] // head_dim, head_dim=head_dim)


def _linear_by_shapes(
    layer: LinearLayerAttention, path: str, shapes: dict[str, tuple[int, ...]]
) -> LinearLayerAttention | str | None:
    """Value heads from A_log, value_head_dim from the norm, key heads from the channels of conv1d (q, k and v).

    key_head_dim stays as configured: no tensor shows where a head's key ends.
    """
    block = f"{path}.linear_attn"
    decay, norm, conv = (shapes.get(f"{block}.{name}") for name in ("A_log", "norm.weight", "conv1d.weight"))
    if decay is None or norm is None or conv is None or (len(decay), len(norm), len(conv)) != (1, 1, 3):
        return None
    key_channels, odd = divmod(conv[0] - decay[0] * norm[0], 2)
    if odd or key_channels <= 0 or key_channels % layer.key_head_dim or not decay[0] or not norm[0]:
        return "finding_no_whole_heads"
    return replace(
        layer,
        key_heads=key_channels // layer.key_head_dim,
        value_heads=decay[0],
        value_head_dim=norm[0],
        conv_kernel=conv[2],
    )


def _findings(by_config: Sequence[AnyLayerAttention], by_shapes: Sequence[AnyLayerAttention]) -> list[Message]:
    """One finding for each run of layers whose shapes contradict the configuration in the same way."""
    findings = []
    pairs = zip(by_config, by_shapes, strict=True)
    for (configured, stored), run in groupby(pairs, key=lambda pair: (pair[0].heads, pair[1].heads)):
        layers = list(run)
        if configured == stored:
            continue
        (first_configured, first_stored), (last, _) = layers[0], layers[-1]
        findings.append(
            Message(
                "finding_heads_disagree",
                first=first_configured.index,
                last=last.index,
                said=_heads(first_configured),
                said_kind=first_configured.kind,
                seen=_heads(first_stored),
                seen_kind=first_stored.kind,
            )
        )
    return findings


def _heads(layer: AnyLayerAttention) -> str:
    match layer:
        case LayerAttention():
            return f"{layer.query_heads}/{layer.kv_heads}/{layer.head_dim}"
        case LinearLayerAttention():
            return f"{layer.key_heads}/{layer.value_heads}/{layer.key_head_dim}, {layer.value_head_dim}"
        case OtherLayerAttention():
            return layer.cache_kind
        case EncoderLayerAttention():
            return f"{layer.query_heads}/{layer.kv_heads}/{layer.head_dim}"
