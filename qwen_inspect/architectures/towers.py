"""Towers that turn images into embeddings for a decoder, as transformers' own vision models.

Source: transformers 5.23, models/siglip.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .blocks import linear
from .outline import activation, embedding, layer_list, layer_norm, patches, with_defaults
from .reading import flag, integer, part

SIGLIP: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}


def read_siglip(config: Mapping[str, Any]) -> dict[str, Any]:
    """`vision_config` with SiglipVisionConfig's defaults; UnsupportedError for another tower."""
    nested = {} if config.get("vision_config") is None else config
    return with_defaults(
        part({"vision_config": {}, **nested}, "vision_config", model_types=("siglip_vision_model",)), SIGLIP
    )


def siglip(name: str, vision: Mapping[str, Any], dtype: DType) -> Module:
    """A ViT with learned positions and, with `vision_use_head`, a pooling head. vision: of `read_siglip`."""
    hidden, heads, eps = (
        integer(vision, "hidden_size"),
        integer(vision, "num_attention_heads"),
        vision["layer_norm_eps"],
    )
    if hidden % heads:
        raise MalformedError("config_vision_heads_do_not_divide", hidden=hidden, heads=heads)
    side = integer(vision, "image_size") // integer(vision, "patch_size")
    embeddings = Module(
        name="embeddings",
        class_name="SiglipVisionEmbeddings",
        buffers=(Tensor("position_ids", (1, side**2), DType.I64),),
        children=(
            patches("patch_embedding", integer(vision, "num_channels"), hidden, integer(vision, "patch_size"), dtype),
            embedding("position_embedding", side**2, hidden, dtype),
        ),
    )
    layer = Module(
        name="0",
        class_name="SiglipEncoderLayer",
        children=(
            layer_norm("layer_norm1", hidden, dtype, eps=eps),
            Module(
                name="self_attn",
                class_name="SiglipAttention",
                children=tuple(
                    linear(f"{part}_proj", hidden, hidden, dtype, bias=True) for part in ("k", "v", "q", "out")
                ),
            ),
            layer_norm("layer_norm2", hidden, dtype, eps=eps),
            _mlp(vision, dtype),
        ),
    )
    layers = layer_list("layers", [layer] * integer(vision, "num_hidden_layers", at_least=0))
    head = _pooling_head(vision, hidden, dtype) if flag(vision, "vision_use_head", default=False) else None
    return Module(
        name=name,
        class_name="SiglipVisionModel",
        children=(
            embeddings,
            Module(name="encoder", class_name="SiglipEncoder", children=(layers,)),
            layer_norm("post_layernorm", hidden, dtype, eps=eps),
            *(() if head is None else (head,)),
        ),
    )


def _pooling_head(vision: Mapping[str, Any], hidden: int, dtype: DType) -> Module:
    """A learned query that attends over the patches, and an MLP. Source: SiglipMultiheadAttentionPoolingHead."""
    output = Module(
        name="out_proj",
        class_name="NonDynamicallyQuantizableLinear",
        arguments=f"in_features={hidden}, out_features={hidden}, bias=True",
        tensors=(Tensor("weight", (hidden, hidden), dtype), Tensor("bias", (hidden,), dtype)),
    )
    attention = Module(
        name="attention",
        class_name="MultiheadAttention",
        tensors=(Tensor("in_proj_weight", (3 * hidden, hidden), dtype), Tensor("in_proj_bias", (3 * hidden,), dtype)),
        children=(output,),
    )
    return Module(
        name="head",
        class_name="SiglipMultiheadAttentionPoolingHead",
        tensors=(Tensor("probe", (1, 1, hidden), dtype),),
        children=(attention, layer_norm("layernorm", hidden, dtype, eps=vision["layer_norm_eps"]), _mlp(vision, dtype)),
    )


def _mlp(vision: Mapping[str, Any], dtype: DType) -> Module:
    hidden, inner = integer(vision, "hidden_size"), integer(vision, "intermediate_size")
    return Module(
        name="mlp",
        class_name="SiglipMLP",
        children=(
            activation("activation_fn", vision["hidden_act"]),
            linear("fc1", hidden, inner, dtype, bias=True),
            linear("fc2", inner, hidden, dtype, bias=True),
        ),
    )


# --- names on disk


def stored_side_by_side(tensor: Tensor) -> tuple[Tensor, ...]:
    """Tower, projector and language model (`model` and `lm_head`) side by side, as LLaVA's older class had them.

    Source: transformers 5.23, conversion_mapping ("llava", "LlavaModel").
    """
    name = tensor.name.removeprefix("model.")
    if name.startswith("language_model."):
        name = f"language_model.model.{name.removeprefix('language_model.')}"
    return (replace(tensor, name=f"language_model.{name}" if name.startswith("lm_head.") else name),)


def built_side_by_side(name: str) -> str:
    """The class's name of a tensor that is stored side by side; older towers have one module more.

    Source: as `stored_side_by_side`, and "CLIPVisionModel".
    """
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return f"model.{built_bare(name.removeprefix('model.'))}"


def built_bare(name: str) -> str:
    """The same without the output layer: the bare model's name."""
    for stored, built in (
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
    ):
        if name.startswith(stored):
            return built + name.removeprefix(stored)
    return name
