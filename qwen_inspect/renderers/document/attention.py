"""`attention`: the kind per layer, how query heads share KV heads, the shapes worked through, and the cache."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...report import LayerAttention, Report
from ...units import count, size
from ..blocks import Block, Heading, Items, Paragraph, Table
from . import View
from .common import identity, notices, runs, span
from .structure import attention_table, cache_fields, cache_notes

MOST_GROUPS = 4
MOST_SPANS = 8


def blocks(report: Report, say: Language, view: View) -> Sequence[Block]:
    made: list[Block] = [
        Heading(say("heading_attention", name=report.ref.id), 1),
        identity(report, say),
        *notices(report, say),
        Heading(say("heading_attention_layers")),
        Paragraph(say("attention_layers_found", layers=len(report.attention.layers))),
        attention_table(report, say, view),
    ]
    for layers, layer in distinct(report.attention.layers):
        made += [
            Heading(say("heading_mapping", layers=layers)),
            *mapping(layer, say),
            Heading(say("heading_shapes", layers=layers)),
            shapes(layer, report, say),
        ]
    return [
        *made,
        Heading(say("heading_cache")),
        cache_table(report, say, view),
        cache_fields(report, say),
        *engine_blocks(report, say),
        Heading(say("heading_cache_notes")),
        Items(cache_notes(report, say), numbered=True),
    ]


def distinct(layers: Sequence[LayerAttention]) -> list[tuple[str, LayerAttention]]:
    """One layer of each distinct set of heads, with the layers that have it; a window changes neither mapping nor shapes."""
    spans: dict[tuple[int, int, int], list[str]] = {}
    first_of: dict[tuple[int, int, int], LayerAttention] = {}
    for first, last, layer in runs(layers, lambda one: one.heads[:3]):
        heads = (layer.query_heads, layer.kv_heads, layer.head_dim)
        spans.setdefault(heads, []).append(span(first, last))
        first_of.setdefault(heads, layer)
    return [
        (", ".join(found[:MOST_SPANS]) + (", …" if len(found) > MOST_SPANS else ""), first_of[heads])
        for heads, found in spans.items()
    ]


def mapping(layer: LayerAttention, say: Language) -> list[Block]:
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


def span_of_heads(first: int, last: int) -> str:
    return (
        f"Q[{first}]" if first == last else f"Q[{first}], Q[{last}]" if last == first + 1 else f"Q[{first}] … Q[{last}]"
    )


def shapes(layer: LayerAttention, report: Report, say: Language) -> Table:
    """Every tensor from hidden states to the block's output, in letters and for the batch and context asked for."""
    hidden, query, kv, dim = report.spec.hidden_size, layer.query_heads, layer.kv_heads, layer.head_dim
    batch, length = report.workload.batch, report.context_tokens
    steps: list[tuple[str, tuple[str | int, ...]]] = [
        (say("step_hidden"), ("B", "L", hidden)),
        ("Q = q_proj(x)", ("B", "L", query * dim)),
        ("K = k_proj(x), V = v_proj(x)", ("B", "L", kv * dim)),
        (say("step_heads", letter="Q"), ("B", query, "L", dim)),
        (say("step_heads", letter="K, V"), ("B", kv, "L", dim)),
        ("scores = Q × Kᵀ / √head_dim", ("B", query, "L", "L")),
        ("softmax(scores) × V", ("B", query, "L", dim)),
        (say("step_concat"), ("B", "L", query * dim)),
        ("o_proj", ("B", "L", hidden)),
    ]
    numbers: dict[str | int, str] = {"B": str(batch), "L": "L" if length is None else str(length)}

    def shown(shape: tuple[str | int, ...], named: dict[str | int, str]) -> str:
        return f"[{', '.join(named.get(side, str(side)) for side in shape)}]"

    columns = [say("column_step"), say("column_shape"), f"B = {batch}, L = {'–' if length is None else count(length)}"]
    return Table(columns, [[step, shown(shape, {}), shown(shape, numbers)] for step, shape in steps], "lll")


def engine_blocks(report: Report, say: Language) -> list[Block]:
    """The same workload's cache as transformers holds it and as engines reserve it; nothing where no context is known."""
    if not report.engines:
        return []
    rows = [
        [
            say(f"engine_{row.engine}"),
            row.format,
            count(row.size_bytes),
            size(row.size_bytes) if row.reason is None else say(row.reason),
        ]
        for row in report.engines
    ]
    columns = [say("column_engine"), say("column_format"), say("column_bytes"), say("column_size")]
    workload = report.workload
    heading = say("heading_engines", tokens=report.context_tokens, batch=workload.batch, ranks=workload.ranks)
    return [Heading(heading), Table(columns, rows, "llrr")]


def cache_table(report: Report, say: Language, view: View) -> Table:
    """Each run of layers' cache: a token's bytes, and the bytes at the context and batch."""
    tokens, batch = report.context_tokens, report.workload.batch
    rows = []
    layers = report.cache.layers
    for first, last, layer in runs(
        layers, lambda one: one.index if view.expand else (one.kind, one.bytes_per_token, one.window_tokens)
    ):
        several = last - first + 1
        total = None if tokens is None else batch * several * layer.size_bytes(tokens)
        rows.append(
            [
                span(first, last),
                say(f"cache_{layer.kind}"),
                "–" if layer.window_tokens is None else count(layer.window_tokens),
                count(layer.bytes_per_token),
                size(total),
            ]
        )
    whole = None if tokens is None else report.cache.size_bytes(tokens=tokens, batch=batch)
    rows.append([say("total"), "", "", count(report.cache.bytes_per_token), size(whole)])
    columns = [
        say("column_layer"),
        say("column_cache_kind"),
        say("column_window"),
        say("column_cache_bytes"),
        say("column_cache_at", tokens="–" if tokens is None else count(tokens), batch=batch),
    ]
    return Table(columns, rows, "lcrrr", totals=1)
