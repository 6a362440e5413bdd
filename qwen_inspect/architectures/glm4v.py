"""GLM-4.1V and 4.5V: a vision tower with learned positions and a merger, and GLM-4's decoder, dense or with experts.

Source: transformers 5.23, models/glm4v, glm4v_moe.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from .blocks import rotary
from .decoders import Decoder, read_decoder
from .design import Architecture
from .mixture import EXPERTS, SCORE_BIAS, mixture, read_sparse_layers
from .outline import (
    activation,
    causal_lm,
    embedding,
    layer_list,
    layer_norm,
    linear,
    norm,
    read_spans,
    whole_dtype,
    with_aliases,
    with_defaults,
)
from .reading import flag, integer, part, shown
from .sizes import check_sizes
from .sparse import stored_by_expert

VISION: Mapping[str, Any] = {
    "depth": 24,
    "hidden_size": 1536,
    "hidden_act": "silu",
    "attention_bias": False,
    "num_heads": 12,
    "in_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 4096,
    "intermediate_size": 13696,
}
_DENSE: Mapping[str, Any] = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
}
_SPARSE: Mapping[str, Any] = {
    **_DENSE,
    "vocab_size": 151424,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "max_position_embeddings": 65536,
    "attention_bias": True,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    check_sizes(config)
    sparse = config["model_type"] == "glm4v_moe"
    prefix, dtype = "Glm4vMoe" if sparse else "Glm4v", whole_dtype(config)
    nested = _part(config, "text_config", f"{config['model_type']}_text")
    if sparse:
        text = with_defaults(with_aliases(nested, {"num_local_experts": "n_routed_experts"}), _SPARSE)
    else:
        text = with_defaults(nested, _DENSE)
    # Tying is read at the top, where older configurations have it in the decoder's part. Source: Glm4vConfig.__post_init__
    text["tie_word_embeddings"] = config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    language, sizes = _sparse_decoder(text, dtype) if sparse else _dense_decoder(text, dtype)
    tower = _tower(_read_vision(config), prefix, dtype)
    model = Module(name="model", class_name=f"{prefix}Model", children=(tower, language))
    return causal_lm(
        config,
        text,
        model,
        sizes.kept(read_spans(text, sizes.layers)),
        table="language_model.embed_tokens",
        persistent=(SCORE_BIAS,),
        stored_form=stored_by_expert("mlp", EXPERTS),
        unloaded=(r"model\.layers\.46.*", r"model\.layers\.92.*") if sparse else (),
    )


def _part(config: Mapping[str, Any], key: str, *model_types: str) -> Mapping[str, Any]:
    """The nested configuration; a missing or null one is the class's default."""
    return {} if config.get(key) is None else part(config, key, model_types=model_types)


def _dense_decoder(text: Mapping[str, Any], dtype: DType) -> tuple[Module, Decoder]:
    if text.get("head_dim") is not None:  # its rotary table would use it, its attention would not
        raise UnsupportedError("config_key_unsupported", key="head_dim", found=shown(text["head_dim"]))
    decoder = read_decoder(text, dtype, "Glm4v", null_head_dim=True)
    named = replace(decoder, prefix="Glm4vText")
    names = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    layer = named.layer(
        named.attention(bias=True, output_bias=False), named.joint_mlp(), *(decoder.norm(name) for name in names)
    )
    model = named.model(layer, last_norm=decoder.norm("norm"), rotary_table=named.rotary(partial=True))
    return replace(model, name="language_model"), decoder


def _sparse_decoder(text: Mapping[str, Any], dtype: DType) -> tuple[Module, Decoder]:
    decoder = read_decoder(text, dtype, "Glm4vMoeText")
    attention = decoder.attention(bias=flag(text, "attention_bias", default=False), output_bias=False)
    dense = decoder.prenorm_layer(attention, decoder.mlp())
    sparse = decoder.prenorm_layer(attention, mixture(decoder, score_bias=DType.F32))
    untyped = {**text, "mlp_layer_types": None}
    kinds = read_sparse_layers(
        untyped, decoder.layers, integer(text, "n_routed_experts"), dense_first="first_k_dense_replace"
    )
    last = replace(decoder.norm("norm"), class_name="Glm4vMoeRMSNorm")
    model = decoder.model(
        [sparse if kind else dense for kind in kinds], last_norm=last, rotary_table=decoder.rotary(partial=True)
    )
    return replace(model, name="language_model"), decoder


