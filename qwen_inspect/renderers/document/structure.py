"""`structure`: configuration, statistics, module tree, layers, attention, KV cache and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...language import Language
from ...results.attention import (
    AttentionReport,
    EncoderLayerAttention,
    LayerAttention,
    LinearLayerAttention,
    OtherLayerAttention,
)
from ...results.model import Report
from ...spec import Module
from ...standard import re
from ...typed import Any
from ...units import UNKNOWN, count, seconds, size
from ...values import replace
from ..blocks import Block, Code, Fields, Heading, Items, Node, Paragraph, Shortened, Table, Tree
from . import View
from .common import (
    MOST_SPANS,
    adapter_blocks,
    check_blocks,
    component_table,
    distinct,
    distinct_layers,
    grouped,
    identity,
    layer_runs,
    layers_path,
    notices,
    parameter_fields,
    part_table,
)

SIDES = r"\b(?:in|out)_features="  # Linear(in, out, ...) has them in this order
# Rows of the configuration table, in order.
CONFIGURATION_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "max_position_embeddings",
    "sliding_window",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
    "dtype",
)


def blocks(report: Report, say: Language, view: View) -> Sequence[Block]:
    if view.first_layer:
        from .first_layer import first_layer

        return [
            Heading(say("heading_first_layer", name=report.ref.id), 1),
            *notices(report, say),
            first_layer(report, say),
            *generation_blocks(report, say),
        ]
    return [
        Heading(say("heading_structure", name=report.spec.class_prefix), 1),
        identity(report, say),
        *notices(report, say),
        Heading(say("heading_configuration")),
        configuration_table(report, say),
        Heading(say("heading_statistics")),
        component_table(report, say),
        *part_table(report, say),
        parameter_fields(report, say),
        *adapter_blocks(report, say),
        Heading(say("heading_tree")),
        Tree(tree_node(report.tree, say, view, depth=0)),
        Heading(say("heading_layers")),
        Paragraph(say("layers_found", layers=sum(run.repeats for run in layer_runs(report.tree)))),
        layer_table(report, say, view),
        Heading(say("heading_kv_cache")),
        *cache_blocks(report, say, view),
        *([Heading(say("heading_checks")), *check_blocks(report.checks, say)] if report.checks else []),
        *generation_blocks(report, say),
    ]


def cache_blocks(report: Report, say: Language, view: View) -> list[Block]:
    """Attention and cache of each layer; if the cache is unknown, the reason."""
    if (refusal := report.known.cache_refusal) is not None:
        return [Paragraph(say(refusal.message))]
    return [
        *attention_summary(report, say),
        attention_table(report, say, view),
        cache_fields(report, say),
        Heading(say("heading_cache_notes")),
        Items(cache_notes(report, say), numbered=True),
    ]


def generation_blocks(report: Report, say: Language) -> list[Block]:
    """The inference test: prompt, answer, speed and peak memory; empty if no prompt was given."""
    generation = report.generation
    if generation is None:
        return []
    rows = [
        (say("field_prompt_text"), generation.prompt),
        (say("field_prompt_form"), say("prompt_in_template" if generation.chat_template else "prompt_as_text")),
        (say("field_prompt"), count(generation.prompt_tokens)),
        (say("field_new"), f"{count(generation.new_tokens)} ({say(f'ended_{generation.ended_by}')})"),
        (say("field_prefill"), speed(generation.prefill_seconds, generation.prefill_tokens_per_second, say)),
        (say("field_decode"), speed(generation.decode_seconds, generation.decode_tokens_per_second, say)),
        *(
            (say(f"field_{name}"), f"{count(value)} B ({size(value)})")
            for name in ("peak_allocated", "peak_reserved", "peak_resident")
            if (value := getattr(generation, f"{name}_bytes")) is not None
        ),
        (say("field_run_with"), f"{generation.device}, {generation.dtype}, {generation.versions}"),
    ]
    shown = generation.text if generation.chat_template else generation.prompt + generation.text
    return [Heading(say("heading_generation")), Fields(rows), Paragraph(say("generated")), Code(shown, "text")]


def speed(elapsed_seconds: float, tokens_per_second: float | None, say: Language) -> str:
    if tokens_per_second is None:
        return UNKNOWN
    return say("speed", taken=seconds(elapsed_seconds), rate=f"{tokens_per_second:,.2f}")


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's keys: those of text_config, overridden by top-level ones."""
    nested = config.get("text_config")
    return {**nested, **config} if isinstance(nested, Mapping) else config


def configuration_table(report: Report, say: Language) -> Table:
    config = decoder_config(report.written or {})
    rope = config.get("rope_parameters")
    values = {
        **({"rope_theta": rope["rope_theta"]} if isinstance(rope, dict) and "rope_theta" in rope else {}),
        **config,
    }
    rows = [
        [key, say("none") if values[key] is None else str(values[key])] for key in CONFIGURATION_KEYS if key in values
    ]
    return Table([say("column_key"), say("column_value")], rows, "cc")


