"""Qwen2.5-VL: the decoder of Qwen2.5 behind a vision tower with RMSNorm, SwiGLU and attention within windows.

Source: transformers 5.23, models/qwen2_5_vl; Qwen2.5-VL Technical Report (arXiv 2502.13923).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import ModelSpec, Module
from ..typed import Any
from ..values import replace
from .blocks import linear
from .blocks import no_prediction_layers as prediction_layers
from .design import by_spec
from .reading import ACTIVATION_CLASSES
from .vision import (
    patch_embed,
    qwen2_merger,
    qwen2_tree,
    read_qwen2_text,
    read_vision,
    rms_norm,
    tower_block,
    tower_rotary,
)
from .vision import stored_side_by_side as stored_form

__all__ = ["architecture", "module_tree", "prediction_layers", "read_spec", "stored_form"]

SIZES: Mapping[str, int] = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
}


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    tower = read_vision(config, sizes=SIZES, activation="silu")
    return replace(read_qwen2_text(config, prefix="Qwen2_5_VL"), vision=tower)


def module_tree(spec: ModelSpec) -> Module:
    vision, dtype = spec.vision, spec.dtype
    assert vision is not None  # read_spec always sets it
    width, prefix = vision.hidden_size, "Qwen2_5_VL"
    mlp = Module(
        name="mlp",
        class_name=f"{prefix}MLP",
        children=(
            linear("gate_proj", width, vision.intermediate_size, dtype, bias=True),
            linear("up_proj", width, vision.intermediate_size, dtype, bias=True),
            linear("down_proj", vision.intermediate_size, width, dtype, bias=True),
            Module(name="act_fn", class_name=ACTIVATION_CLASSES[vision.activation]),
        ),
    )
    first, second, last = (rms_norm(name, f"{prefix}RMSNorm", width, dtype) for name in ("norm1", "norm2", "ln_q"))
    block = tower_block(
        vision,
        (first, second),
        attention_class=f"{prefix}VisionAttention",
        mlp=mlp,
        block_class=f"{prefix}VisionBlock",
        dtype=dtype,
    )
    tower = Module(
        name="visual",
        class_name="Qwen2_5_VisionTransformerPretrainedModel",
        component="vision",
        children=(
            patch_embed(vision, "Qwen2_5_VisionPatchEmbed", dtype, bias=False),
            tower_rotary(vision, f"{prefix}VisionRotaryEmbedding"),
            Module(name="blocks", class_name="ModuleList", children=(block,)),
            qwen2_merger(vision, f"{prefix}PatchMerger", last, dtype),
        ),
    )
    return qwen2_tree(spec, tower)


architecture = by_spec(read_spec, module_tree, stored_form, prediction_layers)
