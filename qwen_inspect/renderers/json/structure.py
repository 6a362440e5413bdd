"""`structure` -> JSON: the keys of `params` and `attention`, the configuration, the module tree, and a generated text."""

from __future__ import annotations

from ...language import Language
from ...results.generation import Generation
from ...results.model import Report
from ...spec import Module
from ...typed import Any, Literal
from ..document.common import PartName, parts
from .attention import AttentionKind, CacheJSON, HeadsJSON, attention_content
from .common import OfModelJSON, model_content
from .params import StatisticsJSON, parameters_content
from .values import Count, Number, Positive, Share, TypedDict

_OfClass = TypedDict("_OfClass", {"class": str})


class TreeJSON(_OfClass):
    """A module and its descendants; counts are sums over all `repeats`."""

    name: str
    parameters: Count
    active_parameters: Count | None
    bytes: Count | None
    repeats: Positive
    """The number of equal siblings, including this module."""
    tied_to: str | None
    children: list[TreeJSON]


class GenerationJSON(TypedDict):
    """A model's computed answer to a prompt. Peaks are null if the device does not report them."""

    prompt: str
    chat_template: bool
    text: str
    prompt_tokens: Positive
    new_tokens: Positive
    ended_by: Literal["end_token", "limit"]
    device: str
    dtype: str
    prefill_seconds: Number
    """Until the first new token."""
    prefill_tokens_per_second: Number
    decode_seconds: Number
    """From the first new token to the last."""
    decode_tokens_per_second: Number | None
    peak_allocated_bytes: Positive | None
    peak_reserved_bytes: Positive | None
    peak_resident_bytes: Positive | None
    provenance: str


class MaybeSettledJSON(HeadsJSON):
    kind: AttentionKind | None
    """null, like `cache`, if transformers' cache layout is unknown."""
    cache: CacheJSON | None


class PartJSON(TypedDict):
    """A part of the model by its place; shares add up to 1, and agree with those of `components`."""

    name: PartName
    """The layers are decoder layers; the rest is the final norm and whatever else stands outside of them."""
    parameters: Count
    share: Share


class DesignJSON(StatisticsJSON, MaybeSettledJSON):
    config: dict[str, Any]
    """config.json's keys and values."""
    parts: list[PartJSON]
    """Empty for a model without a list of layers."""
    tree: TreeJSON
    generation: GenerationJSON | None
    """null without a prompt."""


class StructureJSON(OfModelJSON, DesignJSON):
    """`structure`."""


def content(report: Report, say: Language) -> StructureJSON:
    return {"model": model_content(report, say), **structure_content(report, say)}


def structure_content(report: Report, say: Language) -> DesignJSON:
    heads: MaybeSettledJSON = {**attention_content(report)} if report.settled else _unsettled(report)
    return {
        **parameters_content(report, say),
        **heads,
        "config": dict(report.written or {}),
        "parts": [
            {"name": part.name, "parameters": part.parameters, "share": part.share_basis_points / 10_000}
            for part in parts(report)
        ],
        "tree": _tree(
            report.tree,
            active_known=report.parameters.active is not None,
            bytes_known=report.known.unread is None,
        ),
        "generation": None if report.generation is None else _generation(report.generation),
    }


def _unsettled(report: Report) -> MaybeSettledJSON:
    return {
        "kind": None,
        "query_heads": None,
        "kv_heads": None,
        "head_dim": None,
        "pattern": None,
        "linear": None,
        "both_ways": None,
        "cache": None,
        "tied_embeddings": report.spec.tied_embeddings,
    }


def _tree(module: Module, *, active_known: bool, bytes_known: bool) -> TreeJSON:
    return {
        "name": module.label,
        "class": module.class_name,
        "parameters": module.parameters,
        "active_parameters": module.active_parameters if active_known else None,
        "bytes": module.size_bytes if bytes_known else None,
        "repeats": module.repeats,
        "tied_to": module.tied_to,
        "children": [_tree(child, active_known=active_known, bytes_known=bytes_known) for child in module.children],
    }


def _generation(generation: Generation) -> GenerationJSON:
    return {
        "prompt": generation.prompt,
        "chat_template": generation.chat_template,
        "text": generation.text,
        "prompt_tokens": generation.prompt_tokens,
        "new_tokens": generation.new_tokens,
        "ended_by": generation.ended_by,
        "device": generation.device,
        "dtype": generation.dtype,
        "prefill_seconds": generation.prefill_seconds,
        "prefill_tokens_per_second": generation.prefill_tokens_per_second,
        "decode_seconds": generation.decode_seconds,
        "decode_tokens_per_second": generation.decode_tokens_per_second,
        "peak_allocated_bytes": generation.peak_allocated_bytes,
        "peak_reserved_bytes": generation.peak_reserved_bytes,
        "peak_resident_bytes": generation.peak_resident_bytes,
        "provenance": generation.versions,
    }
