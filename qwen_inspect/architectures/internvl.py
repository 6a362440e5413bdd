"""InternVL3 and 3.5: a ViT with scaled residuals, a projector that joins patches, and the decoder of another family.

Source: transformers 5.23, models/internvl; InternVL3 (arXiv 2504.10479).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import BlockFormat, DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .blocks import linear
from .design import Architecture
from .nested import decoder_within
from .outline import activation, causal_lm, dropout, layer_list, layer_norm, norm, whole_dtype, with_defaults
from .reading import flag, integer, number, part, read_class_name, shown
from .sizes import check_sizes
from .towers import built_bare, built_side_by_side, stored_side_by_side

VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": False,
    "use_qk_norm": False,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "projection_dropout": 0.0,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "image_size": (448, 448),
    "patch_size": (14, 14),
    "num_channels": 3,
    "use_mask_token": False,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
}
NORMS = ("layer_norm", "rms_norm")


def architecture(config: Mapping[str, Any]) -> Architecture:
    check_sizes(config)
    dtype = whole_dtype(config)
    nested = (
        {} if config.get("vision_config") is None else part(config, "vision_config", model_types=("internvl_vision",))
    )
    vision = with_defaults(nested, VISION)
    decoder = decoder_within(config, default="qwen2")
    # Tying is read at the top. Source: transformers 5.23, PreTrainedModel.tie_weights
    text = {**decoder.text, "tie_word_embeddings": config.get("tie_word_embeddings", True)}
    seeing = (
        _tower(vision, dtype),
        _projector(config, integer(vision, "hidden_size"), integer(text, "hidden_size"), dtype),
    )
    model = Module(
        name="model",
        class_name="InternVLModel",
        children=(
            *(_with_norms(module, decoder.norm_dtype) for module in seeing),
            replace(decoder.tree, name="language_model"),
        ),
    )

    def stored_form(tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(form for stored in decoder.stored_form(tensor) for form in stored_side_by_side(stored))

    return causal_lm(
        config,
        text,
        model,
        decoder.kept,
        table="language_model.embed_tokens",
        routed=decoder.routed,
        stored_form=stored_form,
        built_name=built_bare if read_class_name(config) == model.class_name else built_side_by_side,
        kernel=decoder.kernel,
    )


def _tower(vision: Mapping[str, Any], dtype: DType) -> Module:
    """A ViT with a class token. vision: with VISION's defaults."""
    hidden, eps = integer(vision, "hidden_size"), vision["layer_norm_eps"]
    pooled = flag(vision, "use_mean_pooling", default=True)
    layers = layer_list("layer", [_layer(vision, dtype)] * integer(vision, "num_hidden_layers", at_least=0))
    return Module(
        name="vision_tower",
        class_name="InternVLVisionModel",
        children=(
            _embeddings(vision, dtype),
            Module(name="encoder", class_name="InternVLVisionEncoder", children=(layers,)),
            _identity("layernorm") if pooled else layer_norm("layernorm", hidden, dtype, eps=eps),
        ),
    )


def _embeddings(vision: Mapping[str, Any], dtype: DType) -> Module:
    hidden, channels = integer(vision, "hidden_size"), integer(vision, "num_channels")
    patch = _sides(vision, "patch_size")
    height, width = (
        side // length for side, length in zip(_sides(vision, "image_size", at_least=max(patch)), patch, strict=True)
    )
    # Each is there unless its key says otherwise.
    masked = flag(vision, "use_mask_token", default=False)
    placed = flag(vision, "use_absolute_position_embeddings", default=False)
    projection = Module(
        name="projection",
        class_name="Conv2d",
        arguments=f"{channels}, {hidden}, kernel_size={patch}, stride={patch}",
        tensors=(Tensor("weight", (hidden, channels, *patch), dtype), Tensor("bias", (hidden,), dtype)),
    )
    return Module(
        name="embeddings",
        class_name="InternVLVisionEmbeddings",
        tensors=(
            Tensor("cls_token", (1, 1, hidden), dtype),
            *((Tensor("mask_token", (1, 1, hidden), dtype),) if masked else ()),
            *((Tensor("position_embeddings", (1, height * width + 1, hidden), dtype),) if placed else ()),
        ),
        children=(
            Module(name="patch_embeddings", class_name="InternVLVisionPatchEmbeddings", children=(projection,)),
            dropout("dropout", _share(vision, "hidden_dropout_prob")),
        ),
    )


