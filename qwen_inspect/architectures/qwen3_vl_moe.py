"""Qwen3-VL with experts (30B-A3B, 235B-A22B): as qwen3_vl, with the routed experts of qwen3_moe.

Source: transformers 5.23, models/qwen3_vl_moe; Qwen3-VL Technical Report (arXiv 2511.21631).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import ModelSpec, Module
from ..typed import Any
from .blocks import no_prediction_layers as prediction_layers
from .blocks import sparse_block
from .design import by_spec
from .reading import experts_key, read_head_dim, sparse_mlps, text_part
from .vision import experts_stored_transposed as stored_form
from .vision import qwen3_vl_tree, read_qwen3_text

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    text = text_part(config)
    mlps = sparse_mlps(text, experts_key=experts_key(text), shared_size=None)
    return read_qwen3_text(config, text, prefix="Qwen3VLMoe", head_dim=read_head_dim(text), mlps=mlps)


def module_tree(spec: ModelSpec) -> Module:
    return qwen3_vl_tree(spec, sparse_block)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
