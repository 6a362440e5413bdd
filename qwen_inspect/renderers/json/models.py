"""`models` -> JSON: the catalog's entries."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.listing import CatalogEntry
from .values import Count, TypedDict


class CatalogEntryJSON(TypedDict):
    """A release, and figures computed from its configuration."""

    id: str
    model_type: str
    parameters: Count
    stored: Count | None
    """Elements in its files, as predicted."""
    active: Count | None
    active_non_embedding: Count | None
    layers: Count
    query_heads: Count | None
    """Of the first layer with heads; null, like the next two, if no layer has any (MLA, states)."""
    """Of the first layer with softmax attention; likewise `kv_heads` and `head_dim`."""
    kv_heads: Count | None
    head_dim: Count | None
    kind: str
    context_tokens: Count | None
    published_parameters: Count | None
    published_stored: Count | None
    source: str | None
    """Where the configuration comes from."""
    confidence: str | None
    source_kind: str | None
    """Where the configuration is from: "file" (a copy of config.json), "code" (other projects'), "listed" (published figures) or
    "sibling" (a release of the same shape)."""


class ModelsJSON(TypedDict):
    """`models`."""

    model: None
    models: list[CatalogEntryJSON]


def content(entries: Sequence[CatalogEntry], say: Language) -> ModelsJSON:
    return {"model": None, "models": [_entry(entry) for entry in entries]}


def _entry(entry: CatalogEntry) -> CatalogEntryJSON:
    design, release = entry.design, entry.release
    layer = next(iter(entry.attention.softmax), None)
    return {
        "id": entry.id,
        "model_type": design.spec.family,
        "parameters": design.parameters.theory,
        "stored": design.parameters.stored_predicted,
        "active": design.parameters.active,
        "active_non_embedding": design.parameters.active_non_embedding,
        "layers": len(entry.attention.layers),
        "query_heads": None if layer is None else layer.query_heads,
        "kv_heads": None if layer is None else layer.kv_heads,
        "head_dim": None if layer is None else layer.head_dim,
        "kind": entry.attention.kind,
        "context_tokens": design.spec.context_tokens,
        "published_parameters": release.parameters if release else None,
        "published_stored": release.stored if release else None,
        "source": release.config_source if release else None,
        "confidence": release.confidence if release else None,
        "source_kind": release.kind if release else None,
    }
