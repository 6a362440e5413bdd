"""Qwen3-Next: three layers of Gated DeltaNet to each layer of gated full attention, many small experts, a shared expert.

Source: transformers 5.23, models/qwen3_next.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Tensor
from ..spec import ModelSpec, Module
from ..typed import Any
from .blocks import decoder_tree, prediction_layer, sparse_block_with_shared_expert
from .blocks import experts_stored_singly as stored_form
from .design import by_spec
from .reading import hybrid_attentions, integer, read_decoder, sparse_mlps

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    shared = integer(config, "shared_expert_intermediate_size")
    return read_decoder(
        config,
        prefix="Qwen3Next",
        attentions=hybrid_attentions(config, fused_projections=True),
        mlps=sparse_mlps(config, experts_key="num_experts", shared_size=shared),
    )


def module_tree(spec: ModelSpec) -> Module:
    return decoder_tree(spec, sparse_block_with_shared_expert)


def prediction_layers(spec: ModelSpec) -> tuple[Tensor, ...]:
    return prediction_layer(spec, sparse_block_with_shared_expert)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
