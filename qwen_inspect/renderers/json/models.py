"""`models` -> JSON: the catalog's entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...language import Language
from ...results.listing import CatalogEntry


def content(entries: Sequence[CatalogEntry], say: Language) -> dict[str, Any]:
    return {"model": None, "models": [_entry(entry) for entry in entries]}


def _entry(entry: CatalogEntry) -> dict[str, Any]:
    design, release = entry.design, entry.release
    layer = entry.attention.softmax[0]
    return {
        "id": entry.id,
        "model_type": design.spec.family,
        "parameters": design.parameters.theory,
        "stored": design.parameters.stored_predicted,
        "active": design.parameters.active,
        "active_non_embedding": design.parameters.active_non_embedding,
        "layers": len(design.spec.layers),
        "query_heads": layer.query_heads,
        "kv_heads": layer.kv_heads,
        "head_dim": layer.head_dim,
        "kind": entry.attention.kind,
        "context_tokens": design.spec.context_tokens,
        "published_parameters": release.parameters if release else None,
        "published_stored": release.stored if release else None,
        "source": release.config_source if release else None,
        "confidence": release.confidence if release else None,
    }