def tree_node(module: Module, say: Language, view: View, *, depth: int, label: str | None = None) -> Node:
    """A module's line and its children's, down to `view.depth`; equal siblings are folded unless `--expand`.

    label: replaces the module's own, if it stands for siblings that are not neighbours.
    """
    count_of = f"{module.repeats} x " if module.repeats > 1 else ""
    arguments = f"({module.arguments})" if module.arguments else ""
    name = f"({label or module.label}): " if module.name else ""
    note = (
        say("tied_to", owner=module.tied_to)
        if module.tied_to
        else count(module.parameters)
        if module.parameters
        else ""
    )
    children = () if view.depth is not None and depth >= view.depth else module.children
    shown: list[tuple[str, Module]]
    if view.expand:
        shown = [(sibling.label, sibling) for child in children for sibling in _siblings(child)]
    elif module.name == "layers" and len(children) > MOST_SPANS:
        shown = distinct(children)
    else:
        shown = [(child.label, child) for child in children]
    return Node(
        Shortened(
            *(f"{name}{count_of}{module.class_name}{written}" for written in (arguments, re.sub(SIDES, "", arguments)))
        ),
        note,
        [tree_node(child, say, view, depth=depth + 1, label=child_label) for child_label, child in shown],
    )


def _siblings(module: Module) -> tuple[Module, ...]:
    """A folded module as its single siblings."""
    if module.repeats == 1:
        return (module,)
    return tuple(replace(module, name=str(int(module.name) + index), repeats=1) for index in range(module.repeats))


def layer_table(report: Report, say: Language, view: View) -> Table:
    # For a class without a description here, the modules do not show the shape passed between layers.
    shape = UNKNOWN if report.spec.built else f"[batch_size, seq_len, {report.spec.hidden_size}]"
    runs = layer_runs(report.tree)
    if view.expand:
        shown = [(layer.label, layer) for run in runs for layer in _siblings(run)]
    else:
        shown = [(run.label, run) for run in runs] if len(runs) <= MOST_SPANS else distinct_layers(report.tree)
    rows = []
    for label, layer in shown:
        names = ", ".join(child.name for child in layer.children)
        each = layer.parameters // layer.repeats  # exact: repeats are equal
        rows.append([label, names, count(each), shape, shape])
    columns = [say(f"column_{name}") for name in ("layer", "parts", "layer_parameters", "input_shape", "output_shape")]
    return Table(columns, rows, "ccrcc", expendable=((4,), (3,)))


