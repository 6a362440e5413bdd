"""Qwen3.5, 3.6 and 3.8, dense: a vision tower before a hybrid decoder; under qwen3_5_text, that decoder alone.

Source: transformers 5.23, models/qwen3_5.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..spec import ModelSpec, Module
from ..typed import Any
from .blocks import no_sparse_block, prediction_layer
from .blocks import stored_as_built as stored_form
from .design import by_spec
from .reading import dense_mlps
from .vision import hybrid_tree, read_hybrid

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    return read_hybrid(config, prefix="Qwen3_5", mlps=dense_mlps)


def module_tree(spec: ModelSpec) -> Module:
    return hybrid_tree(spec, no_sparse_block)


def prediction_layers(spec: ModelSpec) -> tuple[Tensor, ...]:
    return prediction_layer(spec, no_sparse_block)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
