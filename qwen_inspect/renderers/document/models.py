"""`models`: the catalog's entries."""

from __future__ import annotations

from collections.abc import Sequence

from ...language import Language
from ...results.listing import CatalogEntry
from ...units import UNKNOWN, count
from ..blocks import Block, Heading, Paragraph, Table
from . import View
from .common import count_cell

EXPENDABLE = ((5,), (10,), (3,), (1,), (4,), (9,), (8,))


def blocks(entries: Sequence[CatalogEntry], say: Language, view: View) -> Sequence[Block]:
    columns = [
        say(f"column_{name}")
        for name in (
            "model",
            "family",
            "parameters",
            "stored",
            "active",
            "active_non_embedding",
            "layer_count",
            "heads",
            "attention_kind",
            "context",
            "catalog_kind",
        )
    ]
    return [
        Heading(say("heading_models"), 1),
        Paragraph(say("models_found")),
        Table(columns, [_row(entry, say) for entry in entries], "llrrrrrlcrl", expendable=EXPENDABLE),
    ]


def _row(entry: CatalogEntry, say: Language) -> list[str]:
    design = entry.design
    layer = next(iter(entry.attention.softmax), None)
    assert entry.release is not None
    return [
        entry.id,
        design.spec.family,
        count_cell(design.parameters.theory),
        count_cell(design.parameters.stored_predicted),
        count_cell(design.parameters.active),
        count_cell(design.parameters.active_non_embedding),
        str(len(entry.attention.layers)),
        UNKNOWN if layer is None else f"{layer.query_heads} / {layer.kv_heads} × {layer.head_dim}",
        entry.attention.kind,
        count(design.spec.context_tokens),
        say(f"catalog_kind_{entry.release.kind}"),
    ]
