"""`params`: counts from theory, transformers and files side by side; the causes of differences; counts per part."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.model import Report
from ...spec import Module
from ...units import count, percent, shares, short_count
from ..blocks import Block, Heading, Items, Paragraph, Table
from . import View
from .common import (
    MOST_SPANS,
    adapter_blocks,
    check_blocks,
    component_table,
    distinct_layers,
    identity,
    layer_runs,
    notices,
    parameter_fields,
)


def blocks(report: Report, say: Language, view: View) -> Sequence[Block]:
    return [
        Heading(say("heading_params", name=report.ref.id), 1),
        identity(report, say),
        *notices(report, say),
        Heading(say("heading_counts")),
        witness_table(report, say),
        parameter_fields(report, say),
        *adapter_blocks(report, say),
        *([Heading(say("heading_checks")), *check_blocks(report.checks, say)] if report.checks else []),
        Heading(say("heading_breakdown")),
        component_table(report, say),
        *layer_breakdown(report, say),
        Heading(say("heading_grouping")),
        *grouping(report, say),
    ]


def witness_table(report: Report, say: Language) -> Table:
    counts = report.parameters
    rows = [
        [
            say("witness_theory"),
            count(counts.theory),
            short_count(counts.theory),
            say(
                "origin_theory_file"
                if report.spec.from_file
                else "origin_theory_generic"
                if report.spec.from_transformers
                else "origin_theory"
            ),
        ],
        [
            say("witness_instantiated"),
            count(counts.instantiated),
            "–" if counts.instantiated is None else short_count(counts.instantiated),
            say("origin_instantiated" if counts.instantiated is not None else "origin_not_instantiated"),
        ],
        [
            say("witness_stored"),
            count(counts.stored),
            "–" if counts.stored is None else short_count(counts.stored),
            say("origin_stored", files=len(report.files)) if counts.stored is not None else say("origin_not_stored"),
        ],
    ]
    if report.hub_count is not None and report.hub_count.elements is not None:
        hub, dtypes = say(f"source_{report.ref.source}"), ", ".join(sorted(report.hub_count.elements))
        origin = say("origin_hub", hub=hub, dtypes=dtypes)
        rows.append(
            [say("witness_hub"), count(counts.hub), "–" if counts.hub is None else short_count(counts.hub), origin]
        )
    if counts.stored is None and counts.stored_predicted is not None:
        rows.append(
            [
                say("witness_release"),
                count(counts.stored_predicted),
                short_count(counts.stored_predicted),
                say("origin_release"),
            ]
        )
    return Table(
        [say("column_witness"), say("column_parameters"), say("column_short"), say("column_origin")], rows, "lrrl"
    )


def layer_breakdown(report: Report, say: Language) -> list[Block]:
    """A table for each kind of layer: its parts and their sum."""
    content: list[Block] = []
    runs = layer_runs(report.tree)
    shown = [(run.label, run) for run in runs] if len(runs) <= MOST_SPANS else distinct_layers(report.tree)
    for where, run in shown:
        each = Module(name="", class_name=run.class_name, children=run.children)
        parts = [(child.name, child.class_name, child.parameters) for child in run.children]
        rows = [
            [name, class_name, count(parameters), percent(share)]
            for (name, class_name, parameters), share in zip(parts, shares([part[2] for part in parts]), strict=True)
        ]
        rows.append([say("total"), run.class_name, count(each.parameters), percent(10_000)])
        content.append(Heading(say("heading_layer_breakdown", layers=where, count=run.repeats), 3))
        columns = [say("column_part"), say("column_class"), say("column_parameters"), say("column_share")]
        content.append(Table(columns, rows, "llrr", totals=1))
        total = run.parameters
        content.append(Paragraph(say("layers_product", count=run.repeats, each=each.parameters, total=total)))
    return content


def grouping(report: Report, say: Language) -> list[Block]:
    """Sentences on the grouping (MHA, GQA or MQA): which it is, the evidence, and the saving over MHA."""
    sentences = []
    if (refusal := report.known.cache_refusal) is not None:
        return [Paragraph(say(refusal.message))]
    if not report.attention.softmax:
        return [Items([say("grouping_none")])]
    if (
        report.spec.built
        and not report.attention.linear
        and len(report.attention.softmax) < len(report.attention.layers)
    ):
        others = [layer for layer in report.attention.layers if layer not in report.attention.softmax]
        kinds = dict.fromkeys(say(f"kind_{layer.span}") for layer in others)
        sentences.append(say("attention_other", layers=len(others), kind=say("comma").join(kinds)))
    attention, stored = report.attention, report.attention.by_shapes is not None
    if attention.linear:
        sentences.append(say("grouping_hybrid", linear=len(attention.linear), softmax=len(attention.softmax)))
    if len({layer.kind for layer in attention.softmax}) > 1:
        sentences.append(say("grouping_mixed"))
    else:
        layer = attention.softmax[0]
        values = {"query_heads": layer.query_heads, "kv_heads": layer.kv_heads, "head_dim": layer.head_dim}
        sentences.append(say(f"grouping_{layer.kind.lower()}", **values))
        by = (
            "grouping_by_keys"
            if report.spec.from_file
            else "grouping_by_cache"
            if report.spec.from_transformers
            else "grouping_by_shapes"
            if stored
            else "grouping_by_config"
        )
        sentences.append(say(by, **values))
        # The share saved is (query - kv) / query, in basis points, exact where it is printed.
        saved = (layer.query_heads - layer.kv_heads) * 10_000 // layer.query_heads
        if saved:
            sentences.append(say("grouping_saves", saved=percent(saved), **values))
        elif grouped := [heads for heads in range(2, layer.query_heads // 4 + 1) if layer.query_heads % heads == 0]:
            saves = (layer.query_heads - grouped[-1]) * 10_000 // layer.query_heads
            sentences.append(say("grouping_would_save", heads=grouped[-1], saved=percent(saves), **values))
    return [Items(sentences)]
