"""Qwen3.5, 3.6 and 3.8 with experts: as qwen3_5, with routed experts and a shared expert in every layer.

Source: transformers 5.23, models/qwen3_5_moe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..checkpoint import Tensor
from ..spec import Mlp, ModelSpec, Module
from ..typed import Any
from .blocks import experts_stored_singly as stored_form
from .blocks import prediction_layer, sparse_block_with_shared_expert
from .design import by_spec
from .reading import MOST_HEADS, integer, sparse_mlps
from .vision import hybrid_tree, read_hybrid

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    return read_hybrid(config, prefix="Qwen3_5Moe", mlps=_all_sparse)


def _all_sparse(config: Mapping[str, Any]) -> Callable[[int], list[Mlp]]:
    """Experts in every layer: Qwen3_5MoeDecoderLayer ignores decoder_sparse_step and mlp_only_layers."""
    integer(config, "num_experts", at_most=MOST_HEADS)
    shared = integer(config, "shared_expert_intermediate_size")
    always = {**config, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return sparse_mlps(always, experts_key="num_experts", shared_size=shared)


def module_tree(spec: ModelSpec) -> Module:
    return hybrid_tree(spec, sparse_block_with_shared_expert)


def prediction_layers(spec: ModelSpec) -> tuple[Tensor, ...]:
    return prediction_layer(spec, sparse_block_with_shared_expert)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