def _read_vision(config: Mapping[str, Any]) -> dict[str, Any]:
    family = str(config["model_type"])  # which older releases have here too
    nested = _part(config, "vision_config", f"{family}_vision", family)
    vision = {**VISION, **with_aliases(nested, {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"})}
    rope = vision.get("rope_scaling") or vision.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
    if kind not in ("default", "axial"):
        raise UnsupportedError("rope_type_unsupported", found=shown(kind), known="default, axial")
    if vision.get("head_dim") is not None:
        raise UnsupportedError("config_key_unsupported", key="head_dim", found=shown(vision["head_dim"]))
    return vision


def _tower(vision: Mapping[str, Any], prefix: str, dtype: DType) -> Module:
    hidden, heads, eps = integer(vision, "hidden_size"), integer(vision, "num_heads"), vision["rms_norm_eps"]
    if hidden % heads:
        raise MalformedError("config_vision_heads_do_not_divide", hidden=hidden, heads=heads)
    side, output, act = integer(vision, "patch_size"), integer(vision, "out_hidden_size"), vision["hidden_act"]
    positions = (integer(vision, "image_size", at_least=side) // side) ** 2
    frames, channels, merged = (
        integer(vision, key) for key in ("temporal_patch_size", "in_channels", "spatial_merge_size")
    )
    bias = flag(vision, "attention_bias", default=False)
    block = Module(
        name="0",
        class_name=f"{prefix}VisionBlock",
        children=(
            norm("norm1", f"{prefix}RMSNorm", hidden, dtype, eps=eps),
            norm("norm2", f"{prefix}RMSNorm", hidden, dtype, eps=eps),
            Module(
                name="attn",
                class_name=f"{prefix}VisionAttention",
                children=(
                    linear("qkv", hidden, 3 * hidden, dtype, bias=bias),
                    linear("proj", hidden, hidden, dtype),
                ),
            ),
            Module(
                name="mlp",
                class_name="Glm4VisionMlp" if prefix == "Glm4v" else "Glm4vMoeisionMlp",
                children=(*_gated(hidden, output, dtype), activation("act_fn", act)),
            ),
        ),
    )
    merger = patch_merger(prefix, output, integer(vision, "intermediate_size"), act, dtype)
    return Module(
        name="visual",
        class_name=f"{prefix}VisionModel",
        children=(
            Module(
                name="embeddings",
                class_name=f"{prefix}VisionEmbeddings",
                children=(embedding("position_embedding", positions, hidden, dtype),),
            ),
            Module(
                name="patch_embed",
                class_name=f"{prefix}VisionPatchEmbed",
                children=(patch_convolution("proj", "Conv3d", channels, hidden, (frames, side, side), dtype),),
            ),
            rotary("rotary_pos_emb", f"{prefix}VisionRotaryEmbedding", hidden // heads // 2),
            layer_list("blocks", [block] * integer(vision, "depth")),
            merger,
            norm("post_conv_layernorm", f"{prefix}RMSNorm", hidden, dtype, eps=eps),
            patch_convolution("downsample", "Conv2d", hidden, output, (merged, merged), dtype),
            norm("post_layernorm", f"{prefix}RMSNorm", hidden, dtype, eps=eps),
        ),
    )


def patch_merger(prefix: str, width: int, inner: int, act: object, dtype: DType) -> Module:
    """The gated MLP behind the tower, of `inner` channels within."""
    return Module(
        name="merger",
        class_name=f"{prefix}VisionPatchMerger",
        children=(
            linear("proj", width, width, dtype),
            layer_norm("post_projection_norm", width, dtype, eps=1e-5),
            *_gated(width, inner, dtype),
            Module(name="act1", class_name="GELU", arguments="approximate='none'"),
            activation("act_fn", act),
        ),
    )


def _gated(width: int, inner: int, dtype: DType) -> tuple[Module, Module, Module]:
    return (
        linear("gate_proj", width, inner, dtype),
        linear("up_proj", width, inner, dtype),
        linear("down_proj", inner, width, dtype),
    )


def patch_convolution(
    name: str, class_name: str, channels: int, width: int, kernel: tuple[int, ...], dtype: DType
) -> Module:
    """Over patches, side by side: weight (width, channels, *kernel), bias (width,)."""
    return Module(
        name=name,
        class_name=class_name,
        arguments=f"{channels}, {width}, kernel_size={kernel}, stride={kernel}",
        tensors=(Tensor("weight", (width, channels, *kernel), dtype), Tensor("bias", (width,), dtype)),
    )
