"""Rows that compare reports: configuration keys, facts and tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from ..checkpoint import Origin, Tensor
from ..results.compare import ChangeKind, ConfigRow, FactRow, LayerKind, Section, TensorChange, TensorChanges, Unit
from ..results.memory import OF_SOME_RUNS, TERMS, MemoryReport, Moment
from ..results.model import Report
from ..structure.accounting import COMPONENTS
from ..structure.reconcile import without_renaming
from ..typed import Any

Value = int | str | None
# The figures compared for layers of each kind: attributes of LayerAttention and LinearLayerAttention.
SOFTMAX = ("kind", "query_heads", "kv_heads", "head_dim")
LAYER_FIGURES: Mapping[LayerKind, tuple[str, ...]] = {
    "full": SOFTMAX,
    "sliding": (*SOFTMAX, "window_tokens"),
    "linear": ("key_heads", "value_heads", "key_head_dim", "value_head_dim"),
}


def config_rows(
    configs: Sequence[Mapping[str, Any] | None], lacking: Sequence[Collection[str]] | None = None
) -> tuple[ConfigRow, ...]:
    """A row for each key of any configuration, sorted. 1000000 equals 1000000.0; 1 does not equal true.

    lacking: for each configuration, keys that its release has and this copy lacks: unknown, not absent.
    """
    keys = sorted({key for config in configs for key in config or ()})
    return tuple(_config_row(key, configs, lacking or [()] * len(configs)) for key in keys)


def _config_row(key: str, configs: Sequence[Mapping[str, Any] | None], lacking: Sequence[Collection[str]]) -> ConfigRow:
    present = tuple(
        None if config is None or key in lacked else key in config
        for config, lacked in zip(configs, lacking, strict=True)
    )
    values = tuple((config or {}).get(key) for config in configs)
    distinct = {(there, _canonical(value)) for there, value in zip(present, values, strict=True) if there is not None}
    same = False if len(distinct) > 1 else None if None in present else True
    return ConfigRow(key=key, values=values, present=present, same=same)


def _canonical(value: object) -> str:
    """A text that is equal for equal values, however JSON spells their numbers and orders their keys."""
    match value:
        case float() if value.is_integer():
            return str(int(value))
        case list():
            return f"[{','.join(map(_canonical, value))}]"
        case dict():
            return f"{{{','.join(f'{json.dumps(key)}:{_canonical(value[key])}' for key in sorted(value))}}}"
    return json.dumps(value)


# --- facts


def fact_rows(
    reports: Sequence[Report], memories: Sequence[MemoryReport | None], *, tokens: int, batch: int
) -> tuple[FactRow, ...]:
    """Identity, parameters, attention by kind of layer, cache for `batch` sequences of `tokens` tokens, and memory."""
    rows = [
        *_rows("model", reports, _MODEL),
        *_rows("parameters", reports, _PARAMETERS),
        *_component_rows(reports),
        *_attention_rows(reports),
        *_cache_rows(reports, tokens, batch),
        *_memory_rows(memories),
    ]
    return tuple(rows)


# (name, unit, value for a report with a design).
_Fact = tuple[str, Unit, Callable[[Report], Value]]
_MODEL: tuple[_Fact, ...] = (
    ("class", "", lambda report: report.spec.class_name),
    ("dtype", "", lambda report: str(report.spec.dtype)),
    ("quantisation", "", lambda report: report.known.quantised.method if report.known.quantised else ""),
    ("layers", "", lambda report: None if report.known.attention is None else len(report.known.attention.layers)),
    ("context", "tokens", lambda report: report.spec.context_tokens),
)
_PARAMETERS: tuple[_Fact, ...] = (
    ("unique", "parameters", lambda report: report.parameters.unique),
    ("active", "parameters", lambda report: report.parameters.active),
    ("active_non_embedding", "parameters", lambda report: report.parameters.active_non_embedding),
    ("non_embedding", "parameters", lambda report: report.parameters.non_embedding),
)
_CACHE: tuple[_Fact, ...] = (
    ("dtype", "", lambda report: report.cache.dtype),
    ("token_bytes", "bytes", lambda report: report.cache.bytes_per_token),
    ("fixed_bytes", "bytes", lambda report: report.cache.fixed_bytes),
)


def _rows(section: Section, reports: Sequence[Report], facts: Sequence[_Fact]) -> Iterator[FactRow]:
    for name, unit, value_of in facts:
        values = tuple(None if report.design is None else value_of(report) for report in reports)
        yield FactRow(section=section, name=name, values=values, unit=unit)


def _component_rows(reports: Sequence[Report]) -> Iterator[FactRow]:
    """Parameters of each component; 0 for a model without it."""
    counts = [
        None if report.design is None else {part.name: part.parameters for part in report.components}
        for report in reports
    ]
    for name in COMPONENTS:
        values = tuple(None if parts is None else parts.get(name, 0) for parts in counts)
        if any(values):
            yield FactRow(section="components", name=name, values=values, unit="parameters")


def _cache_rows(reports: Sequence[Report], tokens: int, batch: int) -> Iterator[FactRow]:
    """None for a model whose cache is unknown."""
    for name, unit, value_of in _CACHE:
        values = tuple(value_of(report) if report.settled else None for report in reports)
        yield FactRow(section="cache", name=name, values=values, unit=unit)
    sizes = tuple(
        report.cache.size_bytes(tokens=tokens, batch=batch)
        if report.settled and not report.cache.source_bytes_per_token
        else None
        for report in reports
    )
    yield FactRow(section="cache", name="context_bytes", values=sizes, unit="bytes")


def _attention_rows(reports: Sequence[Report]) -> Iterator[FactRow]:
    """For each kind of layer: how many layers, their heads and their window. Kinds that no model has are skipped."""
    for kind, figures in LAYER_FIGURES.items():
        layers_by_model = [
            [layer for layer in report.attention.layers if layer.span == kind] if report.settled else None
            for report in reports
        ]
        if not any(layers_by_model):
            continue
        counts = tuple(None if layers is None else len(layers) for layers in layers_by_model)
        yield FactRow(section="attention", name="layers", values=counts, layer_kind=kind)
        for name in figures:
            values = tuple(
                None if layers is None else _distinct(getattr(layer, name) for layer in layers)
                for layers in layers_by_model
            )
            unit: Unit = "tokens" if name == "window_tokens" else ""
            yield FactRow(section="attention", name=name, values=values, unit=unit, layer_kind=kind)


def _distinct(values: Iterator[Value]) -> Value:
    """The value that all layers share, else the distinct values in order, joined; "" without layers."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))