def _layer(vision: Mapping[str, Any], dtype: DType) -> Module:
    hidden, inner, heads = (integer(vision, key) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    if hidden % heads:
        raise MalformedError("config_vision_heads_do_not_divide", hidden=hidden, heads=heads)
    bias, normed = flag(vision, "attention_bias", default=False), flag(vision, "use_qk_norm", default=False)
    share = _share(vision, "projection_dropout")
    attention = Module(
        name="attention",
        class_name="InternVLVisionAttention",
        children=(
            *(linear(f"{matrix}_proj", hidden, hidden, dtype, bias=bias) for matrix in "qkv"),
            linear("projection_layer", hidden, hidden, dtype, bias=True),
            dropout("projection_dropout", share) if share > 0 else _identity("projection_dropout"),
            *(
                norm(name, "InternVLVisionRMSNorm", hidden, dtype, eps=1e-6) if normed else _identity(name)
                for name in ("q_norm", "k_norm")
            ),
        ),
    )
    mlp = Module(
        name="mlp",
        class_name="InternVLVisionMLP",
        children=(
            activation("activation_fn", vision["hidden_act"]),
            linear("fc1", hidden, inner, dtype, bias=True),
            linear("fc2", inner, hidden, dtype, bias=True),
        ),
    )
    return Module(
        name="0",
        class_name="InternVLVisionLayer",
        tensors=tuple(Tensor(name, (hidden,), dtype) for name in ("lambda_1", "lambda_2")),
        children=(
            attention,
            mlp,
            *(_norm(name, vision, hidden, dtype) for name in ("layernorm_before", "layernorm_after")),
            dropout("dropout", _share(vision, "hidden_dropout_prob")),
        ),
    )


def _norm(name: str, vision: Mapping[str, Any], hidden: int, dtype: DType) -> Module:
    kind, eps = vision["norm_type"], vision["layer_norm_eps"]
    if kind not in NORMS:
        raise UnsupportedError("config_key_unsupported", key="norm_type", found=shown(kind))
    if kind == "layer_norm":
        return layer_norm(name, hidden, dtype, eps=eps)
    return norm(name, "InternVLVisionRMSNorm", hidden, dtype, eps=eps)


def _projector(config: Mapping[str, Any], hidden: int, width: int, dtype: DType) -> Module:
    """Joins the patches of a square into one token, and projects it to the decoder's width."""
    ratio = number(config, "downsample_ratio", default=0.5)
    if not 0 < ratio <= 1:
        raise MalformedError("config_out_of_range", key="downsample_ratio", found=shown(ratio), least=0, most=1)
    joined = hidden * int(1 / ratio) ** 2
    return Module(
        name="multi_modal_projector",
        class_name="InternVLMultiModalProjector",
        children=(
            layer_norm("layer_norm", joined, dtype, eps="1e-05"),
            linear("linear_1", joined, width, dtype, bias=True),
            activation("act", config.get("projector_hidden_act", "gelu")),
            linear("linear_2", width, width, dtype, bias=True),
        ),
    )


def _with_norms(module: Module, dtype: DType | BlockFormat) -> Module:
    """The module whose norms have this dtype: a decoder that keeps its own in float32 keeps all that are named so.

    Source: transformers 5.23, PreTrainedModel._keep_in_fp32_modules, which it collects from all parts.
    """
    return replace(
        module,
        tensors=tuple(replace(tensor, dtype=dtype) if "norm" in module.name else tensor for tensor in module.tensors),
        children=tuple(_with_norms(child, dtype) for child in module.children),
    )


def _identity(name: str) -> Module:
    return Module(name=name, class_name="Identity")


def _share(vision: Mapping[str, Any], key: str) -> float:
    """Of a dropout: as it is printed, from 0 to 1."""
    share = number(vision, key, default=0.0)
    if share > 1:
        raise MalformedError("config_out_of_range", key=key, found=shown(share), least=0, most=1)
    return share


def _sides(vision: Mapping[str, Any], key: str, *, at_least: int = 1) -> tuple[int, int]:
    """(height, width) in pixels, of one number or two."""
    value = vision[key]
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2:
        raise UnsupportedError("config_key_unsupported", key=key, found=shown(value))
    height, width = (integer({key: side}, key, at_least=at_least) for side in sides)
    return height, width
