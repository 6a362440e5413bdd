"""Mistral Small 3.1 and later, Ministral 3: Pixtral's tower, a projector that merges patches, and a decoder of Mistral's.

Source: transformers 5.23, models/mistral3, pixtral; Pixtral 12B (arXiv 2410.07073).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError, UnsupportedError
from ..spec import Module
from ..typed import Any
from ..values import replace
from . import deepseek, mistral
from .blocks import linear, rotary
from .design import Architecture
from .outline import activation, causal_lm, gated_mlp, layer_list, norm, read_rope, whole_dtype, with_defaults
from .reading import flag, integer, part, part_type, read_class_name, shown
from .towers import built_bare, built_side_by_side, stored_side_by_side

# Parts that the configuration lacks.
TEXT: Mapping[str, Any] = {
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "vocab_size": 131072,
}
VISION: Mapping[str, Any] = {"patch_size": 14, "head_dim": 64}
# Keys that a part lacks.
PIXTRAL: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 16,
    "hidden_act": "gelu",
}
DECODERS = ("mistral", "ministral3", "mistral4")


def architecture(config: Mapping[str, Any]) -> Architecture:
    with_parts = {key: config.get(key) or empty for key, empty in (("text_config", TEXT), ("vision_config", VISION))}
    nested = part(with_parts, "text_config", model_types=DECODERS)
    tower = part(with_parts, "vision_config", model_types=("pixtral",))
    vision = with_defaults(tower, PIXTRAL, rope_types=("default", "axial"))  # transformers 5.23 writes the second
    dtype, kind = whole_dtype(config), part_type(nested, "text_config", model_types=DECODERS, default="mistral")
    decoder = deepseek.read_latent_decoder if kind == "mistral4" else mistral.decoder
    text, language, kept = decoder(nested, kind, dtype)
    # Tying is read at the top. Source: transformers 5.23, PreTrainedModel.tie_weights
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    model = Module(
        name="model",
        class_name="Mistral3Model",
        children=(
            pixtral("vision_tower", vision, dtype),
            _projector(config, vision, text, dtype),
            replace(language, name="language_model"),
        ),
    )
    return causal_lm(
        config,
        text,
        model,
        kept,
        table="language_model.embed_tokens",
        stored_form=stored_side_by_side,
        built_name=built_bare if read_class_name(config) == model.class_name else built_side_by_side,
    )


def pixtral(name: str, vision: Mapping[str, Any], dtype: DType) -> Module:
    """A ViT with RoPE over rows and columns, and gated MLPs. vision: with PIXTRAL's defaults."""
    hidden, heads = integer(vision, "hidden_size"), integer(vision, "num_attention_heads")
    if hidden % heads:
        raise MalformedError("config_vision_heads_do_not_divide", hidden=hidden, heads=heads)
    if vision.get("head_dim", hidden // heads) != hidden // heads:
        raise UnsupportedError("config_key_unsupported", key="head_dim", found=shown(vision["head_dim"]))
    kind, _ = read_rope(vision)
    if kind not in ("default", "axial"):
        raise UnsupportedError("rope_type_unsupported", found=shown(kind), known="default, axial")
    channels, side = integer(vision, "num_channels"), integer(vision, "patch_size")
    layer = Module(
        name="0",
        class_name="PixtralAttentionLayer",
        children=(
            _norm("attention_norm", hidden, dtype),
            gated_mlp(
                "feed_forward",
                "PixtralMLP",
                hidden,
                integer(vision, "intermediate_size"),
                vision["hidden_act"],
                dtype,
            ),
            Module(
                name="attention",
                class_name="PixtralAttention",
                children=tuple(linear(f"{matrix}_proj", hidden, hidden, dtype) for matrix in "kvqo"),
            ),
            _norm("ffn_norm", hidden, dtype),
        ),
    )
    layers = layer_list("layers", [layer] * integer(vision, "num_hidden_layers", at_least=0))
    patches = Module(
        name="patch_conv",
        class_name="Conv2d",
        arguments=f"{channels}, {hidden}, kernel_size=({side}, {side}), stride=({side}, {side}), bias=False",
        tensors=(Tensor("weight", (hidden, channels, side, side), dtype),),
    )
    return Module(
        name=name,
        class_name="PixtralVisionModel",
        children=(
            patches,
            _norm("ln_pre", hidden, dtype),
            Module(name="transformer", class_name="PixtralTransformer", children=(layers,)),
            rotary("patch_positional_embedding", "PixtralVisionRotaryEmbedding", hidden // heads),
        ),
    )


def _norm(name: str, hidden: int, dtype: DType) -> Module:
    return norm(name, "PixtralRMSNorm", hidden, dtype, eps=1e-5)  # whatever the configuration says


def _projector(config: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any], dtype: DType) -> Module:
    """Merges squares of patches, then two matrices; of several layers' features if `vision_feature_layer` lists them."""
    hidden, width = integer(vision, "hidden_size"), integer(text, "hidden_size")
    merged = hidden * integer({"spatial_merge_size": 2, **config}, "spatial_merge_size") ** 2
    chosen = config.get("vision_feature_layer", -1)
    features = len(chosen) if isinstance(chosen, list) else 1
    bias = flag(config, "multimodal_projector_bias", default=False)
    return Module(
        name="multi_modal_projector",
        class_name="Mistral3MultiModalProjector",
        children=(
            norm("norm", "Mistral3RMSNorm", hidden, dtype, eps=text["rms_norm_eps"]),
            Module(
                name="patch_merger",
                class_name="Mistral3PatchMerger",
                children=(linear("merging_layer", merged, hidden, dtype),),
            ),
            linear("linear_1", hidden * features, width, dtype, bias=bias),
            activation("act", config.get("projector_hidden_act", "gelu")),
            linear("linear_2", width, width, dtype, bias=bias),
        ),
    )