def _memory_rows(memories: Sequence[MemoryReport | None]) -> Iterator[FactRow]:
    def steady(term: str) -> tuple[Value, ...]:
        return tuple(None if memory is None else _term(memory.predicted.steady, term) for memory in memories)

    peaks = [None if memory is None else memory.predicted.peak for memory in memories]
    methods = tuple(None if memory is None else memory.predicted.method for memory in memories)
    yield FactRow(section="memory", name="method", values=methods)
    trained = [None if memory is None else memory.training for memory in memories]
    if any(trained):
        trainable = tuple(None if training is None else training.trainable for training in trained)
        yield FactRow(section="memory", name="trainable", values=trainable, unit="parameters")
    usual = ("weights", "gradients", "optimizer") if any(trained) else ("weights", "cache", "state")
    for term in TERMS:
        if term in usual or (term in OF_SOME_RUNS and any(steady(term))):
            yield FactRow(section="memory", name=term, values=steady(term), unit="bytes")
    activations = tuple(None if peak is None else peak.activations for peak in peaks)
    yield FactRow(section="memory", name="activations", values=activations, unit="bytes")
    at_least = tuple(memory is not None and memory.predicted.steady.at_least for memory in memories)
    yield FactRow(section="memory", name="steady", values=steady("allocated"), unit="bytes", at_least=at_least)
    allocated = tuple(None if peak is None else peak.allocated for peak in peaks)
    yield FactRow(section="memory", name="peak", values=allocated, unit="bytes")
    reserved = tuple(None if memory is None else memory.predicted.peak_reserved for memory in memories)
    yield FactRow(section="memory", name="reserved", values=reserved, unit="bytes")
    required = [None if memory is None else memory.predicted.required_bytes for memory in memories]
    for index, end in enumerate(("low", "high")):
        values = tuple(None if ends is None else ends[index] for ends in required)
        yield FactRow(section="memory", name=f"required_{end}", values=values, unit="bytes")


def _term(moment: Moment, term: str) -> int | None:
    value: int | None = getattr(moment, term)
    return value


# --- tensors


def tensor_changes(
    base: Sequence[Tensor], other: Sequence[Tensor], *, base_origin: Origin, origin: Origin
) -> TensorChanges:
    """What changed from `base` to `other`, by name; a missing or added decoder prefix is evened out first (see `notes`)."""
    before = {tensor.name: tensor for tensor in base}
    renamed, causes = without_renaming(other, set(before))
    after = {tensor.name: tensor for tensor in renamed}
    changes = [
        TensorChange(kind="removed", name=name, before=tensor, after=None)
        for name, tensor in before.items()
        if name not in after
    ]
    changes += [
        TensorChange(kind="added", name=name, before=None, after=tensor)
        for name, tensor in after.items()
        if name not in before
    ]
    pairs = [(before[name], tensor) for name, tensor in after.items() if name in before]
    changes += [_changed("reshaped", left, right) for left, right in pairs if left.shape != right.shape]
    changes += [_changed("retyped", left, right) for left, right in pairs if left.dtype is not right.dtype]
    return TensorChanges(
        base_origin=base_origin,
        origin=origin,
        equal=sum(left.shape == right.shape and left.dtype is right.dtype for left, right in pairs),
        changes=tuple(sorted(changes, key=lambda change: (change.kind, change.name))),
        notes=tuple(cause.message for cause in causes),
    )


def _changed(kind: ChangeKind, before: Tensor, after: Tensor) -> TensorChange:
    return TensorChange(kind=kind, name=before.name, before=before, after=after)
