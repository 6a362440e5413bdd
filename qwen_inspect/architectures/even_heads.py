"""Heads that share the hidden size evenly, as in decoders before Llama."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType
from ..errors import MalformedError
from ..typed import Any
from .design import KeptLayer
from .outline import (
    keeps_heads,
    read_spans,
)
from .reading import integer


def read_even_heads(text: Mapping[str, Any], hidden: int, key: str = "num_attention_heads") -> tuple[int, int]:
    """(heads, head_dim), which share the hidden size."""
    heads = integer(text, key)
    if hidden % heads:
        raise MalformedError("config_width_not_divisible", hidden=hidden, heads=heads)
    return heads, hidden // heads


def keeps_every_head(
    text: Mapping[str, Any], layers: int, heads: int, head_dim: int, dtype: DType, kv_heads: int | None = None
) -> list[KeptLayer]:
    return [
        keeps_heads(index, heads, kv_heads or heads, head_dim, dtype, kind=kind, window=window)
        for index, (kind, window) in enumerate(read_spans(text, layers))
    ]