def attention_summary(report: Report, say: Language) -> list[Block]:
    """The number of attention layers, and their pattern if there are several kinds."""
    attention = report.attention
    content: list[Block] = [Paragraph(say("attention_layers_found", layers=len(attention.layers)))]
    if attention.pattern is not None:
        period = sum(length for _, length in attention.pattern)
        words = pattern_words(attention, say)
        content.append(Paragraph(say("attention_pattern", pattern=words, times=len(attention.layers) // period)))
    return content


def pattern_words(attention: AttentionReport, say: Language) -> str:
    """3 linear : 1 full"""
    return " : ".join(f"{length} {say(f'span_{span}')}" for span, length in attention.pattern or ())


def attention_table(report: Report, say: Language, view: View) -> Table:
    path = layers_path(report.known.modules)
    rows = []
    for where, indices, layer in grouped(
        report.attention.layers, lambda layer: layer.index if view.expand else (layer.span, layer.heads)
    ):
        cache = report.cache.layers[indices[0]]
        match layer:
            case LayerAttention(window_tokens=window):
                kind = say("kind_gated", kind=layer.kind) if layer.gated else layer.kind
                name = "self_attn"
                cells = [
                    kind if window is None else say("kind_within_window", kind=layer.kind, window=window),
                    str(layer.query_heads),
                    str(layer.kv_heads),
                    str(layer.head_dim),
                ]
            case LinearLayerAttention():
                name = "linear_attn"
                dims = {"K": layer.key_head_dim, "V": layer.value_head_dim}
                cells = [
                    say("kind_linear"),
                    str(layer.key_heads),
                    f"{layer.key_heads} K, {layer.value_heads} V",
                    ", ".join(f"{dim} {letter}" for letter, dim in dims.items()),
                ]
            case EncoderLayerAttention():
                name = ""
                kind = say("kind_both_ways", kind=layer.kind)
                if layer.window_tokens is not None:
                    kind = say("kind_within_window", kind=kind, window=layer.window_tokens)
                cells = [kind, str(layer.query_heads), str(layer.kv_heads), str(layer.head_dim)]
            case OtherLayerAttention(cache_kind=cache_kind):
                name = ""
                cells = [say(f"kind_{cache_kind}"), UNKNOWN, UNKNOWN, UNKNOWN]
        where = f"({where})" if "," in where else where
        if report.spec.built:  # Known only as transformers builds it: its modules may have any name.
            rows.append([f"{path}.{where}", *cells, count(cache.bytes_per_token), count(cache.fixed_bytes)])
            continue
        rows.append([f"{path}.{where}.{name}", *cells, count(cache.bytes_per_token), count(cache.fixed_bytes)])
    columns = [
        say(f"column_{name}")
        for name in ("path", "attention_kind", "query_heads", "kv_heads", "head_dim", "cache_bytes", "state_bytes")
    ]
    shown = len(columns) if report.cache.fixed_bytes else len(columns) - 1
    return Table(columns[:shown], [row[:shown] for row in rows], "lcrrrrr"[:shown])


def cache_fields(report: Report, say: Language) -> Fields:
    """The cache's bytes per token, and in total at the requested context (else the model's limit)."""
    cache, batch = report.cache, report.workload.batch
    rows = [
        (say("field_cache_dtype"), cache.dtype),
        (say("field_cache_per_token"), f"{count(cache.bytes_per_token)} B ({size(cache.bytes_per_token)})"),
    ]
    if cache.fixed_bytes:
        rows.append((say("field_cache_fixed"), f"{count(cache.fixed_bytes)} B ({size(cache.fixed_bytes)})"))
    if cache.source_bytes_per_token:
        source = f"{count(cache.source_bytes_per_token)} B ({size(cache.source_bytes_per_token)})"
        rows += [(say("field_cache_source"), source), (say("field_source_tokens"), count(cache.source_tokens))]
    if (tokens := report.context_tokens) is not None:
        if (total := report.cache_bytes) is None:
            return Fields([*rows, (say("field_cache_total", tokens=tokens, batch=batch), UNKNOWN)])
        rows.append((say("field_cache_total", tokens=tokens, batch=batch), f"{count(total)} B ({size(total)})"))
    return Fields(rows)


def cache_notes(report: Report, say: Language) -> list[str]:
    """Sentences on how this model's cache works, chosen by its attention."""
    softmax, cache = report.attention.softmax, report.cache
    if report.spec.built:
        return generic_cache_notes(report, say)
    layer = softmax[0]
    group = layer.query_heads // layer.kv_heads
    values = {"query_heads": layer.query_heads, "kv_heads": layer.kv_heads, "group": group, "head_dim": layer.head_dim}
    alike = len({layer.heads[:3] for layer in softmax}) == 1
    kind = layer.kind.lower() if alike else "mixed"
    dtype_bytes = report.spec.dtype.bits // 8
    product = 2 * len(softmax) * layer.kv_heads * layer.head_dim * dtype_bytes
    notes = [
        say(f"cache_note_{kind}", **values),
        say("cache_note_purpose"),
        say("cache_note_decode"),
        say(
            "cache_note_formula",
            layers=len(softmax),
            bytes=cache.bytes_per_token,
            dtype_bytes=dtype_bytes,
            **values,
        )
        if product == cache.bytes_per_token and not any(layer.window_tokens for layer in cache.layers)
        else say("cache_note_sum", bytes=cache.bytes_per_token),
    ]
    if sliding := [layer for layer in cache.layers if layer.window_tokens]:
        notes.append(say("cache_note_window", layers=len(sliding), held=(sliding[0].window_tokens or 1) - 1))
    if linear := report.attention.linear:
        notes.append(say("cache_note_linear", layers=len(linear), bytes=cache.fixed_bytes))
    return notes


def generic_cache_notes(report: Report, say: Language) -> list[str]:
    """`cache_notes` for a class of which only transformers' cache layout is known."""
    cache = report.cache
    origin = "cache_note_generic" if report.spec.from_transformers else "cache_note_outline"
    if report.spec.from_file:
        origin = "cache_note_file"
    if cache.keeps_nothing:
        return [say("cache_note_encoder")]
    notes = [say(origin), say("cache_note_sum", bytes=cache.bytes_per_token)]
    if cache.source_bytes_per_token:
        notes.append(say("cache_note_source", bytes=cache.source_bytes_per_token))
        notes += [] if cache.source_tokens is not None else [say("source_tokens_unknown")]
    if sliding := [layer for layer in cache.layers if layer.window_tokens]:
        notes.append(say("cache_note_window", layers=len(sliding), held=(sliding[0].window_tokens or 1) - 1))
    if constant := [layer for layer in cache.layers if layer.fixed_bytes]:
        notes.append(say("cache_note_linear", layers=len(constant), bytes=cache.fixed_bytes))
    return notes
