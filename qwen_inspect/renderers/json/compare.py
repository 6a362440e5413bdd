"""`compare` -> JSON: the files of two hubs, and models side by side."""

from __future__ import annotations

from typing import Any

from ...checkpoint import ModelRef, Tensor
from ...language import Language
from ...results.compare import KINDS, Comparison, SideBySide, TensorChanges
from .common import model_content
from .footprint import workload_content


def content(comparison: Comparison, say: Language) -> dict[str, Any]:
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


def _ref(ref: ModelRef) -> dict[str, Any]:
    return {"id": ref.id, "source": ref.source, "revision": ref.revision}


def _side_by_side(sides: SideBySide, say: Language) -> dict[str, Any]:
    """Every `values` has one entry for each of `models`, in their order; `tensors` one for each after the first."""
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
        "fits": _fits(sides),
    }


def _fits(sides: SideBySide) -> list[list[dict[str, Any]] | None]:
    if not sides.reaches:
        return []
    from .fit import reach_content

    return [None if cards is None else [reach_content(card) for card in cards] for cards in sides.reaches]


def _changes(changes: TensorChanges, say: Language) -> dict[str, Any]:
    return {
        "base_origin": changes.base_origin,
        "origin": changes.origin,
        "equal": changes.equal,
        "counts": {kind: changes.count(kind) for kind in KINDS},
        "changes": [
            {"kind": one.kind, "name": one.name, "before": _form(one.before), "after": _form(one.after)}
            for one in changes.changes
        ],
        "notes": [say(note) for note in changes.notes],
    }


def _form(tensor: Tensor | None) -> dict[str, Any] | None:
    return None if tensor is None else {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
