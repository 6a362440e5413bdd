"""Gemma 3 with its eyes: a SigLIP tower, a projector that pools patches, and the decoder of `gemma`.

Source: transformers 5.23, models/gemma3; Gemma 3 (arXiv 2503.19786).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import DType, Tensor
from ..errors import MalformedError
from ..spec import Module
from ..typed import Any
from .design import Architecture
from .gemma import decoder, kept_layers, read_text
from .outline import causal_lm, norm, whole_dtype
from .reading import integer, read_class_name, shown
from .towers import built_bare, built_side_by_side, read_siglip, siglip, stored_side_by_side

TEXT = "gemma3_text"


def architecture(config: Mapping[str, Any]) -> Architecture:
    nested = config.get("text_config")
    if nested is not None and not isinstance(nested, Mapping):
        raise MalformedError("config_not_object", key="text_config", found=shown(nested))
    vision, dtype = read_siglip(config), whole_dtype(config)
    # Tying is read at the top. Source: transformers 5.23, PreTrainedModel.tie_weights
    text = {**read_text(nested or {}, TEXT), "tie_word_embeddings": config.get("tie_word_embeddings", True)}
    model = Module(
        name="model",
        class_name="Gemma3Model",
        children=(
            siglip("vision_tower", vision, dtype),
            _projector(config, vision, integer(text, "hidden_size"), dtype),
            decoder(text, TEXT, dtype, name="language_model"),
        ),
    )
    return causal_lm(
        config,
        text,
        model,
        kept_layers(text, dtype),
        table="language_model.embed_tokens",
        stored_form=stored_side_by_side,
        built_name=built_bare if read_class_name(config) == model.class_name else built_side_by_side,
    )


def _projector(config: Mapping[str, Any], vision: Mapping[str, Any], width: int, dtype: DType) -> Module:
    """Averages neighbouring patches so that `mm_tokens_per_image` are left, and projects them to the decoder's width."""
    hidden = integer(vision, "hidden_size")
    tokens_per_side = int(integer({"mm_tokens_per_image": 256, **config}, "mm_tokens_per_image") ** 0.5)
    pool = integer(vision, "image_size") // integer(vision, "patch_size") // tokens_per_side
    return Module(
        name="multi_modal_projector",
        class_name="Gemma3MultiModalProjector",
        tensors=(Tensor("mm_input_projection_weight", (hidden, width), dtype),),
        children=(
            norm("mm_soft_emb_norm", "Gemma3RMSNorm", hidden, dtype, eps=vision["layer_norm_eps"]),
            Module(name="avg_pool", class_name="AvgPool2d", arguments=f"kernel_size={pool}, stride={pool}, padding=0"),
        ),
    )
