"""`params` -> JSON: the counts of every witness, quantisation, adapter, components and checks."""

from __future__ import annotations

from ...language import Language
from ...results.model import Report
from ...results.stored import KeptModules
from ...typed import Literal
from .common import OfModelJSON, model_content
from .values import Count, Number, Positive, Share, TypedDict


class ParameterCountsJSON(TypedDict):
    """Parameters by witness and by use."""

    theory: Count
    """From the configuration, tied weights counted once."""
    instantiated: Count | None
    """Of the model that transformers instantiates."""
    stored: Count | None
    """Elements in the files, tied copies included."""
    hub: Count | None
    """The same by the hub's own count, packed numbers counted as the hub counts them."""
    stored_predicted: Count | None
    unique: Count | None
    """In the files, tied copies counted once; predicted if no file was read."""
    active: Count | None
    """Used in one token's forward pass, with embedding and output layer."""
    active_non_embedding: Count | None
    embedding: Count
    non_embedding: Count
    """Without the input embedding and an untied output layer."""
    buffers: Count


class ModulesJSON(TypedDict):
    """Equal modules of all layers, under one name."""

    name: str
    modules: Positive
    parameters: Count


class QuantisationJSON(TypedDict):
    """The quantised matrices, and all other tensors (`other_`)."""

    method: str
    """quant_method."""
    schemes: list[str]
    matrices: Count
    parameters: Count
    bytes: Count
    bits_per_weight: Number
    """Including scales, zeros and indices."""
    other_parameters: Count
    other_bytes: Count
    total_bytes: Count
    kept: list[ModulesJSON]
    """Linear modules that are not quantised."""


class AdapterJSON(TypedDict):
    """A low-rank adapter and its base."""

    kind: str
    base: str | None
    ranks: list[Positive]
    scales: list[Number]
    """The factors that B·A is multiplied by."""
    modules: list[ModulesJSON]
    trainable_parameters: Count
    base_parameters: Count
    share: Number
    """Of the base's parameters."""
    stored_bytes: Count
    unmerged_bytes: Count
    """Base and adapter matrices, as PEFT loads them."""
    merged_bytes: Count | None
    """null if the base is quantised."""


class ComponentJSON(TypedDict):
    """A part of the model; shares add up to 1."""

    name: str
    parameters: Count
    bytes: Count | None
    share: Share
    tied_to: str | None


class CauseJSON(TypedDict):
    """A named reason why two witnesses differ."""

    name: str
    parameters: int
    tensors: Count
    text: str


class UnexplainedJSON(TypedDict):
    """A tensor that no cause accounts for."""

    kind: Literal["missing", "unexpected", "reshaped", "retyped"]
    name: str
    parameters: int
    expected: str | None
    found: str | None


class CheckJSON(TypedDict):
    """Two witnesses' counts; `residual` is the unexplained part of `difference`."""

    name: str
    left: Count
    right: Count
    difference: int
    causes: list[CauseJSON]
    residual: int
    agrees: bool
    unexplained: list[UnexplainedJSON]


class StatisticsJSON(TypedDict):
    parameters: ParameterCountsJSON
    quantisation: QuantisationJSON | None
    adapter: AdapterJSON | None
    components: list[ComponentJSON]
    checks: list[CheckJSON]


class ParametersJSON(OfModelJSON, StatisticsJSON):
    """`params`."""


def content(report: Report, say: Language) -> ParametersJSON:
    return {"model": model_content(report, say), **parameters_content(report, say)}


def parameters_content(report: Report, say: Language) -> StatisticsJSON:
    counts = report.parameters
    return {
        "parameters": {
            "theory": counts.theory,
            "instantiated": counts.instantiated,
            "stored": counts.stored,
            "hub": counts.hub,
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


def _quantisation(report: Report, say: Language) -> QuantisationJSON | None:
    quantised = report.known.quantised
    if quantised is None:
        return None
    return {
        "method": quantised.method,
        "schemes": [say(scheme) for scheme in quantised.schemes],
        "matrices": quantised.matrices,
        "parameters": quantised.parameters,
        "bytes": quantised.size_bytes,
        "bits_per_weight": quantised.bits_per_weight,
        "other_parameters": quantised.other_parameters,
        "other_bytes": quantised.other_bytes,
        "total_bytes": quantised.total_bytes,
        "kept": [modules_content(kept) for kept in quantised.kept],
    }


def _adapter(report: Report) -> AdapterJSON | None:
    adapter = report.known.adapter
    if adapter is None:
        return None
    return {
        "kind": adapter.kind,
        "base": adapter.base,
        "ranks": list(adapter.ranks),
        "scales": list(adapter.scales),
        "modules": [modules_content(modules) for modules in adapter.modules],
        "trainable_parameters": adapter.trainable,
        "base_parameters": adapter.base_parameters,
        "share": adapter.share,
        "stored_bytes": adapter.stored_bytes,
        "unmerged_bytes": adapter.unmerged_bytes,
        "merged_bytes": adapter.merged_bytes,
    }


def modules_content(modules: KeptModules) -> ModulesJSON:
    return {"name": modules.name, "modules": modules.modules, "parameters": modules.parameters}
