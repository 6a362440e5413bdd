"""`compare` -> JSON: the files of two hubs, and models side by side."""

from __future__ import annotations

from ...checkpoint import ModelRef, Origin, Tensor
from ...language import Language
from ...results.compare import ChangeKind, Comparison, LayerKind, Section, SideBySide, TensorChanges
from ...typed import Any, Literal
from .common import ModelJSON, model_content
from .fit import CardReachJSON, reach_content
from .footprint import WorkloadJSON, workload_content
from .values import Count, TypedDict


class ModelRefJSON(TypedDict):
    """A model on a hub; `source` is "auto" if none was requested."""

    id: str
    source: str
    revision: str | None


class FilePairJSON(TypedDict):
    """A file with the same name in two repositories; null if a listing does not state the value."""

    name: str
    left_bytes: Count | None
    right_bytes: Count | None
    left_sha256: str | None
    right_sha256: str | None
    same: bool | None


class ConfigRowJSON(TypedDict):
    """A key of the configurations."""

    key: str
    values: list[Any]
    present: list[bool | None]
    """Whether the key is present; null if no configuration was read."""
    same: bool | None


class FactRowJSON(TypedDict):
    """A fact about each model; null if unknown."""

    section: Section
    layer_kind: LayerKind | None
    """For attention facts: the kind of layer."""
    name: str
    unit: Literal["parameters", "bytes", "tokens"] | None
    values: list[int | str | None]
    lower_bound_only: list[bool]
    same: bool | None


class ShapeJSON(TypedDict):
    """A tensor's shape and number format."""

    shape: list[Count]
    dtype: str


class TensorChangeJSON(TypedDict):
    """A tensor that differs from the first model's."""

    kind: ChangeKind
    name: str
    before: ShapeJSON | None
    after: ShapeJSON | None


class ChangeCountsJSON(TypedDict):
    """Number of changes by kind."""

    added: Count
    removed: Count
    reshaped: Count
    retyped: Count


class TensorChangesJSON(TypedDict):
    """A model's tensors compared with the first model's, by name, shape and dtype."""

    base_origin: Origin
    origin: Origin
    equal: Count
    counts: ChangeCountsJSON
    changes: list[TensorChangeJSON]
    notes: list[str]


class SideBySideJSON(TypedDict):
    """`values` has an entry for each of `models`, in their order; `tensors` one for each after the first."""

    models: list[ModelJSON]
    workload: WorkloadJSON
    config: list[ConfigRowJSON]
    facts: list[FactRowJSON]
    tensors: list[TensorChangesJSON | None]
    fits: list[list[CardReachJSON] | None]
    """For each model, an entry per card; empty if no card was requested."""


class CompareJSON(TypedDict):
    """`compare`. The files of two hubs, and models side by side."""

    model: None
    left: ModelRefJSON | None
    right: ModelRefJSON | None
    identical: bool | None
    """Whether all weight files have the same SHA-256."""
    files: list[FilePairJSON] | None
    notices: list[str]
    side_by_side: SideBySideJSON | None


def content(comparison: Comparison, say: Language) -> CompareJSON:
    files, sides = comparison.files, comparison.models
    return {
        "model": None,
        "left": None if files is None else _ref(files.left),
        "right": None if files is None else _ref(files.right),
        "identical": None if files is None else files.identical,
        "files": None
        if files is None
        else [
            {
                "name": pair.name,
                "left_bytes": pair.left_bytes,
                "right_bytes": pair.right_bytes,
                "left_sha256": pair.left_sha256,
                "right_sha256": pair.right_sha256,
                "same": pair.same,
            }
            for pair in files.pairs
        ],
        "notices": [say(message) for message in comparison.notices],
        "side_by_side": None if sides is None else _side_by_side(sides, say),
    }


def _ref(ref: ModelRef) -> ModelRefJSON:
    return {"id": ref.id, "source": ref.source, "revision": ref.revision}


def _side_by_side(sides: SideBySide, say: Language) -> SideBySideJSON:
    return {
        "models": [model_content(report, say) for report in sides.reports],
        "workload": workload_content(sides.run),
        "config": [
            {"key": row.key, "values": list(row.values), "present": list(row.present), "same": row.same}
            for row in sides.config
        ],
        "facts": [
            {
                "section": row.section,
                "layer_kind": row.layer_kind,
                "name": row.name,
                "unit": row.unit or None,
                "values": list(row.values),
                "lower_bound_only": list(row.at_least) or [False] * len(row.values),
                "same": row.same,
            }
            for row in sides.facts
        ],
        "tensors": [None if changes is None else _changes(changes, say) for changes in sides.tensors],
        "fits": [None if cards is None else [reach_content(card) for card in cards] for cards in sides.reaches],
    }


def _changes(changes: TensorChanges, say: Language) -> TensorChangesJSON:
    return {
        "base_origin": changes.base_origin,
        "origin": changes.origin,
        "equal": changes.equal,
        "counts": {
            "added": changes.count("added"),
            "removed": changes.count("removed"),
            "reshaped": changes.count("reshaped"),
            "retyped": changes.count("retyped"),
        },
        "changes": [
            {"kind": change.kind, "name": change.name, "before": _shape(change.before), "after": _shape(change.after)}
            for change in changes.changes
        ],
        "notes": [say(note) for note in changes.notes],
    }


def _shape(tensor: Tensor | None) -> ShapeJSON | None:
    return None if tensor is None else {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
