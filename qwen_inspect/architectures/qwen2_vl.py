"""Qwen2-VL: the decoder of Qwen2 behind a vision tower with LayerNorm.

Source: transformers 5.23, models/qwen2_vl; "Qwen2-VL" (arXiv 2409.12191).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import ModelSpec, Module
from ..typed import Any
from ..values import replace
from .blocks import linear
from .blocks import no_prediction_layers as prediction_layers
from .design import by_spec
from .reading import ACTIVATION_CLASSES, integer
from .vision import (
    layer_norm,
    patch_embed,
    qwen2_merger,
    qwen2_tree,
    read_qwen2_text,
    read_vision,
    tower_block,
    tower_rotary,
    vision_part,
)
from .vision import stored_side_by_side as stored_form

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]

SIZES: Mapping[str, int] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
}


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """In its `vision_config`, embed_dim is the tower's width and hidden_size its output size."""
    vision = vision_part(config)
    width = integer(vision, "embed_dim") if "embed_dim" in vision else SIZES["hidden_size"]
    ratio = integer(vision, "mlp_ratio") if "mlp_ratio" in vision else 4
    own = {
        **vision,
        "hidden_size": width,
        "intermediate_size": width * ratio,
        "out_hidden_size": integer(vision, "hidden_size") if "hidden_size" in vision else SIZES["out_hidden_size"],
    }
    tower = read_vision({**config, "vision_config": own}, sizes=SIZES, activation="quick_gelu")
    return replace(read_qwen2_text(config, prefix="Qwen2VL"), vision=tower)


def module_tree(spec: ModelSpec) -> Module:
    vision, dtype = spec.vision, spec.dtype
    assert vision is not None  # read_spec always sets it
    width = vision.hidden_size
    mlp = Module(
        name="mlp",
        class_name="VisionMlp",
        children=(
            linear("fc1", width, vision.intermediate_size, dtype, bias=True),
            Module(name="act", class_name=ACTIVATION_CLASSES[vision.activation]),
            linear("fc2", vision.intermediate_size, width, dtype, bias=True),
        ),
    )
    norms = (layer_norm("norm1", width, dtype), layer_norm("norm2", width, dtype))
    block = tower_block(
        vision, norms, attention_class="VisionAttention", mlp=mlp, block_class="Qwen2VLVisionBlock", dtype=dtype
    )
    tower = Module(
        name="visual",
        class_name="Qwen2VisionTransformerPretrainedModel",
        component="vision",
        children=(
            patch_embed(vision, "PatchEmbed", dtype, bias=False),
            tower_rotary(vision, "Qwen2VLVisionRotaryEmbedding"),
            Module(name="blocks", class_name="ModuleList", children=(block,)),
            qwen2_merger(vision, "PatchMerger", layer_norm("ln_q", width, dtype), dtype),
        ),
    )
    return qwen2_tree(spec, tower)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
