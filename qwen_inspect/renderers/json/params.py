"""`params` -> JSON: the counts of every witness, what is quantised or trained, components, and the checks."""

from __future__ import annotations

from typing import Any

from ...language import Language
from ...results.model import Report
from .common import model_content


def content(report: Report, say: Language) -> dict[str, Any]:
    return {"model": model_content(report, say), **parameters_content(report, say)}


def parameters_content(report: Report, say: Language) -> dict[str, Any]:
    counts = report.parameters
    return {
        "parameters": {
            "theory": counts.theory,
            "instantiated": counts.instantiated,
            "stored": counts.stored,
            "stored_predicted": counts.stored_predicted,
            "unique": counts.unique,
            "active": counts.active,
            "active_non_embedding": counts.active_non_embedding,
            "embedding": counts.embedding,
            "non_embedding": counts.non_embedding,
            "buffers": counts.buffers,
        },
        "quantisation": _quantisation(report, say),
        "adapter": _adapter(report),
        "components": [
            {
                "name": part.name,
                "parameters": part.parameters,
                "bytes": part.size_bytes,
                "share": part.share_basis_points / 10_000,
                "tied_to": part.tied_to,
            }
            for part in report.components
        ],
        "checks": [
            {
                "name": f"{check.left}/{check.right}",
                "left": check.left_parameters,
                "right": check.right_parameters,
                "difference": check.difference,
                "causes": [
                    {
                        "name": cause.name,
                        "parameters": cause.parameters,
                        "tensors": cause.tensors,
                        "text": say(cause.message),
                    }
                    for cause in check.causes
                ],
                "residual": check.residual,
                "agrees": check.agrees,
                "unexplained": [
                    {
                        "kind": item.kind,
                        "name": item.name,
                        "parameters": item.parameters,
                        "expected": item.expected,
                        "found": item.found,
                    }
                    for item in check.unexplained
                ],
            }
            for check in report.checks
        ],
    }


def _quantisation(report: Report, say: Language) -> dict[str, Any] | None:
    found = report.known.quantised
    if found is None:
        return None
    return {
        "method": found.method,
        "schemes": [say(scheme) for scheme in found.schemes],
        "matrices": found.matrices,
        "parameters": found.parameters,
        "bytes": found.size_bytes,
        "bits_per_weight": found.bits_per_weight,
        "other_parameters": found.other_parameters,
        "other_bytes": found.other_bytes,
        "total_bytes": found.total_bytes,
        "kept": [{"name": one.name, "modules": one.modules, "parameters": one.parameters} for one in found.kept],
    }


def _adapter(report: Report) -> dict[str, Any] | None:
    found = report.known.adapter
    if found is None:
        return None
    return {
        "kind": found.kind,
        "base": found.base,
        "ranks": list(found.ranks),
        "scales": list(found.scales),
        "modules": [{"name": one.name, "modules": one.modules, "parameters": one.parameters} for one in found.modules],
        "trainable_parameters": found.trainable,
        "base_parameters": found.base_parameters,
        "share": found.share,
        "stored_bytes": found.stored_bytes,
        "unmerged_bytes": found.unmerged_bytes,
        "merged_bytes": found.merged_bytes,
    }
