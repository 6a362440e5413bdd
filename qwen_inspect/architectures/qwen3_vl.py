"""Qwen3-VL, dense: the decoder of Qwen3 behind a vision tower whose inner blocks feed the first layers too (DeepStack).

Source: transformers 5.23, models/qwen3_vl; Qwen3-VL Technical Report (arXiv 2511.21631).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import ModelSpec, Module
from ..typed import Any
from .blocks import no_prediction_layers as prediction_layers
from .blocks import no_sparse_block
from .blocks import stored_as_built as stored_form
from .design import by_spec
from .reading import MOST_HEADS, dense_mlps, integer, text_part
from .vision import qwen3_vl_tree, read_qwen3_text

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    text = text_part(config)
    head_dim = integer(text, "head_dim", at_most=MOST_HEADS) if "head_dim" in text else 128  # class default
    return read_qwen3_text(config, text, prefix="Qwen3VL", head_dim=head_dim, mlps=dense_mlps(text))


def module_tree(spec: ModelSpec) -> Module:
    return qwen3_vl_tree(spec, no_sparse_block)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
