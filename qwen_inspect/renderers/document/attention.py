"""`attention`: the kind per layer, how query heads share KV heads, the shapes worked through, and the cache."""

from __future__ import annotations

from collections.abc import Sequence

from ...engines import caches_of
from ...language import Language
from ...results.attention import (
    AnyLayerAttention,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ...results.model import Report
from ...units import count, size
from ...values import replace
from ..blocks import Block, Figure, Heading, Items, Paragraph, Table
from . import View
from .common import grouped, identity, notices, runs, span, spans
from .media import media_blocks
from .structure import attention_summary, attention_table, cache_fields, cache_notes

MOST_GROUPS = 4


def blocks(report: Report, say: Language, view: View) -> Sequence[Block]:
    return [
        Heading(say("heading_attention", name=report.ref.id), 1),
        identity(report, say),
        *notices(report, say),
        *media_blocks(report, say),
        Heading(say("heading_attention_layers")),
        *attention_summary(report, say),
        attention_table(report, say, view),
        *worked_through(report, say),
        Heading(say("heading_cache")),
        cache_table(report, say, view),
        cache_fields(report, say),
        *(cache_figure(report, say) if view.live and _is_plotted(report) else []),
        *engine_blocks(report, say),
        Heading(say("heading_cache_notes")),
        Items(cache_notes(report, say), numbered=True),
    ]


def _is_plotted(report: Report) -> bool:
    """Whether there is a cache of a known size at any context: not if cross-attention keeps a source of unknown length."""
    cache = report.cache
    return not cache.keeps_nothing and (not cache.source_bytes_per_token or cache.source_tokens is not None)


def cache_figure(report: Report, say: Language) -> list[Block]:
    """Plot of cache size against context, for HTML pages."""
    from ..cache_plot import NARROW_WIDTH, cache_plot

    narrower = [cache_plot(report, say, width=NARROW_WIDTH)]
    return [Figure(cache_plot(report, say), say("cache_figure", name=report.ref.id), "", narrower)]


def worked_through(report: Report, say: Language) -> list[Block]:
    """For each distinct set of heads: which query heads read which KV head, and the shape of every intermediate tensor."""
    content: list[Block] = []
    for layers, layer in distinct(report.attention.layers):
        match layer:
            case LayerAttention():
                mapped, shaped = mapping(layer, say), shapes(layer, report, say)
            case EncoderLayerAttention():
                content += [Heading(say("heading_mapping", layers=layers)), *mapping(layer, say)]
                continue
            case LinearLayerAttention():
                mapped, shaped = linear_mapping(layer, say), linear_shapes(layer, report, say)
            case OtherLayerAttention(cache_kind=kind):
                sentence = say("mapping_other", kind=say(f"kind_{kind}"))
                content += [Heading(say("heading_mapping", layers=layers)), Paragraph(sentence)]
                continue
        if report.spec.built:  # Known only as transformers builds it: its projections may have any names and shapes.
            content += [Heading(say("heading_mapping", layers=layers)), *mapped]
            continue
        content += [
            Heading(say("heading_mapping", layers=layers)),
            *mapped,
            Heading(say("heading_shapes", layers=layers)),
            shaped,
        ]
    return content


def distinct(layers: Sequence[AnyLayerAttention]) -> list[tuple[str, AnyLayerAttention]]:
    """(layer numbers, example layer) for each distinct set of heads. Windows are ignored: they change no mapping and no shape."""
    labels_of: dict[object, list[str]] = {}
    first_of: dict[object, AnyLayerAttention] = {}

    def shape(layer: AnyLayerAttention) -> tuple[object, ...]:
        by_heads = isinstance(layer, LayerAttention | EncoderLayerAttention)
        return layer.kind, layer.heads[:3] if by_heads else layer.heads

    for first, last, layer in runs(layers, shape):
        labels_of.setdefault(shape(layer), []).append(span(first, last))
        first_of.setdefault(shape(layer), layer)
    return [(spans(labels), first_of[key]) for key, labels in labels_of.items()]


def mapping(layer: LayerAttention | EncoderLayerAttention, say: Language) -> list[Block]:
    """Which query heads read which KV head."""
    group = layer.query_heads // layer.kv_heads
    values = {"query_heads": layer.query_heads, "kv_heads": layer.kv_heads, "group": group}
    rows = []
    for head in range(min(layer.kv_heads, MOST_GROUPS)):
        first = head * group
        rows.append([span_of_heads(first, first + group - 1), f"K[{head}], V[{head}]"])
    if layer.kv_heads > MOST_GROUPS:
        rows.append(["…", "…"])
        last = layer.kv_heads - 1
        rows[-1:] = [["…", "…"], [span_of_heads(last * group, last * group + group - 1), f"K[{last}], V[{last}]"]]
    return [
        Paragraph(say(f"mapping_{layer.kind.lower()}", **values)),
        Table([say("column_query"), say("column_key_value")], rows, "ll"),
    ]


def linear_mapping(layer: LinearLayerAttention, say: Language) -> list[Block]:
    """Which query and key head each value head reads; each value head has its own state."""
    group = layer.value_heads // layer.key_heads
    return [
        Paragraph(
            say(
                "mapping_linear",
                key_heads=layer.key_heads,
                value_heads=layer.value_heads,
                group=group,
                key_dim=layer.key_head_dim,
                value_dim=layer.value_head_dim,
            )
        )
    ]


def linear_shapes(layer: LinearLayerAttention, report: Report, say: Language) -> Table:
    """`shapes` for Gated DeltaNet. Source: transformers 5.23, Qwen3NextGatedDeltaNet.forward."""
    hidden, keys, values = report.spec.hidden_size, layer.key_heads, layer.value_heads
    key_dim, value_dim = layer.key_head_dim, layer.value_head_dim
    channels = 2 * keys * key_dim + values * value_dim
    steps: list[tuple[str, tuple[str | int, ...]]] = [
        (say("step_hidden"), ("B", "L", hidden)),
        (say("step_linear_qkv"), ("B", "L", channels)),
        (say("step_linear_gate"), ("B", "L", values * value_dim)),
        (say("step_linear_decay"), ("B", "L", values)),
        (say("step_linear_conv", kernel=layer.conv_kernel), ("B", channels, "L")),
        (say("step_linear_keys"), ("B", "L", keys, key_dim)),
        (say("step_linear_values"), ("B", "L", values, value_dim)),
        (say("step_linear_state"), ("B", values, key_dim, value_dim)),
        (say("step_linear_output"), ("B", "L", values * value_dim)),
        ("out_proj", ("B", "L", hidden)),
    ]
    return shape_table(steps, report, say)


def span_of_heads(first: int, last: int) -> str:
    return (
        f"Q[{first}]" if first == last else f"Q[{first}], Q[{last}]" if last == first + 1 else f"Q[{first}] … Q[{last}]"
    )


def shapes(layer: LayerAttention, report: Report, say: Language) -> Table:
    """Every tensor from hidden states to the block's output, with symbolic and numeric shapes (requested batch and context)."""
    hidden, query, kv, dim = report.spec.hidden_size, layer.query_heads, layer.kv_heads, layer.head_dim
    steps: list[tuple[str, tuple[str | int, ...]]] = [
        (say("step_hidden"), ("B", "L", hidden)),
        ("Q, gate = q_proj(x)", ("B", "L", 2 * query * dim))
        if layer.gated
        else ("Q = q_proj(x)", ("B", "L", query * dim)),
        ("K = k_proj(x), V = v_proj(x)", ("B", "L", kv * dim)),
        (say("step_heads", letter="Q"), ("B", query, "L", dim)),
        (say("step_heads", letter="K, V"), ("B", kv, "L", dim)),
        ("scores = Q × Kᵀ / √head_dim", ("B", query, "L", "L")),
        ("softmax(scores) × V", ("B", query, "L", dim)),
        (say("step_concat"), ("B", "L", query * dim)),
        *([("× sigmoid(gate)", ("B", "L", query * dim))] if layer.gated else []),
        ("o_proj", ("B", "L", hidden)),
    ]
    return shape_table(steps, report, say)


def shape_table(steps: Sequence[tuple[str, tuple[str | int, ...]]], report: Report, say: Language) -> Table:
    """Each step's shape, symbolic and with the workload's numbers."""
    batch, length = report.workload.batch, report.context_tokens
    numbers: dict[str | int, str] = {"B": str(batch), "L": "L" if length is None else str(length)}

    def shown(shape: tuple[str | int, ...], named: dict[str | int, str]) -> str:
        return f"[{', '.join(named.get(side, str(side)) for side in shape)}]"

    columns = [say("column_step"), say("column_shape"), f"B = {batch}, L = {'–' if length is None else count(length)}"]
    return Table(columns, [[step, shown(shape, {}), shown(shape, numbers)] for step, shape in steps], "lll")


def engine_blocks(report: Report, say: Language) -> list[Block]:
    """Cache size of the same workload in transformers and in serving engines; empty if no context length is known."""
    caches = caches_of(report)
    if not caches:
        return []
    rows = [
        [
            say(f"engine_{row.engine}"),
            row.format,
            count(row.size_bytes),
            size(row.size_bytes) if row.reason is None else say(row.reason),
        ]
        for row in caches
    ]
    columns = [say("column_engine"), say("column_format"), say("column_bytes"), say("column_size")]
    workload = report.workload
    heading = say("heading_engines", tokens=report.context_tokens, batch=workload.batch, ranks=workload.ranks)
    return [Heading(heading), Table(columns, rows, "llrr", expendable=((2,),))]


def cache_table(report: Report, say: Language, view: View) -> Table:
    """For each run of equal layers: bytes per token, fixed bytes, and total at the requested context and batch."""
    tokens, batch = report.context_tokens, report.workload.batch
    rows = []
    layers = report.cache.layers
    for where, indices, layer in grouped(layers, lambda layer: layer.index if view.expand else replace(layer, index=0)):
        total = None if report.cache_bytes is None else batch * len(indices) * layer.size_bytes(tokens or 0)
        rows.append(
            [
                where,
                say(f"cache_{layer.kind}"),
                "–" if layer.window_tokens is None else count(layer.window_tokens),
                count(layer.bytes_per_token),
                count(layer.fixed_bytes),
                count(layer.source_bytes_per_token),
                size(total),
            ]
        )
    fixed, source = report.cache.fixed_bytes, report.cache.source_bytes_per_token
    token_bytes = count(report.cache.bytes_per_token)
    rows.append([say("total"), "", "", token_bytes, count(fixed), count(source), size(report.cache_bytes)])
    columns = [
        say("column_layer"),
        say("column_cache_kind"),
        say("column_window"),
        say("column_cache_bytes"),
        say("column_state_bytes"),
        say("column_source_bytes"),
        say("column_cache_at", tokens="–" if tokens is None else count(tokens), batch=batch),
    ]
    shown = [index for index in range(len(columns)) if (index != 4 or fixed) and (index != 5 or source)]
    return Table(
        [columns[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        "lcrrrrr"[: len(shown)],
        totals=1,
    )
